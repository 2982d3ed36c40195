"""The last decoder layer at the supervised positions alone.

Behind the last layer only the states of supervised positions are read, so all that the other positions need there is
keys and values: no query, no attention output, no MLP. Of n layers this saves nearly one where few tokens
are supervised, as in a row that holds a video. Exact: what is left out reaches no loss.

Only layers whose parts are known are narrowed (``NARROWED``); others run as they are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, rotate_half
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from vidtune.models.attention import PackedLayout, sdpa_at

NARROWED = (LlamaDecoderLayer, Qwen2DecoderLayer)
FEWEST = 8
"""A row is narrowed where at most one token in so many is supervised: the masks of its attention then stay small."""


def narrows(decoder: nn.Module) -> bool:
    """Whether the parts of the decoder's last layer are known, and it keeps its activations: one that is to compute
    them again runs as it is."""
    layer: Any = decoder.layers[-1]  # type: ignore[index]
    return isinstance(layer, NARROWED) and not layer.gradient_checkpointing


def pays(num_kept: int, num_tokens: int) -> bool:
    """Whether so few positions are kept that the row is narrowed. Without any it is not: the row stays in the graph."""
    return 0 < num_kept * FEWEST <= num_tokens


def narrow_last_layer(decoder: nn.Module, layout: PackedLayout, positions: Tensor) -> bool:
    """Make the decoder return the states of ``positions`` alone for this row, where that is possible and pays.

    Args:
        decoder: of transformers; its last layer gets another ``forward``, which is the old one for other rows.
        layout: of the row; is noted what the last layer keeps.
        positions: (S,) int64, ascending.

    Returns:
        Whether the row is narrowed: the decoder's output is then (1, S, D) in place of (1, L, D).
    """
    if not narrows(decoder) or not pays(positions.numel(), len(layout.segment_ids)):
        return False
    layer: Any = decoder.layers[-1]  # type: ignore[index]
    if "forward" not in vars(layer):
        layer.forward = partial(_forward, layer, layer.forward)
    layout.kept = positions
    return True


def _forward(
    layer: Any,
    whole: Any,
    hidden_states: Tensor,
    *arguments: Any,
    packed_layout: PackedLayout | None = None,
    position_embeddings: tuple[Tensor, Tensor],
    **kwargs: Any,
) -> Tensor:
    """(1, L, D) to (1, S, D); the modules are those of ``whole`` and in its order, so that wrapped ones still work."""
    if packed_layout is None or packed_layout.kept is None:
        kwargs |= {"position_embeddings": position_embeddings, "packed_layout": packed_layout}
        return whole(hidden_states, *arguments, **kwargs)
    attention, kept = layer.self_attn, packed_layout.kept
    states = layer.input_layernorm(hidden_states)
    cos, sin = (table[:, None] for table in position_embeddings)

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    query = _rotate(heads(attention.q_proj(states[:, kept])), cos[:, :, kept], sin[:, :, kept])
    key = _rotate(heads(attention.k_proj(states)), cos, sin)
    value = heads(attention.v_proj(states))
    dropout = attention.attention_dropout if attention.training else 0.0
    mixed = sdpa_at(query, key, value, packed_layout, kept, attention.scaling, dropout)
    residual = hidden_states[:, kept] + attention.o_proj(mixed.flatten(2))
    return residual + layer.mlp(layer.post_attention_layernorm(residual))


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return states * cos + rotate_half(states) * sin
