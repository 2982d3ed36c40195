"""Groups of tensors on disk, by key: safetensors shards that several processes may fill and many may map.

A shard's own header is its index, so there is no second file that could disagree with it. A shard gets its name when it
is complete; what a crash leaves behind has another suffix and is never read.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidtune.contracts import UserError

log = logging.getLogger(__name__)

SHARD_BYTES = 256_000_000
"""A shard is written when this much is waiting; a crash loses at most that."""
MAX_OPEN = 128
"""Shards mapped at a time: each takes a file descriptor, of which a process may often have 1024."""
FREE_MARGIN = 64_000_000
"""Bytes left free on the disk."""

_WAIT_S = 10.0
_ABANDONED_S = 3600.0
_SUFFIX, _PART = ".safetensors", ".part"


@dataclass(frozen=True)
class Stored:
    """Tensors of one key, and what was noted with them (JSON types)."""

    tensors: dict[str, Tensor]
    note: dict[str, Any]


class FeatureStore:
    """The shards of one folder.

    Args:
        folder: created when the first shard is written.
        shard_bytes: size at which a shard is written.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._notes: dict[str, tuple[str, dict[str, Any]]] = {}
        self._seen: set[str] = set()
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._waiting: dict[str, Stored] = {}
        self._waiting_bytes = 0
        self._last_flush = time.monotonic()
        self.refresh()

    def note(self, key: str) -> dict[str, Any] | None:
        """What was noted with a key; None where the key is not in a shard. Looks for shards of other processes."""
        if key not in self._notes:
            self.refresh()
        return self._notes[key][1] if key in self._notes else None

    def read(self, key: str) -> Stored | None:
        """Tensors of a key, mapped from its shard; None where there are none, or the shard turned out damaged."""
        note = self.note(key)
        if note is None:
            return None
        shard = self._notes[key][0]
        try:
            handle = self._handle(shard)
            return Stored({name: handle.get_tensor(f"{key}/{name}") for name in note["tensors"]}, note)
        except (SafetensorError, OSError) as error:
            self._discard(shard, error)
            return None

    def add(self, key: str, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Keep tensors for the next shard; a later value of a key replaces an earlier one.

        Raises:
            UserError: the disk is full.
        """
        repeated = key in self._waiting
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        if not repeated:
            self._waiting_bytes += sum(tensor.nbytes for tensor in tensors.values())
        self._waiting[key] = Stored(tensors, note | {"tensors": sorted(tensors)})
        # A key that comes again was needed before its shard was there: time to write, but not one shard per key.
        late = repeated and time.monotonic() - self._last_flush > _WAIT_S
        if self._waiting_bytes >= self.shard_bytes or late:
            self.flush()

    def is_waiting(self, key: str) -> bool:
        """Whether a key was added but is in no shard yet."""
        return key in self._waiting

    def flush(self) -> None:
        """Write what is waiting, all of it or nothing.

        Raises:
            UserError: the disk is full.
        """
        self._last_flush = time.monotonic()
        if not self._waiting:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        check_free(self.folder, self._waiting_bytes)
        shard = f"{os.getpid():07d}-{uuid.uuid4().hex[:12]}{_SUFFIX}"
        part = self.folder / (shard + _PART)
        tensors = {f"{key}/{name}": t for key, stored in self._waiting.items() for name, t in stored.tensors.items()}
        notes = {key: stored.note for key, stored in self._waiting.items()}
        try:
            save_file(tensors, str(part), metadata={"notes": json.dumps(notes)})
            with part.open("rb") as handle:
                os.fsync(handle.fileno())
            part.rename(self.folder / shard)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise UserError(
                f"{self.folder}: a shard of the feature cache could not be written ({error}). Nothing of it was kept. "
                f"Make room, or set media.feature_cache to a folder on another disk."
            ) from error
        self._waiting, self._waiting_bytes = {}, 0
        self.refresh()

    def refresh(self) -> None:
        """Take notice of shards that were written since."""
        try:
            names = set(os.listdir(self.folder))
        except FileNotFoundError:
            names = set()
        for shard in sorted(name for name in names - self._seen if name.endswith(_SUFFIX)):
            self._seen.add(shard)
            try:
                metadata = self._handle(shard).metadata() or {}
                notes = json.loads(metadata["notes"])
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                self._discard(shard, error)
                continue
            self._notes |= {key: (shard, note) for key, note in notes.items()}

    def _handle(self, shard: str) -> Any:
        """The open shard; opening checks that the file is as long as its header says."""
        if shard not in self._open:
            self._open[shard] = safe_open(str(self.folder / shard), framework="pt")
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _discard(self, shard: str, error: Exception) -> None:
        """Remove a damaged shard: what it held counts as missing and is made again."""
        lost = [key for key, (home, _) in self._notes.items() if home == shard]
        for key in lost:
            del self._notes[key]
        self._open.pop(shard, None)
        (self.folder / shard).unlink(missing_ok=True)
        log.warning("%s: damaged (%s) and removed; its features are computed again", self.folder / shard, error)

    def _remove_abandoned(self) -> None:
        """Remove unfinished shards of processes that died long ago."""
        for part in self.folder.glob(f"*{_PART}"):
            try:
                if time.time() - part.stat().st_mtime > _ABANDONED_S:
                    part.unlink()
            except FileNotFoundError:
                continue

    def __getstate__(self) -> dict[str, Any]:
        """Data workers read: they open shards themselves, and what waits stays with the process that writes it."""
        return {**self.__dict__, "_open": OrderedDict(), "_waiting": {}, "_waiting_bytes": 0}


def check_free(folder: Path, num_bytes: int) -> None:
    """Raises:
    UserError: less than ``num_bytes`` and a margin are free where ``folder`` is, or will be.
    """
    home = folder.absolute()
    while not home.exists():
        home = home.parent
    free = shutil.disk_usage(home).free
    if free < num_bytes + FREE_MARGIN:
        raise UserError(
            f"{folder}: the feature cache needs {num_bytes / 1e9:.2f} GB more and {free / 1e9:.2f} GB are free. Make "
            f"room, set media.feature_cache to a folder on another disk, or store less: "
            f"media.feature_cache_dtype=float16, fewer data.num_frames."
        )
