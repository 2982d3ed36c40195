"""Writing checkpoints so that a file with a checkpoint's name is always a whole one; reading none that is damaged."""

from __future__ import annotations

import os
import zipfile
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
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
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
                f"space, lower trainer.keep_checkpoints or trainer.keep_gb, or choose another paths.runs_dir; then "
                f"resume={target.parent.parent}."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """See ``read_checkpoint``."""
        return read_checkpoint(Path(path))


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint in host memory.

    Raises:
        UserError: missing, cut off, or with bytes that are not those that were written.
    """
    try:
        # torch.load does not look at the check sums: a flipped bit would train on.
        with zipfile.ZipFile(file) as archive:
            if (member := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the check sum of {member} is wrong")
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(
            f"{file}: the checkpoint is damaged or cannot be read ({error}). Remove it: the run then goes on from the "
            f"one before; to evaluate or export, choose another with checkpoint=."
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
