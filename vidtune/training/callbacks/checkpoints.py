"""Checkpoints at optimizer-step boundaries, the newest ones kept."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

log = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d+)\.ckpt")


class StepCheckpoints(Checkpoint):
    """Writes ``step_000200.ckpt`` every so often and removes older ones once the new one is whole.

    Args:
        folder: of the checkpoints.
        every: optimizer steps between two; with a fraction, at the first step at or after each multiple of it.
        keep: newest ones that stay.
        keep_bytes: of all checkpoints in the folder, the best one included; older ones go first, the newest always
            stays. None for no bound.
    """

    def __init__(self, folder: Path, every: float, keep: int, keep_bytes: float | None = None) -> None:
        self.folder, self.every, self.keep, self.keep_bytes = folder, every, keep, keep_bytes
        self._saved: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            for file in self.folder.glob(".*.ckpt.tmp"):
                file.unlink()  # of a process that was killed while it wrote

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and self.due(trainer.global_step):
            self.save(trainer)

    def due(self, step: int) -> bool:
        """Whether a multiple of ``every`` was reached or passed with this step."""
        # A hair more than rounding, for 0.1 x 30 and its like.
        return math.floor(step / self.every + 1e-9) > math.floor((step - 1) / self.every + 1e-9)

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint of this step, unless it was written, then remove what is too much. On all processes."""
        if self._saved != trainer.global_step:
            file = self.folder / f"step_{trainer.global_step:06d}.ckpt"
            trainer.save_checkpoint(file, weights_only=False)  # the optimizer's state and the like, too
            self._saved = trainer.global_step
            if trainer.is_global_zero:
                self.prune()

    def prune(self) -> list[Path]:
        """Remove checkpoints beyond ``keep`` and ``keep_bytes``; returns them, the oldest first."""
        files = {int(match[1]): file for file in self.folder.iterdir() if (match := _NAME.fullmatch(file.name))}
        oldest_first = [files[step] for step in sorted(files)]
        sizes = {file: file.stat().st_size for file in self.folder.glob("*.ckpt")}
        total, removed = sum(sizes.values()), []
        for position, file in enumerate(oldest_first[:-1]):
            too_many = len(oldest_first) - position > self.keep
            too_large = self.keep_bytes is not None and total > self.keep_bytes
            if too_many or too_large:
                file.unlink()
                total -= sizes[file]
                removed.append(file)
        if self.keep_bytes is not None and total > self.keep_bytes:
            log.warning(
                "%s: the newest and the best checkpoint alone take %.2f GB, more than trainer.keep_gb=%g.",
                self.folder,
                total / 1e9,
                self.keep_bytes / 1e9,
            )
        return removed
