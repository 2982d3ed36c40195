"""A file with a checkpoint's name is always a whole one."""

from __future__ import annotations

import pytest
import torch

from vidtune.checkpoint import storage
from vidtune.checkpoint.storage import AtomicCheckpointIO
from vidtune.contracts import UserError

GOOD = {"state_dict": {"network.a": torch.arange(4.0)}, "global_step": 3}


def test_what_was_saved_is_what_is_read(tmp_path):
    file = tmp_path / "checkpoints" / "step_000003.ckpt"
    AtomicCheckpointIO().save_checkpoint(GOOD, file)
    assert torch.equal(torch.load(file, weights_only=True)["state_dict"]["network.a"], torch.arange(4.0))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("state", [{}, {"network.a": torch.empty(0)}])
def test_empty_weights_are_never_saved(tmp_path, state):
    with pytest.raises(UserError, match="could not be written"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": state}, tmp_path / "step_000001.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "step_000003.ckpt"
    AtomicCheckpointIO().save_checkpoint(GOOD, file)
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.torch, "save", full)
    with pytest.raises(UserError, match=r"No space left on device.*keep_checkpoints"):
        AtomicCheckpointIO().save_checkpoint(GOOD | {"global_step": 4}, file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
