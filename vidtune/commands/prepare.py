"""`vidtune prepare <set> --root ...`: a public release to annotations."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vidtune.data.prepare import SETS, get_preparation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sets = parser.add_subparsers(dest="set", metavar="SET", required=True)
    for name in sorted(SETS):
        options = sets.add_parser(name, help=f"prepare {name}")
        options.add_argument("--root", required=True, help="folder of the release and of what is written")
        for option, text in get_preparation(name).SETTINGS.items():
            options.add_argument(f"--{option.replace('_', '-')}", dest=option, help=text.replace("%", "%%"))


def run(arguments: argparse.Namespace) -> int:
    preparation = get_preparation(arguments.set)
    given = {name: getattr(arguments, name) for name in preparation.SETTINGS}
    options = {name: value for name, value in given.items() if value is not None}
    console = Console()
    report = preparation.prepare(Path(arguments.root), options, Console(stderr=True))
    for file, rows in report.files.items():
        console.print(f"{rows} rows: {escape(str(file))}", soft_wrap=True)
    for note in report.notes:
        console.print(escape(note), soft_wrap=True)
    return 0
