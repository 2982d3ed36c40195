"""A file with a checkpoint's name is always a whole one, and a damaged one is never read."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vidtune.checkpoint import storage
from vidtune.checkpoint.storage import AtomicCheckpointIO, read_checkpoint
from vidtune.contracts import UserError

GOOD = {"state_dict": {"network.a": torch.arange(4.0)}, "global_step": 3}


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """This process can write no file beyond 50 kB: what a full disk is to torch's writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_saved_is_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "step_000003.ckpt"
    AtomicCheckpointIO().save_checkpoint(GOOD, file)
    assert torch.equal(read_checkpoint(file)["state_dict"]["network.a"], torch.arange(4.0))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("state", [{}, {"network.a": torch.empty(0)}])
def test_empty_weights_are_never_saved(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UserError, match="could not be written"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": state}, tmp_path / "step_000001.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_write_that_stops_half_way_leaves_the_checkpoint_before_as_it_was(
    tmp_path: Path, file_size_limit: None
) -> None:
    file = tmp_path / "step_000003.ckpt"
    AtomicCheckpointIO().save_checkpoint(GOOD, file)
    before = file.read_bytes()
    large = GOOD | {"state_dict": {"network.a": torch.zeros(100_000)}}
    with pytest.raises(UserError, match=r"could not be written.*keep_checkpoints or trainer\.keep_gb.*resume="):
        AtomicCheckpointIO().save_checkpoint(large, file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.torch, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        AtomicCheckpointIO().save_checkpoint(GOOD, tmp_path / "step_000003.ckpt")


@pytest.mark.parametrize("damage", ["flipped bit", "cut off", "no checkpoint"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "step_000003.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"network.a": torch.arange(1000.0)}}, file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flipped bit": content, "cut off": content[:-500], "no checkpoint": b"pointer"}[damage])
    for read in (read_checkpoint, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match=r"step_000003\.ckpt: the checkpoint is damaged .*Remove it"):
            read(file)
