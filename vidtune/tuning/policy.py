"""Role policies: frozen, full, norms only, LoRA or QLoRA, for a role or a named part of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vidtune.contracts import UserError
from vidtune.models.base import ROLES, VideoLLM
from vidtune.tuning.adapters import adapted_linears, add_adapters
from vidtune.tuning.faults import policy_faults
from vidtune.tuning.layers import frozen_layers, norm_modules


def apply_tuning(
    network: VideoLLM,
    tuning: Any,
    lora_targets: Mapping[str, str],
    lora_parameters: Mapping[str, str] | None = None,
    compute_dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Freeze, unfreeze and adapt a network as the policies say; what trains gets the type of its policy.

    Args:
        network: with its weights loaded (adapters of LoRA start as the identity).
        tuning: a ``TuningConfig``: a policy per role, and per module path in ``parts``.
        lora_targets: the family's own adapter targets by role.
        lora_parameters: the same on names of fused expert parameters.
        compute_dtype: in which four-bit layers compute.

    Returns:
        The policy of every parameter that trains, by parameter name.

    Raises:
        UserError: a path, mode or pattern that fits nothing, LoRA without rank, or nothing that trains.
    """
    network.requires_grad_(False)
    chosen: dict[str, Any] = {}
    for path, policy in _policies(network, tuning):
        module = _module(network, path)
        module.requires_grad_(False)
        below = {f"{path}.{name}" for name, _ in module.named_parameters()}
        frozen = frozen_layers(network, path, policy.freeze_layers)
        trained = _trained(network, path, policy, lora_targets, lora_parameters or {}, frozen, compute_dtype)
        chosen = {name: value for name, value in chosen.items() if name not in below}
        chosen |= dict.fromkeys(trained, policy)
    if not chosen:
        raise UserError("tuning: every part is frozen; set at least one of tuning.<role>.mode to full or lora.")
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            # float32 unless a recipe asks for less: in bf16 most steps of a small learning rate are lost to rounding.
            parameter.data = parameter.data.to(getattr(torch, chosen[name].dtype))
        elif name in chosen:
            del chosen[name]
    return chosen


def check_tuning(network: VideoLLM, tuning: Any, lora_targets: Mapping[str, str]) -> None:
    """Refuse policies that fit nothing in a network, for which it needs no weights yet; arguments as for
    ``apply_tuning``.

    Raises:
        UserError: a path, layer, norm or pattern that is not there.
    """
    for path, policy in _policies(network, tuning):
        _module(network, path)
        frozen = frozen_layers(network, path, policy.freeze_layers)
        if policy.mode in ("lora", "qlora"):
            adapted_linears(network, path, policy, lora_targets, frozen)
        elif policy.mode == "layernorm":
            _norms(network, path)


def _trained(
    network: VideoLLM,
    path: str,
    policy: Any,
    lora_targets: Mapping[str, str],
    lora_parameters: Mapping[str, str],
    frozen: list[str],
    compute_dtype: torch.dtype,
) -> list[str]:
    """Set ``requires_grad`` below a path and name what trains there."""
    if policy.mode in ("lora", "qlora"):
        return add_adapters(network, path, policy, lora_targets, lora_parameters, frozen, compute_dtype)
    parts: list[str] = []
    if policy.mode == "full":
        parts = [path]
    elif policy.mode == "layernorm":
        parts = _norms(network, path)
    names = []
    for name, parameter in network.named_parameters():
        if any(name.startswith(f"{part}.") for part in parts) and not any(
            name.startswith(f"{layer}.") for layer in frozen
        ):
            parameter.requires_grad_(True)
            names.append(name)
    return names


def _policies(network: nn.Module, tuning: Any) -> list[tuple[str, Any]]:
    """(path, policy), shorter paths first, so that a part overrides its role."""
    policies = {role: tuning[role] for role in ROLES if getattr(network, role, None) is not None}
    policies |= dict(tuning.parts)
    for path, policy in policies.items():
        if faults := policy_faults(path, policy):
            raise UserError(" ".join(faults))
    return sorted(policies.items(), key=lambda entry: entry[0].count("."))


def _norms(network: nn.Module, path: str) -> list[str]:
    found = [f"{path}.{name}" if name else path for name in norm_modules(_module(network, path))]
    if not found:
        raise UserError(f"tuning.{path}.mode=layernorm: there is no LayerNorm or RMSNorm below {path}.")
    return found


def _module(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError as error:
        parts = sorted({name for role in ROLES for name, _ in network.named_modules() if name.startswith(role)})
        near = [name for name in parts if name.count(".") <= 1]
        raise UserError(f"tuning.parts: the network has no part {path!r}. Parts: {', '.join(near)}.") from error


def trainable_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that train, by name: what a checkpoint holds."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
