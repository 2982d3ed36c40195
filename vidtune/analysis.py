"""Run folders for notebooks: ``run = load_run("runs/demo")``, then ``run.metrics``, ``run.config``, ...

``smooth`` and the charts of ``vidtune.evaluation.plots`` take what is read here; ``settings_table``, ``grid``,
``speeds`` and ``accuracies_of`` put several runs side by side.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from vidtune.contracts import UserError
from vidtune.evaluation.curves import curve, pivot, read_metrics, smooth
from vidtune.evaluation.metrics import Accuracy, accuracies
from vidtune.evaluation.records import Prediction, read_predictions

__all__ = [
    "CONFIG",
    "METRICS",
    "PREDICTIONS",
    "SUMMARY",
    "Run",
    "accuracies_of",
    "curve",
    "grid",
    "load_run",
    "load_runs",
    "settings_table",
    "smooth",
    "speeds",
]

CONFIG = "config.yaml"
RESOLVED = "config.resolved.yaml"
METRICS = "metrics.csv"
PREDICTIONS = "predictions.jsonl"
SUMMARY = "summary.json"
SPEED = "speed/samples_per_s"


@dataclass(frozen=True)
class Run:
    """One run folder; each part is read when it is first asked for."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> DictConfig:
        """The values of the configuration that made the run."""
        resolved = self.folder / RESOLVED
        config = OmegaConf.load(resolved if resolved.is_file() else self.folder / CONFIG)
        assert isinstance(config, DictConfig)
        return config

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row per optimizer step: ``train/loss``, ``val/loss``, ..., with ``samples`` trained on so far and, where
        the speed was logged, ``hours`` of training (validation not counted).

        Raises:
            UserError: the run logged nothing.
        """
        metrics = read_metrics(self.folder / METRICS)
        if (size := self.global_batch_size) is not None:
            metrics["samples"] = (metrics["step"] + 1) * size
            if SPEED in metrics:
                metrics["hours"] = _hours(metrics)
        return metrics

    @property
    def global_batch_size(self) -> int | None:
        """Samples per optimizer step; None where the configuration does not say."""
        cfg = self.config
        if (size := cfg.get("global_batch_size")) is not None:
            return int(size)
        micro, accumulation = cfg.get("micro_batch_size"), cfg.get("accumulation")
        if micro is None or accumulation is None:
            return None
        return int(micro * accumulation * cfg.hardware.devices * cfg.hardware.num_nodes)

    @cached_property
    def predictions(self) -> dict[str, list[Prediction]]:
        """Finished evaluations by their folder within the run; empty before the first.

        Raises:
            UserError: one of them was interrupted or is damaged.
        """
        files = sorted(self.folder.rglob(PREDICTIONS))
        return {str(path.parent.relative_to(self.folder)): read_predictions(path) for path in files}

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Final numbers of the run; empty before it ends."""
        path = self.folder / SUMMARY
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def load_run(folder: Path | str) -> Run:
    """A run folder.

    Raises:
        UserError: there is no such folder, or it holds no configuration.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        found = f"holds no {CONFIG}" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder}: {found}, so it is no run folder. Give the folder that train.py printed.")
    return Run(folder)


def load_runs(pattern: str) -> dict[str, Run]:
    """All run folders that match a shell pattern (``runs/sweep/*``), by name, in order.

    Runs of one name in different folders are named by their whole path.

    Raises:
        UserError: none matches.
    """
    runs = [Run(path) for path in map(Path, sorted(glob.glob(str(pattern)))) if (path / CONFIG).is_file()]
    if not runs:
        raise UserError(f"{pattern}: no run folder (one with a {CONFIG}) matches. Check the pattern and run_name.")
    unique = len({run.name for run in runs}) == len(runs)
    return {run.name if unique else str(run.folder): run for run in runs}


def settings_table(runs: Mapping[str, Run], settings: Sequence[str], metrics: Sequence[str] = ()) -> pd.DataFrame:
    """One row per run: settings of its configuration (``tuning.name``, ``optim.lr``) and numbers of its summary.

    What a run does not have is empty.
    """
    rows = {
        name: {
            **{key: OmegaConf.select(run.config, key) for key in settings},
            **{key: run.summary.get(key) for key in metrics},
        }
        for name, run in runs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def grid(runs: Mapping[str, Run], row: str, column: str, metric: str = "val/accuracy") -> pd.DataFrame:
    """A sweep over two settings as rows x columns, for ``plot_heatmap``; NaN where a run is missing or unfinished."""
    return pivot(settings_table(runs, [row, column], [metric]), row, column, metric)


def speeds(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Median of each logged ``speed/...`` metric per run, memory as its maximum; the first step warms up and is left
    out where there are others."""
    rows = {}
    for name, run in runs.items():
        logged = run.metrics.filter(like="speed/").dropna(how="all")
        logged = logged.iloc[1:] if len(logged) > 1 else logged
        rows[name] = {key: logged[key].max() if "memory" in key else logged[key].median() for key in logged}
    return pd.DataFrame.from_dict(rows, orient="index")


def accuracies_of(runs: Mapping[str, Run]) -> dict[str, dict[str, Accuracy]]:
    """Accuracy by question type of every finished evaluation of every run, for ``plot_accuracy``; an evaluation is
    named by its run, and by its folder where the run has several."""
    rows = {}
    for name, run in runs.items():
        found = {key: value for key, value in run.predictions.items() if not _side_line(key)}
        for key, predictions in found.items():
            rows[name if len(found) == 1 else f"{name} {Path(key).name}"] = accuracies(predictions)
    return rows


def _side_line(folder: str) -> bool:
    """Answers under controls, and of ``vidtune predict``, which have no references."""
    return "controls" in Path(folder).parts or Path(folder).parts[:1] == ("predictions",)


def _hours(metrics: pd.DataFrame) -> pd.Series:
    """Each logged speed holds for the samples since the one before."""
    logged = metrics[["samples", SPEED]].dropna()
    seconds = logged["samples"].diff().fillna(logged["samples"]) / logged[SPEED]
    return (seconds.cumsum() / 3600).reindex(metrics.index).ffill()
