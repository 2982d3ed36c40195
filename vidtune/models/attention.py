"""Attention over packed rows: one mask description, several executions.

A packed row holds segments that must not see each other; inside a segment a token sees the earlier tokens of the shared
prefix (branch 0) and of its own branch (see ``vidtune.contracts.Batch``). ``PackedLayout`` describes this once per
forward. The executions are registered with transformers' attention interface, so that every decoder of it runs packed
rows without being changed; without a layout (generation, padded batches) they fall through to plain SDPA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_SDPA = "vidtune_packed_sdpa"
_MAX_LENGTH_RATIO = 1.5
"""Segments run together in one call while the longest is at most this much longer than the shortest."""


@dataclass
class Bucket:
    """Segments of similar length, padded to one another.

    Args:
        rows: (G, M) int64, position in the row of every slot; padded slots repeat a segment's first position.
        mask: (G, 1, M, M) bool, True where the query (axis 2) sees the key (axis 3).
        valid: (G, M) bool, False in padded slots.
    """

    rows: Tensor
    mask: Tensor
    valid: Tensor


@dataclass
class PackedLayout:
    """Who sees whom in a packed row.

    Args:
        buckets: segments grouped by length; every position of the row is valid in exactly one slot.
    """

    buckets: list[Bucket]

    @staticmethod
    def build(segment_ids: Tensor, branch_ids: Tensor) -> PackedLayout:
        """From (1, L) int64 segment and branch ids; segments are contiguous, branches within them too."""
        segments, branches = segment_ids[0], branch_ids[0]
        lengths = torch.unique_consecutive(segments, return_counts=True)[1].tolist()
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        groups: list[list[int]] = []
        for index in order:
            if groups and lengths[index] <= _MAX_LENGTH_RATIO * lengths[groups[-1][0]]:
                groups[-1].append(index)
            else:
                groups.append([index])
        buckets = []
        for group in groups:
            longest = max(lengths[index] for index in group)
            slots = torch.arange(longest, device=segments.device)
            start = torch.tensor([starts[index] for index in group], device=segments.device)[:, None]
            length = torch.tensor([lengths[index] for index in group], device=segments.device)[:, None]
            valid = slots[None] < length
            rows = start + torch.where(valid, slots[None], 0)
            branch = branches[rows]
            sees_branch = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
            causal = slots[None, :, None] >= slots[None, None, :]
            # A padded slot attends to itself alone, so that no softmax is empty; its result is dropped.
            mask = (causal & sees_branch & valid[:, None, :]) | torch.eye(
                longest, dtype=torch.bool, device=segments.device
            )
            buckets.append(Bucket(rows, mask[:, None], valid))
        return PackedLayout(buckets)

    def dense_mask(self, length: int) -> Tensor:
        """(L, L) bool, the whole mask at once; the description that the tests compare every execution with."""
        mask = torch.zeros(length, length, dtype=torch.bool, device=self.buckets[0].rows.device)
        for bucket in self.buckets:
            for rows, seen, valid in zip(bucket.rows, bucket.mask[:, 0], bucket.valid):
                rows = rows[valid]
                mask[rows[:, None], rows[None, :]] = seen[valid][:, valid]
        return mask


def packed_sdpa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_layout: PackedLayout | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """SDPA per bucket of segments: memory grows with the squares of the segments, not with that of the row.

    Args:
        query: (1, heads, L, head_dim); key, value: (1, key-value heads, L, head_dim).
        packed_layout: who sees whom; None for the padded layout, which plain SDPA runs.

    Returns:
        (1, L, heads, head_dim) and None, as transformers' attention functions do.
    """
    if packed_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    length, group = query.shape[2], query.shape[1] // key.shape[1]
    out = query.new_empty(length, query.shape[1], value.shape[3])
    for bucket in packed_layout.buckets:
        q, k, v = (states[0][:, bucket.rows].transpose(0, 1) for states in (query, key, value))
        if group > 1:
            k, v = (states.repeat_interleave(group, dim=1) for states in (k, v))
        result = F.scaled_dot_product_attention(q, k, v, attn_mask=bucket.mask, dropout_p=dropout, scale=scaling)
        out = out.index_put((bucket.rows[bucket.valid],), result.transpose(1, 2)[bucket.valid])
    return out[None], None


AttentionInterface.register(PACKED_SDPA, packed_sdpa_attention)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
