"""Several runs side by side, each compared with the first on the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vidtune.contracts import UserError
from vidtune.evaluation.comparison import mcnemar, pair, paired_bootstrap
from vidtune.evaluation.controls import CONTROLS
from vidtune.evaluation.metrics import TOTAL, accuracies
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.summaries import mean_scores
from vidtune.evaluation.tables import Column, Table
from vidtune.evaluation.video_gain import gain_sentence, video_gain


@dataclass(frozen=True)
class RunPredictions:
    """One row of the table.

    Args:
        name: of the run; unique in a table.
        predictions: all with ``correct`` set.
        made_by: what made them (frames, prompt hash, checkpoint, ...); one column per key.
        controls: predictions of the same questions by control; see ``vidtune.evaluation.controls``.
    """

    name: str
    predictions: Sequence[Prediction]
    made_by: Mapping[str, Any] = field(default_factory=dict)
    controls: Mapping[str, Sequence[Prediction]] = field(default_factory=dict)


def compare_runs(runs: Sequence[RunPredictions], groups: Mapping[str, Sequence[str]] | None = None) -> Table:
    """Runs x metrics: n, accuracy with its interval, difference to the first run, accuracy by type and group, further
    metrics, the controls with the video gain where they were asked, and what made each row.

    Raises:
        UserError: no runs, two of one name, or runs that answered different samples.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise UserError(f"A comparison needs runs of different names; found {names}. Check run=[...].")
    rows = [accuracies(run.predictions, groups) for run in runs]
    types = list(dict.fromkeys(name for row in rows for name in row if name != TOTAL))
    scores = [mean_scores(run.predictions) for run in runs]
    metrics = list(dict.fromkeys(name for row in scores for name in row))
    settings = list(dict.fromkeys(key for run in runs for key in run.made_by))
    controlled = [name for name in CONTROLS if any(name in run.controls for run in runs)]

    columns = [
        Column("run"),
        Column("n", "count"),
        Column("accuracy", "percent"),
        Column("95 % interval", "interval"),
        Column("difference", "difference"),
        Column("difference 95 % interval", "interval"),
        Column("p", "p_value"),
        Column("unparsed", "count"),
        Column("bad media", "count"),
        *(Column(name, "percent") for name in (*types, *metrics)),
        *(Column(CONTROLS[name].name, "percent") for name in controlled),
        *((Column("video gain", "difference"), Column("gain 95 % interval", "interval")) if controlled else ()),
        *(Column(key) for key in settings),
    ]
    cells = []
    for index, run in enumerate(runs):
        total = rows[index][TOTAL]
        cells.append(
            (
                run.name,
                total.n,
                total.value,
                total.interval,
                *(_against(runs[0], run) if index else (None, None, None)),
                total.unparsed,
                total.bad_media,
                *(rows[index][name].value if name in rows[index] else None for name in types),
                *(scores[index].get(name) for name in metrics),
                *(_control_cells(run, controlled) if controlled else ()),
                *(run.made_by.get(key) for key in settings),
            )
        )
    notes = (
        [f"Difference: accuracy minus that of {runs[0].name}, paired bootstrap over questions; p: exact McNemar test."]
        if len(runs) > 1
        else []
    )
    if controlled:
        notes += [f"{run.name}: {gain_sentence(video_gain(run.predictions, run.controls))}" for run in runs]
    return Table(columns, cells, notes=notes)


def _control_cells(run: RunPredictions, names: Sequence[str]) -> list[Any]:
    totals = [accuracies(run.controls[name])[TOTAL].value for name in names]
    gain = video_gain(run.predictions, run.controls)
    return [*totals, gain.mean, gain.interval]


def _against(first: RunPredictions, run: RunPredictions) -> tuple[float, tuple[float, float] | None, float]:
    pairs = pair(first.predictions, run.predictions, (first.name, run.name))
    ours, theirs = [bool(one.correct) for one, _ in pairs], [bool(other.correct) for _, other in pairs]
    difference = paired_bootstrap(ours, theirs)
    return difference.mean, difference.interval, mcnemar(ours, theirs).p_value
