"""`vidtune start KEY=VALUE ...`: doctor, check and train in one command."""

from __future__ import annotations

import argparse
import os

from vidtune.commands import check, doctor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="as for train.py; and fast=false to decode every medium before training instead of reading headers",
    )


def run(arguments: argparse.Namespace) -> int:
    """Stops where something on this machine is broken or in the data would harm the run, with the same messages as the
    two verbs alone."""
    # The processes that a strategy starts are given the same command line.
    if not any(int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK")):
        words = arguments.overrides
        if not any(word.startswith("fast=") for word in words):
            words = [*words, "fast=true"]
        code = doctor.run_doctor() or check.run(argparse.Namespace(overrides=words, report=None, workers=None))
        if code:
            return code
    from vidtune.run import train  # takes seconds to import; --help must not wait for it
    from vidtune.run.compose import compose_config

    overrides = [word for word in arguments.overrides if not word.startswith("fast=")]
    train(compose_config(overrides, "train"), overrides)
    return 0
