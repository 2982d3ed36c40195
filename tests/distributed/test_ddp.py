"""Two gloo processes on a CPU, and sweeps of them, as a user starts them."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from tests.helpers import config, python, small_run
from vidtune.run import train
from vidtune.run.train import RUN_DIR_VARIABLE


@pytest.fixture(autouse=True)
def no_pinned_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())


def losses(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open() as handle:
        return [float(row["train/loss"]) for row in csv.DictReader(handle) if row.get("train/loss")]


def test_two_processes_have_the_losses_of_one_with_accumulation(shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    two = ["strategy=ddp", "hardware.devices=2", "run_name=two"]
    process = python("train.py", *small_run(shapes, cache_dir, tmp_path, *two))
    assert process.returncode == 0, process.stderr[-2000:]
    overrides = small_run(shapes, cache_dir, tmp_path, "run_name=one")
    train(config("train", overrides), overrides)
    os.environ.pop(RUN_DIR_VARIABLE, None)
    assert len(losses(tmp_path / "two")) == 6
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-5)


@pytest.mark.slow  # five fresh starts of two processes each
@pytest.mark.timeout(900)
def test_a_sweep_of_two_process_jobs_isolates_a_failure_and_runs_only_what_is_missing(
    shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    common = small_run(shapes, cache_dir, tmp_path, "run_name=grid", "trainer.max_steps=2", "trainer.val_every=1")
    common = [o for o in common if not o.startswith(("trainer.max_steps=6", "trainer.val_every=3"))]
    arguments = ["-m", *common, "strategy=ddp", "hardware.devices=2", "trainer.grad_clip=null", "optim.lr=1e-3,1e38"]
    first = python("train.py", *arguments, timeout=280)
    assert first.returncode == 1
    grid = tmp_path / "grid"
    assert (grid / "lr-0.001" / "summary.json").is_file()
    assert (grid / "lr-1e+38" / "failed.txt").is_file()
    table = (grid / "sweep.md").read_text()
    assert "failed" in table and table.index("0.001") < table.index("1e+38")
    again = python("train.py", *arguments[:-1], "optim.lr=1e-3,1e-4", timeout=280)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "done already" in again.stdout
    assert (grid / "lr-0.0001" / "summary.json").is_file()
