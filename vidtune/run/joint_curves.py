"""The training curves of the runs of a table, in one chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vidtune.evaluation.curves import read_metrics
from vidtune.evaluation.plots import plot_curves, save
from vidtune.run.answer_set import AnswerSet


def save_joint_curves(sets: Sequence[AnswerSet], folder: Path) -> Path | None:
    """Write ``loss_curves.png``; None where fewer than two rows are runs with logged metrics."""
    folders = {answers.row.name: answers.row.home for answers in sets if answers.row.checkpoint is not None}
    logged = {name: home / "metrics.csv" for name, home in folders.items() if (home / "metrics.csv").is_file()}
    if len(logged) < 2:
        return None
    return save(plot_curves({name: read_metrics(file) for name, file in logged.items()}), folder / "loss_curves.png")
