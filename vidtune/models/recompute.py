"""Which decoder layers compute their activations again in the backward pass instead of keeping them."""

from __future__ import annotations

from math import ceil
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_activations(language: Any, share: float = 1.0) -> list[str]:
    """Let a share of the decoder's layers recompute, from the first on; gradients stay what they are.

    The first ones, because the backward pass begins at the last: what those kept is freed before recomputation
    needs room.

    Args:
        language: transformers model.
        share: in [0, 1] of its layers, rounded up.

    Returns:
        Paths of the layers that recompute.
    """
    # Without re-entry: the other kind loses all gradients of layers whose input needs none.
    language.gradient_checkpointing_enable({"use_reentrant": False})
    layers = recomputing_layers(language)
    chosen = ceil(round(share * len(layers), 6))
    for name in layers[chosen:]:
        language.get_submodule(name).gradient_checkpointing = False
    return layers[:chosen]


def recomputing_layers(language: nn.Module) -> list[str]:
    """Paths of the layers that recompute, in the order in which they run."""
    return [
        name
        for name, module in language.named_modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]
