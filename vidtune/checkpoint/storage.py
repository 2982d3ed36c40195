"""Writing checkpoints so that a file with a checkpoint's name is always a whole one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from vidtune.contracts import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, opens the file again, compares what trains, and only then gives it its name.

    Whatever ends the process or fills the disk before that, the checkpoints that were there stay as they are.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises:
        UserError: no space, no permission, or the file does not hold what was written.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            with temporary.open("wb") as handle:
                torch.save(checkpoint, handle)
                handle.flush()
                os.fsync(handle.fileno())
            _compare(checkpoint["state_dict"], temporary)
            temporary.replace(target)
        except (OSError, RuntimeError) as error:
            # torch.save reports a full disk as a RuntimeError of its zip writer.
            temporary.unlink(missing_ok=True)
            raise UserError(
                f"{target}: the checkpoint could not be written ({error}). Earlier checkpoints are whole. Free some "
                f"space, lower trainer.keep_checkpoints, or choose another paths.runs_dir; then resume={_run(target)}."
            ) from error


def _compare(state: dict[str, Tensor], file: Path) -> None:
    """Raises:
    RuntimeError: what can be read is not what was written, or holds no weights.
    """
    found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    wrong = [
        name
        for name, value in state.items()
        if value.numel() == 0 or name not in found or not torch.equal(found[name], value.detach().cpu())
    ]
    if wrong or not state:
        raise RuntimeError(f"read back, {len(wrong)} of {len(state)} tensors differ or are empty: {wrong[:3]}")


def _run(checkpoint: Path) -> Path:
    return checkpoint.parent.parent
