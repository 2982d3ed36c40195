"""Predictions -> the tables and numbers of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vidtune.evaluation.comparison import mean_interval
from vidtune.evaluation.metrics import Accuracy
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.tables import Column, Table


def accuracy_table(rows: Mapping[str, Accuracy], num_groups: int = 0, title: str = "") -> Table:
    """The accuracy table by question type.

    Args:
        rows: as ``metrics.accuracies`` returns them: types, groups, total.
        num_groups: how many of the rows are groups; lines set them and the total off.
    """
    columns = [
        Column("question type"),
        Column("n", "count"),
        Column("accuracy", "percent"),
        Column("95 % interval", "interval"),
        Column("chance", "percent"),
        Column("majority", "percent"),
        Column("unparsed", "count"),
        Column("bad media", "count"),
    ]
    cells = [
        (name, row.n, row.value, row.interval, row.chance, row.majority, row.unparsed, row.bad_media)
        for name, row in rows.items()
    ]
    total = len(cells) - 1
    return Table(columns, cells, title=title, sections=(total - num_groups, total))


def by_type(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Predictions by question type, in order of first appearance."""
    members: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        members.setdefault(prediction.question_type, []).append(prediction)
    return members


def mean_scores(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Mean of each further metric over the predictions that have it, in order of first appearance."""
    names = dict.fromkeys(name for prediction in predictions for name in prediction.score)
    return {name: float(np.mean(_values(predictions, name))) for name in names}


def score_notes(predictions: Sequence[Prediction]) -> list[str]:
    """One sentence per further metric, with its bootstrap interval; ``n`` counts the questions that it applies to."""
    notes = []
    for name, mean in mean_scores(predictions).items():
        values = _values(predictions, name)
        interval = mean_interval(values)
        bounds = f"95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f}, " if interval else ""
        notes.append(f"{name}: {100 * mean:.1f} % ({bounds}n = {len(values):,})")
    return notes


def _values(predictions: Sequence[Prediction], name: str) -> list[float]:
    return [prediction.score[name] for prediction in predictions if name in prediction.score]
