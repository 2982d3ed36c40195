"""Which layers and norms of a part a policy means."""

from __future__ import annotations

import re

from torch import nn

from vidtune.contracts import UserError

_RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?")
_NORM = re.compile(r"\w*(LayerNorm|RMSNorm)\w*")


def parse_ranges(path: str, ranges: str | None) -> list[tuple[int, int]]:
    """First and last layer, both included, of each part of ``0..3,12``; none for None.

    Raises:
        UserError: something else stands there.
    """
    found = []
    for text in str(ranges).split(",") if ranges is not None else []:
        match = _RANGE.fullmatch(text.strip())
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"tuning.{path}.freeze_layers={ranges!r}: expected 0..20, 3 or 0..3,12.")
        found.append((int(match[1]), int(match[2] or match[1])))
    return found


def frozen_layers(network: nn.Module, path: str, ranges: str | None) -> list[str]:
    """Paths of the layers that a policy freezes.

    Args:
        path: of the part; layers are the elements of the module lists below it.
        ranges: ``0..20``, both ends included, or a list of such, ``0..3,12``; None freezes none.

    Raises:
        UserError: no such range, or no stack with such a layer.
    """
    wanted = parse_ranges(path, ranges)
    if not wanted:
        return []
    lists = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and f"{name}.".startswith(f"{path}.")
    }
    outer = {name: m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    longest = max(map(len, outer.values()), default=0)
    found: list[str] = []
    for first, last in wanted:
        if last >= longest:
            raise UserError(
                f"tuning.{path}.freeze_layers={ranges!r}: there is no layer {last}; the longest stack below {path} has "
                f"{longest} (0..{longest - 1})."
            )
        found += [f"{name}.{k}" for name, m in outer.items() for k in range(first, min(last + 1, len(m)))]
    return found


def norm_modules(module: nn.Module) -> list[str]:
    """Paths of the LayerNorm and RMSNorm modules, those of model libraries included."""
    return [name for name, child in module.named_modules() if _NORM.fullmatch(type(child).__name__)]
