"""Tensors into a checkpoint folder, shard by shard."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 5_000_000_000
"""Size of a shard; the hub's usual one."""


def write_folder(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write ``model.safetensors``, or shards of at most ``shard_bytes`` and their index where one file is not enough.

    One shard is held in host memory at a time. Tensors are copied, so that names that share storage are all written.

    Args:
        folder: exists; files of an earlier export with the same names are replaced.
        tensors: names as they shall stand in the files.
    """
    shard: dict[str, Tensor] = {}
    parts: list[Path] = []
    names: list[list[str]] = []
    size = total = 0

    def close() -> None:
        parts.append(folder / f"model-{len(parts) + 1:05d}.part")
        save_file(shard, parts[-1], metadata={"format": "pt"})
        names.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        if shard and size + num_bytes > shard_bytes:
            close()
            size = 0
        shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += num_bytes
        total += num_bytes
    close()
    if len(parts) == 1:
        parts[0].replace(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (part, members) in enumerate(zip(parts, names), start=1):
        file = part.replace(folder / f"model-{number:05d}-of-{len(parts):05d}.safetensors")
        weight_map |= dict.fromkeys(members, file.name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
