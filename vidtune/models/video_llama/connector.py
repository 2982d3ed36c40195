"""From frame tokens to decoder embeddings: Q-Former over time and projection, for video and for audio."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidtune.models.video_llama.qformer import TemporalQFormer
from vidtune.models.video_llama.sizes import Sizes


class Connector(nn.Module):
    """Role ``connector``. Parts follow the original's freeze flags: ``video_qformer`` (with frame positions and video
    queries: ``frozen_video_Qformer``), ``projection`` (``frozen_llama_proj``), ``audio_qformer`` and
    ``audio_projection`` (both ``frozen_audio_Qformer``).

    Args:
        sizes: of the Q-Formers.
        width: D, of the decoder.
        attention: ``sdpa`` or ``eager``.
        dtype: of all parameters.
        audio_branch: build the audio parts.
    """

    def __init__(self, sizes: Sizes, width: int, attention: str, dtype: torch.dtype, audio_branch: bool) -> None:
        super().__init__()
        self.sizes = sizes
        self.video_qformer = TemporalQFormer(
            sizes.video_qformer_config(), sizes.num_video_queries, sizes.max_frames, attention, dtype
        )
        self.projection = nn.Linear(sizes.qformer_width, width, dtype=dtype)
        self.audio_qformer: TemporalQFormer | None = None
        self.audio_projection: nn.Linear | None = None
        if audio_branch:
            self.audio_qformer = TemporalQFormer(
                sizes.audio_qformer_config(), sizes.num_audio_queries, sizes.max_audio_clips, attention, dtype
            )
            self.audio_projection = nn.Linear(sizes.qformer_width, width, dtype=dtype)

    def forward(self, kinds: Sequence[str], values: Sequence[Tensor]) -> Tensor:
        """Visual tokens in the order of the media.

        Args:
            kinds: ``video``, ``image`` (one frame) or ``audio`` per medium.
            values: per medium (T, Q, H) frame tokens, or (T, 1, A) audio features.

        Returns:
            (N, D).
        """
        is_audio = [kind == "audio" for kind in kinds]
        videos = [value for value, audio in zip(values, is_audio, strict=True) if not audio]
        audios = [value for value, audio in zip(values, is_audio, strict=True) if audio]
        if self.audio_qformer is None or self.audio_projection is None:
            if audios:
                raise ValueError(
                    "the row holds audio but the network has no audio branch (model.network.audio_branch)."
                )
            return self.projection(self.video_qformer(videos)).flatten(0, 1)
        # Both branches run in every row, one perhaps on a stand-in: every process makes the same calls.
        stand_in = values[0]
        video = self.projection(
            self.video_qformer(videos or [stand_in.new_zeros(1, self.sizes.num_queries, self.sizes.qformer_width)])
        )
        audio = self.audio_projection(self.audio_qformer(audios or [stand_in.new_zeros(1, 1, self.sizes.audio_width)]))
        idle = 0.0 if videos and audios else 0.0 * (audio.sum() if videos else video.sum())
        queues = {True: iter(audio), False: iter(video)}
        return torch.cat([next(queues[audio]) for audio in is_audio]) + idle
