"""A read adapter onto a network, its expert pairs as grouped products."""

from __future__ import annotations

import re

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from vidtune.contracts import UserError
from vidtune.models.adapter_state import AdapterState
from vidtune.models.blocks.expert_lora import attach_expert_lora
from vidtune.models.blocks.expert_lora_peft import load_expert_lora_state


def attach_adapter(network: nn.Module, adapter: AdapterState, where: str, dropout: float = 0.0) -> None:
    """Adapt a network as an adapter was made, and copy its values; pairs are float32.

    Args:
        where: names the adapter in messages.
        dropout: on the input of every pair.

    Raises:
        UserError: the adapter was made for another model.
    """
    have = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    have |= set(network.state_dict())
    if absent := [name for name in (*adapter.modules, *adapter.parameters, *adapter.whole) if name not in have]:
        raise _other_model(where, f"{len(absent)} of its layers are not in this one, such as {absent[0]}")
    if adapter.modules:
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=dropout,
            target_modules="|".join(map(re.escape, adapter.modules)),
        )
        inject_adapter_in_model(config, network, adapter_name="default")
    used: set[str] = set()
    values = dict(adapter.whole)
    try:
        if adapter.parameters:
            pattern = "|".join(map(re.escape, adapter.parameters))
            attach_expert_lora(
                network, pattern, rank=adapter.rank, alpha=adapter.alpha, dropout=dropout, dtype=torch.float32
            )
            used = load_expert_lora_state(network, adapter.state)
        values |= {
            re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", name): tensor
            for name, tensor in adapter.state.items()
            if name not in used
        }
        for name, parameter in network.named_parameters():
            if name in values and ".lora_" in name:
                parameter.data = parameter.data.float()
        unexpected = network.load_state_dict(values, strict=False).unexpected_keys
    except (RuntimeError, KeyError) as error:
        raise _other_model(where, " ".join(str(error).split())[:300]) from error
    wanted = 2 * (len(adapter.modules) + len(adapter.parameters))
    if unexpected or len(adapter.state) != wanted:
        found = unexpected[0] if unexpected else f"{len(adapter.state)} tensors of pairs where {wanted} were expected"
        raise _other_model(where, found)


def _other_model(where: str, why: str) -> UserError:
    return UserError(f"adapter={where}: it was made for another model: {why}. Set model= to the one it was made for.")
