"""Sweeps: every job a fresh process of the same script, in a run folder of its own.

Hydra's own launcher runs all jobs in one process: what a job leaves behind (process groups, global settings, memory)
reaches the next, and the processes that Lightning starts would replay the whole sweep.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.console import Console

from vidtune.checkpoint.locate import checkpoint_folder
from vidtune.contracts import UserError
from vidtune.evaluation.curves import pivot
from vidtune.evaluation.plots import plot_heatmap, save
from vidtune.evaluation.tables import Column, Table
from vidtune.run.train import RUN_DIR_VARIABLE


@dataclass(frozen=True)
class Job:
    """One point of a sweep.

    Args:
        overrides: of this job alone and those all jobs share.
        varied: key -> value of what the sweep varies.
        folder: its run folder.
    """

    overrides: tuple[str, ...]
    varied: dict[str, str]
    folder: Path

    @property
    def done(self) -> bool:
        return (self.folder / "summary.json").is_file()


def expand(overrides: Sequence[str], root: Path) -> list[Job]:
    """The jobs of a sweep, in Hydra's order.

    Args:
        overrides: the command line's, some with several values (``optim.lr=1e-5,5e-5``, ``range(...)``).
        root: folder of the sweep.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    swept = {override.get_key_element() for override in parsed if override.is_sweep_override()}
    jobs = []
    for batch in BasicSweeper.split_arguments(parsed, None):
        for arguments in batch:
            pairs = dict(argument.split("=", 1) for argument in arguments)
            varied = {key: value for key, value in pairs.items() if key in swept}
            name = "_".join(f"{key.split('.')[-1]}-{_plain(value)}" for key, value in varied.items()) or "job"
            jobs.append(Job(tuple(arguments), varied, root / name))
    names = [job.folder.name for job in jobs]
    if len(set(names)) < len(names):
        # Two keys with one last component: their full names tell the jobs apart.
        jobs = [
            Job(job.overrides, job.varied, root / "_".join(f"{_plain(k)}-{_plain(v)}" for k, v in job.varied.items()))
            for job in jobs
        ]
    return jobs


def sweep(script: str, overrides: Sequence[str]) -> int:
    """Run the jobs that are not done yet, one after the other, and end with a table.

    A job that fails is marked (``failed.txt`` in its folder) and the others go on; started again, the sweep runs what
    is missing, and goes on with jobs that had written a checkpoint.

    Args:
        script: ``train.py``.
        overrides: the command line's; ``run_name`` names the folder of the whole sweep, below ``paths.runs_dir``.

    Returns:
        Exit code: 1 if a job failed.

    Raises:
        UserError: several values for ``run_name`` or ``paths.runs_dir``.
    """
    root = Path(_single(overrides, "paths.runs_dir", "runs")) / _single(overrides, "run_name", "sweep")
    jobs = expand([override for override in overrides if not override.startswith("run_name=")], root)
    console = Console()
    for number, job in enumerate(jobs, start=1):
        label = " ".join(f"{key}={value}" for key, value in job.varied.items())
        if job.done:
            console.print(f"job {number}/{len(jobs)} {label}: done already")
            continue
        console.print(f"job {number}/{len(jobs)} {label}")
        code = _run(script, job)
        failed = job.folder / "failed.txt"
        if code:
            job.folder.mkdir(parents=True, exist_ok=True)
            failed.write_text(f"exit code {code}\n")
            if code in (130, 143, -2, -15):
                raise SystemExit(code if code > 0 else 128 - code)
        else:
            failed.unlink(missing_ok=True)
    table = summarise(jobs)
    table.save(root, "sweep")
    console.print(table.rich())
    if (picture := save_heatmap(jobs, root / "sweep.png")) is not None:
        console.print(f"Heat-map: {picture}", soft_wrap=True)
    console.print(f"Sweep folder: {root}", soft_wrap=True)
    return int(not all(job.done for job in jobs))


def summarise(jobs: Sequence[Job]) -> Table:
    """One row per job, the best first by what the jobs monitor, failed jobs last."""
    metric, mode = monitored(jobs)
    names = list(dict.fromkeys((metric, "val/accuracy", "val/loss", "train/loss")))
    rows = []
    for job in jobs:
        summary = _summary(job)
        scores = {name: summary[name] for name in names if name in summary}
        rows.append({**job.varied, "status": "done" if job.done else "failed", **scores})
    frame = pd.DataFrame(rows)
    if metric in frame:
        frame = frame.sort_values(metric, ascending=mode == "min", na_position="last")
    kinds = {"val/accuracy": "percent"} | {name: "number" for name in names if name != "val/accuracy"}
    columns = [Column(str(name), kinds.get(str(name), "text")) for name in frame]  # type: ignore[arg-type]
    values = frame.astype(object).where(frame.notna(), None)
    return Table(columns, values.values.tolist(), title="Sweep")


def monitored(jobs: Sequence[Job]) -> tuple[str, str]:
    """``trainer.monitor`` and ``trainer.monitor_mode`` of the jobs."""
    for job in jobs:
        if (file := job.folder / "config.resolved.yaml").is_file():
            trainer = OmegaConf.load(file).trainer
            return trainer.monitor, trainer.monitor_mode
    return "val/accuracy", "max"


def save_heatmap(jobs: Sequence[Job], path: Path) -> Path | None:
    """The monitored metric over two swept settings; None where not two were swept, or no job reports the metric."""
    metric, _ = monitored(jobs)
    varied = list(jobs[0].varied) if jobs else []
    rows = [{**job.varied, metric: _summary(job).get(metric)} for job in jobs]
    if len(varied) != 2 or all(row[metric] is None for row in rows):
        return None
    first, second = varied
    values = pivot(pd.DataFrame(rows), first, second, metric)
    return save(plot_heatmap(values, "Sweep", metric), path)


def _summary(job: Job) -> dict[str, float]:
    return json.loads((job.folder / "summary.json").read_text()) if job.done else {}


def _run(script: str, job: Job) -> int:
    environment = {**os.environ, RUN_DIR_VARIABLE: str(job.folder)}
    command = [sys.executable, script]
    if any(checkpoint_folder(job.folder).glob("*.ckpt")):
        command.append(f"resume={job.folder}")
    else:
        # A folder without a checkpoint holds nothing to go on from.
        shutil.rmtree(job.folder, ignore_errors=True)
        command += job.overrides
    return subprocess.run(command, env=environment, check=False).returncode


def _plain(text: str) -> str:
    """Fit for a folder's name: no = , brackets, quotes or slashes, which break on Hydra's command line."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def _single(overrides: Sequence[str], key: str, default: str) -> str:
    values = [override.split("=", 1)[1] for override in overrides if override.startswith(f"{key}=")]
    if len(values) > 1 or any("," in value for value in values):
        raise UserError(f"{key}={', '.join(values)}: a sweep has one {key}; give a single value.")
    return values[0] if values else default
