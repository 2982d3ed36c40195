"""Charts of runs and results. Each returns a matplotlib ``Figure``; ``save`` writes it as PNG.

Figures are made without pyplot: no display is needed, no global state changes, and nothing must be closed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vidtune.contracts import UserError
from vidtune.evaluation.classification import NO_ANSWER, Classes
from vidtune.evaluation.curves import curve, smooth
from vidtune.evaluation.metrics import Accuracy

DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours: told apart by colour-blind readers too."""

MANY_CLASSES = 40

PANELS = (("train/loss", "val/loss"), ("val/accuracy",))
AXIS_NAMES = {
    "step": "optimizer step",
    "samples": "samples",
    "hours": "hours of training",
    "loss": "loss (nats per target)",
    "accuracy": "accuracy",
    "lr": "learning rate",
}


def save(figure: Figure, path: Path | str) -> Path:
    """Write the figure as PNG; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def plot_curves(
    runs: Mapping[str, pd.DataFrame],
    panels: Sequence[Sequence[str]] = PANELS,
    x: str = "step",
    smoothing: float = 0.8,
) -> Figure:
    """Training curves of one or several runs, one panel above the other.

    Args:
        runs: name -> metrics as ``read_metrics`` returns them.
        panels: metric columns drawn together; a panel that no run has data for is left out, except the first.
        x: column of the horizontal axis.
        smoothing: weight of the moving average over training curves, which are drawn pale beneath it. Other curves
            (validation) are drawn as logged, with a mark per measurement.

    Raises:
        UserError: no run has a metric of the first panel, or a run lacks ``x``.
    """
    for name, metrics in runs.items():
        if x not in metrics:
            raise UserError(f"{name}: no column {x!r} for the horizontal axis; logged are {list(metrics.columns)}.")
    shown = [panel for panel in panels if any(_has(metrics, panel) for metrics in runs.values())]
    if not shown or shown[0] != panels[0]:
        logged = sorted({column for metrics in runs.values() for column in metrics})
        raise UserError(f"No run logged {' or '.join(panels[0])}; logged are {logged}.")

    figure = _figure(8, 1.6 + 2.9 * len(shown))
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, shown, strict=True):
        for run_index, (name, metrics) in enumerate(runs.items()):
            for column_index, column in enumerate(panel):
                if not _has(metrics, [column]):
                    continue
                # One run: a colour per metric. Several: a colour per run, the metrics told apart by line and mark.
                colour = COLOURS[(run_index if len(runs) > 1 else column_index) % len(COLOURS)]
                label = f"{name}: {column}" if len(runs) > 1 else column
                _draw(axis, curve(metrics, column, x), column, label, colour, smoothing)
        kinds = {column.rpartition("/")[2] for column in panel}
        _finish(axis, "", " / ".join(AXIS_NAMES.get(kind, kind) for kind in sorted(kinds)))
        if kinds == {"accuracy"}:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.legend(fontsize=9, framealpha=0.9)
    axes[-1].set_xlabel(AXIS_NAMES.get(x, x))
    if x == "step":
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_title(next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs")
    return figure


def plot_accuracy(runs: Mapping[str, Mapping[str, Accuracy]], title: str = "") -> Figure:
    """Accuracy bars by question type with 95 % intervals; a short line marks chance.

    Args:
        runs: name -> rows as ``metrics.accuracies`` returns them.
    """
    types = list(dict.fromkeys(name for rows in runs.values() for name in rows))
    figure = _figure(max(6.0, 1.2 + 0.55 * len(types) * max(len(runs), 1.5)), 4.5)
    axis = figure.subplots()
    width = 0.8 / len(runs)
    for index, (name, rows) in enumerate(runs.items()):
        drawn = [(place, rows[kind]) for place, kind in enumerate(types) if kind in rows and rows[kind].n]
        x = np.array([place for place, _ in drawn]) + (index - (len(runs) - 1) / 2) * width
        y = np.array([row.value for _, row in drawn])
        bounds = np.array([row.interval for _, row in drawn])
        # Wilson bounds may miss the value by a rounding error at 0 and 1; bars refuse negative lengths.
        errors = np.maximum(np.stack([y - bounds[:, 0], bounds[:, 1] - y]), 0)
        colour = COLOURS[index % len(COLOURS)]
        axis.bar(x, y, width * 0.92, yerr=errors, capsize=3, color=colour, ecolor="#444444", label=name)
        for place, (_, row) in zip(x, drawn, strict=True):
            if row.chance is not None:
                axis.hlines(row.chance, place - width / 2, place + width / 2, colors="black", linestyles="dashed")
    axis.plot([], [], color="black", linestyle="dashed", label="chance")
    sizes = {kind: max(rows[kind].n for rows in runs.values() if kind in rows) for kind in types}
    axis.set_xticks(range(len(types)), [f"{kind}\nn={sizes[kind]:,}" for kind in types])
    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _finish(axis, title, "accuracy (95 % interval)")
    axis.grid(False, axis="x")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def plot_heatmap(values: pd.DataFrame, title: str = "", label: str = "accuracy", percent: bool = True) -> Figure:
    """A sweep as a heat-map: rows x columns, the value in each cell; NaN stays white (a job that did not finish).

    Args:
        values: index and columns are the swept settings, their names become the axis labels.
    """
    shown = [[f"{100 * v:.1f}" if percent else f"{v:.3g}" for v in row] for row in values.to_numpy(float)]
    figure, axis = _grid(values.to_numpy(float), shown, list(values.index), list(values.columns), label, percent)
    axis.set(title=title, xlabel=values.columns.name or "", ylabel=values.index.name or "")
    return figure


def plot_confusion(results: Classes, title: str = "") -> Figure:
    """Confusion matrix: colour is the share of a reference class, the number in a cell counts questions.

    Cells of very many classes are small and without numbers.
    """
    counts = results.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    labels = list(results.labels)
    many = len(labels) > MANY_CLASSES
    shown = [[f"{count:,}" if count and not many else "" for count in row] for row in counts]
    scale = 0.2 if many else 1.0
    figure, axis = _grid(shares, shown, labels, [*labels, NO_ANSWER], "share of the reference class", True, scale)
    if many:
        axis.tick_params(labelsize=4)
    axis.set(title=title, xlabel="answered", ylabel="reference")
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _has(metrics: pd.DataFrame, panel: Sequence[str]) -> bool:
    return any(column in metrics and metrics[column].notna().any() for column in panel)


def _draw(axis: Axes, values: pd.Series, column: str, label: str, colour: str, smoothing: float) -> None:
    if column.startswith("train/"):
        if smoothing:
            axis.plot(values.index, values, color=colour, alpha=0.25, linewidth=1)
        axis.plot(values.index, smooth(values, smoothing), color=colour, linewidth=1.8, label=label)
    else:
        axis.plot(
            values.index, values, color=colour, linewidth=1.5, linestyle="--", marker="o", markersize=5, label=label
        )


def _finish(axis: Axes, title: str, y_label: str) -> None:
    if title:
        axis.set_title(title, fontsize=12)
    axis.set_ylabel(y_label, fontsize=11)
    axis.tick_params(labelsize=10)
    axis.grid(True, color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _grid(
    values: np.ndarray,
    shown: Sequence[Sequence[str]],
    rows: Sequence[object],
    columns: Sequence[object],
    label: str,
    percent: bool,
    scale: float = 1.0,
) -> tuple[Figure, Axes]:
    """Coloured cells with text in them; ``values`` is (rows, columns), ``scale`` the size of a cell."""
    figure = _figure(2.8 + 0.75 * scale * len(columns), 1.9 + 0.55 * scale * len(rows))
    axis = figure.subplots()
    image = axis.imshow(values, cmap="viridis", aspect="auto")
    figure.colorbar(image, ax=axis, label=label, format=PercentFormatter(1.0, decimals=0) if percent else None)
    names = [str(column) for column in columns]
    slanted = max((len(name) for name in names), default=0) > 6
    axis.set_xticks(range(len(columns)), names, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    axis.set_yticks(range(len(rows)), [str(row) for row in rows])
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if np.isfinite(value) and shown[i][j]:
                dark = float(np.asarray(image.norm(value))) < 0.6
                axis.text(j, i, shown[i][j], ha="center", va="center", color="white" if dark else "black", fontsize=9)
    return figure, axis
