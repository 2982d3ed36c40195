"""Run folders for notebooks: ``run = load_run("runs/demo")``, then ``run.metrics``, ``run.config``, ...

``smooth`` and the charts of ``vidtune.evaluation.plots`` take what is read here.
"""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from vidtune.contracts import UserError
from vidtune.evaluation.curves import curve, read_metrics, smooth
from vidtune.evaluation.records import Prediction, read_predictions

__all__ = ["CONFIG", "METRICS", "PREDICTIONS", "SUMMARY", "Run", "curve", "load_run", "load_runs", "smooth"]

CONFIG = "config.yaml"
METRICS = "metrics.csv"
PREDICTIONS = "predictions.jsonl"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Run:
    """One run folder; each part is read when it is first asked for."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> DictConfig:
        """The resolved configuration that made the run."""
        config = OmegaConf.load(self.folder / CONFIG)
        assert isinstance(config, DictConfig)
        return config

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row per optimizer step: ``train/loss``, ``val/loss``, ...

        Raises:
            UserError: the run logged nothing.
        """
        return read_metrics(self.folder / METRICS)

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
