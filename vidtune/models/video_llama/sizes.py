"""Sizes of Video-LLaMA outside its language model; the published weight files come without a configuration."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Blip2QFormerConfig, Blip2VisionConfig


@dataclass(frozen=True)
class Sizes:
    """Defaults are the published models: EVA-CLIP-g, BLIP-2's Q-Former on BERT base, ImageBind-huge.

    Args:
        image_size: side of a frame in pixels; a position table of another grid is resized when loaded.
        patch_size: side of a patch in pixels.
        vit_width, vit_layers, vit_heads, vit_mlp: the ViT. The file holds one block more than ``vit_layers``: the
            original uses the features before the last block.
        qformer_width, qformer_heads, qformer_mlp: all Q-Formers.
        qformer_layers: layers of the image Q-Former; every second one looks at the frame.
        num_queries: tokens that the image Q-Former makes of a frame.
        num_video_queries: tokens that the video Q-Former makes of a whole video.
        video_layers: layers of the video and the audio Q-Former; each looks at its input. The original's key
            ``fusion_head_layers`` is read but ignored there, 2 being fixed.
        max_frames: rows of the frame position table.
        audio_width: width of the audio features.
        num_audio_queries: tokens that the audio Q-Former makes of all clips.
        max_audio_clips: rows of the audio position table.
        dropout: in the Q-Formers while they train.
    """

    image_size: int = 224
    patch_size: int = 14
    vit_width: int = 1408
    vit_layers: int = 39
    vit_heads: int = 16
    vit_mlp: int = 6144
    qformer_width: int = 768
    qformer_layers: int = 12
    qformer_heads: int = 12
    qformer_mlp: int = 3072
    num_queries: int = 32
    num_video_queries: int = 32
    video_layers: int = 2
    max_frames: int = 32
    audio_width: int = 1024
    num_audio_queries: int = 8
    max_audio_clips: int = 8
    dropout: float = 0.1

    def vit_config(self) -> Blip2VisionConfig:
        """The EVA ViT; transformers' default initializer range of 1e-10 would make an untrained one silent."""
        return Blip2VisionConfig(
            hidden_size=self.vit_width,
            intermediate_size=self.vit_mlp,
            num_hidden_layers=self.vit_layers,
            num_attention_heads=self.vit_heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
            initializer_range=0.02,
        )

    def image_qformer_config(self) -> Blip2QFormerConfig:
        return self._qformer_config(self.qformer_layers, 2, self.vit_width)

    def video_qformer_config(self) -> Blip2QFormerConfig:
        return self._qformer_config(self.video_layers, 1, self.qformer_width)

    def audio_qformer_config(self) -> Blip2QFormerConfig:
        return self._qformer_config(self.video_layers, 1, self.audio_width)

    def _qformer_config(self, layers: int, frequency: int, encoder_width: int) -> Blip2QFormerConfig:
        return Blip2QFormerConfig(
            hidden_size=self.qformer_width,
            num_hidden_layers=layers,
            num_attention_heads=self.qformer_heads,
            intermediate_size=self.qformer_mlp,
            cross_attention_frequency=frequency,
            encoder_hidden_size=encoder_width,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
        )
