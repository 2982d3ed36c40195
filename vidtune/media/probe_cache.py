"""Headers on disk, so that planning an epoch does not open every file again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from vidtune.contracts import MediaInfo, MediaRef
from vidtune.media.decode import cut_segment, probe


class ProbeCache:
    """``probe`` with a memory: one line of JSON per file, keyed by path, size and time of change.

    Several processes may share a folder: lines are short and appended with one write each, and a line that was torn
    by a crash is skipped. Unreadable media are not remembered here.

    Args:
        folder: where ``headers.jsonl`` lies; created when missing.
        deadline_s: seconds after which a medium counts as unreadable; None for no limit.
    """

    def __init__(self, folder: str | os.PathLike[str], deadline_s: float | None = None) -> None:
        self.deadline_s = deadline_s
        self.file = Path(folder) / "headers.jsonl"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[tuple[str, int, int], MediaInfo] = {}
        self._load()

    def __len__(self) -> int:
        return len(self._known)

    def probe(self, ref: MediaRef) -> MediaInfo:
        """The header of ``ref``; segments of one file share one entry.

        Raises:
            MediaError: unreadable, or the segment lies outside the medium.
        """
        try:
            found = os.stat(ref.path)
        except OSError:
            return probe(ref)  # raises with the reason
        key = (ref.path, found.st_size, found.st_mtime_ns)
        whole = self._known.get(key)
        if whole is None:
            whole = self._known[key] = probe(MediaRef(ref.path), deadline_s=self.deadline_s)
            self._append(key, whole)
        return cut_segment(whole, ref)

    def _load(self) -> None:
        if not self.file.exists():
            return
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                key = (row.pop("path"), row.pop("size"), row.pop("mtime_ns"))
                self._known[key] = MediaInfo(MediaRef(key[0]), **row)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def _append(self, key: tuple[str, int, int], info: MediaInfo) -> None:
        row = dict(zip(("path", "size", "mtime_ns"), key)) | asdict(info)
        del row["ref"]
        line = (json.dumps(row) + "\n").encode()
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
