"""The tables of a family's docs that lead from its guide's commands and settings to ours."""

from __future__ import annotations

import re
import shlex
from typing import Any

from omegaconf import OmegaConf

from tests.helpers import ROOT, config
from vidtune.run.checks import check_config
from vidtune.run.departures import describe_departures, in_force

MISSING = object()


def table(file: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading of ``docs/<file>``, without its two head lines."""
    lines = (ROOT / "docs" / file).read_text().split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    return rows[2:]


def spans(cell: str) -> list[str]:
    """What stands between back-ticks."""
    return re.findall(r"`([^`]*)`", cell)


def settings(cell: str) -> list[str]:
    """The ``key=value`` words between back-ticks."""
    return [word for span in spans(cell) for word in shlex.split(span) if re.match(r"[\w.]+=", word)]


def overrides(command: str) -> list[str]:
    """The words behind ``train.py`` or ``evaluate.py``."""
    return shlex.split(re.split(r"(?:train|evaluate)\.py ", command)[1])


def differences(words: list[str], cells: list[str]) -> dict[str, Any]:
    """Settings in the cells that a training composed of these overrides does not have: key -> what it has instead."""
    cfg = config("train", words)
    stated = OmegaConf.from_dotlist([setting for cell in cells for setting in settings(cell)])
    found = {}
    for setting in (setting for cell in cells for setting in settings(cell)):
        key = setting.split("=")[0]
        name = OmegaConf.select(cfg, f"{key}.name") if OmegaConf.is_config(OmegaConf.select(cfg, key)) else MISSING
        value = OmegaConf.select(cfg, key, default=MISSING) if name is MISSING else name
        if value != OmegaConf.select(stated, key):
            found[key] = value
    return found


def check_departures(words: list[str]) -> set[str]:
    """Each restoring key of a recipe is accepted, named in the start log, and takes its departure off the list.

    Returns:
        The names of the departures that a key restores.
    """
    before = in_force(config("train", words))
    log = describe_departures(config("train", words))
    assert all(departure.here in log for departure in before.values())
    restorable = {name: departure.restore for name, departure in before.items() if departure.restore}
    for name, restore in restorable.items():
        keys = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in restore.items()]
        cfg = config("train", [*words, *keys])
        check_config(cfg)
        assert in_force(cfg).keys() == before.keys() - {name}
        assert all(f"restored by {key.split('=')[0]}" in log for key in keys)
    return set(restorable)
