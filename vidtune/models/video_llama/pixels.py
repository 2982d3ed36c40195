"""Pixel steps of Video-LLaMA: the random resized crop, the cast to grey levels, the normalisation.

Axes: T frames, C channels, H height, W width, S image side.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP."""

CROP_SCALE = (0.5, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
"""Area and aspect ratio of the training crop (train_configs/visionbranch_stage2_finetune.yaml keeps the defaults)."""

Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


class Draws(Protocol):
    """The part of a numpy generator that is used; tests pass one that draws as torch does."""

    def uniform(self, low: float, high: float) -> float: ...
    def integers(self, low: int, high: int) -> int: ...


def draw_crop(rng: Draws, height: int, width: int) -> Box:
    """A random box of 50 to 100 % of the area and an aspect ratio of 3/4 to 4/3.

    Source: torchvision, RandomResizedCrop.get_params.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*CROP_SCALE)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            return top, int(rng.integers(0, width - w + 1)), h, w
    # Rare: no box fitted; the largest centred one with an allowed ratio.
    w, h = width, height
    if width / height < CROP_RATIO[0]:
        h = round(w / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        w = round(h * CROP_RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def crop_frames(frames: Tensor, box: Box, side: int, wrap: bool) -> Tensor:
    """One crop for all frames, back to (S, S) with bicubic interpolation.

    Args:
        frames: (T, H, W, C) uint8.
        box: the crop.
        side: S in pixels.
        wrap: let values outside [0, 255], which bicubic interpolation makes at hard edges, wrap around as the
            original does by mistake (-3 becomes 253); else they are clamped.

    Returns:
        (T, C, S, S) uint8.
    """
    top, left, height, width = box
    crop = frames.permute(0, 3, 1, 2)[:, :, top : top + height, left : left + width].float()
    resized = F.interpolate(crop, size=(side, side), mode="bicubic", align_corners=False)
    # Through int32: casting a negative float to uint8 is undefined in C.
    return resized.int().to(torch.uint8) if wrap else resized.clamp(0, 255).to(torch.uint8)


def resize_image(image: np.ndarray, box: Box | None, side: int) -> Tensor:
    """(1, C, S, S) uint8 of an (H, W, C) uint8 image: crop, then bicubic with PIL (which averages when it shrinks)."""
    picture = Image.fromarray(image)
    if box is not None:
        top, left, height, width = box
        picture = picture.crop((left, top, left + width, top + height))
    resized = np.array(picture.resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(resized).permute(2, 0, 1)[None]


def normalize(pixels: Tensor) -> Tensor:
    """(T, C, S, S) uint8 to float32 in units of CLIP's standard deviation."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std
