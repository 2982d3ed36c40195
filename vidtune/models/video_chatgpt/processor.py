"""Video-ChatGPT's input: 100 frames at 224 x 224, one block of 356 positions, Vicuna conversations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidtune.contracts import IGNORE, Encoded, MediaInfo, MediaItem, MediaPlan, Message, Preset, UserError, VisualSpan
from vidtune.media.features import is_features
from vidtune.media.sampling import Short, fit_short, get_sampling
from vidtune.models.loading import resolve_folder
from vidtune.models.processor import BaseProcessor
from vidtune.models.video_chatgpt.tokenizer import VIDEO_END, VIDEO_START, VIDEO_TOKENS, load_tokenizer
from vidtune.text.encode import encode_conversation, render_conversation, truncate
from vidtune.text.templates import ChatTemplate, Part

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""RGB statistics of openai/clip-vit-large-patch14, for values in [0, 1]."""
END_OF_TEXT = "</s>"
ANSWER_PROMPT = " ASSISTANT: "


def _vicuna(system: str, media: Literal["given", "last"] = "given") -> ChatTemplate:
    return ChatTemplate(
        system=(Part("{content} "),),
        user=(Part("USER: {content} "),),
        assistant=(Part("ASSISTANT:"), Part(" {content}" + END_OF_TEXT, train=True)),
        empty_assistant=(Part("ASSISTANT:"),),
        generation=(Part("ASSISTANT:"),),
        default_system=system,
        bos=True,
        strip_at_spans=True,
        media=media,
    )


# No space after "language.": the original lacks it, and the released weights were measured with it so.
INFER_SYSTEM = (
    "You are Video-ChatGPT, a large vision-language assistant. You are able to understand the video content that the "
    "user provides, and assist the user with a variety of tasks using natural language.Follow the instructions "
    "carefully and explain your answers in detail based on the provided video."
)


class VideoChatGPTProcessor(BaseProcessor):
    """Planning, pixels and text of Video-ChatGPT.

    Args:
        tokenizer_path: folder or hub id with ``tokenizer.model``.
        num_frames: frames taken at most; a shorter video gives all it has.
        sampling: name of a policy in ``vidtune.media.sampling``.
        train_template, infer_template: names in ``templates``; the original's differ in their system text, and the one
            it asks with puts the video behind the question, wherever a sample has it.
        max_length: tokens a row may have.
        short: None for the original's rule, zero rows where a video has fewer frames than positions; else how its
            frames are repeated, see ``vidtune.media.sampling``.
        image_size: side in pixels to which frames are stretched; a multiple of ``patch_size``.
        patch_size: side of the tower's patches in pixels.
        num_temporal: positions for the per-frame means, zero rows where a video has fewer frames; more frames than
            that take a position each.
        feature_width: width of precomputed features, checked when a feature file is read.
    """

    templates: ClassVar[dict[str, ChatTemplate]] = {
        "vicuna_v1_1": _vicuna(
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions."
        ),
        # The original asks first and shows the video after it; the second one lets questions share a video.
        "video-chatgpt_v1": _vicuna(INFER_SYSTEM, media="last"),
        "video-chatgpt_v1_as_given": _vicuna(INFER_SYSTEM),
    }

    def __init__(
        self,
        tokenizer_path: str,
        num_frames: int = 100,
        sampling: str = "rounded_midpoints",
        train_template: str = "vicuna_v1_1",
        infer_template: str = "video-chatgpt_v1",
        max_length: int = 2048,
        short: Short | None = None,
        image_size: int = 224,
        patch_size: int = 14,
        num_temporal: int = 100,
        feature_width: int = 1024,
    ) -> None:
        super().__init__(
            load_tokenizer(resolve_folder(tokenizer_path), max_length), train_template, infer_template, max_length
        )
        self.num_frames, self.short = num_frames, short
        self.sample = get_sampling(sampling)
        self.image_size = image_size
        self.num_patches = (image_size // patch_size) ** 2
        self.num_temporal = num_temporal
        self.feature_width = feature_width
        self.start_id, self.end_id = self.tokenizer.convert_tokens_to_ids([VIDEO_START, VIDEO_END])

    # ------------------------------------------------------------------ media

    def plan_media(self, info: MediaInfo, rng: np.random.Generator, preset: Preset) -> MediaPlan:
        """Frames and the one block of positions; of a feature file all rows, which are that block.

        Raises:
            UserError: audio, or features of another model.
        """
        if info.ref.kind == "audio":
            raise UserError(f"{info.ref.path}: Video-ChatGPT takes videos and images, not audio.")
        if is_features(info.ref.path):
            num_placeholders = self.num_temporal + self.num_patches
            self._check_features(info, num_placeholders)
            indices = tuple(range(num_placeholders))
        else:
            count = 1 if info.ref.kind == "image" else self.num_frames
            chosen = self.sample(info.num_frames, count, info.fps, rng)
            indices = tuple(fit_short(chosen, info.num_frames, count, self.short))
            num_placeholders = max(len(indices), self.num_temporal) + self.num_patches
        span = VisualSpan(num_placeholders, (self.start_id,), (self.end_id,))
        return MediaPlan(info, indices, tuple(index / info.fps for index in indices), (span,))

    def load_media(self, plan: MediaPlan, frames: Iterable[np.ndarray]) -> MediaItem:
        """``pixel_values`` (T, 3, H, W) float16; of a feature file ``values`` (N, C) float16 at stage ``features``."""
        kind, name = plan.info.ref.kind, Path(plan.info.ref.path).name
        if is_features(plan.info.ref.path):
            # What stands for an unreadable file are frames, whatever the file should have held.
            rows = [torch.from_numpy(row) if row.ndim == 1 else torch.zeros(self.feature_width) for row in frames]
            return MediaItem(kind, {"values": torch.stack(rows).half()}, plan.num_placeholders, name, "features")
        # Rounded to half precision: the original hands its tower half-precision pixels in every path.
        pixels = [normalize(resize_nearest(frame, self.image_size)).half() for frame in frames]
        return MediaItem(kind, {"pixel_values": torch.stack(pixels)}, plan.num_placeholders, name)

    def _check_features(self, info: MediaInfo, num_rows: int) -> None:
        found, expected = (info.num_frames, info.width), (num_rows, self.feature_width)
        if info.exact and found != expected:
            raise UserError(
                f"{info.ref.path}: features of another model, {found[0]} x {found[1]} instead of {expected[0]} x "
                f"{expected[1]}. Point data.root to features of this model, or set model.processor.num_temporal and "
                f"model.processor.feature_width to theirs."
            )

    def dummy_media(self) -> MediaItem:
        pixels = torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.float16)
        return MediaItem("video", {"pixel_values": pixels}, self.num_temporal + self.num_patches, "dummy")

    # ------------------------------------------------------------------ text

    def encode(
        self,
        messages: Sequence[Message],
        plans: Sequence[MediaPlan],
        *,
        preset: Preset,
        generation: bool = False,
        name: str = "sample",
    ) -> Encoded:
        """Ids and labels; rows that the original masks completely come without a target.

        Raises:
            UserError: the text holds a marker of the video block, or the video does not fit ``max_length``.
        """
        messages, template = _from_first_question(messages), self.presets[preset]
        for message in messages:
            found = [token for token in VIDEO_TOKENS if token in message.text]
            if found:
                raise UserError(f"{name}: the text holds {found[0]!r}, which marks a video. Remove it from the row.")
        encoded = encode_conversation(messages, plans, self.tokenizer, template, generation=generation)
        if preset == "train" and not generation:
            text = render_conversation(messages, plans, template)
            if not self._has_trained_answer(text, encoded):
                encoded.labels = [IGNORE] * encoded.num_tokens
        return truncate(encoded, self.max_length, name, asks=generation or preset == "infer")

    def _has_trained_answer(self, text: str, encoded: Encoded) -> bool:
        """Whether the original's count of the tokens of all turns agrees with the length of the row.

        The original splits the text at the end token and counts turns that hold exactly one answer prompt; it stops
        at the first that does not. It compares the count with the number of ids that are not padding, and since
        ``<unk>`` is the padding, any unknown token spoils it. Rows whose count reaches ``max_length`` are not compared.
        """
        turns = 0
        for turn in text.split(END_OF_TEXT):
            if turn.count(ANSWER_PROMPT) != 1:
                break
            turns += 1
        ends = [index + 1 for index, token in enumerate(encoded.input_ids) if token == self.tokenizer.eos_token_id]
        # The start token counts from the first; a last turn without its end token counts one that is not there.
        counted = ([1, *ends, encoded.num_tokens + 1])[turns]
        visual = set(encoded.visual_positions)
        kept = enumerate(encoded.input_ids[: self.max_length])
        length = sum(token != self.pad_id or position in visual for position, token in kept)
        return counted >= self.max_length or counted == length


def _from_first_question(messages: Sequence[Message]) -> Sequence[Message]:
    """Without an answer that no question precedes, as the original."""
    first = next((index for index, message in enumerate(messages) if message.role != "system"), None)
    if first is None or messages[first].role != "assistant" or messages[first].media:
        return messages
    return [*messages[:first], *messages[first + 1 :]]


def resize_nearest(frame: np.ndarray, size: int) -> Tensor:
    """(H, W, 3) uint8 to (3, size, size) uint8: nearest neighbour, without keeping the aspect ratio.

    The original calls torch's ``interpolate`` in its default mode; CLIP's own resize and crop then find nothing to do.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
    if pixels.shape[1:] == (size, size):
        return pixels
    return F.interpolate(pixels[None].float(), size=(size, size))[0].to(torch.uint8)


def normalize(pixels: Tensor) -> Tensor:
    """(3, H, W) uint8 to float32 by CLIP's statistics; scaled in double precision, as its image processor does."""
    scaled = (pixels.double() * (1 / 255)).float()
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    return (scaled - mean) / std
