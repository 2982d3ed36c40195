"""What an original counts as trainable, though no output depends on it, and what is not built here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vidtune.models.base import ROLES, VideoLLM
from vidtune.tuning.adapters import matching_linears
from vidtune.tuning.layers import norm_modules


def unrun_weights(network: VideoLLM, tuning: Any, lora_targets: Mapping[str, str]) -> dict[str, int]:
    """Weights by role that the policies would train in the parts that are not built; roles without any are left out.

    Args:
        tuning: a ``TuningConfig``.
        lora_targets: the family's own adapter targets by role.
    """
    parts = network.unrun_parts()
    counts = {role: _count(parts, role, tuning[role], lora_targets) for role in ROLES if hasattr(parts, role)}
    return {role: count for role, count in counts.items() if count}


def unrun_notes(network: VideoLLM, tuning: Any, lora_targets: Mapping[str, str]) -> list[str]:
    """One sentence per role in which the original counts more."""
    notes = []
    for role, more in unrun_weights(network, tuning, lora_targets).items():
        module = network.get_submodule(role)
        own = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        notes.append(
            f"{role}: {own:,} weights train; the original counts {own + more:,}, with {more:,} of parts that no output "
            f"depends on. They are not built here, and an export writes them back unchanged."
        )
    return notes


def _count(parts: nn.Module, role: str, policy: Any, lora_targets: Mapping[str, str]) -> int:
    module = parts.get_submodule(role)
    if policy.mode == "full":
        return sum(parameter.numel() for parameter in module.parameters())
    if policy.mode == "layernorm":
        return sum(p.numel() for name in norm_modules(module) for p in module.get_submodule(name).parameters())
    if policy.mode in ("lora", "qlora"):
        names = matching_linears(parts, role, policy.targets or lora_targets[role])
        linears = (parts.get_submodule(name) for name in names)
        return sum(policy.rank * (m.in_features + m.out_features) for m in linears if isinstance(m, nn.Linear))
    return 0
