"""What a frozen part of a network made of the media, kept on disk and put in the place of frames."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vidtune.contracts import MediaItem, MediaPlan
from vidtune.media.feature_store import SHARD_BYTES, FeatureStore, check_free

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised when what lies in a cache folder changes its meaning."""
ABOUT = "about.json"
DUMMY_KEY = "dummy"
"""Of the stand-in of rows without media."""

CACHE_MODES = ("fill", "read")
CACHE_DTYPES = (None, "float32", "bfloat16", "float16")

Stage = Literal["features", "connected"]


class FeatureCache:
    """Encoded media by what decides their values: the file, the plan of its frames, and the network that saw them.

    Everything about network and processor is in ``about``; its digest names a folder below ``folder``, so that several
    models can share one. A medium's own key is in ``key``. A value that is not exactly the one asked for is not found.

    Args:
        folder: shared by all caches of a user.
        about: JSON types; equal for two runs exactly if the same frames give the same features in both.
        stage: what is stored: the output of ``features`` or of ``connect``.
        dtype: floating-point tensors are stored in it and come back in their own; None stores them as they are.
        shard_bytes: see ``FeatureStore``.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        stage: Stage,
        dtype: torch.dtype | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.about = {"format": FORMAT, **about, "stage": stage, "dtype": str(dtype)}
        self.stage: Stage = stage
        self.dtype = dtype
        self.folder = folder / _digest(self.about)
        self.store = FeatureStore(self.folder, shard_bytes)
        self._awaited: set[str] = set()
        self._awaited_placeholders = 0
        self._announced = True

    def key(self, plan: MediaPlan) -> str:
        """Names the values of one planned medium: file identity, segment, frames and all else that the plan decided."""
        ref = plan.info.ref
        return _digest(
            {
                "file": file_identity(ref.path),
                "segment": [ref.kind, ref.start_s, ref.end_s, ref.tiled],
                "placeholders": plan.num_placeholders,
                **drawn(plan),
            }
        )

    def __contains__(self, key: str) -> bool:
        return self.store.note(key) is not None

    def why_bad(self, key: str) -> str | None:
        """Why the medium could not be read when it was stored, empty where it could; None where it is not stored."""
        note = self.store.note(key)
        return None if note is None else note["bad"]

    def get(self, key: str, name: str = "") -> tuple[MediaItem, str] | None:
        """The stored medium, and why it could not be read (empty where it could); None where it is not stored.

        Args:
            name: of the medium, for messages.
        """
        found = self.store.read(key)
        if found is None:
            return None
        note = found.note
        tensors = {name: tensor.to(getattr(torch, note["dtypes"][name])) for name, tensor in found.tensors.items()}
        return MediaItem(note["kind"], tensors, note["placeholders"], name, self.stage), note["bad"]

    def add(self, item: MediaItem, bad: str = "") -> None:
        """Store an item with a ``cache_key`` that has reached this cache's stage; others are passed over.

        Args:
            bad: why the medium could not be read, where ``item`` only stands in for it.

        Raises:
            UserError: the disk is full, or will be.
        """
        if item.stage != self.stage or not item.cache_key:
            return
        note = {
            "kind": item.kind,
            "placeholders": item.num_placeholders,
            "dtypes": {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in item.tensors.items()},
            "bad": bad,
        }
        tensors = {name: self._shrink(tensor) for name, tensor in item.tensors.items()}
        self._announce(item, sum(tensor.nbytes for tensor in tensors.values()))
        self._write_about()
        self.store.add(item.cache_key, tensors, note)
        self._awaited.discard(item.cache_key)
        if not self._awaited:
            self.store.flush()

    def expect(self, keys: Iterable[str], num_placeholders: int) -> None:
        """Say what will be added: the first ``add`` then announces the size, and the last one is written at once.

        Args:
            num_placeholders: of all of it.
        """
        self._awaited, self._awaited_placeholders = set(keys), num_placeholders
        self._announced = not self._awaited

    def flush(self) -> None:
        """Write what is waiting."""
        self.store.flush()

    def _shrink(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if self.dtype is not None and tensor.is_floating_point() else tensor

    def _announce(self, item: MediaItem, num_bytes: int) -> None:
        """Print what the cache will take, judged by its first medium, and refuse what does not fit."""
        if self._announced or not item.num_placeholders:
            return
        self._announced = True
        total = num_bytes * self._awaited_placeholders // item.num_placeholders
        free = shutil.disk_usage(_existing(self.folder)).free
        message = "feature cache: %d media at stage %r will take about %.3f GB in %s; %.1f GB are free"
        log.info(message, len(self._awaited), self.stage, total / 1e9, self.folder, free / 1e9)
        check_free(self.folder, total)

    def _write_about(self) -> None:
        """Say in the folder what it holds, for people and for messages."""
        file = self.folder / ABOUT
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(self.about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            part.replace(file)


def differences(folder: Path, about: Mapping[str, Any]) -> list[str]:
    """How the caches that lie in ``folder`` differ from the one that ``about`` asks for, one line each."""
    lines = []
    for file in sorted(folder.glob(f"*/{ABOUT}")):
        theirs = json.loads(file.read_text(encoding="utf-8"))
        other = sorted(name for name in {*theirs, *about} if theirs.get(name) != _plain(about.get(name)))
        lines.append(f"{file.parent.name} (other {', '.join(other)})" if other else file.parent.name)
    return lines


def drawn(plan: MediaPlan) -> dict[str, Any]:
    """Everything in a plan that may be drawn at random and that pixels depend on, in JSON types."""
    return {
        "frames": list(plan.frame_indices),
        "size": plan.frame_size,
        "filter": plan.frame_filter,
        "extra": _plain(dict(plan.extra)),
    }


def file_identity(path: str) -> list[Any]:
    """Path, size and time of change; of a folder of frames those of its files. Of nothing, that nothing is there."""
    try:
        found = os.stat(path)
        if not os.path.isdir(path):
            return [path, found.st_size, found.st_mtime_ns]
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        return [path, [[entry.name, entry.stat().st_size, entry.stat().st_mtime_ns] for entry in entries]]
    except OSError:
        return [path, None]


def _plain(value: Any) -> Any:
    """The value as it comes back from JSON; arrays as lists."""
    return json.loads(
        json.dumps(value, sort_keys=True, default=lambda other: getattr(other, "tolist", other.__repr__)())
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:32]


def _existing(folder: Path) -> Path:
    home = folder.absolute()
    while not home.exists():
        home = home.parent
    return home
