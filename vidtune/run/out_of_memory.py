"""When device memory runs out: what the row was made of, and what to change."""

from __future__ import annotations

from typing import Any

import lightning as L
from omegaconf import DictConfig

from vidtune.contracts import Batch

NUM_SUGGESTIONS = 3


class LastRow(L.Callback):
    """Remembers the row that is being computed."""

    def __init__(self) -> None:
        self.batch: Batch | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = batch

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.batch = batch


def explain(cfg: DictConfig, batch: Batch | None, error: BaseException) -> str:
    """One message for the user.

    Args:
        batch: the row that was computed; None before the first.
        error: torch's own, whose first sentence says how much was asked for.
    """
    asked = str(error).split(". ")[0]
    row = "before the first row" if batch is None else f"on a row of {describe_row(batch)}"
    advice = "; ".join(f"({n}) {text}" for n, text in enumerate(suggestions(cfg, batch)[:NUM_SUGGESTIONS], start=1))
    return f"device memory ran out {row}: {asked}. Cheapest first: {advice}."


def describe_row(batch: Batch) -> str:
    """Tokens, samples and media of a row."""
    targets = 0 if batch.target_ids is None else batch.target_ids.numel()
    media = ", ".join(dict.fromkeys(item.name for item in batch.media)) or "none"
    return (
        f"{batch.input_ids.numel()} tokens ({batch.visual_positions.numel()} visual, {targets} supervised) for "
        f"{len(batch.sample_ids)} samples ({', '.join(batch.sample_ids)}) with media {media}"
    )


def suggestions(cfg: DictConfig, batch: Batch | None) -> list[str]:
    """Settings that need less memory, those first that leave the result as it is."""
    found = []
    samples = 0 if batch is None else len(batch.sample_ids)
    if samples > 1:
        found.append(f"micro_batch_size={samples // 2}: fewer samples a row and more rows a step, the same gradients")
    if not cfg.hardware.activation_checkpointing:
        found.append("hardware.activation_checkpointing=true: the same gradients, about a third more compute")
    elif cfg.hardware.selective_recompute < 1:
        found.append("hardware.selective_recompute=1: all layers compute their activations again, the same gradients")
    if not cfg.strategy.name.startswith(("zero3", "fsdp")):
        found.append("strategy=zero3_offload: weights and optimizer states are shared out and kept in host memory")
    if cfg.tuning.language.mode == "full":
        found.append("tuning=lora: no gradients and optimizer states of the language model's weights")
    elif cfg.tuning.language.mode == "lora" and cfg.strategy.name in ("auto", "single", "ddp"):
        found.append("tuning=qlora: the frozen language model in 4 bits")
    if cfg.data.num_frames > 1:
        found.append(f"data.num_frames={max(1, cfg.data.num_frames // 2)}: the model sees less of each video")
    found.append(f"batch.max_tokens={max(1, cfg.batch.max_tokens // 2)}: shorter rows")
    found.append("hardware=: a card with more memory")
    return found
