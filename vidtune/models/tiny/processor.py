"""Frames of 64 x 64 pixels, one token each, in front of a plain question."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from vidtune.contracts import MediaInfo, MediaItem, MediaPlan, Preset, UserError, VisualSpan
from vidtune.media.sampling import Short, fit_short, get_sampling
from vidtune.models.processor import BaseProcessor
from vidtune.text.templates import ChatTemplate, Part

END = "<|end|>"


class TinyProcessor(BaseProcessor):
    """See ``BaseProcessor``.

    Args:
        tokenizer_path: folder of the tokenizer.
        num_frames: frames per video; an image is one frame.
        sampling: policy in ``vidtune.media.sampling``.
        short: what a video with fewer frames gets; see ``vidtune.media.sampling``.
        image_size: side of the square that frames are resized to, in pixels.
    """

    templates: ClassVar = {
        "question_answer": ChatTemplate(
            # A word has one id wherever it stands: with the space before it, in questions and in answers.
            user=(Part(" {content}"),),
            assistant=(Part(" {content}", train=True), Part(END, train=True)),
            generation=(),
        )
    }

    def __init__(
        self,
        tokenizer_path: str,
        num_frames: int,
        sampling: str,
        max_length: int,
        short: Short | None = "repeat",
        image_size: int = 64,
        train_template: str = "question_answer",
        infer_template: str = "question_answer",
    ) -> None:
        super().__init__(
            PreTrainedTokenizerFast.from_pretrained(tokenizer_path), train_template, infer_template, max_length
        )
        self.num_frames, self.sampling, self.short, self.image_size = num_frames, sampling, short, image_size

    def plan_media(self, info: MediaInfo, rng: np.random.Generator, preset: Preset) -> MediaPlan:
        if info.ref.kind not in ("video", "image"):
            raise UserError(f"{info.ref.path}: this model takes videos and images, not {info.ref.kind}.")
        count = 1 if info.ref.kind == "image" else self.num_frames
        chosen = get_sampling(self.sampling)(info.num_frames, count, info.fps, rng)
        indices = tuple(fit_short(chosen, info.num_frames, count, self.short))
        times = tuple(index / info.fps for index in indices)
        return MediaPlan(info, indices, times, (VisualSpan(len(indices)),))

    def load_media(self, plan: MediaPlan, frames: Iterable[np.ndarray]) -> MediaItem:
        pixels = torch.stack([self._pixels(frame) for frame in frames])
        return MediaItem(plan.info.ref.kind, {"pixel_values": pixels}, plan.num_placeholders)

    def dummy_media(self) -> MediaItem:
        return MediaItem("video", {"pixel_values": torch.zeros(1, 3, self.image_size, self.image_size)}, 1, "dummy")

    def _pixels(self, frame: np.ndarray) -> torch.Tensor:
        """(H, W, 3) uint8 to (3, S, S) float32 in [-1, 1]."""
        size = (self.image_size, self.image_size)
        if frame.shape[:2] != size:
            frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
        return torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 127.5 - 1.0
