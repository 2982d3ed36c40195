"""An evaluation: one or several models on a data set, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from vidtune.contracts import UserError
from vidtune.run.answer_set import AnswerSet, prepare_row
from vidtune.run.checks import check_config
from vidtune.run.logs import start_logging
from vidtune.run.processes import join_processes
from vidtune.run.results import save_results
from vidtune.run.table_rows import TableRow, table_rows
from vidtune.training.strategies import num_processes

SCORINGS = ("generate", "likelihood", "perplexity")


def evaluate(cfg: DictConfig, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Answer the questions of a split, and print and save the tables.

    Args:
        cfg: composed from ``conf/evaluate.yaml``.
        overrides: the command line's; they win over the recipe of a run.

    Returns:
        The numbers of the table: ``accuracy``, ``accuracy/<question type>``, ...; with several rows, of each after its
        name: ``<row>/accuracy``. Empty in all processes but the first.

    Raises:
        UserError: no such run, checkpoint, adapter, split or task; rows with different questions; predictions made
            with other settings.
    """
    rows = table_rows(cfg, overrides)
    for row in rows:
        check_config(row.cfg)
        if row.cfg.eval.scoring not in SCORINGS:
            raise UserError(f"eval.scoring={row.cfg.eval.scoring!r}; expected one of {', '.join(SCORINGS)}.")
        if (row.cfg.eval.scoring == "perplexity") != (row.cfg.data.task.name == "perplexity"):
            raise UserError(
                f"eval.scoring={row.cfg.eval.scoring} and data.task.name={row.cfg.data.task.name}: perplexity is asked "
                f"and scored as such; set both or neither to perplexity."
            )
    with join_processes(num_processes(cfg.hardware)) as processes:
        start_logging()
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        folders = _row_folders(cfg, rows)
        sets = [prepare_row(row, cfg.split, folder, processes) for row, folder in zip(rows, folders, strict=True)]
        _same_questions(sets)
        for answers in sets:
            answers.answer(processes)
        return save_results(cfg, sets) if processes.first else {}


def _row_folders(cfg: DictConfig, rows: Sequence[TableRow]) -> list[Path | None]:
    """Where ``output=`` puts the predictions of each row."""
    if not cfg.output:
        return [None] * len(rows)
    return [Path(cfg.output)] if len(rows) == 1 else [Path(cfg.output) / _plain(row.name) for row in rows]


def _same_questions(sets: Sequence[AnswerSet]) -> None:
    """Refuse before hours of answering what could not be compared after them."""
    first = [sample.sample_id for sample in sets[0].samples]
    for other in sets[1:]:
        if [sample.sample_id for sample in other.samples] != first:
            raise UserError(
                f"{sets[0].row.name} and {other.row.name} would answer different questions "
                f"({sets[0].row.cfg.data.name}: {len(first)}, {other.row.cfg.data.name}: {len(other.samples)}). "
                f"Name one set for all: data=..., split=..."
            )


def _plain(name: str) -> str:
    return name.strip("/").replace("/", "_")
