"""One process of a group that walks through several training runs: imports and the process group are paid once.

Started by ``tests.distributed.group.run_group`` with torchrun's variables; reads its jobs as JSON from a file. A job is
a list of overrides; ``["cut", <run>, <copy>, <step>]`` makes a copy of a run that ended right after that checkpoint,
``["head_chunk", <n>]`` sets how many targets the language model's head takes per call.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import torch

from tests.helpers import config
from vidtune.models import likelihood
from vidtune.run import train
from vidtune.run.train import RUN_DIR_VARIABLE


def main(jobs: Path) -> None:
    torch.set_num_threads(1)
    for job in json.loads(jobs.read_text()):
        if job[0] == "cut":
            cut(Path(job[1]), Path(job[2]), int(job[3]))
            continue
        if job[0] == "head_chunk":
            likelihood.CHUNK = int(job[1])
            continue
        os.environ.pop(RUN_DIR_VARIABLE, None)
        train(config("train", job), job)


def cut(run: Path, copy: Path, step: int) -> None:
    """What kill -9 leaves behind: the checkpoints up to a step, no summary."""
    done = copy.with_name(f"{copy.name}.cut")
    if os.environ["RANK"] == "0":
        shutil.copytree(run, copy)
        for file in copy.glob("checkpoints/*.ckpt"):
            if int(file.stem.split("_")[1]) > step:
                file.unlink()
        for name in ("metrics.csv", "summary.json"):
            (copy / name).unlink()
        done.touch()
    while not done.exists():
        time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
