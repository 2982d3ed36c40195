"""What an evaluation writes about single classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vidtune.evaluation.plots import plot_confusion, save
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.tables import Table
from vidtune.evaluation.task_base import Task


def save_classes(task: Task, predictions: Sequence[Prediction], title: str, folder: Path) -> list[Table]:
    """Write ``classes`` (precision, recall and F1 of every class) and ``confusion`` (counts and a picture).

    Returns:
        The table of the classes, for the report; none where the questions have no common list of answers.
    """
    results = task.by_class(predictions)
    if results is None:
        return []
    table = results.table(f"{title}, by class")
    table.save(folder, "classes")
    results.confusion_table(title).save(folder, "confusion")
    save(plot_confusion(results, title), folder / "confusion.png")
    return [table]
