"""Optimizer groups and the table of what trains."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from rich.table import Table
from torch import nn

from vidtune.models.base import ROLES


def parameter_groups(
    network: nn.Module, policies: Mapping[str, Any], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups by role, learning rate, decay and schedule. Biases and norms (fewer than two axes) never decay.

    Args:
        policies: of every parameter that trains; from ``apply_tuning``.

    Returns:
        Groups for torch's optimizers; ``schedule`` in each is what differs from ``optim.schedule`` there.
    """
    groups: dict[tuple[str, float, float, str], list[torch.Tensor]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            policy = policies[name]
            decay = weight_decay if policy.weight_decay is None else policy.weight_decay
            # Under ZeRO-3 the parameter itself is empty and its shape lies beside it.
            matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
            schedule = json.dumps(dict(policy.schedule or {}), sort_keys=True)
            key = (name.split(".")[0], lr * policy.lr_ratio, decay if matrix else 0.0, schedule)
            groups[key].append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate,
            "weight_decay": decay,
            "name": f"{role}{'' if decay else '/no_decay'}",
            "schedule": json.loads(schedule),
        }
        for (role, rate, decay, schedule), parameters in groups.items()
    ]


FACTS = ("mode", "weights", "trainable", "share", "lr", "precision", "optimizer MB")


def tuning_table(network: nn.Module, policies: Mapping[str, Any], lr: float) -> Table:
    """What trains, a column per role: numbers of weights, share, learning rate, precision, optimizer memory."""
    columns = {"": list(FACTS)}
    for role in ROLES:
        if (module := getattr(network, role, None)) is not None:
            columns[role] = _facts(role, module, policies, lr)
    table = Table(title="What trains", title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name else "left")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _facts(role: str, module: nn.Module, policies: Mapping[str, Any], lr: float) -> list[str]:
    trained = {f"{role}.{name}": p for name, p in module.named_parameters() if p.requires_grad}
    total, count = sum(map(_num_weights, module.parameters())), sum(map(_num_weights, trained.values()))
    moments = 2 * sum(_num_weights(parameter) * parameter.element_size() for parameter in trained.values())
    rates = sorted({lr * policies[name].lr_ratio for name in trained})
    return [
        "+".join(sorted({policies[name].mode for name in trained}) or ["frozen"]),
        f"{total:,}",
        f"{count:,}",
        f"{100 * count / max(total, 1):.2f} %",
        ", ".join(f"{rate:.2e}" for rate in rates),
        "+".join(sorted({_precision(parameter) for parameter in module.parameters()})),
        f"{moments / 1e6:.1f}",
    ]


def _num_weights(parameter: nn.Parameter) -> int:
    """Of the weight, not of its storage: four-bit ones are packed, and under ZeRO-3 the tensor is empty."""
    if (packed := getattr(parameter, "quant_state", None)) is not None:
        return math.prod(packed.shape)
    return getattr(parameter, "ds_numel", parameter.numel())


def _precision(parameter: nn.Parameter) -> str:
    packed = getattr(parameter, "quant_state", None)
    return str(parameter.dtype).removeprefix("torch.") if packed is None else packed.quant_type
