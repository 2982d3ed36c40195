"""Lightning strategies by name."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate

from vidtune.contracts import UserError


def num_processes(hardware: Any) -> int:
    """Processes of a run: one per device."""
    return hardware.devices * hardware.num_nodes


def build_strategy(strategy: Any, hardware: Any) -> Any:
    """The Lightning strategy object, or the name that Lightning knows.

    Raises:
        UserError: ``single`` on several devices.
    """
    if strategy.name == "auto":
        return "auto" if num_processes(hardware) == 1 else "ddp"
    if strategy.name == "single":
        if num_processes(hardware) > 1:
            raise UserError(
                f"strategy=single runs on one device, but hardware.devices x num_nodes = {num_processes(hardware)}. "
                f"Set hardware.devices=1, or strategy=ddp."
            )
        return "auto"
    return instantiate(strategy.strategy, _convert_="all") if strategy.strategy else strategy.name
