"""What jobs of a process group do in the middle of a run; named as ``+callbacks.<x>={_target_: ...}``."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import lightning as L

from vidtune.evaluation.answering import generate_answers


class SignalAt(L.Callback):
    """Sends a process a signal between the first two micro-steps of an optimizer step.

    Args:
        step: finished optimizer steps.
        number: of the signal.
        rank: of the process.
    """

    def __init__(self, step: int, number: int = signal.SIGTERM, rank: int = 0) -> None:
        self.step, self.number, self.rank = step, number, rank

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # Once: a second signal ends a run at once.
        middle = batch_idx % trainer.accumulate_grad_batches == 1
        if trainer.global_step == self.step and middle and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


class FullDisk(L.Callback):
    """Lets no file of the first process grow beyond a size after the first step, as a full disk would.

    Args:
        max_bytes: more than a log, less than a checkpoint.
    """

    def __init__(self, max_bytes: int = 200_000) -> None:
        self.max_bytes = max_bytes

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1 and trainer.is_global_zero:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.max_bytes, self.max_bytes))


class AnswerValidation(L.Callback):
    """Generates answers when training ends, with the weights as the strategy holds them; writes one file per process.

    Args:
        folder: of ``<rank>.json``: sample id -> answer.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        mine = data.val_samples_list[trainer.global_rank :: trainer.world_size]
        # One by one, so that both processes call the network equally often.
        sizes = {"batch_size": 1, "max_new_tokens": 6, "num_workers": 0, "device": pl_module.device}
        answers = generate_answers(pl_module.network, data.processor, data.source, mine, **sizes)
        found = {sample.sample_id: text for sample, text, _ in answers}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


class EngineSettings(L.Callback):
    """Writes what DeepSpeed's engine took from its configuration.

    Args:
        file: JSON.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        engine: Any = trainer.strategy.model
        if trainer.is_global_zero:
            stage, bucket = engine.zero_optimization_stage(), engine.zero_reduce_bucket_size()
            self.file.write_text(json.dumps({"stage": stage, "bucket": bucket, "steps": engine.steps_per_print()}))
