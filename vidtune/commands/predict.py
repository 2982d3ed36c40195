"""``vidtune predict``: one question about many videos, answers as JSONL and CSV."""

from __future__ import annotations

import argparse
from pathlib import Path

from vidtune.commands.model_options import add_model_options, open_from
from vidtune.run.predict import find_videos, predict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument(
        "--videos", required=True, help="folder (searched through), one video, or a text file with a path per line"
    )
    parser.add_argument("--question", required=True, help="asked about every video")
    parser.add_argument("--output", help="folder of the answers (default: predictions/ in the run folder)")


def run(arguments: argparse.Namespace) -> int:
    videos = find_videos(arguments.videos)
    home = Path(arguments.run or Path("runs") / f"untuned_{arguments.model}")
    output = Path(arguments.output) if arguments.output else home / "predictions"
    made_by = {key: getattr(arguments, key) for key in ("run", "checkpoint", "model", "adapter", "overrides")}
    predict(lambda: open_from(arguments), videos, arguments.question, output, made_by)
    return 0
