"""HiCo token compression: patches of a group of frames merged into few visual tokens. No parameters.

Axes: B clips (groups of consecutive frames), P tokens of a clip, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def space_to_depth(grid: Tensor) -> Tensor:
    """2 x 2 neighbouring patches into one token, row-major grid order kept (``ps_version`` v2 of the original).

    Args:
        grid: (T, H, W, C), H and W even.

    Returns:
        (T, H/2, W/2, 4C); channels run over row, then column, then C.
    """
    frames, height, width, channels = grid.shape
    blocks = grid.view(frames, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
    return blocks.reshape(frames, height // 2, width // 2, 4 * channels)


def merge_schedule(num_tokens: int, target: int) -> list[int]:
    """How many tokens to merge away in each round: at most half of what is left.

    Raises:
        ValueError: fewer tokens than the target.
    """
    if num_tokens < target:
        raise ValueError(f"{num_tokens} tokens cannot be merged into {target}.")
    schedule = []
    while num_tokens > target:
        schedule.append(min(num_tokens - target, num_tokens // 2))
        num_tokens -= schedule[-1]
    return schedule


def merge_round(tokens: Tensor, sizes: Tensor, num_merged: int, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the ``num_merged`` even tokens that are most like an odd one into that odd one.

    Likeness is the cosine between tokens averaged over ``num_heads`` slices of their channels. It is chosen without
    gradient; the average that follows carries it.

    Args:
        tokens: (B, P, C); computed in this dtype, since another one picks other partners.
        sizes: (B, P, 1) patches that each token stands for.
        num_merged: at most P // 2.
        num_heads: must divide C; the original takes the *language model's* number of heads.

    Returns:
        Tokens and sizes, (B, P - num_merged, .): even tokens that are left, most alike first, then all odd ones; and
        the partner of every even token as index among the odd ones, (B, ceil(P / 2)) int64.
    """
    # Source: ToMe (arXiv 2210.09461), bipartite soft matching, as InternVideo2.5's HiCo uses it.
    batch, length, width = tokens.shape
    with torch.no_grad():
        metric = F.normalize(tokens.view(batch, length, num_heads, width // num_heads).mean(2), dim=-1)
        likeness, partner = (metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)).max(dim=-1)
        order = likeness.argsort(dim=-1, descending=True)[..., None]
        merged, kept = order[:, :num_merged], order[:, num_merged:]
        target = partner[..., None].gather(1, merged)

    def pool(values: Tensor) -> Tensor:
        even, odd, channels = values[:, ::2], values[:, 1::2], values.shape[2]
        moved = even.gather(1, merged.expand(-1, -1, channels))
        odd = odd.scatter_add(1, target.expand(-1, -1, channels), moved)
        return torch.cat([even.gather(1, kept.expand(-1, -1, channels)), odd], dim=1)

    summed, sizes = pool(tokens * sizes), pool(sizes)
    return summed / sizes, sizes, partner


def merge_tokens(tokens: Tensor, target: int, num_heads: int) -> Tensor:
    """Merge (B, P, C) tokens round by round into (B, target, C); clips do not touch one another.

    Where P / target is a power of two, every round merges all even tokens, so that order is kept and each surviving
    token belongs to the frame it stands in (1024 to 64: positions 15, 31, ... of the clip, 16 in each of 4 frames).
    """
    sizes = torch.ones_like(tokens[..., :1])
    for num_merged in merge_schedule(tokens.shape[1], target):
        tokens, sizes, _ = merge_round(tokens, sizes, num_merged, num_heads)
    return tokens
