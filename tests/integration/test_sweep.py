"""LoRA rank x learning rate: one table and one heat-map at the end, and one table of their test accuracies."""

import csv
import os
from pathlib import Path

import lightning as L
import pytest
from omegaconf import OmegaConf

from tests.helpers import ROOT, config, python, small_run
from vidtune.analysis import grid, load_runs
from vidtune.run import evaluate, sweep, train
from vidtune.run.train import RUN_DIR_VARIABLE


def in_this_process(script: str, job: sweep.Job) -> int:
    """A job without the start of a process of its own; tests/distributed starts those."""
    os.environ[RUN_DIR_VARIABLE] = str(job.folder)
    train(config("train", job.overrides), job.overrides)
    return 0


def test_a_grid_ends_with_a_table_and_a_heat_map_and_is_evaluated_by_a_pattern(
    shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")
    monkeypatch.setattr(sweep, "_run", in_this_process)
    swept = ["tuning=lora", "tuning.language.rank=2,4", "optim.lr=1e-4,1e-3", "run_name=grid"]
    words = [word for word in small_run(shapes, cache_dir, tmp_path) if not word.startswith("trainer.max_steps")]
    assert sweep.sweep("train.py", [*words, "trainer.max_steps=3", *swept]) == 0
    folder = tmp_path / "grid"
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert {(row["tuning.language.rank"], row["optim.lr"]) for row in rows} == {
        (rank, lr) for rank in ("2", "4") for lr in ("0.0001", "0.001")
    }
    values = grid(load_runs(f"{folder}/*"), "tuning.language.rank", "optim.lr")
    assert values.shape == (2, 2) and values.notna().all().all()

    words = [f"run={folder}/*", "hardware=cpu", "eval.limit=8", "eval.report_samples=0", f"output={tmp_path}/table"]
    metrics = evaluate(config("evaluate", words), words)
    table = list(csv.DictReader((tmp_path / "table/runs.csv").open()))
    assert sorted(row["run"] for row in table) == sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert all(f"{row['run']}/accuracy" in metrics for row in table)
    assert [bool(row["difference"]) for row in table] == [False, True, True, True]


class FailOnce(L.Callback):
    """Fails where the settings are the given ones, until a file lies there.

    Args:
        settings: what this job has.
        bad: what fails.
        mended: the file.
    """

    def __init__(self, settings: list[float], bad: list[float], mended: str) -> None:
        self.fails = settings == bad and not Path(mended).exists()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.fails:
            raise RuntimeError("this job cannot run")


@pytest.mark.slow  # five starts of a process
@pytest.mark.timeout(900)
def test_a_grid_typed_as_a_command_isolates_a_failure_and_runs_again_only_what_is_missing(
    shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    mended = tmp_path / "mended"
    fail = f"settings: ['${{tuning.language.rank}}', '${{optim.lr}}'], bad: [8, 5e-5], mended: {mended}"
    words = small_run(shapes, cache_dir, tmp_path, "tuning=lora", "trainer.max_steps=2", "run_name=grid")
    words = [word for word in words if word not in ("trainer.max_steps=6", "trainer.val_every=3")]
    words += ["trainer.val_every=2", f"+callbacks.fail={{_target_: {__name__}.FailOnce, {fail}}}"]
    command = ["-m", "tuning.language.rank=4,8", "optim.lr=1e-5,5e-5", *words]

    first = python("train.py", *command, timeout=400)
    assert first.returncode == 1
    grid = tmp_path / "grid"
    jobs = {f"rank-{rank}_lr-{lr}" for rank in (4, 8) for lr in ("1e-05", "5e-05")}
    assert {path.name for path in grid.iterdir() if path.is_dir()} == jobs
    bad = "rank-8_lr-5e-05"
    assert {path.parent.name for path in grid.glob("*/failed.txt")} == {bad}
    assert {path.parent.name for path in grid.glob("*/summary.json")} == jobs - {bad}
    rows = list(csv.DictReader((grid / "sweep.csv").open()))
    assert [row["status"] for row in rows] == ["done", "done", "done", "failed"]
    assert "this job cannot run" in first.stderr and "failed" in (grid / "sweep.md").read_text()

    mended.touch()
    before = {name: (grid / name / "metrics.csv").stat().st_mtime_ns for name in jobs - {bad}}
    again = python("train.py", *command, timeout=400)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.count("done already") == 3
    assert {name: (grid / name / "metrics.csv").stat().st_mtime_ns for name in before} == before
    rows = list(csv.DictReader((grid / "sweep.csv").open()))
    scores = [float(row["val/accuracy"]) for row in rows]
    assert len(rows) == 4 and scores == sorted(scores, reverse=True) and not list(grid.glob("*/failed.txt"))
    settings = {
        (float(cfg.tuning.language.rank), float(cfg.optim.lr))
        for cfg in (OmegaConf.load(grid / name / "config.resolved.yaml") for name in jobs)
    }
    assert settings == {(rank, lr) for rank in (4, 8) for lr in (1e-5, 5e-5)}
