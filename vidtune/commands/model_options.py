"""Options that all verbs share which ask a model."""

from __future__ import annotations

import argparse

from vidtune.run.answerer import Answerer
from vidtune.run.compose import open_model


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--run`` or ``--model``, and what goes with them."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", help="run folder: its model, prompts, sampling and trained weights")
    which.add_argument("--model", help="an untuned model by its name in conf/model")
    parser.add_argument("--checkpoint", default="best", help="of --run: best, last or step_000200 (default: best)")
    parser.add_argument("--adapter", help="PEFT folder, with --model")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default: 256)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides, such as data.num_frames=16 hardware=cpu"
    )


def open_from(arguments: argparse.Namespace, *more: str) -> Answerer:
    """The model that the options name.

    Args:
        more: overrides that the verb sets where the user did not.

    Raises:
        UserError: see ``vidtune.run.compose.open_model``.
    """
    model = [f"model={arguments.model}"] if arguments.model else []
    overrides = [*model, *more, f"eval.max_new_tokens={arguments.max_new_tokens}", *arguments.overrides]
    return open_model(arguments.run, overrides, arguments.checkpoint, arguments.adapter)
