"""Lightning strategies by name."""

from __future__ import annotations

from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from vidtune.contracts import UserError


def num_processes(hardware: Any) -> int:
    """Processes of a run: one per device."""
    return hardware.devices * hardware.num_nodes


def build_strategy(strategy: Any, hardware: Any) -> Any:
    """The Lightning strategy object, or the name that Lightning knows.

    Raises:
        UserError: ``single`` on several devices, a strategy that this hardware or precision cannot have.
    """
    on_cpu = runs_on_cpu(hardware)
    if strategy.config and not strategy.name.startswith("zero"):
        raise UserError(
            f"strategy.config={strategy.config} is a DeepSpeed configuration, but strategy={strategy.name}. "
            f"Choose strategy=zero2 or another zero*, or leave it out."
        )
    if strategy.name == "fsdp1" and on_cpu:
        raise UserError("strategy=fsdp1 runs on GPUs only (Lightning's FSDPStrategy); on a CPU choose strategy=fsdp.")
    if strategy.name == "fsdp" and hardware.precision == "16-mixed":
        raise UserError(
            "strategy=fsdp has no loss scaling, which hardware.precision=16-mixed needs. Choose bf16-mixed, or "
            "strategy=zero3."
        )
    if strategy.name == "auto":
        return "auto" if num_processes(hardware) == 1 else "ddp"
    if strategy.name == "single":
        if num_processes(hardware) > 1:
            raise UserError(
                f"strategy=single runs on one device, but hardware.devices x num_nodes = {num_processes(hardware)}. "
                f"Set hardware.devices=1, or strategy=ddp."
            )
        return "auto"
    if not strategy.strategy:
        return strategy.name
    try:
        return instantiate(strategy.strategy, _convert_="all")
    except InstantiationException as error:
        # A mistake in a DeepSpeed JSON: one fault among those of the configuration.
        raise error.__cause__ if isinstance(error.__cause__, UserError) else error from None


def shards_weights(strategy: Any) -> bool:
    """Whether each process holds a share of the weights only; an evaluation does so too, layer by layer as ``fsdp``."""
    return strategy.name.startswith(("zero3", "fsdp"))


def precision_plugins(strategy: Any, hardware: Any) -> list[Any]:
    """Our own precision where ZeRO needs it; none where Lightning's, by name, is right."""
    if not strategy.name.startswith("zero") or hardware.precision == "16-mixed":
        return []
    from vidtune.training.zero import ZeroPrecision

    device = "cpu" if runs_on_cpu(hardware) else "cuda"
    return [ZeroPrecision(device if hardware.precision == "bf16-mixed" else None)]


def runs_on_cpu(hardware: Any) -> bool:
    """Whether a run will use plain CPU processes."""
    return hardware.accelerator == "cpu" or not torch.cuda.is_available()
