"""A line of plain text every few steps, for logs of batch systems."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

import lightning as L

log = logging.getLogger(__name__)

_SHOWN = (
    *("train/loss", "val/loss", "val/accuracy"),
    *("speed/samples_per_s", "speed/tokens_per_s", "speed/data_wait_percent", "speed/memory_gb"),
)
"""Of the logged metrics; memory is measured on GPUs only."""


class TextLog(L.Callback):
    """Logs step, loss, speed and remaining time.

    Args:
        log_every: optimizer steps between lines.
        num_steps: of the run.
    """

    def __init__(self, log_every: int, num_steps: int) -> None:
        self.log_every, self.num_steps = log_every, num_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start, self._first = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        boundary = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if boundary and (step % self.log_every == 0 or step == self.num_steps):
            done = max(1, step - self._first)
            left = (self.num_steps - step) * (time.perf_counter() - self._start) / done
            self._line(trainer, f"step {step}/{self.num_steps}", f"eta {timedelta(seconds=round(left))}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._line(trainer, f"validated at step {trainer.global_step}")

    @staticmethod
    def _line(trainer: L.Trainer, *ends: str) -> None:
        shown = [
            f"{name} {float(trainer.callback_metrics[name]):.4g}" for name in _SHOWN if name in trainer.callback_metrics
        ]
        log.info("%s", "  ".join([ends[0], *shown, *ends[1:]]))
