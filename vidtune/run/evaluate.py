"""An evaluation: one or several models on a data set, side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from rich.console import Console

from vidtune.contracts import UserError
from vidtune.evaluation.by_type import compare_types
from vidtune.evaluation.run_table import RunPredictions, compare_runs
from vidtune.evaluation.tables import Table
from vidtune.evaluation.video_gain import control_table
from vidtune.run.answer_set import AnswerSet, prepare_row
from vidtune.run.checks import check_config
from vidtune.run.joint_curves import save_joint_curves
from vidtune.run.logs import start_logging
from vidtune.run.processes import join_processes
from vidtune.run.published import published_notes
from vidtune.run.report import save_report
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
        return _report(cfg, sets) if processes.first else {}


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


def _report(cfg: DictConfig, sets: Sequence[AnswerSet]) -> dict[str, float]:
    """Tables of every row, and of all together."""
    console = Console()
    results = [answers.read() for answers in sets]
    metrics: dict[str, float] = {}
    tables: list[Table] = []
    for answers, result in zip(sets, results, strict=True):
        table, numbers = answers.task.summarise(result.predictions), answers.task.metrics(result.predictions)
        table.title = f"{result.name}: {answers.row.cfg.data.name} {answers.split}"
        table.notes += published_notes(answers.row.cfg, answers.split)
        table.save(answers.folder, "accuracy")
        (answers.folder / "metrics.json").write_text(json.dumps(numbers, indent=2))
        _write_files(answers.folder / "judge", answers.task.files(result.predictions))
        console.print(table.rich())
        tables.append(table)
        metrics |= numbers if len(sets) == 1 else {f"{result.name}/{key}": value for key, value in numbers.items()}
    folder = sets[0].folder if len(sets) == 1 else _table_folder(cfg, sets)
    for stem, table in _joint_tables(sets, results):
        table.save(folder, stem)
        tables.append(table)
        for part in table.narrow(console.width):
            console.print(part.rich())
    if limit := sets[0].row.cfg.eval.report_samples:
        report = save_report(folder, sets, results, tables[len(sets) :] + tables[: len(sets)], limit)
        console.print(f"Report: {report}", soft_wrap=True)
    console.print(f"Predictions and tables: {folder}", soft_wrap=True)
    if curves := save_joint_curves(sets, folder):
        console.print(f"Loss curves: {curves}", soft_wrap=True)
    for run_dir in [answers.row.checkpoint.parents[1] for answers in sets if answers.row.checkpoint is not None]:
        console.print(f"Loss curve: {run_dir / 'loss_curve.png'}\nRun folder: {run_dir}", soft_wrap=True)
    return metrics


def _write_files(folder: Path, files: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for name, rows in files.items():
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")


def _joint_tables(sets: Sequence[AnswerSet], results: Sequence[RunPredictions]) -> list[tuple[str, Table]]:
    groups = getattr(sets[0].task, "groups", None)
    tables = [("runs", compare_runs(results, groups))]
    if len(results) > 1:
        tables.append(("by_type", compare_types(results, groups)))
    for _, table in tables:
        table.notes += published_notes(sets[0].row.cfg, sets[0].split)
    if any(result.controls for result in results):
        table = control_table({r.name: (r.predictions, r.controls) for r in results if r.controls})
        tables.append(("controls", table))
    return tables


def _table_folder(cfg: DictConfig, sets: Sequence[AnswerSet]) -> Path:
    """The same for the same rows, so that an evaluation that goes on finds its folder."""
    if cfg.output:
        return Path(cfg.output)
    rows = "\n".join(f"{answers.row.name} {answers.folder}" for answers in sets)
    digest = hashlib.sha256(rows.encode()).hexdigest()[:8]
    return Path(cfg.paths.runs_dir) / "evaluation" / f"{sets[0].row.cfg.data.name}_{sets[0].split}_{digest}"


def _plain(name: str) -> str:
    return name.strip("/").replace("/", "_")
