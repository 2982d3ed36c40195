"""Base plus delta: weights that were released as differences from LLaMA's, tensor by tensor.

For LLaVA's deltas, and for Vicuna's, which lack the projector and the grown vocabulary. Whatever the model's size, one
tensor of each side and one output shard are in memory (``.bin`` files of PyTorch's old format, which cannot be
memory-mapped, cost one whole shard instead).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from vidtune.contracts import UserError
from vidtune.models.base_tensors import BaseTensors
from vidtune.models.loading import stream_folder

_LARGER = ("model.embed_tokens.weight", "lm_head.weight")
"""May have more rows in the delta: its vocabulary has grown."""
_WHOLE = ("model.mm_projector.weight", "model.mm_projector.bias")
_CONSTANT = ".rotary_emb.inv_freq"
_COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def apply_delta(
    base: Path,
    delta: Path,
    out: Path,
    max_shard_bytes: int = 2 * 1024**3,
    progress: Callable[[str], None] = lambda name: None,
) -> int:
    """Write base + delta as sharded safetensors, with the delta's configuration and tokenizer.

    The sum is taken in float16 as the original does. Larger embeddings of the delta take the base into their first
    rows; the projector is stored whole in the delta.

    Args:
        base: LLaMA in Hugging Face layout.
        delta: for example LLaVA-Lightning-7B-delta-v1-1.
        out: new folder; it appears under this name only when complete.
        max_shard_bytes: size of an output shard, and so of what is held in memory.
        progress: called with the name of each finished tensor.

    Returns:
        Number of tensors written.

    Raises:
        UserError: ``out`` exists, the base is Meta's own format, or the two do not belong together.
    """
    if out.exists():
        raise UserError(f"{out}: exists already. Remove it, or set --out to another folder.")
    tensors = BaseTensors(base)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        count = _write_shards(_sums(tensors, delta, progress), partial, max_shard_bytes)
        for name in _COPIED:
            if (delta / name).is_file():
                shutil.copyfile(delta / name, partial / name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(out)
    return count


def _sums(base: BaseTensors, delta: Path, progress: Callable[[str], None]) -> Iterator[tuple[str, Tensor]]:
    left = {name for name in base.names if not name.endswith(_CONSTANT)}
    for name, difference in stream_folder(delta):
        if name.endswith(_CONSTANT):
            continue
        if name in base.names:
            left.discard(name)
            yield name, _add(name, base[name], difference.half(), base.folder, delta)
        elif name in _WHOLE:
            yield name, difference.half()
        else:
            raise UserError(f"{delta}: {name} is not in the base {base.folder}. Was the delta made from this --base?")
        progress(name)
    if left:
        raise UserError(f"{delta}: lacks {len(left)} tensors of the base, first {min(left)}. Is --delta complete?")


def _add(name: str, base: Tensor, difference: Tensor, base_folder: Path, delta_folder: Path) -> Tensor:
    if base.shape == difference.shape:
        return difference + base
    rows, columns = base.shape if base.ndim == 2 else (0, 0)
    fits = name in _LARGER and rows <= difference.shape[0] and columns == difference.shape[1]
    if not fits:
        raise UserError(
            f"{name}: {tuple(base.shape)} in the base {base_folder}, {tuple(difference.shape)} in the delta "
            f"{delta_folder}. The two are of different models; a 7B delta needs LLaMA-7B."
        )
    total = difference.clone()
    total[:rows] += base
    return total


def _write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path, max_bytes: int) -> int:
    """Shards named by their order; the index maps names to them."""
    weight_map: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    total = size = number = 0

    def flush() -> None:
        nonlocal size, number
        number += 1
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        shard.clear()
        size = 0

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            flush()
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return len(weight_map)
