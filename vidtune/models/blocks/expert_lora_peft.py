"""Expert adapters under the names and shapes of PEFT's ``target_parameters``, so that plain PEFT opens them.

PEFT wraps the experts module once per adapted parameter, in the order in which the module declares them; the last one
is the outermost wrapper. With both of Aria's parameters adapted, ``experts.base_layer.lora_A.weight`` belongs to
``gate_up_proj`` and ``experts.lora_A.weight`` to ``down_proj``. Shapes: A (E * rank, in) with the rows of an expert
together, B (out, rank * E) with the columns of a rank together [peft 0.21: tuners/lora/layer.py, ParamWrapper].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from vidtune.models.blocks.expert_lora import adapted_experts


def to_peft(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(E, in, rank) and (E, rank, out) to PEFT's (E * rank, in) and (out, rank * E)."""
    num_experts, in_features, rank = a.shape
    return (
        a.transpose(1, 2).reshape(num_experts * rank, in_features).contiguous(),
        b.permute(2, 1, 0).reshape(b.shape[2], rank * num_experts).contiguous(),
    )


def from_peft(a: Tensor, b: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The way back from ``to_peft``."""
    rank = a.shape[0] // num_experts
    return (
        a.reshape(num_experts, rank, -1).transpose(1, 2).contiguous(),
        b.reshape(b.shape[0], rank, num_experts).permute(2, 1, 0).contiguous(),
    )


def wrapper_names(experts_path: str, parameters: Iterable[str]) -> dict[str, str]:
    """Parameter name -> the path at which PEFT keeps its pair.

    Args:
        experts_path: dotted path of the experts module.
        parameters: adapted parameters in the order in which the module declares them.
    """
    names = list(parameters)
    return {name: experts_path + ".base_layer" * depth for depth, name in enumerate(reversed(names))}


def expert_lora_state(network: nn.Module) -> dict[str, Tensor]:
    """All pairs of the network under PEFT's names (without its ``base_model.model.`` prefix)."""
    state = {}
    for path, experts, adapters in adapted_experts(network):
        paths = wrapper_names(path, _in_order(experts, adapters))
        for leaf, adapter in adapters.items():
            a, b = to_peft(adapter.lora_A.detach(), adapter.lora_B.detach())
            state[f"{paths[leaf]}.lora_A.weight"], state[f"{paths[leaf]}.lora_B.weight"] = a, b
    return state


@torch.no_grad()
def load_expert_lora_state(network: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Copy pairs from PEFT's names into the adapters of the network.

    Args:
        network: adapters attached.
        state: at least the names that ``expert_lora_state`` gives.

    Returns:
        The names that were used.

    Raises:
        KeyError: a pair is missing.
    """
    used = set()
    for path, experts, adapters in adapted_experts(network):
        paths = wrapper_names(path, _in_order(experts, adapters))
        for leaf, adapter in adapters.items():
            names = [f"{paths[leaf]}.lora_A.weight", f"{paths[leaf]}.lora_B.weight"]
            a, b = from_peft(state[names[0]], state[names[1]], adapter.lora_A.shape[0])
            adapter.lora_A.copy_(a)
            adapter.lora_B.copy_(b)
            used.update(names)
    return used


def _in_order(experts: nn.Module, adapters: Mapping[str, nn.Module]) -> list[str]:
    return [name for name, _ in experts.named_parameters(recurse=False) if name in adapters]
