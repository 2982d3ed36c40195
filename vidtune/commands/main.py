"""The `vidtune` command: finds the verb, runs it, and turns a user's mistake into one message.

A verb is a module with ``add_arguments(parser)`` and ``run(arguments) -> int`` (the exit code). It is imported only
when it is asked for: `vidtune doctor` must work where torch does not, and `vidtune --help` at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Verb:
    """Where a verb lies, and its line in ``vidtune --help``."""

    module: str
    help: str


VERBS = {
    "doctor": Verb("vidtune.commands.doctor", "what this machine has, what is broken, and what could be trained here"),
    "prepare": Verb("vidtune.commands.prepare", "turn a public release into annotations"),
    "check": Verb("vidtune.commands.check", "find what would harm a run in a data set, before the run"),
    "start": Verb("vidtune.commands.start", "doctor, check and train in one command"),
    "preview": Verb("vidtune.commands.preview", "show what the model will see of one row"),
    "precompute": Verb(
        "vidtune.commands.precompute", "encode the videos of a data set once, for all runs with a frozen tower"
    ),
    "convert": Verb("vidtune.commands.convert", "bring released weights and feature files into a form that is read"),
    "chat": Verb("vidtune.commands.chat", "ask a model about a video"),
    "predict": Verb("vidtune.commands.predict", "ask a model one question about many videos"),
    "export": Verb("vidtune.commands.export", "write a run's weights for other programs, and check them"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with 1, the code of every mistake of the user (argparse has 2)."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: the words after ``vidtune``; those of this process by default.

    Returns:
        The exit code: the verb's own, or 1 after a ``UserError`` or a package that is not installed, whose message is
        then on stderr. Any other exception is our mistake and keeps its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments, verb = _parse(words)
        return importlib.import_module(verb.module).run(arguments)
    except KeyboardInterrupt:
        print("vidtune: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "vidtune":
            raise
        print(
            f"vidtune: package {error.name!r} is not installed. Run `make venv` or `vidtune doctor`.", file=sys.stderr
        )
        return 1
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None:
            raise
        print(f"vidtune: {mistake}", file=sys.stderr)
        return 1


def _mistake(error: BaseException | None) -> BaseException | None:
    """The ``UserError`` that an error is or comes from: Hydra wraps what is raised while it builds an object."""
    # Looked up, not imported: the contracts need torch. If nothing has imported them, nothing has raised from them.
    contracts = sys.modules.get("vidtune.contracts")
    while error is not None and contracts is not None:
        if isinstance(error, contracts.UserError):
            return error
        error = error.__cause__
    return None


def _parse(words: list[str]) -> tuple[argparse.Namespace, Verb]:
    parser = _Parser(prog="vidtune", description="Fine-tune video language models.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        subparser = verbs.add_parser(name, help=verb.help, description=verb.help)
        if words[:1] == [name]:
            importlib.import_module(verb.module).add_arguments(subparser)
    arguments = parser.parse_args(words)
    return arguments, VERBS[arguments.verb]
