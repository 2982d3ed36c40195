"""Sweeps: a folder per job, failures apart, only what is missing again, a table and a picture at the end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from vidtune.contracts import UserError
from vidtune.run.sweep import expand, sweep

# Stands for train.py: answers with what the settings say, fails at a rate of 9 after a checkpoint.
SCRIPT = """
import json, os, pathlib, sys
folder, here = pathlib.Path(os.environ["VIDTUNE_RUN_DIR"]), pathlib.Path(__file__).parent
words = dict(word.lstrip("+").split("=", 1) for word in sys.argv[1:])
with (here / "calls").open("a") as calls:
    print(folder.name, *sys.argv[1:], file=calls)
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.resolved.yaml").write_text("trainer: {monitor: val/loss, monitor_mode: min}")
if "resume" not in words:
    rate = float(words["optim.lr"])
    if rate == 9:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step_000001.ckpt").touch()
        sys.exit(3)
    if rate == 130:
        sys.exit(130)
loss = 1.0 if "resume" in words else rate * int(words["tuning.language.rank"])
(folder / "summary.json").write_text(json.dumps({"val/loss": loss, "val/accuracy": 0.5, "step": 1}))
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "train.py").write_text(SCRIPT)
    return str(tmp_path / "train.py")


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_a_failed_job_is_marked_and_a_second_start_does_only_what_is_missing(script: str, tmp_path: Path) -> None:
    words = ["tuning.language.rank=4,16", "optim.lr=1,9", "run_name=grid", f"paths.runs_dir={tmp_path}"]
    assert sweep(script, words) == 1
    grid = tmp_path / "grid"
    assert sorted(path.name for path in grid.iterdir() if path.is_dir()) == [
        f"rank-{rank}_lr-{rate}" for rank in (16, 4) for rate in (1, 9)
    ]
    assert (grid / "rank-4_lr-9/failed.txt").read_text() == "exit code 3\n"
    rows = list(csv.DictReader((grid / "sweep.csv").open()))
    assert [(row["tuning.language.rank"], row["optim.lr"], row["status"]) for row in rows] == [
        ("4", "1", "done"),  # the monitored metric is a loss here: the smallest first
        ("16", "1", "done"),
        ("4", "9", "failed"),
        ("16", "9", "failed"),
    ]
    assert (grid / "sweep.md").read_text().count("failed") == 2
    assert (grid / "sweep.png").stat().st_size > 0

    first = calls(tmp_path)
    assert len(first) == 4 and all(f"paths.runs_dir={tmp_path}" in call for call in first)
    assert sweep(script, words) == 0
    # What had written a checkpoint goes on from it.
    assert calls(tmp_path)[4:] == [f"rank-{r}_lr-9 resume={grid}/rank-{r}_lr-9" for r in (4, 16)]
    assert not list(grid.rglob("failed.txt"))
    assert json.loads((grid / "rank-16_lr-9/summary.json").read_text())["val/loss"] == 1.0


def test_an_interrupted_job_ends_the_sweep(script: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        sweep(script, ["tuning.language.rank=4", "optim.lr=130,1", f"paths.runs_dir={tmp_path}"])
    assert caught.value.code == 130 and len(calls(tmp_path)) == 1


def test_jobs_are_told_apart_by_what_varies(tmp_path: Path) -> None:
    jobs = expand(
        ["tuning=lora,qlora", "tuning.vision.rank=1,2", "tuning.language.rank=range(4,6)", "seed=1"], tmp_path
    )
    assert len({job.folder for job in jobs}) == len(jobs) == 8
    assert all("seed=1" in job.overrides and "seed" not in job.varied for job in jobs)
    with pytest.raises(UserError, match="a sweep has one run_name"):
        sweep("train.py", ["run_name=a,b", "optim.lr=1,2"])
