"""`vidtune check data=... model=... [fast=true]`: find what would harm a run, before it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vidtune.contracts import UserError

if TYPE_CHECKING:
    from vidtune.run.check import Report

_FAST = {"fast=true": True, "fast=false": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="as for train.py: data=..., model=..., ...; and fast=true to read headers instead of decoding",
    )
    parser.add_argument("--report", help="JSON file (default: check_<data>_<model>.json below paths.runs_dir)")
    parser.add_argument("--workers", type=int, help="media at a time (default: one per core)")


def run(arguments: argparse.Namespace) -> int:
    from vidtune.run.check import check  # takes seconds to import; --help must not wait for it
    from vidtune.run.compose import compose_config

    fast = False
    overrides = []
    for word in arguments.overrides:
        if word.startswith("fast="):
            if word.lower() not in _FAST:
                raise UserError(f"{word}: expected fast=true or fast=false.")
            fast = _FAST[word.lower()]
        else:
            overrides.append(word)
    cfg = compose_config(overrides, "train")
    report = check(cfg, fast, arguments.workers)
    default = Path(cfg.paths.runs_dir) / f"check_{cfg.data.name}_{cfg.model.name}.json"
    file = Path(arguments.report) if arguments.report else default
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report.data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(report, file, Console())
    return 1 if report.harm else 0


def _print(report: Report, file: Path, console: Console) -> None:
    table = Table(title="Rows and their token lengths", title_justify="left")
    for column in ("split", "rows", "media", "median", "95 %", "longest", "histogram"):
        table.add_column(column, justify="left" if column in ("split", "histogram") else "right")
    for split, facts in report.data["splits"].items():
        tokens = facts["tokens"]
        numbers = [f"{tokens[key]:g}" for key in ("median", "percentile_95", "max")] if tokens else ["-"] * 3
        bars = _bars(tokens["histogram"]["counts"]) if tokens else ""
        table.add_row(split, str(facts["rows"]), str(facts["media"]), *numbers, bars)
    console.print(table)
    for split, facts in report.data["splits"].items():
        for what in ("question_types", "answers"):
            if facts[what]:
                parts = [f"{name or '(none)'} {count}" for name, count in list(facts[what].items())[:12]]
                console.print(escape(f"{split} {what.replace('_', ' ')}: {', '.join(parts)}"), soft_wrap=True)
    for note in report.notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for harm in report.harm:
        console.print(f"[bold red]harm[/] {escape(harm)}", soft_wrap=True)
    if not report.harm:
        console.print("Nothing found that would harm a run.")
    console.print(f"Report: {file}", soft_wrap=True)
    if report.data["bad_media"]:
        console.print(f"Train without the unreadable media: media.known_bad={file}", soft_wrap=True)


def _bars(counts: list[int]) -> str:
    """Counts as bars of one character."""
    blocks = "▁▂▃▄▅▆▇█"
    most = max(counts) or 1
    return "".join(" " if not count else blocks[min(7, count * 8 // (most + 1))] for count in counts)
