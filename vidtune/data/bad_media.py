"""Which media cannot be read, known to all processes of a run."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from vidtune.contracts import MediaRef, UserError


class BadMedia:
    """Reasons why media cannot be read, by ``MediaRef.stretch``.

    Three kinds are kept apart, since only the first two may take part in the plan of a run, which must not depend on
    what was decoded before:

    - ``listed``: the user said so (``media.known_bad``); their rows are left out of training;
    - ``headers``: found while planning; their rows keep their place with weight 0;
    - failed decodes, found while the run goes on; not tried again. They go through a file, so that data workers and
      the other processes of the run know them too, and a resumed run as well.

    Args:
        listed: path or stretch -> reason.
        log_file: where failed decodes are shared; None keeps them in this process.
    """

    def __init__(self, listed: Mapping[str, str] | None = None, log_file: Path | None = None) -> None:
        self.listed, self.log_file = dict(listed or {}), log_file
        self.headers: dict[str, str] = {}
        self._decodes: dict[str, str] = {}
        self._read_bytes = 0

    def listed_reason(self, ref: MediaRef) -> str:
        """Why the user's list has this medium; empty where it has not."""
        return self.listed.get(ref.path) or self.listed.get(ref.stretch) or ""

    def reason(self, ref: MediaRef) -> str:
        """Why the medium cannot be read; empty where nothing is known against it."""
        known = self.listed_reason(ref) or self.headers.get(ref.stretch) or self._decodes.get(ref.stretch)
        if known:
            return known
        self._refresh()
        return self._decodes.get(ref.stretch, "")

    def note(self, ref: MediaRef, reason: str) -> None:
        """Remember a failed decode."""
        self._decodes[ref.stretch] = reason
        if self.log_file is None:
            return
        line = json.dumps({"media": ref.stretch, "reason": reason}) + "\n"
        descriptor = os.open(self.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())  # one write, so that lines of several processes never mix
        finally:
            os.close(descriptor)

    def _refresh(self) -> None:
        """Read what other processes have appended since."""
        if self.log_file is None:
            return
        try:
            size = os.stat(self.log_file).st_size
        except FileNotFoundError:
            return
        if size == self._read_bytes:
            return
        with self.log_file.open("rb") as handle:
            handle.seek(self._read_bytes)
            for line in handle:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._read_bytes += len(line)
                entry = json.loads(line)
                self._decodes.setdefault(entry["media"], entry["reason"])


def read_known_bad(file: str | os.PathLike[str]) -> dict[str, str]:
    """Media and reasons from a ledger (``bad_media.csv``) or a report of ``vidtune check`` (``.json``).

    Raises:
        UserError: no such file, or neither of the two.
    """
    path = Path(file)
    expected = f"media.known_bad={path}: expected the bad_media.csv of a run, or the JSON report of `vidtune check`"
    if not path.is_file():
        raise UserError(f"{expected}; there is no such file.")
    if path.suffix == ".json":
        try:
            entries: Iterable[Mapping[str, str]] = json.loads(path.read_text(encoding="utf-8"))["bad_media"]
            return {entry["file"]: entry["reason"] for entry in entries}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{expected}; it has no list 'bad_media' ({error}).") from error
    with path.open(encoding="utf-8", newline="") as handle:
        table = csv.DictReader(handle)
        if not {"file", "reason"} <= set(table.fieldnames or ()):
            raise UserError(f"{expected}; it has the columns {table.fieldnames}.")
        return {row["file"]: row["reason"] for row in table}
