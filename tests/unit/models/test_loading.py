"""A base checkpoint with a fault is refused in one sentence that names the file, before anything trains on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vidtune.contracts import UserError
from vidtune.models.loading import load_tensors, stream_folder

TENSORS = {"weight": torch.arange(64.0).view(8, 8), "bias": torch.arange(8.0)}


def write_shards(folder: Path, suffix: str) -> list[Path]:
    """One tensor a shard, as the hub lays them out."""
    files = []
    for number, (name, tensor) in enumerate(TENSORS.items(), 1):
        files.append(folder / f"model-{number:05}-of-00002.{suffix}")
        save_file({name: tensor}, files[-1]) if suffix == "safetensors" else torch.save({name: tensor}, files[-1])
    index = "model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json"
    shards = {name: file.name for name, file in zip(TENSORS, files)}
    (folder / index).write_text(json.dumps({"weight_map": shards}))
    return files


def load(folder: Path) -> nn.Linear:
    layer = nn.Linear(8, 8)
    load_tensors(layer, stream_folder(folder), str(folder))
    return layer


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_load_whole(tmp_path: Path, suffix: str) -> None:
    write_shards(tmp_path, suffix)
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load(tmp_path).state_dict().items())


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_a_shard_that_was_cut_short_is_named(tmp_path: Path, suffix: str, kept: float) -> None:
    file = write_shards(tmp_path, suffix)[1]
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match=rf"{file.name}: this checkpoint file cannot be read .* Download it again"):
        load(tmp_path)


def test_a_shard_that_is_a_web_page_is_named(tmp_path: Path) -> None:
    file = write_shards(tmp_path, "safetensors")[0]
    file.write_text("<html>404 not found</html>")
    with pytest.raises(UserError, match=rf"{file.name}: this checkpoint file cannot be read"):
        load(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    file = write_shards(tmp_path, "safetensors")[1]
    file.unlink()
    with pytest.raises(UserError, match=rf"{file.name}: this checkpoint file is missing"):
        load(tmp_path)


def test_a_shard_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"weight": "../other/model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="lies outside the checkpoint folder"):
        load(tmp_path)


def test_a_pickle_of_more_than_tensors_is_refused_unopened(tmp_path: Path) -> None:
    torch.save({"weight": TENSORS["weight"], "code": Path}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: this checkpoint file cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({"weight": TENSORS["weight"]}, "1 missing: bias"),
        (TENSORS | {"scale": torch.ones(1)}, "1 unexpected: scale"),
        (TENSORS | {"bias": torch.ones(4)}, r"1 of another shape: bias \(4,\) for \(8,\)"),
    ],
)
def test_what_does_not_fit_is_counted_and_named(tmp_path: Path, state: dict[str, Tensor], fault: str) -> None:
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=fault):
        load(tmp_path)
