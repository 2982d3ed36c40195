"""Aria's input: frames as separate images between ``<fim_prefix>`` and ``<fim_suffix>``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from vidtune.contracts import Encoded, MediaInfo, MediaItem, MediaPlan, Message, Preset, UserError, VisualSpan
from vidtune.media.sampling import Short, fit_short, get_sampling
from vidtune.models.aria.images import choose_grid, content_size, normalise, resize_and_pad, split_tiles
from vidtune.models.aria.tokenizer import check_ids, decode_pieces, load_tokenizer
from vidtune.models.processor import BaseProcessor
from vidtune.text.templates import CONTENT, ChatTemplate, Part

START, END = "<|im_start|>", "<|im_end|>"
"""Chat markers: strings, not single tokens, in the released tokenizer. Nothing here depends on which."""

# The original's collator tokenises markers, role, newlines and content each by itself; its evaluation script the whole
# prompt at once. Ids differ where a piece of the vocabulary spans a newline.
_TRAIN = ChatTemplate(
    user=(Part(START), Part("user"), Part("\n"), Part(CONTENT), Part(END), Part("\n")),
    assistant=(
        *(Part(START), Part("assistant"), Part("\n")),
        *(Part(CONTENT, train=True), Part(END, train=True), Part("\n", train=True)),
    ),
    generation=(Part(START), Part("assistant"), Part("\n")),
    tokenize="parts",
)
_INFER = ChatTemplate(
    user=(Part(f"{START}user\n{CONTENT}{END}\n"),),
    assistant=(Part(f"{START}assistant\n"), Part(f"{CONTENT}{END}\n", train=True)),
    generation=(Part(f"{START}assistant\n"),),
    tokenize="joint",
)


VISUAL_TOKENS = {490: 128, 980: 256}
"""Visual tokens of a square, by its side in pixels; those of the released projector."""


class AriaProcessor(BaseProcessor):
    """Frames and images to padded squares, conversations to Aria's chat format.

    Args:
        tokenizer_path: folder or hub id.
        num_frames: frames per video.
        sampling: name of a policy in ``vidtune.media.sampling``; ``stride`` is the original's.
        short: what a video with fewer frames gets; None keeps those of the policy (``stride``: frame 0 only).
        max_image_size: side of the square in pixels.
        min_image_size: least length in pixels of the shorter side of what the square shows.
        visual_tokens: visual tokens of a square, by its side; the sizes that the projector knows.
        patch_size: side of a patch of the tower in pixels.
        split_image: also show tiles of every image that may be tiled, after the whole one.
        max_length: tokens a row may have.
        num_embeddings: rows of the embedding; a tokenizer or a row with ids beyond is refused. None: not checked.
        train_template, infer_template: ``aria_parts`` (the original's training) or ``aria_joint`` (its evaluation).
    """

    templates: ClassVar[Mapping[str, ChatTemplate]] = {"aria_parts": _TRAIN, "aria_joint": _INFER}

    def __init__(
        self,
        tokenizer_path: str,
        num_frames: int = 8,
        sampling: str = "stride",
        short: Short | None = None,
        max_image_size: int = 490,
        min_image_size: int = 336,
        visual_tokens: Mapping[int, int] | None = None,
        patch_size: int = 14,
        split_image: bool = False,
        max_length: int = 4096,
        num_embeddings: int | None = None,
        train_template: str = "aria_parts",
        infer_template: str = "aria_joint",
    ) -> None:
        super().__init__(load_tokenizer(tokenizer_path), train_template, infer_template, max_length)
        self.refuse_settings(max_image_size=max_image_size, visual_tokens=visual_tokens)
        sizes = visual_tokens or VISUAL_TOKENS
        self.num_frames, self.sampling, self.short = num_frames, get_sampling(sampling), short
        self.min_image_size = min_image_size
        self.max_image_size, self.tokens_per_image = max_image_size, sizes[max_image_size]
        self.patch_size, self.split_image = patch_size, split_image
        self._before = tuple(self.tokenizer("<fim_prefix>", add_special_tokens=False)["input_ids"])
        self._after = tuple(self.tokenizer("<fim_suffix>", add_special_tokens=False)["input_ids"])
        self.num_embeddings = num_embeddings
        if num_embeddings is not None:
            check_ids(self.tokenizer, num_embeddings, tokenizer_path)

    def encode(
        self,
        messages: Sequence[Message],
        plans: Sequence[MediaPlan],
        *,
        preset: Preset,
        generation: bool = False,
        name: str = "sample",
    ) -> Encoded:
        encoded = super().encode(messages, plans, preset=preset, generation=generation, name=name)
        beyond = self.num_embeddings is not None and max(encoded.input_ids, default=0) >= self.num_embeddings
        if beyond:
            token = self.tokenizer.convert_ids_to_tokens(max(encoded.input_ids))
            raise UserError(
                f"{name}: its text holds {token!r}, a token with id {max(encoded.input_ids)}, but the model has "
                f"{self.num_embeddings} embeddings. Take it out of the annotation."
            )
        return encoded

    @classmethod
    def setting_faults(cls, max_image_size: int, visual_tokens: Mapping[int, int] | None, **_: Any) -> list[str]:
        sizes = visual_tokens or VISUAL_TOKENS
        if max_image_size in sizes:
            return []
        known = " or ".join(str(size) for size in sorted(sizes))
        return [f"model.processor.max_image_size={max_image_size}: the projector knows {known} only."]

    @classmethod
    def tokens_per_frame(cls, max_image_size: int, visual_tokens: Mapping[int, int] | None, **_: Any) -> int:
        """A frame stands between two markers."""
        return (visual_tokens or VISUAL_TOKENS).get(max_image_size, 0) + 2

    def plan_media(self, info: MediaInfo, rng: np.random.Generator, preset: Preset) -> MediaPlan:
        if info.ref.kind == "audio":
            raise UserError(f"{info.ref.path}: Aria takes videos and images, not audio.")
        if info.ref.kind == "image":
            indices = [0]
        else:
            chosen = self.sampling(info.num_frames, self.num_frames, info.fps, rng)
            indices = fit_short(chosen, info.num_frames, self.num_frames, self.short)
        squares = 1
        if self.split_image and info.ref.tiled:
            columns, rows = choose_grid(info.height, info.width, self.max_image_size)
            squares += columns * rows
        span = VisualSpan(squares * self.tokens_per_image, self._before, self._after)
        times = tuple(index / info.fps for index in indices)
        return MediaPlan(info, tuple(indices), times, (span,) * len(indices))

    def load_media(self, plan: MediaPlan, frames: Iterable[np.ndarray]) -> MediaItem:
        squares, counts = [], []
        split = self.split_image and plan.info.ref.tiled
        for frame in frames:
            image = Image.fromarray(frame)
            for part in split_tiles(image, self.max_image_size) if split else [image]:
                squares.append(resize_and_pad(part, self.max_image_size, self.min_image_size))
                counts.append(self._patch_counts(part.height, part.width))
        tensors = {"pixel_values": normalise(np.stack(squares)), "patch_counts": torch.tensor(counts)}
        return MediaItem(plan.info.ref.kind, tensors, plan.num_placeholders)

    def dummy_media(self) -> MediaItem:
        """One black square with a single valid patch."""
        size = self.max_image_size
        tensors = {"pixel_values": torch.full((1, 3, size, size), -1.0), "patch_counts": torch.tensor([[1, 1]])}
        return MediaItem("image", tensors, self.tokens_per_image, "dummy")

    def _patch_counts(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches that hold at least one pixel of the image."""
        content = content_size(height, width, self.max_image_size, self.min_image_size)
        return -(-content[0] // self.patch_size), -(-content[1] // self.patch_size)

    @property
    def stop_strings(self) -> list[str]:
        return [END]

    @property
    def pad_id(self) -> int:
        """The original pads with ``<unk>`` where there is no pad token. Several snapshots of the released tokenizer add
        a ``<pad>`` behind the last row of the embedding; that one is not used either."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.unk_token_id if pad is None or pad >= self.tokenizer.vocab_size else pad

    def decode(self, ids: Sequence[int]) -> str:
        """The answer up to the first ``<|im_end|>``, without special tokens and surrounding blanks."""
        return decode_pieces(self.tokenizer, ids).split(END)[0].strip()
