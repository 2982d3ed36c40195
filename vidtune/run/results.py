"""What an evaluation leaves behind: tables, numbers, charts, the report, files for other programs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from vidtune.evaluation.by_type import compare_types
from vidtune.evaluation.metrics import accuracies
from vidtune.evaluation.plots import plot_accuracy
from vidtune.evaluation.run_table import RunPredictions, compare_runs
from vidtune.evaluation.tables import Table
from vidtune.evaluation.timing import read_timings, speed_table
from vidtune.evaluation.video_gain import control_table
from vidtune.run.answer_set import AnswerSet
from vidtune.run.class_results import save_classes
from vidtune.run.joint_curves import save_joint_curves
from vidtune.run.published import published_notes
from vidtune.run.report import save_report
from vidtune.run.wandb_runs import log_evaluation


def save_results(cfg: DictConfig, sets: Sequence[AnswerSet]) -> dict[str, float]:
    """Print and save the tables of every row, and of all together.

    Returns:
        The numbers of the table; with several rows, of each after its name.
    """
    console = Console()
    results = [answers.read() for answers in sets]
    numbers = [answers.task.metrics(result.predictions) for answers, result in zip(sets, results, strict=True)]
    own = [_save_row(*row) for row in zip(sets, results, numbers, strict=True)]
    by_class: list[Table] = []
    for answers, result, table in zip(sets, results, own, strict=True):
        _show(console, table)
        by_class += save_classes(answers.task, result.predictions, table.title, answers.folder)
    folder = sets[0].folder if len(sets) == 1 else _table_folder(cfg, sets)
    joint = _joint_tables(sets, results)
    for stem, table in joint.items():
        table.save(folder, stem)
        _show(console, table)
    report = None
    if limit := sets[0].row.cfg.eval.report_samples:
        report = save_report(folder, sets, results, [*joint.values(), *own, *by_class], limit)
        console.print(f"Report: {report}", soft_wrap=True)
    console.print(f"Predictions and tables: {folder}", soft_wrap=True)
    if curves := save_joint_curves(sets, folder):
        console.print(f"Loss curves: {curves}", soft_wrap=True)
    chart = plot_accuracy({result.name: accuracies(result.predictions) for result in results})
    for answers, table, values in zip(sets, own, numbers, strict=True):
        if (run_dir := answers.row.run_dir) is not None:
            title = f"{answers.row.cfg.data.name}_{answers.split}"
            log_evaluation(run_dir, title, {"accuracy": table, **joint}, {"chart": chart}, values, report)
            console.print(f"Loss curve: {run_dir / 'loss_curve.png'}\nRun folder: {run_dir}", soft_wrap=True)
    if len(sets) == 1:
        return numbers[0]
    return {
        f"{result.name}/{key}": value
        for result, values in zip(results, numbers, strict=True)
        for key, value in values.items()
    }


def _show(console: Console, table: Table) -> None:
    for part in table.narrow(console.width):
        console.print(part.rich())


def _save_row(answers: AnswerSet, result: RunPredictions, numbers: Mapping[str, float]) -> Table:
    table = answers.task.summarise(result.predictions)
    table.title = f"{result.name}: {answers.row.cfg.data.name} {answers.split}"
    table.notes += published_notes(answers.row.cfg, answers.split)
    table.save(answers.folder, "accuracy")
    (answers.folder / "metrics.json").write_text(json.dumps(numbers, indent=2))
    _write_files(answers.folder / "judge", answers.task.files(result.predictions))
    return table


def _write_files(folder: Path, files: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for name, rows in files.items():
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")


def _joint_tables(sets: Sequence[AnswerSet], results: Sequence[RunPredictions]) -> dict[str, Table]:
    groups = getattr(sets[0].task, "groups", None)
    tables = {"runs": compare_runs(results, groups)}
    if len(results) > 1:
        tables["by_type"] = compare_types(results, groups)
    for table in tables.values():
        table.notes += published_notes(sets[0].row.cfg, sets[0].split)
    if any(result.controls for result in results):
        tables["controls"] = control_table({r.name: (r.predictions, r.controls) for r in results if r.controls})
    timings = {answers.row.name: read_timings(answers.folder) for answers in sets}
    if any(timings.values()):
        tables["speed"] = speed_table(timings)
    return tables


def _table_folder(cfg: DictConfig, sets: Sequence[AnswerSet]) -> Path:
    """The same for the same rows, so that an evaluation that goes on finds its folder."""
    if cfg.output:
        return Path(cfg.output)
    rows = "\n".join(f"{answers.row.name} {answers.folder}" for answers in sets)
    digest = hashlib.sha256(rows.encode()).hexdigest()[:8]
    return Path(cfg.paths.runs_dir) / "evaluation" / f"{sets[0].row.cfg.data.name}_{sets[0].split}_{digest}"
