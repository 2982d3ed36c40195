"""Optimizer groups and the table of what trains."""

from __future__ import annotations

import json
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


def tuning_table(network: nn.Module, policies: Mapping[str, Any], lr: float) -> Table:
    """What trains, per role: numbers of weights, share, learning rate, precision, optimizer memory."""
    table = Table(title="What trains", title_justify="left")
    for column in ("role", "mode", "weights", "trainable", "share", "lr", "precision", "optimizer MB"):
        left = column in ("role", "mode", "precision")
        table.add_column(column, justify="left" if left else "right", no_wrap=column == "role", overflow="fold")
    for role in ROLES:
        module = getattr(network, role, None)
        if module is None:
            continue
        total = sum(parameter.numel() for parameter in module.parameters())
        trained = {f"{role}.{name}": p for name, p in module.named_parameters() if p.requires_grad}
        count = sum(parameter.numel() for parameter in trained.values())
        rates = sorted({lr * policies[name].lr_ratio for name in trained})
        frozen_types = {p.dtype for p in module.parameters() if not p.requires_grad}
        types = sorted(
            str(dtype).removeprefix("torch.") for dtype in frozen_types | {p.dtype for p in trained.values()}
        )
        modes = sorted({policies[name].mode for name in trained}) or ["frozen"]
        table.add_row(
            role,
            "+".join(modes),
            f"{total:,}",
            f"{count:,}",
            f"{100 * count / max(total, 1):.2f} %",
            ", ".join(f"{rate:.2e}" for rate in rates),
            "+".join(types),
            f"{count * 8 / 1e6:.1f}",
        )
    return table
