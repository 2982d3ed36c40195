"""From tower patches to language tokens: the stacking of scales and the token-folding projector.

Axes: B tiles, P patches of a tile (row-major S x S), C tower channels, G tokens along one side of a tile, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidtune.models.nvila.tiling import pyramid_grids
from vidtune.text.templates import lookup

PROJECTORS = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}
"""Projector types of the released models and the patches along one side of a token."""


class FoldTokens(nn.Module):
    """Neighbouring patches into the channels of one token.

    Args:
        factor: k; a token is a block of k x k patches. The grid is zero-padded at the bottom and the right.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, patches: Tensor) -> Tensor:
        """(B, S*S, C) to (B, G*G, k*k*C), G = ceil(S / k); both grids row-major, blocks row-major in the channels."""
        # Source: NVlabs/VILA, base_projector.py (main; VILA1.5 emits the same tokens column-major).
        k = self.factor
        side = math.isqrt(patches.shape[1])
        grid = patches.unflatten(1, (side, side))
        pad = -side % k
        grid = F.pad(grid, (0, 0, 0, pad, 0, pad))
        tokens = (side + pad) // k
        blocks = grid.unflatten(2, (tokens, k)).unflatten(1, (tokens, k))
        return blocks.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


class Projector(nn.Module):
    """Folds patches and maps them to the width of the language model.

    Args:
        kind: name in ``PROJECTORS``.
        in_width: channels of a patch.
        out_width: width of the language model.

    Raises:
        UserError: unknown ``kind``.
    """

    def __init__(self, kind: str, in_width: int, out_width: int) -> None:
        super().__init__()
        self.factor = lookup(PROJECTORS, kind, "projector type", "mm_projector_type")
        folded = in_width * self.factor**2
        layers: list[nn.Module] = [FoldTokens(self.factor), nn.LayerNorm(folded)]
        if self.factor == 3:
            inner = 3 * in_width
            layers += [nn.Linear(folded, inner), nn.GELU(), nn.LayerNorm(inner), nn.Linear(inner, out_width)]
        else:
            layers += [nn.Linear(folded, out_width)]
        self.layers = nn.Sequential(*layers, nn.GELU(), nn.Linear(out_width, out_width))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, P, in_width) to (B, G*G, out_width), in the dtype of the weights: a frozen tower may run in another."""
        return self.layers(patches.to(next(self.parameters()).dtype))


def stack_scales(tiles: Tensor, scales: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """Lay the feature maps of all scales over one another.

    Args:
        tiles: (B, P, C) tower output of one picture, scale after scale, each row by row.
        scales: side lengths of the scales in pixels.
        grid: (columns, rows) of the last scale.

    Returns:
        (columns*rows, P, C*scales): the tiles of the last scale, each with the channels of all scales at its place.
    """
    # Source: NVlabs/VILA, llava_arch.merge_features_for_dynamic_s2.
    side = math.isqrt(tiles.shape[1])
    grids = pyramid_grids(scales, grid)
    parts = tiles.split([columns * rows for columns, rows in grids])
    maps = [stitch(part, scale_grid) for part, scale_grid in zip(parts, grids, strict=True)]
    columns, rows = grid
    resized = [
        F.interpolate(feature.permute(2, 0, 1)[None].float(), (rows * side, columns * side), mode="area")[0]
        for feature in maps
    ]
    merged = torch.cat(resized).to(tiles.dtype).permute(1, 2, 0)
    blocks = merged.unflatten(1, (columns, side)).unflatten(0, (rows, side))
    return blocks.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)


def stitch(tiles: Tensor, grid: tuple[int, int]) -> Tensor:
    """(columns*rows, n*n, X) tiles, row by row, to one (rows*n, columns*n, X) map."""
    columns, rows = grid
    side = math.isqrt(tiles.shape[1])
    blocks = tiles.unflatten(1, (side, side)).unflatten(0, (rows, columns))
    return blocks.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
