"""Tables "line of the guide, our command" of the docs, as commands and settings that tests compose."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from tests.helpers import ROOT

PLACEHOLDER = re.compile(r"<[^>]*>|\.\.\.")


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
    """Tables of ``docs/<doc>.md`` below these headings."""
    text = (ROOT / f"docs/{doc}.md").read_text(encoding="utf-8")
    rows = [
        line.split(" | ")
        for heading in headings
        for line in re.split(r"^#+ ", text.split(f"# {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0].splitlines()
        if line.startswith("| ") and "|---" not in line
    ]
    spans = [PLACEHOLDER.sub("somewhere", span) for row in rows for span in re.findall(r"`([^`]+)`", row[-1])]
    commands = [span for span in spans if span.startswith(("python ", "vidtune "))]
    settings = [span for span in spans if span not in commands and re.fullmatch(r"[\w.]+=.*", span)]
    return GuideTable(" ".join(row[0] for row in rows), commands, settings)


def code_commands(doc: str) -> list[str]:
    """Lines of code blocks that start training or evaluation."""
    text = (ROOT / f"docs/{doc}.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [PLACEHOLDER.sub("somewhere", line) for line in lines if line.startswith("python ")]


def words(command: str) -> list[str]:
    return shlex.split(command)


def together(settings: list[str]) -> list[list[str]]:
    """Overrides of settings that one composition can hold, since composing takes its time: those that set other keys.
    A setting that chooses from a group stands alone."""
    groups: list[dict[str, str]] = []
    alone = []
    for setting in dict.fromkeys(settings):
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
