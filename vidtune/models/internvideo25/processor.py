"""Frames, prompts and pixels of InternVideo2.5."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vidtune.contracts import MediaInfo, MediaItem, MediaPlan, Preset, UserError, VisualSpan
from vidtune.media.sampling import Short, fit_short, frame_count_by_duration, get_sampling
from vidtune.models.internvideo25.prompts import FORMS
from vidtune.models.internvideo25.tokenizer import decode_text, load_tokenizer
from vidtune.models.loading import resolve_folder
from vidtune.models.processor import BaseProcessor
from vidtune.text.templates import ChatTemplate, lookup

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class InternVideo25Processor(BaseProcessor):
    """Input of InternVideo2.5.

    Args:
        tokenizer_path: folder (or hub id) with ``tokenizer.json`` or ``tokenizer.model``.
        num_frames: frames of a video, at most.
        min_frames: frames of a video, at least; None for always ``num_frames``. Between the two a video gets one frame
            a second, down to a multiple of 8, as the fine-tuner counts.
        sampling: frame choice under the preset ``train``.
        infer_sampling: frame choice under the preset ``infer``; None for the same. The chat call's is ``chat``.
        short: what a video with fewer frames than asked gets; None for the rule of its ``sampling``.
        train_template, infer_template: prompt forms in ``prompts.FORMS``.
        max_length: tokens a row may have.
        image_size: side of a frame in pixels; the tower's.
        clip_frames: consecutive frames that the network merges together; frame counts are multiples of it.
        clip_tokens: visual tokens of such a group.

    Raises:
        UserError: a frame count that is no multiple of ``clip_frames``, or an unknown name.
    """

    templates: ClassVar[dict[str, ChatTemplate]] = {name: form.template for name, form in FORMS.items()}

    def __init__(
        self,
        tokenizer_path: str,
        num_frames: int = 8,
        min_frames: int | None = None,
        sampling: str = "middle",
        infer_sampling: str | None = None,
        short: Short | None = None,
        train_template: str = "internvl2_5",
        infer_template: str = "internvl2_5",
        max_length: int = 8192,
        image_size: int = 448,
        clip_frames: int = 4,
        clip_tokens: int = 64,
    ) -> None:
        tokenizer = load_tokenizer(resolve_folder(tokenizer_path))
        super().__init__(tokenizer, train_template, infer_template, max_length)
        self.forms = {
            "train": lookup(FORMS, train_template, "prompt form", "model.processor.train_template"),
            "infer": lookup(FORMS, infer_template, "prompt form", "model.processor.infer_template"),
        }
        self.sampling = {"train": get_sampling(sampling), "infer": get_sampling(infer_sampling or sampling)}
        self.short = short
        self.num_frames, self.min_frames = num_frames, num_frames if min_frames is None else min_frames
        self.image_size, self.clip_frames, self.frame_tokens = image_size, clip_frames, clip_tokens // clip_frames
        self.refuse_settings(num_frames=num_frames, min_frames=min_frames, clip_frames=clip_frames)
        self._image_start, self._image_end, self._turn_end = tokenizer.convert_tokens_to_ids(
            ["<img>", "</img>", "<|im_end|>"]
        )

    @classmethod
    def setting_faults(cls, num_frames: int, min_frames: int | None, clip_frames: int, **_: Any) -> list[str]:
        asked = {"data.num_frames": num_frames}
        if min_frames is not None:
            asked["model.processor.min_frames"] = min_frames
        faults = [
            f"{name}={frames}: InternVideo2.5 merges {clip_frames} consecutive frames at a time. Set it to a "
            f"multiple of {clip_frames}, for instance {max(1, round(frames / clip_frames)) * clip_frames}."
            for name, frames in asked.items()
            if frames < 1 or frames % clip_frames
        ]
        if min_frames is not None and min_frames > num_frames:
            faults.append(f"model.processor.min_frames={min_frames} is above data.num_frames={num_frames}.")
        return faults

    @classmethod
    def tokens_per_frame(cls, clip_frames: int, clip_tokens: int, **_: Any) -> int:
        """A frame's share of what its group is merged to, between two markers."""
        return clip_tokens // clip_frames + 2

    def plan_media(self, info: MediaInfo, rng: np.random.Generator, preset: Preset) -> MediaPlan:
        """Frames of a video and the lines that announce them.

        Raises:
            UserError: not a video: single images cannot be merged in groups of frames.
        """
        if info.ref.kind != "video":
            raise UserError(
                f"{info.ref.path}: InternVideo2.5 takes videos, this is an {info.ref.kind}; it merges "
                f"{self.clip_frames} consecutive frames. Leave such rows out of data.* or choose another model."
            )
        form = self.forms[preset]
        count = frame_count_by_duration(info.duration_s, self.min_frames, self.num_frames)
        chosen = self.sampling[preset](info.num_frames, count, info.fps, rng)
        indices = fit_short(chosen, info.num_frames, count, self.short)
        if len(indices) != count:
            raise UserError(
                f"{info.ref.path}: data.sampling gave {len(indices)} frames instead of {count}, which cannot be merged "
                f"in groups of {self.clip_frames}. Set data.sampling=middle, or media.short=pad for short videos."
            )
        span = VisualSpan(self.frame_tokens, (self._image_start,), (self._image_end,))
        content: list[str | VisualSpan] = []
        if form.duration_sentence:
            content.append(
                f"The video lasts for {info.duration_s:.2f} seconds, "
                f"and {count} frames are uniformly sampled from it.\n"
            )
        for number in range(1, count + 1):
            content += [f"Frame{number}: " if number == 1 else f"\nFrame{number}: ", span]
        if form.newline_after_frames:
            content.append("\n")
        return MediaPlan(info, tuple(indices), tuple(index / info.fps for index in indices), tuple(content))

    def load_media(self, plan: MediaPlan, frames: Iterable[np.ndarray]) -> MediaItem:
        """``pixel_values`` (T, 3, S, S) float32: PIL bicubic on uint8 straight to the square, ImageNet normalisation.

        The resize rounds to uint8; one on floats would be finer, and enough to merge other tokens.
        """
        pixels = torch.stack([self._pixels(Image.fromarray(frame)) for frame in frames])
        return MediaItem("video", {"pixel_values": pixels}, plan.num_placeholders, plan.info.ref.path)

    def dummy_media(self) -> MediaItem:
        """One group of white frames; the original's single one cannot be merged."""
        white = self._pixels(Image.new("RGB", (self.image_size, self.image_size), (255, 255, 255)))
        pixels = white.repeat(self.clip_frames, 1, 1, 1)
        return MediaItem("video", {"pixel_values": pixels}, self.clip_frames * self.frame_tokens, "dummy")

    def _pixels(self, image: Image.Image) -> Tensor:
        image = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
        return (values - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]

    @property
    def stop_ids(self) -> list[int]:
        """``<|im_end|>``; the tokenizer's EOS may stand inside an answer."""
        return [self._turn_end]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, as the original prints it."""
        return decode_text(self.tokenizer, ids).strip()
