"""Speed that includes waiting for data."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vidtune.contracts import Batch
from vidtune.training.flops import StepFlops

log = logging.getLogger(__name__)

WAIT_HINT_PERCENT = 10.0


class Meters(L.Callback):
    """Logs, over the last ``log_every`` optimizer steps and all processes: samples/s, questions/s (answers that train;
    a conversation holds several), tokens/s, the share of time spent waiting for data, device memory, and MFU.

    The clock runs from the end of one window to that of the next: data wait and checkpoints are inside, validation is
    not. Tokens are those the decoder runs; tokens that several questions share count once. Rows that only keep a
    process in step, and samples whose medium is bad, carry no weight and count neither as samples nor as questions.

    Args:
        log_every: optimizer steps.
        peak_tflops: of one device (``hardware.peak_tflops``); None leaves MFU out. ``StepFlops`` has the rule.
    """

    def __init__(self, log_every: int, peak_tflops: float | None = None) -> None:
        self.log_every, self.peak_tflops = log_every, peak_tflops
        self._hinted = False

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._flops = StepFlops.of(pl_module.network)
        self._waited_before = 0.0
        self._reset()

    def _reset(self) -> None:
        self._totals: Tensor | float = 0.0
        self._start, self._validation_s = time.perf_counter(), 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validation_s += time.perf_counter() - self._validation_start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        # Kept on the device: reading a value in every step would make the host wait for it.
        self._totals = self._totals + torch.stack([*count_answers(batch), self._flops(batch)])
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.global_step % self.log_every:
            return
        samples, questions, tokens, flops = pl_module.all_reduce(self._totals, "sum").tolist()
        seconds = time.perf_counter() - self._start - self._validation_s
        waited = trainer.train_dataloader.waited_s
        wait = 100 * (waited - self._waited_before) / seconds
        pl_module.log("speed/samples_per_s", samples / seconds, prog_bar=True)
        pl_module.log("speed/questions_per_s", questions / seconds)
        pl_module.log("speed/tokens_per_s", tokens / seconds, prog_bar=True)
        pl_module.log("speed/data_wait_percent", wait, prog_bar=True)
        if self.peak_tflops:
            peak = self.peak_tflops * 1e12 * trainer.world_size
            pl_module.log("speed/mfu_percent", 100 * flops / seconds / peak, prog_bar=True)
        if torch.cuda.is_available():
            pl_module.log("speed/memory_gb", torch.cuda.max_memory_allocated() / 1e9, prog_bar=True)
        if wait > WAIT_HINT_PERCENT and not self._hinted:
            self._hinted = True
            log.warning(
                "%.0f %% of the time goes into waiting for data. Raise data.num_workers, lower data.num_frames, or use "
                "smaller videos (`vidtune precompute` where the tower is frozen).",
                wait,
            )
        self._waited_before = waited
        self._reset()


def count_answers(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, questions and tokens of a row as float32 scalars; a question is a stretch of supervised tokens."""
    tokens = torch.tensor(float(batch.num_tokens), device=batch.input_ids.device)
    positions, samples, weights = batch.target_positions, batch.target_samples, batch.target_weights
    assert positions is not None and samples is not None and weights is not None
    before = positions.new_full((1,), -2)
    new_sample = torch.diff(samples, prepend=before) != 0
    new_question = torch.diff(positions, prepend=before) != 1
    return ((new_sample & (weights > 0)).sum().float(), (new_question & (weights > 0)).sum().float(), tokens)
