"""Pixel steps of Aria: tiles, resizing, padding, normalising. PIL throughout, as in the original.

Source of sizes, grids and tie rules: rhymes-ai/Aria, aria/model/vision_processor.py.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GRIDS = (
    *((1, rows) for rows in range(2, 9)),
    *((2, 4), (2, 3), (2, 2), (2, 1), (3, 1), (3, 2), (4, 1), (4, 2)),
    *((columns, 1) for columns in range(5, 9)),
)
"""(columns, rows) an image may be split into, in the order in which ties are broken; 1 x 1 is not among them."""


def content_size(height: int, width: int, max_image_size: int, min_image_size: int) -> tuple[int, int]:
    """(height, width) in pixels that an image fills of the square: the longer side all of it, the shorter one in
    proportion, truncated, at least ``min_image_size`` (more elongated images are distorted)."""
    scale = max_image_size / max(height, width)
    if width >= height:
        return max(int(height * scale), min_image_size), max_image_size
    return max_image_size, max(int(width * scale), min_image_size)


def choose_grid(height: int, width: int, max_image_size: int) -> tuple[int, int]:
    """(columns, rows) of the grid whose aspect ratio is nearest. Of equally near ones a later grid wins only where the
    image has more than half its pixels."""
    best, best_distance = (1, 1), float("inf")
    for columns, rows in GRIDS:
        distance = abs(width / height - columns / rows)
        large = height * width > 0.5 * max_image_size**2 * columns * rows
        if distance < best_distance or (distance == best_distance and large):
            best, best_distance = (columns, rows), distance
    return best


def split_tiles(image: Image.Image, max_image_size: int) -> list[Image.Image]:
    """The whole image, then the tiles of its grid row by row, each square of side ``max_image_size``."""
    columns, rows = choose_grid(image.height, image.width, max_image_size)
    size = max_image_size
    resized = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    boxes = [(x * size, y * size, (x + 1) * size, (y + 1) * size) for y in range(rows) for x in range(columns)]
    return [image, *(resized.crop(box) for box in boxes)]


def resize_and_pad(image: Image.Image, max_image_size: int, min_image_size: int) -> np.ndarray:
    """(S, S, 3) uint8: the image at its content size in the top left corner of a black square."""
    height, width = content_size(image.height, image.width, max_image_size, min_image_size)
    square = np.zeros((max_image_size, max_image_size, 3), np.uint8)
    square[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return square


def normalise(squares: np.ndarray) -> Tensor:
    """(I, S, S, 3) uint8 to (I, 3, S, S) float32 in [-1, 1] (mean and deviation 0.5); padding becomes -1."""
    pixels = torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous().to(torch.float32)
    return pixels.div_(255).sub_(0.5).div_(0.5)
