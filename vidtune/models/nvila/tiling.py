"""How a picture is cut into square tiles.

Grids are written (columns, rows), as pictures are (width, height); ``rows, columns`` is said where it is meant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BICUBIC = Image.Resampling.BICUBIC


def choose_grid(width: int, height: int, tile_size: int, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) whose shape is nearest to that of the picture.

    Candidates come in order of their number of tiles. Of two that are equally near the later one wins only where the
    picture has more than half of its pixels; apart from that the size of the picture plays no part, so that a small
    4:3 picture is enlarged to 12 tiles.
    """
    # Source: NVlabs/VILA, mm_utils.dynamic_preprocess (taken from InternVL).
    candidates = {
        (columns, rows)
        for number in range(min_tiles, max_tiles + 1)
        for columns in range(1, number + 1)
        for rows in range(1, number + 1)
        if min_tiles <= columns * rows <= max_tiles
    }
    best, best_distance = (1, 1), float("inf")
    for columns, rows in sorted(candidates, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        fills = width * height > 0.5 * tile_size**2 * columns * rows
        if distance < best_distance or (distance == best_distance and fills):
            best, best_distance = (columns, rows), distance
    return best


def num_tiles(grid: tuple[int, int]) -> int:
    """Tiles of a grid with the thumbnail that every grid of more than one tile gets."""
    tiles = grid[0] * grid[1]
    return tiles + 1 if tiles > 1 else tiles


def pyramid_grids(scales: Sequence[int], last: tuple[int, int]) -> list[tuple[int, int]]:
    """Grids of all scales of dynamic-S2: squares of 1, 2, ... tiles a side, and the chosen grid for the last scale."""
    return [(scale // scales[0],) * 2 for scale in scales[:-1]] + [last]


def choose_pyramid_grid(width: int, height: int, scales: Sequence[int], max_tiles: int) -> tuple[int, int]:
    """(columns, rows) of the last scale of dynamic-S2: at least as many tiles as its square would have."""
    # Source: NVlabs/VILA, mm_utils.dynamic_s2_preprocess.
    return choose_grid(width, height, scales[0], (scales[-1] // scales[0]) ** 2, max_tiles)


def cut(image: Image.Image, tile_size: int, grid: tuple[int, int]) -> list[Image.Image]:
    """Resize a picture to the grid and cut it row by row into tiles of ``tile_size`` x ``tile_size``."""
    columns, rows = grid
    resized = image.resize((tile_size * columns, tile_size * rows), BICUBIC)
    return [
        resized.crop((left, top, left + tile_size, top + tile_size))
        for top in range(0, tile_size * rows, tile_size)
        for left in range(0, tile_size * columns, tile_size)
    ]


def to_pixels(tiles: Sequence[Image.Image]) -> Tensor:
    """(tiles, 3, H, W) float32 in [-1, 1]: x / 255, then mean 0.5 and standard deviation 0.5 per channel."""
    stack = np.stack([np.asarray(tile, dtype=np.float32) for tile in tiles])
    return torch.from_numpy(stack / 255.0 * 2.0 - 1.0).permute(0, 3, 1, 2).contiguous()
