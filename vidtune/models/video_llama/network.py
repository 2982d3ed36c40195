"""The network of Video-LLaMA: EVA-ViT and BLIP-2 Q-Former per frame, a Q-Former over time, and a LLaMA decoder.

Axes: B media, T frames, C channels, S image side, Q queries per frame, H Q-Former width, A audio feature width,
N visual tokens, D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Blip2VisionModel, LlamaConfig, LlamaForCausalLM

from vidtune.contracts import MediaItem
from vidtune.models.base import VideoLLM
from vidtune.models.video_llama.connector import Connector
from vidtune.models.video_llama.qformer import QueryTransformer
from vidtune.models.video_llama.sizes import Sizes

LN_VISION_EPS = 1e-5
"""The norm after the ViT (``ln_vision``) is a module of its own in the original and has torch's default eps; the norms
inside the blocks have 1e-6, which transformers uses in both places."""


class FrameEncoder(nn.Module):
    """Role ``vision``: every frame by itself to a few tokens; parts ``vit`` and ``qformer``."""

    def __init__(self, sizes: Sizes, attention: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.vit = Blip2VisionModel._from_config(sizes.vit_config(), dtype=dtype, attn_implementation=attention)
        self.vit.post_layernorm.eps = LN_VISION_EPS
        self.qformer = QueryTransformer(sizes.image_qformer_config(), sizes.num_queries, attention, dtype)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(F, C, S, S) normalised frames, of all media one after the other, to (F, Q, H)."""
        # All tokens of the last hidden state, CLS included; the pooler output would apply the norm twice.
        return self.qformer(self.vit(pixel_values=pixel_values).last_hidden_state)


class VideoLlama(VideoLLM):
    """Video-LLaMA, vision-language branch and optional audio-language branch.

    Args:
        sizes: of everything but the decoder.
        language_config: of the decoder.
        dtype: of all parameters.
        attention: implementation in the decoder; see ``vidtune.models.attention``.
        vision_attention: implementation in the ViT and the Q-Formers, ``sdpa`` or ``eager``.
        audio_branch: also build the parts that read audio features.
    """

    def __init__(
        self,
        sizes: Sizes,
        language_config: LlamaConfig,
        dtype: torch.dtype,
        attention: str,
        vision_attention: str,
        audio_branch: bool,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.vision = FrameEncoder(sizes, vision_attention, dtype)
        self.connector = Connector(sizes, language_config.hidden_size, vision_attention, dtype, audio_branch)
        self.language = LlamaForCausalLM._from_config(language_config, dtype=dtype, attn_implementation=attention)

    def features(self, items: Sequence[MediaItem]) -> list[dict[str, Tensor]]:
        """Per item ``values``: (T, Q, H) of a video or image; (T, 1, A) of audio, which comes as features already."""
        seen = [item for item in items if item.kind != "audio"]
        frames = [item.tensors["pixel_values"] for item in seen]
        if not frames:
            # A row of audio alone: the tower still runs once, so that all processes make the same calls (ZeRO-3).
            side = self.sizes.image_size
            self.vision(items[0].tensors["audio_values"].new_zeros(1, 3, side, side))
            encoded: list[Tensor] = []
        else:
            encoded = list(self.vision(torch.cat(frames)).split([len(clip) for clip in frames]))
        queue = iter(encoded)
        return [
            {"values": item.tensors["audio_values"][:, None] if item.kind == "audio" else next(queue)} for item in items
        ]

    def connect(self, items: Sequence[MediaItem]) -> Tensor:
        """(N, D): ``num_video_queries`` tokens per video or image, ``num_audio_queries`` per audio, in item order."""
        return self.connector([item.kind for item in items], [item.tensors["values"] for item in items])
