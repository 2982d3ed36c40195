"""LoRA on fused expert weights: one low-rank pair per expert, run as two grouped products.

Transformers keeps the experts of a layer in three-dimensional parameters of one module, which adapters for linear
layers cannot reach. PEFT's answer is to add B @ A to the whole weight in every forward; for Aria that is 1.6 GB per
layer, made again in the backward pass, and it rules out dropout. Here tokens, sorted by expert, pass through A and B:

    y = x W_e + scaling * dropout(x) A_e B_e

The arithmetic is registered as an experts implementation of transformers, so that base weights are read inside the
forward of the module that owns them, and A and B inside that of theirs: sharded parameters (ZeRO-3, FSDP) are gathered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _grouped_linear, grouped_mm_experts_forward

from vidtune.contracts import UserError

GROUPED_LORA = "vidtune_grouped_lora"
CHILD = "expert_lora"
"""Name of the adapters' container within an experts module."""

PARAMETERS = ("gate_up_proj", "down_proj")
"""Fused parameters that may be adapted, in the order in which transformers' experts modules declare them."""


class ExpertLora(nn.Module):
    """The low-rank pairs of one fused parameter.

    Args:
        num_experts, in_features, out_features: of the parameter, whatever the order of its axes.
        rank: columns of each A.
        alpha: the product is scaled by alpha / rank.
        dropout: probability, on the input of A.
        device, dtype: of the pairs.
    """

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.scaling = rank, alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(torch.empty(num_experts, in_features, rank, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(num_experts, rank, out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A, and B = 0.

        PEFT's rule for a linear layer, bound 1 / sqrt(fan_in), as the original applies it to its fused tensor: torch
        takes the last axis of a three-dimensional weight for a kernel, so that fan_in is in_features * rank.
        """
        bound = 1 / math.sqrt(self.lora_A[0].numel())
        nn.init.uniform_(self.lora_A, -bound, bound)
        nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """The update of the output.

        Args:
            x: (S, in) inputs sorted by expert.
            offsets: (E,) int32 end of each expert's rows.

        Returns:
            (S, out) in the dtype of ``x``; fp32 pairs are cast to it, as autocast would.
        """
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        # Grouped products want rows of whole 16 bytes: small ranks are filled up with zeros.
        missing = -self.rank % (16 // x.element_size())
        if missing:
            a, b = F.pad(a, (0, missing)), F.pad(b, (0, 0, 0, missing))
        low = _grouped_linear(self.dropout(x), a, offsets, is_transposed=True)
        return self.scaling * _grouped_linear(low, b, offsets, is_transposed=True)

    def delta(self) -> Tensor:
        """(E, in, out) float32, what the pairs add to the weights."""
        return self.scaling * (self.lora_A.float() @ self.lora_B.float())


def grouped_lora_experts_forward(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Experts implementation with adapters; without any, transformers' ``grouped_mm``.

    Args:
        hidden_states: (N, D).
        top_k_index, top_k_weights: (N, k) chosen experts and their weights.

    Returns:
        (N, D).
    """
    adapters = getattr(self, CHILD, None)
    if adapters is None:
        return grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
    num_tokens, top_k = top_k_index.shape
    experts, order = torch.sort(top_k_index.flatten(), stable=True)
    bounds = torch.arange(self.num_experts, device=experts.device)
    offsets = torch.searchsorted(experts, bounds, right=True).to(torch.int32)

    def project(name: str, x: Tensor) -> Tensor:
        out = _grouped_linear(x, getattr(self, name), offsets, is_transposed=self.is_transposed)
        return out + adapters[name](x, offsets).to(out.dtype) if name in adapters else out

    inner = self._apply_gate(project("gate_up_proj", hidden_states[order // top_k]))
    out = project("down_proj", inner) * top_k_weights.flatten()[order][:, None]
    # Back to the order of tokens by a gather: index_add would sum in an order that changes from run to run on a GPU.
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return out[inverse].view(num_tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)


ALL_EXPERTS_FUNCTIONS.register(GROUPED_LORA, grouped_lora_experts_forward)


def attach_expert_lora(
    network: nn.Module,
    pattern: str,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Give fused expert parameters adapters and freeze them.

    Args:
        network: holds experts modules of transformers.
        pattern: regular expression that must match a parameter's whole name, as ``named_parameters`` gives it.
        rank, alpha, dropout: see ``ExpertLora``.
        dtype: of the adapters; None for that of the parameter.

    Returns:
        Names of the adapted parameters.

    Raises:
        UserError: the pattern matches nothing, or a parameter that is no fused expert weight.
    """
    regex, adapted = re.compile(pattern), []
    parameters = {name: parameter for name, parameter in network.named_parameters() if regex.fullmatch(name)}
    for name, parameter in parameters.items():
        path, _, leaf = name.rpartition(".")
        experts: Any = network.get_submodule(path)
        # Under ZeRO-3 the parameter itself is empty and its shape lies beside it.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if len(shape) != 3 or leaf not in PARAMETERS or not hasattr(experts, "is_transposed"):
            raise UserError(
                f"{name} {tuple(shape)} is no fused expert weight (gate_up_proj or down_proj of a transformers experts "
                f"module), but the expert pattern {pattern!r} matches it. Linear layers belong in lora_targets."
            )
        if experts.has_bias or not experts.has_gate:
            raise UserError(f"{path}: expert adapters support gated experts without biases only.")
        num_experts, *sides = shape
        in_features, out_features = sides if experts.is_transposed else reversed(sides)
        adapter = ExpertLora(
            num_experts,
            in_features,
            out_features,
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            device=parameter.device,
            dtype=dtype or parameter.dtype,
        )
        if not hasattr(experts, CHILD):
            experts.add_module(CHILD, nn.ModuleDict())
        getattr(experts, CHILD)[leaf] = adapter
        adapter.train(experts.training)
        parameter.requires_grad_(False)
        experts.config._experts_implementation = GROUPED_LORA
        adapted.append(name)
    if not adapted:
        raise UserError(f"the expert pattern {pattern!r} matches no parameter of the network.")
    return adapted


def adapted_experts(network: nn.Module) -> Iterator[tuple[str, Any, dict[str, ExpertLora]]]:
    """(path, experts module, adapters by parameter name) of every adapted layer."""
    for path, module in network.named_modules():
        adapters = module._modules.get(CHILD)
        if isinstance(adapters, nn.ModuleDict):
            yield path, module, {name: child for name, child in adapters.items() if isinstance(child, ExpertLora)}


@torch.no_grad()
def merge_expert_lora(network: nn.Module) -> list[str]:
    """Add every adapter to its weight, in float32, and remove it.

    Returns:
        Names of the merged parameters.
    """
    merged = []
    for path, experts, adapters in list(adapted_experts(network)):
        for leaf, adapter in adapters.items():
            weight = getattr(experts, leaf)
            delta = adapter.delta() if experts.is_transposed else adapter.delta().transpose(1, 2)
            weight.copy_(weight.float() + delta)
            merged.append(f"{path}.{leaf}")
        delattr(experts, CHILD)
    return merged
