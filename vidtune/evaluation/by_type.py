"""Several runs side by side, a row per question type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vidtune.evaluation.metrics import Accuracy, accuracies
from vidtune.evaluation.run_table import RunPredictions
from vidtune.evaluation.tables import Column, Table


def compare_types(runs: Sequence[RunPredictions], groups: Mapping[str, Sequence[str]] | None = None) -> Table:
    """Question types, groups and the total x runs: accuracy, its interval, and answers that could not be read.

    Args:
        runs: that answered the same questions.
        groups: further rows, as for ``metrics.accuracies``.
    """
    by_run = [accuracies(run.predictions, groups) for run in runs]
    columns = [Column("question type"), Column("n", "count")]
    for run in runs:
        columns += [
            Column(run.name, "percent"),
            Column(f"{run.name} 95 % interval", "interval"),
            Column(f"{run.name} unparsed", "count"),
        ]
    rows = []
    for name, first in by_run[0].items():
        cells = [cell for accuracy_by_name in by_run for cell in _cells(accuracy_by_name[name])]
        rows.append((name, first.n, *cells))
    total = len(rows) - 1
    return Table(columns, rows, sections=(total - len(groups or ()), total))


def _cells(row: Accuracy) -> tuple[float | None, tuple[float, float] | None, int]:
    return row.value, row.interval, row.unparsed
