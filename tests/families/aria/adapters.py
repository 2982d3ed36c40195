"""Attach an adapter of the original to a network, as the tuning room attaches its own."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from peft import LoraConfig, inject_adapter_in_model

from vidtune.models.aria.adapter import OriginalAdapter, our_path
from vidtune.models.aria.network import Aria
from vidtune.models.blocks.expert_lora import attach_expert_lora
from vidtune.models.blocks.expert_lora_peft import load_expert_lora_state


def apply_adapter(network: Aria, adapter: OriginalAdapter, dropout: float = 0.0) -> None:
    """Everything else is frozen."""
    network.requires_grad_(False)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=dropout,
        target_modules="|".join(map(re.escape, adapter.modules)),
    )
    inject_adapter_in_model(config, network)
    pattern = "|".join(map(re.escape, adapter.parameters))
    attach_expert_lora(network, pattern, rank=adapter.rank, alpha=adapter.alpha, dropout=dropout)
    used = load_expert_lora_state(network, adapter.state)
    linear = {
        re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", name): tensor
        for name, tensor in adapter.state.items()
        if name not in used
    }
    report = network.load_state_dict(linear, strict=False)
    assert not report.unexpected_keys
    assert len(used) + len(linear) == len(adapter.state) == 2 * (len(adapter.modules) + len(adapter.parameters))


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
def merge_linear(network: Aria, adapter: OriginalAdapter) -> None:
    """Add the linear pairs to the base weights by hand."""
    for path in adapter.modules:
        a, b = (adapter.state[f"{path}.lora_{letter}.weight"] for letter in "AB")
        network.get_submodule(path).weight += adapter.alpha / adapter.rank * b @ a
