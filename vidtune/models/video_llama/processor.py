"""What Video-LLaMA knows about its input: prompts with frame times, scaled and cropped frames, audio features.

Axes: T frames or clips, C channels, S image side, A audio feature width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlamaTokenizer

from vidtune.contracts import MediaInfo, MediaItem, MediaPlan, Preset, UserError, VisualSpan
from vidtune.media.sampling import Short, fit_short, get_sampling
from vidtune.models.processor import BaseProcessor
from vidtune.models.video_llama.pixels import crop_frames, draw_crop, normalize, resize_image
from vidtune.models.video_llama.templates import DEMO, TEMPLATES, media_text
from vidtune.text.templates import lookup

FRAME_FILTER = "swscale_bilinear"
"""decord's resize at decode time, which the original relies on: it averages over the source area when it shrinks."""

SOUND_SCALE = 20.0
"""ImageBind's fixed logit scale of sound; its vision head, used in training, has none."""

STYLES = {"timed": "timed", "plain": "plain", "bare": "bare", "none": "none"}
AudioSource = Literal["frames", "sound"]


class VideoLlamaProcessor(BaseProcessor):
    """Processor of Video-LLaMA.

    Args:
        tokenizer_path: folder of the LLaMA tokenizer (``tokenizer.model`` or ``tokenizer.json``).
        num_frames: frames per video.
        short: how a shorter video is filled up (``repeat`` | ``loop`` | ``pad``); None: it gives fewer frames, as in
            the original.
        sampling: frame choice; the original's are ``segment_starts`` (its "uniform") and ``headtail``.
        train_template, infer_template: names in ``templates``; ``*_demo`` are the original demo's.
        max_length: tokens a row may have.
        image_size: S in pixels.
        num_video_tokens: placeholders of a video or an image.
        max_frames: rows of the network's frame position table.
        media_text: text around a video: ``timed`` frame and the sentence with its times, ``plain`` without the
            sentence (the original's data_type with ``cn``), ``bare`` also without the space after it (its demo with
            audio), ``none`` nothing, where the conversation itself holds the tags (its caption prompts).
        random_crop: crop videos and images at random in training.
        wrap_uint8: let grey levels outside 0..255 wrap around after the crop, as the original does by mistake.
        num_audio_tokens: placeholders of an audio medium.
        max_audio_clips: rows of the network's audio position table.
        audio_width: A, of the stored features.
        train_audio, infer_audio: what the features of an audio medium are of. ``frames``: video frames through
            ImageBind's vision trunk, which read as a video; the original trains its audio branch on nothing else.
            ``sound``: 2 s clips through its audio trunk, all of them used, 20 times larger.
    """

    templates = TEMPLATES

    def __init__(
        self,
        tokenizer_path: str,
        num_frames: int = 8,
        sampling: str = "segment_starts",
        short: Short | None = None,
        train_template: str = "llama_2",
        infer_template: str = "llama_2",
        max_length: int = 512,
        image_size: int = 224,
        num_video_tokens: int = 32,
        max_frames: int = 32,
        media_text: str = "timed",
        random_crop: bool = True,
        wrap_uint8: bool = False,
        num_audio_tokens: int = 8,
        max_audio_clips: int = 8,
        audio_width: int = 1024,
        train_audio: AudioSource = "frames",
        infer_audio: AudioSource = "sound",
    ) -> None:
        super().__init__(load_tokenizer(tokenizer_path), train_template, infer_template, max_length)
        self.num_frames, self.sampling, self.short = num_frames, sampling, short
        self.image_size, self.num_video_tokens, self.max_frames = image_size, num_video_tokens, max_frames
        self.media_text = lookup(STYLES, media_text, "text around media", "model.processor.media_text")
        self.random_crop, self.wrap_uint8 = random_crop, wrap_uint8
        self.num_audio_tokens, self.max_audio_clips, self.audio_width = num_audio_tokens, max_audio_clips, audio_width
        self.audio = {"train": train_audio, "infer": infer_audio}
        self.demo = {"train": train_template in DEMO, "infer": infer_template in DEMO}
        self.refuse_settings(num_frames=num_frames, max_frames=max_frames)
        get_sampling(sampling)

    @classmethod
    def setting_faults(cls, num_frames: int, max_frames: int, **_: Any) -> list[str]:
        if num_frames <= max_frames:
            return []
        return [
            f"data.num_frames={num_frames}, but the network's frame position table has {max_frames} rows. Set "
            f"data.num_frames to at most {max_frames} (the published checkpoints hold 32)."
        ]

    def plan_media(self, info: MediaInfo, rng: np.random.Generator, preset: Preset) -> MediaPlan:
        """Frames by the sampling policy; in training one crop for all of them."""
        kind = info.ref.kind
        source = self.audio[preset] if kind == "audio" else ""
        count = 1 if kind == "image" else self.num_frames
        if source == "sound":
            indices = list(range(info.num_frames))
        else:
            indices = get_sampling(self.sampling)(info.num_frames, count, info.fps, rng)
            indices = fit_short(indices, info.num_frames, count, self.short)
        if source and len(indices) > self.max_audio_clips:
            raise UserError(
                f"{info.ref.path}: {len(indices)} clips of audio features, but the network's audio position table has "
                f"{self.max_audio_clips} rows. Store at most that many, or lower data.num_frames."
            )
        times = tuple(index / info.fps for index in indices)
        reads_as = "video" if source == "frames" else kind
        before, after = media_text(reads_as, times, self.media_text, self.demo[preset])
        span = VisualSpan(self.num_audio_tokens if source else self.num_video_tokens)
        plan = MediaPlan(info, tuple(indices), times, tuple(part for part in (before, span, after) if part))
        if source:
            return replace(plan, extra={"audio": source})
        extra = {}
        side = self.image_size
        if preset == "train" and self.random_crop:
            # Videos are cropped after the decoder has scaled them, images before.
            size = (info.height, info.width) if kind == "image" else (side, side)
            extra = {"crop": draw_crop(rng, *size)}
        if kind == "image":
            return replace(plan, extra=extra)
        return replace(plan, frame_size=(side, side), frame_filter=FRAME_FILTER, extra=extra)

    def load_media(self, plan: MediaPlan, frames: Iterable[np.ndarray]) -> MediaItem:
        """``pixel_values`` (T, C, S, S) float32, or ``audio_values`` (T, A) float32."""
        kind, name = plan.info.ref.kind, plan.info.ref.path
        if kind == "audio":
            values = torch.from_numpy(np.stack(list(frames))).float()
            if values.dim() == 4:
                # Black pictures: the stand-in of a file that could not be read.
                values = values.new_zeros(len(values), self.audio_width)
            if values.shape[1] != self.audio_width:
                raise UserError(
                    f"{name}: features {values.shape[1]} wide, but the audio branch reads {self.audio_width}. Store "
                    f"the output of ImageBind's head, or set model.network.sizes.audio_width."
                )
            scale = SOUND_SCALE if plan.extra["audio"] == "sound" else 1.0
            return MediaItem(kind, {"audio_values": scale * F.normalize(values, dim=-1)}, plan.num_placeholders, name)
        crop = plan.extra.get("crop")
        if kind == "image":
            pixels = resize_image(next(iter(frames)), crop, self.image_size)
        else:
            clip = torch.from_numpy(np.stack(list(frames)))
            if crop is None:
                pixels = clip.permute(0, 3, 1, 2)
            else:
                pixels = crop_frames(clip, crop, self.image_size, self.wrap_uint8)
        return MediaItem(kind, {"pixel_values": normalize(pixels)}, plan.num_placeholders, name)

    def dummy_media(self) -> MediaItem:
        pixels = torch.zeros(1, 3, self.image_size, self.image_size)
        return MediaItem("image", {"pixel_values": pixels}, self.num_video_tokens, "dummy")

    @property
    def stop_strings(self) -> list[str]:
        """Vicuna ends a turn with ``###``, which its vocabulary spells in two ways."""
        return ["###"]


def load_tokenizer(path: str) -> LlamaTokenizer:
    """The LLaMA tokenizer as the original's: a space piece again after every special token (``legacy``), padding by
    ``<unk>``. Both are set here because the files of the checkpoints disagree about them.

    Raises:
        UserError: no tokenizer there, or one that is not LLaMA's.
    """
    try:
        tokenizer = LlamaTokenizer.from_pretrained(path, legacy=True, add_bos_token=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"model.tokenizer_path={path!r}: no LLaMA tokenizer there ({error}). It is the folder of the language "
            f"model, with tokenizer.model or tokenizer.json."
        ) from error
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer
