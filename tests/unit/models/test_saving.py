"""Exported checkpoints can be read back, in one file or in shards."""

from __future__ import annotations

import json

import pytest
import torch

from vidtune.models.loading import stream_folder
from vidtune.models.saving import write_folder


@pytest.mark.parametrize(
    ("shard_bytes", "files"),
    [
        (10**9, ["model.safetensors"]),
        (40, [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)] + ["model.safetensors.index.json"]),
    ],
)
def test_what_was_written_is_what_is_read(tmp_path, shard_bytes, files):
    shared = torch.arange(8.0).bfloat16()
    tensors = {"a": torch.randn(2, 4), "b.view": torch.randn(4, 2).T, "c": shared, "d": shared}
    write_folder(tmp_path, tensors.items(), shard_bytes)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(files)
    found = dict(stream_folder(tmp_path))
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == 32 + 32 + 16 + 16
        assert index["weight_map"] == {"a": files[0], "b.view": files[1], "c": files[2], "d": files[2]}
