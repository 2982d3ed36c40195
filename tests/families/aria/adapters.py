"""Adapters of the original on a network, and by hand in its weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from vidtune.checkpoint.attach import attach_adapter
from vidtune.models.adapter_state import AdapterState
from vidtune.models.aria.adapter import our_path
from vidtune.models.aria.network import Aria


def apply_adapter(network: Aria, adapter: AdapterState, dropout: float = 0.0) -> None:
    """Everything else is frozen."""
    network.requires_grad_(False)
    attach_adapter(network, adapter, "golden", dropout)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)


def live_names(theirs: Iterable[str]) -> dict[str, str]:
    """Names of the original's trainable LoRA tensors -> parameters of a network with adapters attached."""
    names = {}
    for name in theirs:
        module, _, rest = name.removeprefix("base_model.model.").rpartition(".lora_")
        path, letter = our_path(module), rest[0]
        experts, _, leaf = path.rpartition(".")
        fused = experts.endswith(".experts")
        names[name] = f"{experts}.expert_lora.{leaf}.lora_{letter}" if fused else f"{path}.lora_{letter}.default.weight"
    return names


@torch.no_grad()
def merge_linear(network: Aria, adapter: AdapterState) -> None:
    """Add the linear pairs to the base weights by hand."""
    for path in adapter.modules:
        a, b = (adapter.state[f"{path}.lora_{letter}.weight"] for letter in "AB")
        network.get_submodule(path).weight += adapter.alpha / adapter.rank * b @ a
