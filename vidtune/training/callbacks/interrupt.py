"""Ctrl-C and SIGTERM end a run at a step boundary, with a checkpoint to go on from."""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType
from typing import Any

import lightning as L

from vidtune.training.callbacks.checkpoints import StepCheckpoints

log = logging.getLogger(__name__)


class Interrupt(L.Callback):
    """Finishes the optimizer step under way, saves, and stops; a second signal stops at once.

    Args:
        checkpoints: writes the last one.

    ``signal`` names what came, or is None.
    """

    def __init__(self, checkpoints: StepCheckpoints) -> None:
        self.checkpoints = checkpoints
        self.signal: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # SLURM's warning before it takes the machine away.
        warned = (signal.SIGUSR1,) if "SLURM_JOB_ID" in os.environ else ()
        for number in (signal.SIGINT, signal.SIGTERM, *warned):
            self._previous[number] = signal.signal(number, self._note)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        # Every process must take the same decision, whichever got the signal.
        if trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            self.signal = self.signal or "a signal to another process"
            self.checkpoints.save(trainer)
            trainer.should_stop = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is not None:
            self._restore()
            raise KeyboardInterrupt(name)
        self.signal = name
        log.warning("%s: finishing this step and saving. Once more to stop at once.", name)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
