"""What NVILA needs to know about text and pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer

from vidtune.contracts import MediaInfo, MediaItem, MediaPlan, Preset, UserError, VisualSpan
from vidtune.media.sampling import Short, fit_short, get_sampling
from vidtune.models.loading import resolve_folder
from vidtune.models.nvila.config import LANGUAGE
from vidtune.models.nvila.tiling import (
    choose_grid,
    choose_pyramid_grid,
    cut,
    num_tiles,
    pyramid_grids,
    to_pixels,
)
from vidtune.models.processor import BaseProcessor
from vidtune.text.templates import ChatTemplate, Part, lookup

IMAGE_MODES = {
    "dynamic": "a grid of tiles shaped like the picture, and a thumbnail (NVILA-Lite)",
    "dynamic_s2": "three scales laid over one another (NVILA)",
    "resize": "one tile",
}
SYSTEM = "You are a helpful assistant"
"""Without a full stop, unlike the text of stock Qwen2."""


def _template(default_system: str | None, labels: Literal["parts", "matched"] = "parts") -> ChatTemplate:
    return ChatTemplate(
        system=(Part("<|im_start|>system\n{content}<|im_end|>\n"),),
        user=(Part("<|im_start|>user\n{content}<|im_end|>\n"),),
        assistant=(Part("<|im_start|>assistant\n"), Part("{content}<|im_end|>", train=True), Part("\n")),
        generation=(Part("<|im_start|>assistant\n"),),
        default_system=default_system,
        strip_content=True,
        labels=labels,
    )


def _tile_tokens(image_size: int, patch_size: int, fold: int) -> int:
    """Visual tokens of a tile: patches along a side, folded and rounded up, squared."""
    return (-(-(image_size // patch_size) // fold)) ** 2


class NVILAProcessor(BaseProcessor):
    """Chat text, tiles and frames of NVILA.

    A tile is one span: its visual tokens, then the ids of a newline. In mode ``dynamic`` the conversation holds one
    more newline after each tile, which is text and never merges with the one of the span.

    Args:
        tokenizer_path: folder or hub id of a checkpoint (tokenizer in ``llm/``) or of a saved tokenizer.
        num_frames: frames of a video, one tile each.
        sampling: policy in ``vidtune.media.sampling`` that chooses them.
        short: what a video with fewer frames gets; None keeps the frames of the policy, which repeats some.
        train_template, infer_template: names in ``templates``.
        max_length: tokens a row may have.
        image_mode: name in ``IMAGE_MODES``; images whose ``MediaRef.tiled`` is off always take one tile.
        image_size: side of a tile in pixels; that of the tower.
        patch_size: side of a patch in pixels; that of the tower.
        fold: patches along one side of a token; that of the projector.
        min_tiles, max_tiles: tiles of a picture, the thumbnail not counted.
        scales: sides in pixels of the scales of dynamic-S2, ascending; the first is ``image_size``.

    Raises:
        UserError: unknown mode, template or sampling policy, or tile numbers that exclude one another.
    """

    templates: ClassVar[Mapping[str, ChatTemplate]] = {
        "nvila": _template(SYSTEM),
        "nvila_no_system": _template(None),
        # The original compares ids to find answers; a lone newline in one then trades places with a framing newline.
        "nvila_original_labels": _template(SYSTEM, labels="matched"),
        "nvila_no_system_original_labels": _template(None, labels="matched"),
    }

    def __init__(
        self,
        tokenizer_path: str,
        num_frames: int = 8,
        sampling: str = "linspace",
        short: Short | None = None,
        train_template: str = "nvila",
        infer_template: str = "nvila",
        max_length: int = 4096,
        image_mode: str = "dynamic",
        image_size: int = 448,
        patch_size: int = 14,
        fold: int = 3,
        min_tiles: int = 1,
        max_tiles: int = 12,
        scales: Sequence[int] = (448, 896, 1344),
    ) -> None:
        folder = resolve_folder(tokenizer_path)
        if (folder / LANGUAGE).is_dir():
            folder = folder / LANGUAGE
        super().__init__(AutoTokenizer.from_pretrained(folder), train_template, infer_template, max_length)
        lookup(IMAGE_MODES, image_mode, "image mode", "model.processor.image_mode")
        self.tokens_per_tile = _tile_tokens(image_size, patch_size, fold)
        self.refuse_settings(image_mode=image_mode, min_tiles=min_tiles, max_tiles=max_tiles, scales=scales)
        self.num_frames = num_frames
        self.sampling, self.short = sampling, short
        self.image_mode = image_mode
        self.image_size = image_size
        self.min_tiles, self.max_tiles = min_tiles, max_tiles
        self.scales = tuple(scales)
        self.newline_ids = tuple(self.tokenizer("\n", add_special_tokens=False)["input_ids"])

    @classmethod
    def setting_faults(
        cls, image_mode: str, min_tiles: int, max_tiles: int, scales: Sequence[int], **_: Any
    ) -> list[str]:
        fewest = (scales[-1] // scales[0]) ** 2 if image_mode == "dynamic_s2" else min_tiles
        if 1 <= fewest <= max_tiles:
            return []
        return [
            f"model.processor.max_tiles is {max_tiles}, but mode {image_mode!r} cuts a picture into at least "
            f"{fewest} tiles. Raise max_tiles, or set model.processor.image_mode to resize."
        ]

    @classmethod
    def tokens_per_frame(cls, image_size: int, patch_size: int, fold: int, **_: Any) -> int:
        """A newline ends each frame."""
        return _tile_tokens(image_size, patch_size, fold) + 1

    def plan_media(self, info: MediaInfo, rng: np.random.Generator, preset: Preset) -> MediaPlan:
        """Frames and spans of one video, or tiles and spans of one image; the same for both presets.

        Raises:
            UserError: the medium is neither.
        """
        if info.ref.kind == "video":
            chosen = get_sampling(self.sampling)(info.num_frames, self.num_frames, info.fps, rng)
            indices = fit_short(chosen, info.num_frames, self.num_frames, self.short)
            times = tuple(index / info.fps for index in indices)
            return MediaPlan(info, tuple(indices), times, (self._span(1),) * len(indices))
        if info.ref.kind != "image":
            raise UserError(f"{info.ref.path}: NVILA takes videos and images, not {info.ref.kind}.")
        content: tuple[str | VisualSpan, ...] = (self._span(1),)
        extra = {}
        if info.ref.tiled and self.image_mode == "dynamic":
            grid = choose_grid(info.width, info.height, self.image_size, self.min_tiles, self.max_tiles)
            content = (self._span(1), "\n") * num_tiles(grid)
            extra = {"grid": grid}
        elif info.ref.tiled and self.image_mode == "dynamic_s2":
            grid = choose_pyramid_grid(info.width, info.height, self.scales, self.max_tiles)
            content = (self._span(grid[0] * grid[1]),)
            extra = {"grid": grid}
        return MediaPlan(info, (0,), (0.0,), content, extra=extra)

    def load_media(self, plan: MediaPlan, frames: Iterable[np.ndarray]) -> MediaItem:
        """``pixel_values`` (tiles, 3, H, W) float32 in [-1, 1], and ``grid`` (columns, rows) int64 of dynamic-S2."""
        tiles = [tile for frame in frames for tile in self._tiles(Image.fromarray(frame), plan.extra.get("grid"))]
        tensors = {"pixel_values": to_pixels(tiles)}
        if "grid" in plan.extra and self.image_mode == "dynamic_s2":
            tensors["grid"] = torch.tensor(plan.extra["grid"])
        ref = plan.info.ref
        return MediaItem(ref.kind, tensors, plan.num_placeholders, ref.path)

    def dummy_media(self) -> MediaItem:
        """One grey tile."""
        pixels = torch.zeros(1, 3, self.image_size, self.image_size)
        return MediaItem("image", {"pixel_values": pixels}, self.tokens_per_tile, "dummy")

    def _span(self, tiles: int) -> VisualSpan:
        return VisualSpan(tiles * self.tokens_per_tile, after_ids=self.newline_ids)

    def _tiles(self, image: Image.Image, grid: tuple[int, int] | None) -> list[Image.Image]:
        """Tiles in the order in which the network takes them."""
        if grid is None:
            return cut(image, self.image_size, (1, 1))
        if self.image_mode == "dynamic_s2":
            return [
                tile
                for scale_grid in pyramid_grids(self.scales, grid)
                for tile in cut(image, self.image_size, scale_grid)
            ]
        thumbnail = cut(image, self.image_size, (1, 1)) if num_tiles(grid) > 1 else []
        return cut(image, self.image_size, grid) + thumbnail
