"""`vidtune prepare <set>`: public releases to annotations.

A set is a module with ``SETTINGS`` (its options with their help) and ``prepare(root, options, console) -> Report``; it
is listed here by name. Every set can be started again: what lies there complete is not made anew.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console

from vidtune.contracts import UserError


@dataclass
class Report:
    """What was written.

    Args:
        files: with their number of rows.
        counts: how often each written rule about the release's oddities took effect.
        notes: what the user should know or do next.
    """

    files: dict[Path, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Preparation(Protocol):
    """A set that can be prepared; a module of this package."""

    SETTINGS: Mapping[str, str]
    """Option -> help."""

    def prepare(self, root: Path, options: Mapping[str, str], console: Console) -> Report:
        """Download where online, convert, and report.

        Args:
            root: folder of the set; what the release consists of is looked for here, and the result is written here.
            options: as given; their names are among ``SETTINGS``.

        Raises:
            UserError: something is missing (says what to put where), or a file is not what it should be.
        """
        ...


SETS: dict[str, str] = {
    "actions": "vidtune.data.prepare.actions",
    "nextqa": "vidtune.data.prepare.nextqa",
    "qevd": "vidtune.data.prepare.qevd",
    "video_instruct_100k": "vidtune.data.prepare.video_instruct_100k",
}
"""Sets by name, with their modules."""


def get_preparation(name: str) -> Preparation:
    """The set of this exact name.

    Raises:
        UserError: no such set.
    """
    if name not in SETS:
        raise UserError(f"vidtune prepare {name}: no such set; there are {', '.join(sorted(SETS))}.")
    return importlib.import_module(SETS[name])  # type: ignore[return-value]
