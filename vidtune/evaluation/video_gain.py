"""How much of a run's accuracy comes from the video: its answers against those of the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidtune.evaluation.comparison import Difference, pair, paired_bootstrap
from vidtune.evaluation.controls import CONTROLS
from vidtune.evaluation.metrics import TOTAL, accuracies
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.tables import Column, Table

BLIND = {"other_video": "with another video", "no_video": "without the video"}
"""Controls that show nothing of the video that the question is about, and how a sentence names them."""


@dataclass(frozen=True)
class VideoGain(Difference):
    """Accuracy minus that of the blind control ``against``."""

    against: str = "other_video"


def video_gain(predictions: Sequence[Prediction], controls: Mapping[str, Sequence[Prediction]]) -> VideoGain:
    """Accuracy minus that of the better blind control, with its paired 95 % interval.

    The better one: a model that was never trained on text alone may fail without a video for that reason only, which
    would look like a gain; with another video it has its usual input. Where the right video does no better than another
    one, that is the gain, and it is near zero: a model that was never trained on videos may be disturbed by any, and
    then answers best without one, which says nothing about what it takes from the right one.
    """
    gains = {}
    for name in BLIND:
        pairs = pair(predictions, controls[name], ("the evaluation", CONTROLS[name].name))
        found = paired_bootstrap([bool(b.correct) for _, b in pairs], [bool(a.correct) for a, _ in pairs])
        gains[name] = VideoGain(found.mean, found.interval, name)
    other = gains["other_video"]
    return min(gains.values(), key=lambda gain: gain.mean) if other.distinguishable else other


def control_table(runs: Mapping[str, tuple[Sequence[Prediction], Mapping[str, Sequence[Prediction]]]]) -> Table:
    """Runs x question types: accuracy with the video and under every control, and the video gain.

    Args:
        runs: name -> predictions, and predictions by control.
    """
    columns = [
        Column("run"),
        Column("question type"),
        Column("n", "count"),
        Column("video", "percent"),
        *(Column(control.name, "percent") for control in CONTROLS.values()),
        Column("video gain", "difference"),
        Column("gain 95 % interval", "interval"),
    ]
    cells: list[Any] = []
    notes: list[str] = []
    sections: list[int] = []
    for run, (predictions, controls) in runs.items():
        sections.append(len(cells))
        for kind, row in accuracies(predictions).items():
            chosen = {name: _of_type(rows, kind) for name, rows in controls.items()}
            gain = video_gain(_of_type(predictions, kind), chosen)
            blind = [_accuracy(chosen[name]) for name in CONTROLS]
            cells.append((run, kind, row.n, row.value, *blind, gain.mean, gain.interval))
        notes.append(f"{run}: {gain_sentence(video_gain(predictions, controls))}")
    notes.append(
        "Video gain: accuracy minus that of the better of no video and other video, paired over questions; where the "
        "right video does no better than another one, minus that of other video."
    )
    return Table(columns, cells, title="Does it watch the video?", notes=notes, sections=sections)


def gain_sentence(gain: VideoGain) -> str:
    """What the gain means, in words."""
    if gain.interval is None:
        return "one question alone cannot tell whether the video matters."
    points = (
        f"{100 * gain.mean:+.1f} points (95 % interval {100 * gain.interval[0]:+.1f} to {100 * gain.interval[1]:+.1f})"
    )
    if not gain.distinguishable:
        return f"the video gain of {points} is not distinguishable from zero: it answers as well {BLIND[gain.against]}."
    if gain.mean < 0:
        return f"the video gain is {points}: it answers worse with the right video than {BLIND[gain.against]}."
    return f"the video gain is {points}: it uses the video."


def _of_type(predictions: Sequence[Prediction], kind: str) -> list[Prediction]:
    return [p for p in predictions if kind == TOTAL or (p.question_type or "(no type)") == kind]


def _accuracy(predictions: Sequence[Prediction]) -> float:
    return sum(bool(prediction.correct) for prediction in predictions) / len(predictions)
