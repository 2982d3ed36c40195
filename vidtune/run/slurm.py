"""Runs under SLURM: a name that all processes and restarts share, and the way back into the queue.

The batch script asks for a warning before the time limit or a preemption (``#SBATCH --signal=SIGUSR1@120`` and
``#SBATCH --requeue``). The run then finishes its step, saves, and queues its job again; the restarted job finds the run
folder by its name and goes on.
"""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Any

from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

log = logging.getLogger(__name__)


def job_id() -> str | None:
    """The SLURM job this process belongs to; interactive shells count as none."""
    return os.environ.get("SLURM_JOB_ID") if SLURMEnvironment.detect() else None


def restarted() -> bool:
    """Whether SLURM started this job again."""
    return bool(job_id()) and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def trainer_plugins() -> list[Any]:
    """Lightning's SLURM environment without its own requeueing, which saves in the middle of an accumulation.

    None where ``srun torchrun`` started this process: ranks are torchrun's then, SLURM counts its agents.
    """
    return [SLURMEnvironment(auto_requeue=False)] if job_id() and not TorchElasticEnvironment.detect() else []


def requeue() -> None:
    """Queue this job again; a refusal is logged, the checkpoint is there in any case."""
    job = job_id()
    result = subprocess.run(["scontrol", "requeue", str(job)], capture_output=True, text=True, check=False)
    if result.returncode:
        log.error("scontrol requeue %s failed: %s. Submit the job again.", job, result.stderr.strip())
    else:
        log.info("job %s is queued again", job)
