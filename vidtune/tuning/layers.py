"""Which layers and norms of a part a policy means."""

from __future__ import annotations

import re

from torch import nn

from vidtune.contracts import UserError

_RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?")
_NORM = re.compile(r"\w*(LayerNorm|RMSNorm)\w*")


def frozen_layers(network: nn.Module, path: str, ranges: str | None) -> list[str]:
    """Paths of the layers that a policy freezes.

    Args:
        path: of the part; layers are the elements of the module lists below it.
        ranges: ``0..20``, both ends included, or a list of such, ``0..3,12``; None freezes none.

    Raises:
        UserError: no such range, or no stack with such a layer.
    """
    if not ranges:
        return []
    lists = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and f"{name}.".startswith(f"{path}.")
    }
    outer = {name: m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    found: list[str] = []
    for text in str(ranges).split(","):
        match = _RANGE.fullmatch(text.strip())
        if not match:
            raise UserError(f"tuning.{path}.freeze_layers={ranges!r}: expected 0..20, 3 or 0..3,12.")
        first, last = int(match[1]), int(match[2] or match[1])
        layers = [f"{name}.{k}" for name, m in outer.items() for k in range(first, min(last + 1, len(m)))]
        longest = max(map(len, outer.values()), default=0)
        if last < first or last >= longest:
            raise UserError(
                f"tuning.{path}.freeze_layers={ranges!r}: {text.strip()} is no range of its layers; the longest stack "
                f"below {path} has {longest} (0..{longest - 1})."
            )
        found += layers
    return found


def norm_modules(module: nn.Module) -> list[str]:
    """Paths of the LayerNorm and RMSNorm modules, those of model libraries included."""
    return [name for name, child in module.named_modules() if _NORM.fullmatch(type(child).__name__)]
