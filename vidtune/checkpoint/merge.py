"""Adapters into the weights they correct."""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from vidtune.models.blocks.expert_lora import merge_expert_lora


@torch.no_grad()
def merge_adapters(network: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Replace every adapted layer by a plain one with the sum; the sum is made in float32.

    Args:
        network: with LoRA on linear layers (four-bit ones included) and on fused experts.
        dtype: of the merged weights; None for that of the base (bf16 for a four-bit base).

    Returns:
        Number of merged weights.
    """
    merged = len(merge_expert_lora(network))
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            network.set_submodule(name, _merged_linear(module, dtype))
            merged += 1
    return merged


def _merged_linear(layer: LoraLayer, dtype: torch.dtype | None) -> nn.Linear:
    base = layer.get_base_layer()
    weight = _plain_weight(base)
    total = weight.float()
    for adapter in layer.active_adapters:
        total = total + layer.get_delta_weight(adapter).float()
    linear = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    linear.weight = nn.Parameter(total.to(dtype or weight.dtype), requires_grad=False)
    linear.bias = base.bias
    return linear


def _plain_weight(base: nn.Module) -> Tensor:
    """(out, in) of a linear layer; NF4 is rounded back to bf16, the type it computes in."""
    weight = base.weight
    if (state := getattr(weight, "quant_state", None)) is None:
        return weight.data  # type: ignore[union-attr, return-value]
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state).to(torch.bfloat16)  # type: ignore[union-attr]
