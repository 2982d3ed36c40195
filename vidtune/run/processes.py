"""The processes of an evaluation: each answers a slice of the questions."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

_STARTED_BY_US = "VIDTUNE_EVALUATION_CHILD"
"""Set in processes that ``evaluate.py`` started itself."""


@dataclass(frozen=True)
class Processes:
    """Rank and number of processes."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join_processes(wanted: int) -> Iterator[Processes]:
    """The group of processes that a launcher (``torchrun``) started; without one, ``evaluate.py`` starts it itself.

    Args:
        wanted: processes to start where no launcher has: one per device.
    """
    children: list[subprocess.Popen] = []
    if _STARTED_BY_US in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    elif "WORLD_SIZE" not in os.environ and wanted > 1 and Path(sys.argv[0]).name == "evaluate.py":
        children = _start(wanted)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes()
        return
    # Tensors never cross: gloo serves on every machine. A slice may take days longer than another.
    dist.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield Processes(dist.get_rank(), world_size)
    finally:
        dist.destroy_process_group()
        for child in children:
            child.terminate()


def _start(wanted: int) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(wanted)}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    children = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), _STARTED_BY_US: "1"},
            stdin=subprocess.PIPE,
        )
        for rank in range(1, wanted)
    ]
    for child in children:
        threading.Thread(target=_end_with_child, args=(child,), daemon=True).start()
    return children


def _end_with_child(child: subprocess.Popen) -> None:
    """A process that failed has said why; waiting for it at the next barrier would last days."""
    if child.wait() not in (0, -signal.SIGTERM):
        print(f"vidtune: a process of the evaluation ended with code {child.returncode}.", file=sys.stderr, flush=True)
        os._exit(1)


def _end_with_parent() -> None:
    """A killed parent closes the pipe; without this its children would answer on, and write beside a new evaluation."""
    sys.stdin.buffer.read()
    os._exit(1)
