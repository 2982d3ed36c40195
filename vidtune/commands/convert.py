"""`vidtune convert delta` and `vidtune convert features`: releases that need one conversion before they are read."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vidtune.contracts import UserError
from vidtune.media.legacy_pickle import convert_pickled_features
from vidtune.models.delta import apply_delta
from vidtune.models.loading import resolve_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    delta = kinds.add_parser("delta", help="base weights plus released differences")
    delta.add_argument("--base", required=True, help="LLaMA in Hugging Face layout: folder or hub id")
    delta.add_argument("--delta", required=True, help="folder or hub id, e.g. liuhaotian/LLaVA-Lightning-7B-delta-v1-1")
    delta.add_argument("--out", required=True, help="new folder for the sum, with the delta's tokenizer")
    delta.add_argument(
        "--shard-gb", type=float, default=2.0, help="size of a written file, and of what is in memory (default: 2)"
    )
    features = kinds.add_parser("features", help="pickled feature files to safetensors, which are read faster")
    features.add_argument("--source", required=True, help="folder of .pkl files, each one array")
    features.add_argument("--out", required=True, help="folder for the .safetensors files; goes on where it stopped")


def run(arguments: argparse.Namespace) -> int:
    return _delta(arguments) if arguments.kind == "delta" else _features(arguments)


def _delta(arguments: argparse.Namespace) -> int:
    if arguments.shard_gb <= 0:
        raise UserError(f"--shard-gb {arguments.shard_gb}: expected a size above 0.")
    base, delta = resolve_folder(arguments.base, "--base"), resolve_folder(arguments.delta, "--delta")
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("tensors", total=None)
        count = apply_delta(
            base,
            delta,
            Path(arguments.out),
            max_shard_bytes=int(arguments.shard_gb * 1e9),
            progress=lambda name: progress.advance(task),
        )
    Console().print(f"{count} tensors: {escape(arguments.out)}", soft_wrap=True)
    return 0


def _features(arguments: argparse.Namespace) -> int:
    source = Path(arguments.source)
    if not source.is_dir() or not any(source.glob("*.pkl")):
        raise UserError(f"--source {source}: expected a folder of .pkl feature files.")
    written, refused = convert_pickled_features(source, Path(arguments.out))
    console = Console()
    console.print(f"{written} files written: {escape(arguments.out)}", soft_wrap=True)
    for error in refused:
        console.print(f"refused: {escape(str(error))}", soft_wrap=True)
    return 1 if refused else 0
