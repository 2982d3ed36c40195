"""The vision tower: Idefics3's, with the original's patch positions and without the norm that Aria never uses."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from transformers import Idefics3VisionConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings, Idefics3VisionTransformer


@cache
def position_table(num_positions: int) -> Tensor:
    """Position of each patch along one side of an image, for every number of valid patches.

    Args:
        num_positions: rows (= columns) of the learned table, 70 for Aria.

    Returns:
        (num_positions + 1, num_positions) int64 on the CPU; row n holds the positions of n valid patches, then zeros.

    The positions are those of transformers 4.45's Idefics2 embeddings, which the original trained with: patch i of n
    sits in the bucket of ``torch.arange(0, 1, 1 / n)[i]`` as the CPU computes it in float32. transformers 5 multiplies
    i * (1 / n) instead; the rounding differs for one or two patches where 49 or 58 are valid (only at 980 px). Neither
    is the plain rule floor(i * num_positions / n), which differs at 25 and 50 as well.
    """
    boundaries = torch.arange(1 / num_positions, 1.0, 1 / num_positions, device="cpu", dtype=torch.float32)
    table = torch.zeros(num_positions + 1, num_positions, dtype=torch.int64, device="cpu")
    for count in range(1, num_positions + 1):
        step = torch.tensor(1.0, device="cpu", dtype=torch.float32).div(count)
        fractions = torch.arange(0, 1 - 1e-6, step.item(), device="cpu", dtype=torch.float32)
        table[count, :count] = torch.bucketize(fractions, boundaries, right=True)
    return table


@cache
def _position_table_on(num_positions: int, device: torch.device) -> Tensor:
    """A cached copy instead of a buffer: buffers that no checkpoint holds are lost when a network is built on meta."""
    return position_table(num_positions).to(device)


def valid_patches(patch_counts: Tensor, grid: int) -> Tensor:
    """(I, grid, grid) bool, True where a patch shows image content.

    Args:
        patch_counts: (I, 2) int64 rows and columns of patches with content, counted from the top left.
        grid: patches along a side.
    """
    index = torch.arange(grid, device=patch_counts.device)
    inside = index[None, None] < patch_counts[:, :, None]  # (I, 2, grid)
    return inside[:, 0, :, None] & inside[:, 1, None, :]


class AriaVisionEmbeddings(Idefics3VisionEmbeddings):
    """Patch and position embeddings with the original's rounding; see ``position_table``."""

    def forward(self, pixel_values: Tensor, patch_counts: Tensor) -> Tensor:
        """(I, 3, S, S) pixels and (I, 2) valid rows and columns to (I, P, C) embeddings of P = (S / patch)^2 patches.

        Padding patches get position 0.
        """
        patches = self.patch_embedding(pixel_values)  # (I, C, grid, grid)
        grid = patches.shape[-1]
        table = _position_table_on(self.num_patches_per_side, pixel_values.device)[:, :grid]
        rows, columns = table[patch_counts[:, 0]], table[patch_counts[:, 1]]
        positions = rows[:, :, None] * self.num_patches_per_side + columns[:, None, :]
        positions = torch.where(valid_patches(patch_counts, grid), positions, 0)
        return patches.flatten(2).transpose(1, 2) + self.position_embedding(positions.flatten(1))


class UnusedNorm(nn.Module):
    """Weights that the checkpoint holds and nothing uses; buffers, so that they survive export and never wait for a
    gradient."""

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(width))
        self.register_buffer("bias", torch.zeros(width))


class AriaVision(Idefics3VisionTransformer):
    """The tower up to its last layer; its final norm is not part of Aria (hidden state -1, taken before the norm)."""

    def __init__(self, config: Idefics3VisionConfig) -> None:
        super().__init__(config)
        self.embeddings = AriaVisionEmbeddings(config)
        self.post_layernorm = UnusedNorm(config.hidden_size)  # type: ignore[assignment]

    def forward(self, pixel_values: Tensor, patch_counts: Tensor) -> Tensor:  # type: ignore[override]
        """Encode images.

        Args:
            pixel_values: (I, 3, S, S) in the dtype of the tower, normalised; padding at the right and bottom.
            patch_counts: (I, 2) int64 rows and columns of patches with content.

        Returns:
            (I, P, C) states of the last layer; those of padding patches are undefined.
        """
        states = self.embeddings(pixel_values, patch_counts)
        valid = valid_patches(patch_counts, int(states.shape[1] ** 0.5)).flatten(1)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=states, attention_mask=valid)
        return self.encoder(inputs_embeds=states, attention_mask=mask).last_hidden_state
