"""One process of a group that walks through several training runs: imports and the process group are paid once.

Started by ``tests.distributed.group.run_group`` with torchrun's variables; reads its jobs as JSON from a file. A job is
a list of overrides; ``["cut", <run>, <copy>, <step>]`` makes a copy of a run that ended right after that checkpoint,
``["head_chunk", <n>]`` sets how many targets the language model's head takes per call, ``["evaluate", <port>, ...]``
is an evaluation whose processes meet at another port.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from tests.distributed.group import cut
from tests.helpers import config
from vidtune.models import likelihood
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE, Interrupted


def main(jobs: Path) -> None:
    torch.set_num_threads(1)
    group = {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    for job in json.loads(jobs.read_text()):
        start = time.monotonic()
        if job[0] == "cut":
            cut_once(Path(job[1]), Path(job[2]), int(job[3]))
        elif job[0] == "head_chunk":
            likelihood.CHUNK = int(job[1])
        elif job[0] == "evaluate":
            # Lightning takes the number of processes out of the environment when a training ends.
            os.environ |= {**group, "MASTER_PORT": job[1]}
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            evaluate(config("evaluate", job[2:]), job[2:])
            # The next training meets anew, and must not meet at what is left of this group.
            os.environ["MASTER_PORT"] = str(int(job[1]) + 1)
        else:
            os.environ.pop(RUN_DIR_VARIABLE, None)
            try:
                train(config("train", job), job)
            except Interrupted as end:
                print(f"interrupted with exit code {end.code}")
        print(f"JOB {time.monotonic() - start:.1f} s: {' '.join(job[-3:])}", flush=True)


def cut_once(run: Path, copy: Path, step: int) -> None:
    """By the first process; the others wait for it."""
    done = copy.with_name(f"{copy.name}.cut")
    if os.environ["RANK"] == "0":
        cut(run, copy, step)
        done.touch()
    while not done.exists():
        time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
