"""Evaluation in several processes as a user starts it: the table of one process, also after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import ROOT, config
from vidtune.contracts import UserError
from vidtune.evaluation.records import Prediction, PredictionWriter
from vidtune.run import evaluate

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]


def words(run: Path, output: Path) -> list[str]:
    """Two passes over the questions, one at a time, so that there is a middle to be killed in."""
    small = ["hardware=cpu", "data.num_workers=0", "eval.batch_size=1", "eval.report_samples=0", "eval.controls=true"]
    return [f"run={run}", f"output={output}", *small]


def start(*arguments: str) -> subprocess.Popen[str]:
    """In a session of its own: a kill of the parent alone must end its children too."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for(condition: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def files(folder: Path) -> dict[str, str]:
    """Answers and numbers; ``runs.csv`` names the same facts in both."""
    names = ["predictions.jsonl", "metrics.json", "accuracy.csv", "runs.csv", "controls.csv"]
    return {name: (folder / name).read_text() for name in names}


@pytest.fixture(scope="module")
def one_process(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("one")
    overrides = words(tiny_run, folder)
    evaluate(config("evaluate", overrides), overrides)
    return files(folder)


@pytest.mark.slow  # starts three processes that import everything
def test_torchrun_makes_the_table_of_one_process(tiny_run: Path, one_process: dict, tmp_path: Path) -> None:
    output = finish(start(*TORCHRUN, "evaluate.py", *words(tiny_run, tmp_path)))
    assert output.count(f"Predictions and tables: {tmp_path}") == 1
    assert files(tmp_path) == one_process and not list(tmp_path.rglob("*.part*"))


@pytest.mark.slow  # starts four processes that import everything
def test_devices_of_one_command_are_killed_and_go_on(tiny_run: Path, one_process: dict, tmp_path: Path) -> None:
    command = ["evaluate.py", *words(tiny_run, tmp_path), "hardware.devices=2"]
    parts = [tmp_path / "predictions.jsonl", tmp_path / "predictions.part1.jsonl"]
    killed = start(*command)
    wait_for(lambda: all(part.exists() and part.read_text().count("\n") >= 2 for part in parts))
    children = children_of(killed.pid)
    assert len(children) >= 2  # the other process of the evaluation, and a reader of videos
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    wait_for(lambda: not any(map(is_alive, children)), 30)
    assert not (tmp_path / "metrics.json").exists()

    finish(start(*command))
    assert files(tmp_path) == one_process and not list(tmp_path.rglob("*.part*"))


@pytest.mark.slow  # starts two processes that import everything
def test_a_process_that_dies_ends_the_others(tiny_run: Path, tmp_path: Path) -> None:
    """A second process that cannot start must not leave the first waiting for it for days."""
    command = ["evaluate.py", *words(tiny_run, tmp_path), "hardware.devices=2"]
    process = start(*command)
    wait_for(lambda: any(map(is_evaluating, children_of(process.pid))))
    [other] = filter(is_evaluating, children_of(process.pid))
    os.kill(other, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "a process of the evaluation ended with code -9" in output


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_evaluating(pid: int) -> bool:
    """Not a tool that an import runs for a moment, nor a reader of videos."""
    try:
        return b"VIDTUNE_EVALUATION_CHILD=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_two_evaluations_never_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    with PredictionWriter(path, {"split": "test"}, 2) as writer:
        writer.write(Prediction("1"))
        with pytest.raises(UserError, match="another process is writing these predictions"):
            PredictionWriter(path, {"split": "test"}, 2)
    with PredictionWriter(path, {"split": "test"}, 2) as writer:
        assert writer.done == {"1"}
    assert json.loads(path.read_text())["sample_id"] == "1"
