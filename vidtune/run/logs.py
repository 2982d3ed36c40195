"""Logging of a run: plain text into its folder, warnings of libraries kept out of the way."""

from __future__ import annotations

import logging
import warnings
from logging.handlers import BufferingHandler
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.logging import RichHandler

_FORMAT = "%(asctime)s %(levelname)s %(message)s"

_EXPECTED = (
    "You're resuming from a checkpoint that ended before the epoch ended",  # the plan goes on at global_step
    "Experiment logs directory",  # the run folder exists on purpose, and metrics.csv is kept
    "Checkpoint directory",
    ".*does not have many workers",  # data.num_workers is the user's choice, and Meters shows what waiting costs
    ".*treespec, LeafSpec",
)
"""Warnings of libraries about what vidtune does knowingly."""


def _no_advertisement(record: logging.LogRecord) -> bool:
    """Lightning recommends products of its maker at every start."""
    return "Tip: For seamless" not in str(record.msg)


class _Kept(BufferingHandler):
    """What was logged before there was a run folder: a run that is refused must not leave one behind."""

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        return False


def start_logging(run_dir: Path | None = None) -> None:
    """Log ``vidtune`` to the terminal, and to ``log.txt`` of a run folder; other processes only warn.

    May be called again: the handlers of the run before are replaced. What was logged between a call without a run
    folder and one with it is written there, too.
    """
    for pattern in _EXPECTED:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    logger = logging.getLogger("vidtune")
    logger.propagate = False
    early = [record for handler in logger.handlers if isinstance(handler, _Kept) for record in handler.buffer]
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.DEBUG if rank_zero_only.rank == 0 else logging.WARNING)
    # To stderr: what a verb answers on stdout stays fit for a pipe. Debug records are for log.txt alone.
    terminal = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
    terminal.setLevel(logging.INFO)
    logger.addHandler(terminal)
    if run_dir is None:
        logger.addHandler(_Kept(capacity=0))
    elif rank_zero_only.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(run_dir / "log.txt")
        file.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(file)
        for record in early:
            file.handle(record)
