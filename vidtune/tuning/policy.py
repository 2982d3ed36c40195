"""Role policies: frozen, full or LoRA, for a role or a named part of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from vidtune.contracts import UserError
from vidtune.models.base import ROLES, VideoLLM

MODES = ("frozen", "full", "lora")


def apply_tuning(network: VideoLLM, tuning: Any, lora_targets: Mapping[str, str]) -> dict[str, Any]:
    """Freeze, unfreeze and adapt a network as the policies say; what trains becomes float32.

    Args:
        network: with its weights loaded (adapters of LoRA start as the identity).
        tuning: a ``TuningConfig``: a policy per role, and per module path in ``parts``.
        lora_targets: the family's own adapter targets by role.

    Returns:
        The policy of every parameter that trains, by parameter name.

    Raises:
        UserError: a path, mode or pattern that fits nothing, LoRA without rank, or nothing that trains.
    """
    policies = {role: tuning[role] for role in ROLES if getattr(network, role, None) is not None}
    policies |= dict(tuning.parts)
    network.requires_grad_(False)
    chosen: dict[str, Any] = {}
    # Shorter paths first, so that a part overrides its role.
    for path, policy in sorted(policies.items(), key=lambda entry: entry[0].count(".")):
        if policy.mode not in MODES:
            raise UserError(f"tuning: mode {policy.mode!r} of {path} is unknown; choose one of {', '.join(MODES)}.")
        module = _module(network, path)
        module.requires_grad_(policy.mode == "full")
        names = [f"{path}.{name}" for name, _ in module.named_parameters()]
        chosen = {name: value for name, value in chosen.items() if name not in set(names)}
        if policy.mode == "full":
            chosen |= {name: policy for name in names}
        elif policy.mode == "lora":
            chosen |= _add_lora(network, path, policy, lora_targets)
    if not chosen:
        raise UserError("tuning: every part is frozen; set at least one of tuning.<role>.mode to full or lora.")
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            # In bf16 most steps of a small learning rate are lost to rounding.
            parameter.data = parameter.data.float()
        elif name in chosen:
            del chosen[name]
    return chosen


def _module(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError as error:
        parts = sorted({name for role in ROLES for name, _ in network.named_modules() if name.startswith(role)})
        near = [name for name in parts if name.count(".") <= 1]
        raise UserError(f"tuning.parts: the network has no part {path!r}. Parts: {', '.join(near)}.") from error


def _add_lora(network: nn.Module, path: str, policy: Any, lora_targets: Mapping[str, str]) -> dict[str, Any]:
    """Adapters on the linear modules below ``path`` whose full path matches."""
    role = path.split(".")[0]
    pattern = policy.targets or lora_targets.get(role)
    if policy.rank is None or policy.rank < 1 or policy.alpha is None:
        raise UserError(f"tuning.{path}: LoRA needs rank (>= 1) and alpha; found {policy.rank} and {policy.alpha}.")
    if not pattern:
        raise UserError(f"tuning.{path}.targets: the family names no LoRA targets for this part; set a pattern.")
    matching = [
        name
        for name, module in network.named_modules()
        if name.startswith(f"{path}.") and isinstance(module, nn.Linear) and re.fullmatch(pattern, name)
    ]
    if not matching:
        raise UserError(
            f"tuning.{path}.targets={pattern!r} matches no linear module below {path}. "
            f"It must match the whole path, such as {_example(network, path)!r}."
        )
    config = LoraConfig(
        r=policy.rank,
        lora_alpha=policy.alpha,
        lora_dropout=policy.dropout,
        target_modules="|".join(map(re.escape, matching)),
    )
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    inject_adapter_in_model(config, network, adapter_name="default")
    for name, parameter in network.named_parameters():
        # peft freezes everything that is no adapter; what other policies train must go on training.
        parameter.requires_grad_(parameter.requires_grad or name in trained)
    return {name: policy for name, _ in network.named_parameters() if "lora_" in name and name.startswith(f"{path}.")}


def _example(network: nn.Module, path: str) -> str:
    linear = [n for n, m in network.named_modules() if n.startswith(f"{path}.") and isinstance(m, nn.Linear)]
    return linear[0] if linear else f"{path}.<linear>"


def trainable_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that train, by name: what a checkpoint holds."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
