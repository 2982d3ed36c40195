"""Weights & Biases carries what the run folder holds: curves, tables, charts, and the report."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.utils import instantiate
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure

from vidtune.analysis import load_run
from vidtune.evaluation.tables import Table
from vidtune.run.recipe import load_recipe

log = logging.getLogger(__name__)


def build_logger(name: str, settings: Any, run_dir: Path) -> Any:
    """A logger of ``logger=``. A run of W&B has the name of the run folder as its id: resuming and evaluating go on in
    it."""
    extra = {"id": run_dir.name, "name": run_dir.name, "resume": "allow"} if name == "wandb" else {"name": name}
    return instantiate(settings, save_dir=str(run_dir), **extra)


def log_curves(loggers: Sequence[Any], run_dir: Path, curve: Path) -> None:
    """At the end of a run: the loss curve, and all metrics by step, sample and hour as the notebooks read them."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table("curves", dataframe=load_run(run_dir).metrics)
            logger.log_image("loss_curve", [str(curve)])


def log_evaluation(
    run_dir: Path,
    name: str,
    tables: Mapping[str, Table],
    charts: Mapping[str, Figure],
    metrics: Mapping[str, float],
    report: Path | None,
) -> None:
    """Add an evaluation to the W&B run that training logged to; nothing where it did not.

    Args:
        name: of the evaluation; stands before every key.
        metrics: of this run; they become its summary.
        report: ``report.html``.
    """
    settings = (load_recipe(run_dir).get("logger") or {}).get("wandb")
    if settings is None:
        return
    import wandb

    try:
        logger = build_logger("wandb", settings, run_dir)
        for key, table in tables.items():
            logger.log_table(f"{name}/{key}", dataframe=pd.read_csv(io.StringIO(table.csv())))
        for key, chart in charts.items():
            logger.experiment.log({f"{name}/{key}": wandb.Image(chart)})
        if report is not None:
            logger.experiment.log({f"{name}/report": wandb.Html(report.read_text(encoding="utf-8"), inject=False)})
        logger.experiment.summary.update({f"{name}/{key}": value for key, value in metrics.items()})
        logger.experiment.finish()
    except (wandb.Error, OSError) as error:  # the tables are on disk; a service that is away must not fail them
        log.warning("%s: the tables were not sent to W&B (%s). Evaluate again to send them.", run_dir, error)
