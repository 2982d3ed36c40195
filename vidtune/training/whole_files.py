"""Checkpoints of sharded strategies as one file with full tensors."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import Strategy


class WholeFiles:
    """Mixin of a sharded strategy: reads and writes checkpoints as a single process does.

    Lightning's own sharded strategies write folders of shards, which only the same strategy on as many processes can
    read. The strategy gathers the tensors (``lightning_module_state_dict``, ``optimizer_state``) and cuts them again
    (``load_model_state_dict``, ``load_optimizer_state_dict``); this hands the file to the ordinary path.
    """

    def save_checkpoint(self: Any, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self: Any, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True
