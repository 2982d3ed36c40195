"""Speed that includes waiting for data."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from vidtune.contracts import Batch


class Meters(L.Callback):
    """Logs samples/s, tokens/s, the share of time spent waiting for data, and device memory, over the last
    ``log_every`` steps, data wait and validation-free wall time inside the clock.

    Tokens are those the decoder runs; tokens that several questions share count once.
    """

    def __init__(self, log_every: int) -> None:
        self.log_every = log_every
        self._reset()

    def _reset(self) -> None:
        self._samples = self._tokens = 0
        self._busy = self._wait = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        now = time.perf_counter()
        self._wait += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._busy += now - self._mark
        self._mark = now
        self._samples += len(batch.sample_ids)
        self._tokens += batch.num_tokens
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.global_step % self.log_every:
            return
        seconds = self._busy + self._wait
        world = trainer.world_size
        pl_module.log("speed/samples_per_s", self._samples * world / seconds, prog_bar=True)
        pl_module.log("speed/tokens_per_s", self._tokens * world / seconds)
        pl_module.log("speed/data_wait_percent", 100 * self._wait / seconds, prog_bar=True)
        if torch.cuda.is_available():
            pl_module.log("speed/memory_gb", torch.cuda.max_memory_allocated() / 1e9, prog_bar=True)
        self._reset()
