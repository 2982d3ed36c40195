"""``vidtune export``: a run's weights for other programs."""

from __future__ import annotations

import argparse

from vidtune.run.export import FORMS, export
from vidtune.run.publish import publish


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument(
        "--to",
        required=True,
        choices=FORMS,
        help="adapter: PEFT folder; merged, original: the family's checkpoint folder; fp32: what trained, one file",
    )
    parser.add_argument("--checkpoint", default="best", help="best, last or step_000200 (default: best)")
    parser.add_argument("--output", help="folder (default: <run>/export/<to>)")
    parser.add_argument("--push", metavar="USER/NAME", help="upload the folder to the hub, with a model card")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides, such as hardware=cpu")


def run(arguments: argparse.Namespace) -> int:
    folder = export(arguments.run, arguments.to, arguments.output, arguments.checkpoint, arguments.overrides)
    print(folder)
    if arguments.push:
        print(publish(folder, arguments.push, arguments.run, arguments.to))
    return 0
