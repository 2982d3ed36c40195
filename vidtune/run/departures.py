"""Where a recipe departs from its original, for the start of a run's log."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def in_force(cfg: DictConfig) -> dict[str, Any]:
    """The recipe's departures, without those that the configuration has undone."""
    listed = {name: departure for name, departure in cfg.departures.items() if departure is not None}
    return {str(name): departure for name, departure in listed.items() if not _restored(cfg, departure)}


def describe_departures(cfg: DictConfig) -> str:
    """A line per departure in force, with the keys that restore the original's way; empty for other recipes."""
    lines = []
    for departure in in_force(cfg).values():
        keys = " ".join(f"{key}={_typed(value)}" for key, value in (departure.restore or {}).items())
        way = f"restored by {keys}" if keys else "no setting restores it"
        lines.append(f"- {departure.here}; in the original {departure.original} ({way})")
    if not lines:
        return ""
    return "\n".join([f"This recipe departs from what its original's code did in {len(lines)} points:", *lines])


def _restored(cfg: DictConfig, departure: Any) -> bool:
    return bool(departure.restore) and all(
        OmegaConf.select(cfg, str(key)) == value for key, value in departure.restore.items()
    )


def _typed(value: Any) -> str:
    """As on a command line."""
    return "null" if value is None else str(value)
