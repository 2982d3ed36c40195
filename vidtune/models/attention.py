"""Attention over packed rows: one description of who sees whom, three executions.

A packed row holds segments that must not see each other; inside a segment a token sees the earlier tokens of the shared
prefix (branch 0) and of its own branch (see ``vidtune.contracts.Batch``). ``PackedLayout`` describes this once per
forward. The executions are registered with transformers' attention interface, so that every decoder of it runs packed
rows without being changed; without a layout (generation, padded batches) they fall through to plain SDPA.

``hardware.attention`` chooses: ``sdpa`` runs everywhere, ``flex`` is one FlexAttention kernel per row, ``flash`` is
flash-attn's varlen kernel for rows without a shared prefix. What cannot run a row hands it to ``sdpa`` and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

log = logging.getLogger(__name__)

PACKED_SDPA = "vidtune_packed_sdpa"
PACKED_FLEX = "vidtune_packed_flex"
PACKED_FLASH = "vidtune_packed_flash"
ATTENTION = {"sdpa": PACKED_SDPA, "flex": PACKED_FLEX, "flash": PACKED_FLASH}

_GROUP_TOKENS = 128
"""Branches run together in one call up to this many tokens: fewer calls and copies of the prefix's keys against pairs
that the mask drops. 128 took the least CPU time for 8 branches of 40 tokens behind 1,024."""


def resolve_attention(choice: str) -> str:
    """Name under which transformers knows an execution; ``auto`` is flash-attn where installed, else SDPA.

    Raises:
        KeyError: not one of ``ATTENTION`` or ``auto``.
    """
    if choice == "auto":
        choice = "flash" if find_spec("flash_attn") else "sdpa"
    return ATTENTION[choice]


@dataclass
class Piece:
    """A stretch of the row that one call of SDPA takes.

    Args:
        length: number of tokens.
        prefix: index of the piece whose keys its tokens see as well; None for what begins a segment.
        mask: (length, prefix length + length) bool, True where the query (axis 0) sees the key (axis 1); None where the
            piece is plainly causal.
    """

    length: int
    prefix: int | None = None
    mask: Tensor | None = None


@dataclass
class PackedLayout:
    """Who sees whom in a packed row.

    Args:
        segment_ids, branch_ids: (L,) int64, see ``vidtune.contracts.Batch``.
        runs: per stretch of equal ids its segment, branch and length; on the host, so that no execution waits for the
            device again.
        kept: (S,) int64 ascending positions whose states the last layer returns; None where it returns all.
    """

    segment_ids: Tensor
    branch_ids: Tensor
    runs: list[tuple[int, int, int]]
    kept: Tensor | None = None

    @staticmethod
    def build(segment_ids: Tensor, branch_ids: Tensor) -> PackedLayout:
        """From (1, L) ids; segments are contiguous, branches within them too."""
        segments, branches = segment_ids[0], branch_ids[0]
        begins = torch.ones_like(segments, dtype=torch.bool)
        begins[1:] = (segments[1:] != segments[:-1]) | (branches[1:] != branches[:-1])
        starts = begins.nonzero()[:, 0]
        counts = starts.diff(append=starts.new_tensor([len(segments)]))
        runs = torch.stack([segments[starts], branches[starts], counts], dim=1).tolist()
        return PackedLayout(segments, branches, [tuple(run) for run in runs])

    @property
    def lengths(self) -> list[int]:
        return [length for _, _, length in self.runs]

    @property
    def shares_prefix(self) -> bool:
        return any(branch for _, branch, _ in self.runs)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the token at position ``query`` sees that at ``key``; int64 of shapes that broadcast, bool."""
        branch = self.branch_ids
        return (
            (query >= key)
            & (self.segment_ids[query] == self.segment_ids[key])
            & ((branch[key] == 0) | (branch[query] == branch[key]))
        )

    def dense_mask(self, length: int) -> Tensor:
        """(L, L) bool, the whole mask at once: for small rows and for parity with decoders of others."""
        positions = torch.arange(length, device=self.segment_ids.device)
        return self.sees(positions[:, None], positions[None, :])

    @cached_property
    def pieces(self) -> list[Piece]:
        """The row cut for SDPA: each start of a segment, then its branches in groups of about ``_GROUP_TOKENS``."""
        groups: list[list[int]] = []
        for index, (_, branch, length) in enumerate(self.runs):
            joins = (
                branch != 0
                and self.runs[groups[-1][-1]][1] != 0
                and sum(self.runs[i][2] for i in groups[-1]) + length <= _GROUP_TOKENS
            )
            groups[-1].append(index) if joins else groups.append([index])
        ends = list(accumulate(self.lengths))
        pieces: list[Piece] = []
        prefix, visible = 0, None
        for group in groups:
            positions = torch.arange(ends[group[0]] - self.runs[group[0]][2], ends[group[-1]])
            positions = positions.to(self.segment_ids.device)
            if self.runs[group[0]][1] == 0:
                prefix, visible = len(pieces), positions
                pieces.append(Piece(len(positions)))
            else:
                assert visible is not None
                mask = self.sees(positions[:, None], torch.cat([visible, positions])[None])
                pieces.append(Piece(len(positions), prefix, mask))
        return pieces

    @cached_property
    def block_mask(self) -> BlockMask:
        """For FlexAttention."""
        return create_block_mask(
            lambda batch, head, query, key: self.sees(query, key),
            None,
            None,
            len(self.segment_ids),
            len(self.segment_ids),
            device=self.segment_ids.device,
            _compile=self.segment_ids.is_cuda,  # otherwise the (L, L) mask is built on the way
        )

    @cached_property
    def cumulative_lengths(self) -> Tensor:
        """(segments + 1,) int32 starts of the segments and the end of the row; for rows without a shared prefix."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=self.segment_ids.device)


def sdpa_packed(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None, dropout: float):
    """One call per piece: the start of a segment with the causal kernel, branches against prefix and themselves.

    Neither the square of the row nor that of a shared segment is ever computed or held; the masks are as large as a
    group of branches times what it sees. No position is padded.

    Args:
        query: (1, heads, L, head_dim); key, value: (1, key-value heads, L, head_dim).

    Returns:
        (1, L, heads, head_dim).
    """
    lengths = [piece.length for piece in layout.pieces]
    masks = [piece.mask for piece in layout.pieces]
    return _by_pieces(query, key, value, layout, lengths, masks, scale, dropout)


def sdpa_at(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, positions: Tensor, scale: float, dropout: float
) -> Tensor:
    """As ``sdpa_packed`` for a few queries.

    Args:
        query: (1, heads, S, head_dim) of these ``positions``, ascending.
        key, value: (1, key-value heads, L, head_dim) of all.

    Returns:
        (1, S, heads, head_dim).
    """
    ends = torch.tensor(list(accumulate(piece.length for piece in layout.pieces)), device=positions.device)
    counts = torch.searchsorted(positions, ends).diff(prepend=ends.new_zeros(1)).tolist()
    masks: list[Tensor | None] = []
    for piece, end, own in zip(layout.pieces, ends.tolist(), positions.split(counts)):
        rows = own - (end - piece.length)
        columns = torch.arange(piece.length, device=rows.device)
        masks.append(rows[:, None] >= columns if piece.mask is None else piece.mask[rows])
    return _by_pieces(query, key, value, layout, counts, masks, scale, dropout)


def _by_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    counts: list[int],
    masks: list[Tensor | None],
    scale: float | None,
    dropout: float,
) -> Tensor:
    """One call of SDPA per piece of the layout, for its number of queries and its mask (None: plainly causal)."""
    if query.shape[1] != key.shape[1]:
        group = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(group, dim=1) for states in (key, value))
    lengths = [piece.length for piece in layout.pieces]
    queries = query.split(counts, dim=2)
    keys, values = (states.split(lengths, dim=2) for states in (key, value))
    parts = []
    for index, (piece, mask) in enumerate(zip(layout.pieces, masks)):
        if not counts[index]:
            continue
        k, v = keys[index], values[index]
        if piece.prefix is not None:
            k, v = torch.cat([keys[piece.prefix], k], dim=2), torch.cat([values[piece.prefix], v], dim=2)
        part = F.scaled_dot_product_attention(queries[index], k, v, mask, dropout, is_causal=mask is None, scale=scale)
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def flex_packed(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None, dropout: float):
    """One FlexAttention call for the row; arguments as of ``sdpa_packed``. Compiled on a GPU."""
    if dropout or (not query.is_cuda and torch.is_grad_enabled() and query.requires_grad):
        _hand_over("flex", "FlexAttention has no dropout, and no gradient on a CPU")
        return sdpa_packed(query, key, value, layout, scale, dropout)
    run = _compiled_flex() if query.is_cuda else flex_attention
    gqa = query.shape[1] != key.shape[1]
    return run(query, key, value, block_mask=layout.block_mask, scale=scale, enable_gqa=gqa).transpose(1, 2)


def flash_packed(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None, dropout: float):
    """flash-attn's varlen kernel over the segments; arguments as of ``sdpa_packed``."""
    reason = _no_flash(query, layout)
    if reason:
        _hand_over("flash", reason)
        return sdpa_packed(query, key, value, layout, scale, dropout)
    starts, longest = layout.cumulative_lengths, max(layout.lengths)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    run: Any = _flash_function()
    return run(q, k, v, starts, starts, longest, longest, dropout, softmax_scale=scale, causal=True)[None]


def _no_flash(query: Tensor, layout: PackedLayout) -> str:
    """Why flash-attn cannot run a row; empty if it can."""
    if _flash_function() is None:
        return "flash-attn is not installed"
    if layout.shares_prefix:
        return "questions share a video in this row"
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn needs a GPU and half precision, not {query.dtype} on {query.device.type}"
    return ""


@cache
def _flash_function() -> Callable[..., Tensor] | None:
    if find_spec("flash_attn") is None:
        return None
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


@cache
def _hand_over(name: str, reason: str) -> None:
    log.info("hardware.attention=%s: such rows run with sdpa (%s).", name, reason)


def _register(name: str, run: Callable[..., Tensor]) -> None:
    """Make an execution known to transformers under ``name``."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        packed_layout: PackedLayout | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if packed_layout is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        return run(query, key, value, packed_layout, scaling, dropout), None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)


_register(PACKED_SDPA, sdpa_packed)
_register(PACKED_FLEX, flex_packed)
_register(PACKED_FLASH, flash_packed)
