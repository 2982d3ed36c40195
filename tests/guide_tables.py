"""Tables "line of the guide, our command" of the docs, as commands and settings that tests compose."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from tests.helpers import ROOT, config
from vidtune.run.checks import check_config
from vidtune.run.departures import describe_departures, in_force

MISSING = object()
PLACEHOLDER = re.compile(r"<[^>]*>|\.\.\.")


# ------------------------------------------------------------------------------------------------- reading


def table(doc: str, heading: str) -> list[list[str]]:
    """Cells of the tables below a heading of ``docs/<doc>.md``, without their head lines."""
    text = (ROOT / f"docs/{doc}.md").read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(f"# {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in _below_heads(section)]
    assert rows, f"docs/{doc}.md has no table below {heading!r}"
    return rows


def _below_heads(section: str) -> list[str]:
    lines = section.splitlines()
    heads = {number for number, line in enumerate(lines) if line.startswith("|---")}
    rows = [number for number, line in enumerate(lines) if line.startswith("|")]
    return [lines[number] for number in rows if not heads & {number, number + 1}]


def spans(cell: str) -> list[str]:
    """What stands between back-ticks."""
    return re.findall(r"`([^`]*)`", cell)


def settings(cell: str) -> list[str]:
    """The ``key=value`` words between back-ticks."""
    return [word for span in spans(cell) for word in words(span) if re.match(r"[\w.]+=", word)]


def words(command: str) -> list[str]:
    return shlex.split(command)


def overrides(command: str) -> list[str]:
    """The words behind ``train.py`` or ``evaluate.py``."""
    return words(re.split(r"(?:train|evaluate)\.py ", command)[1])


@dataclass(frozen=True)
class GuideTable:
    """The last column of tables; first columns are what the guide says.

    Args:
        lines: first columns, joined.
        commands: spans that begin with ``python`` or ``vidtune``.
        settings: the other spans that hold ``key=value`` words, each to be given beside a recipe.
    """

    lines: str
    commands: list[str]
    settings: list[str]


def read_tables(doc: str, *headings: str) -> GuideTable:
    """Tables of ``docs/<doc>.md`` below these headings; ``somewhere`` stands for what a user fills in."""
    rows = [row for heading in headings for row in table(doc, heading)]
    found = [PLACEHOLDER.sub("somewhere", span) for row in rows for span in spans(row[-1])]
    commands = [span for span in found if span.startswith(("python ", "vidtune "))]
    given = [span for span in found if span not in commands and re.fullmatch(r"[\w.]+=.*", span)]
    return GuideTable(" ".join(row[0] for row in rows), commands, given)


def code_commands(doc: str) -> list[str]:
    """Lines of code blocks that start training or evaluation."""
    text = (ROOT / f"docs/{doc}.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [PLACEHOLDER.sub("somewhere", line) for line in lines if line.startswith("python ")]


# ------------------------------------------------------------------------------------------------- checking


def together(given: list[str]) -> list[list[str]]:
    """Overrides of settings that one composition can hold, since composing takes its time: those that set other keys.
    A setting that chooses from a group stands alone."""
    groups: list[dict[str, str]] = []
    alone = []
    for setting in dict.fromkeys(given):
        keys = {word.split("=")[0]: word for word in words(setting)}
        if any("." not in key and not key.endswith(("_size", "epochs", "accumulation", "seed")) for key in keys):
            alone.append(words(setting))
            continue
        room = next((group for group in groups if not group.keys() & keys.keys()), None)
        if room is None:
            groups.append(keys)
        else:
            room |= keys
    return [*alone, *(list(group.values()) for group in groups)]


def differences(recipe: list[str], cells: list[str]) -> dict[str, Any]:
    """Settings in the cells that a training composed of these overrides does not have: key -> what it has instead."""
    cfg = config("train", recipe)
    stated = OmegaConf.from_dotlist([setting for cell in cells for setting in settings(cell)])
    found = {}
    for setting in (setting for cell in cells for setting in settings(cell)):
        key = setting.split("=")[0]
        name = OmegaConf.select(cfg, f"{key}.name") if OmegaConf.is_config(OmegaConf.select(cfg, key)) else MISSING
        value = OmegaConf.select(cfg, key, default=MISSING) if name is MISSING else name
        if value != OmegaConf.select(stated, key):
            found[key] = value
    return found


def check_departures(recipe: list[str]) -> set[str]:
    """Each restoring key of a recipe is accepted, named in the start log, and takes its departure off the list.

    Returns:
        The names of the departures that a key restores.
    """
    before = in_force(config("train", recipe))
    log = describe_departures(config("train", recipe))
    assert all(departure.here in log for departure in before.values())
    restorable = {name: departure.restore for name, departure in before.items() if departure.restore}
    for name, restore in restorable.items():
        keys = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in restore.items()]
        cfg = config("train", [*recipe, *keys])
        check_config(cfg)
        assert in_force(cfg).keys() == before.keys() - {name}
        assert all(f"restored by {key.split('=')[0]}" in log for key in keys)
    return set(restorable)
