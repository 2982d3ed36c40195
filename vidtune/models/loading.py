"""Checkpoints into networks: streamed tensor by tensor, strictly, with one report of all that does not fit."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vidtune.contracts import UserError
from vidtune.models.shards import write_whole

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")


@dataclass
class LoadReport:
    """What a load did; ``raise_if_bad`` turns the faults into one message."""

    source: str
    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def raise_if_bad(self) -> None:
        faults = []
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.mismatched),
        ):
            if names:
                shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
                faults.append(f"{len(names)} {title}: {shown}")
        if faults:
            raise UserError(
                f"{self.source}: the checkpoint does not fit the network ({self.loaded} tensors do). "
                f"{'; '.join(faults)}. Is model.path a checkpoint of the family and size that model= names?"
            )


def resolve_folder(path: str, setting: str = "model.path") -> Path:
    """A local folder as it is; a hub id (``owner/name``) through huggingface_hub.

    Args:
        setting: where the user wrote it, for the message.

    Raises:
        UserError: neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(path))
        except Exception as error:
            raise UserError(
                f"{setting}={path!r} is no folder here, and downloading it from the hub failed: {error}. "
                f"Set {setting} to a folder that holds the checkpoint."
            ) from error
    raise UserError(f"{setting}={path!r}: there is no such folder. Set it to a checkpoint folder or a hub id.")


def stream_folder(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a sharded or single safetensors or ``.bin`` checkpoint, one tensor in memory at a time for
    safetensors and one shard for ``.bin``.

    Raises:
        UserError: no checkpoint in the folder, a shard missing or damaged, a ``.bin`` with more than tensors in it.
    """
    for file in _shards(folder):
        yield from stream_file(file)


def stream_file(file: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of one file; see ``stream_folder``."""
    if not file.is_file():
        raise UserError(f"{file}: this checkpoint file is missing. Download the checkpoint again.")
    try:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as handle:
                for name in handle.keys():
                    yield name, handle.get_tensor(name)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
            state = state.get("model", state) if isinstance(state.get("model"), dict) else state
            yield from ((name, tensor) for name, tensor in state.items() if isinstance(tensor, Tensor))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file}: this checkpoint file cannot be read ({error}). Download it again.") from error


def load_tensors(
    module: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    source: str,
    *,
    expected_missing: Sequence[str] = (),
) -> LoadReport:
    """Copy tensors into the parameters and buffers of a module, cast to their dtype; see ``write_whole`` for sharding.

    Args:
        module: the network; its state names are those of ``tensors``.
        tensors: our names; from a ``KeyTable``.
        source: where they come from, for the report.
        expected_missing: shell patterns of names that the checkpoint need not hold.

    Raises:
        UserError: missing, unexpected or mis-shaped tensors, all in one message.
    """
    own = module.state_dict(keep_vars=True)
    report = LoadReport(source)
    left = set(own)
    with torch.no_grad():
        for name, tensor in tensors:
            if name not in own:
                report.unexpected.append(name)
            elif own[name].shape != tensor.shape:
                report.mismatched.append(f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}")
                left.discard(name)
            else:
                write_whole(own[name], tensor)
                report.loaded += 1
                left.discard(name)
    # Tied weights appear under several names; loading one loads all.
    loaded = {id(own[name]) for name in set(own) - left}
    report.missing = sorted(
        name
        for name in left
        if id(own[name]) not in loaded and not any(fnmatch.fnmatch(name, gap) for gap in expected_missing)
    )
    report.raise_if_bad()
    return report


def _shards(folder: Path) -> list[Path]:
    for index in _INDEXES:
        if (folder / index).is_file():
            weight_map = json.loads((folder / index).read_text())["weight_map"]
            names = sorted(set(weight_map.values()))
            outside = [name for name in names if Path(name).name != name]
            if outside:
                raise UserError(f"{folder / index}: shard {outside[0]!r} lies outside the checkpoint folder.")
            return [folder / name for name in names]
    for single in _SINGLES:
        if (folder / single).is_file():
            return [folder / single]
    raise UserError(f"{folder}: no checkpoint here; expected one of {', '.join((*_INDEXES, *_SINGLES))}.")


def _is_zip(file: Path) -> bool:
    with file.open("rb") as handle:
        return handle.read(2) == b"PK"
