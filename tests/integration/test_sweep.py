"""LoRA rank x learning rate: one table and one heat-map at the end, and one table of their test accuracies."""

import csv
import os
from pathlib import Path

import pytest

from tests.helpers import config, small_run
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
