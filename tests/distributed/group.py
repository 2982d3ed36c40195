"""Two CPU processes with gloo for tests."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.helpers import ROOT


def run_group(
    folder: Path, jobs: Sequence[Sequence[str]], processes: int = 2, timeout: float = 280, ends: int = 0
) -> str:
    """Run training jobs (lists of overrides) one after the other in one process group; fails with its output.

    Args:
        ends: exit code that one of the processes is to end with (-9: by SIGKILL); the others are then ended too, as a
            launcher would.

    Returns:
        The last lines of all processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "jobs.json"
    file.write_text(json.dumps([list(job) for job in jobs]))
    logs = [folder / f"rank{rank}.log" for rank in range(processes)]
    port = free_port()
    group = [_start(rank, processes, port, file, log) for rank, log in enumerate(logs)]
    end = time.monotonic() + timeout
    try:
        # A process that waits for one which has failed would wait for ever.
        while any(p.poll() is None for p in group) and not any(p.poll() for p in group) and time.monotonic() < end:
            time.sleep(0.2)
        codes = [process.poll() for process in group]
    finally:
        for process in group:
            process.kill()
    output = "\n".join(f"--- {log.name}\n{log.read_text()[-6000:]}" for log in logs)
    assert ends in codes if ends else codes == [0] * processes, output
    return output


def cut(run: Path, copy: Path, step: int) -> None:
    """A copy of a run as kill -9 would have left it: the checkpoints up to a step, no summary."""
    shutil.copytree(run, copy)
    for file in copy.glob("checkpoints/*.ckpt"):
        if int(file.stem.split("_")[1]) > step:
            file.unlink()
    for name in ("metrics.csv", "summary.json"):
        (copy / name).unlink()


def _start(rank: int, processes: int, port: int, jobs: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.distributed.worker", str(jobs)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def losses(run_dir: Path) -> list[float]:
    """The loss of every optimizer step that a run logged, as written."""
    with (run_dir / "metrics.csv").open() as handle:
        rows = [row for row in csv.DictReader(handle) if row.get("train/loss")]
    return [float(row["train/loss"]) for row in rows]
