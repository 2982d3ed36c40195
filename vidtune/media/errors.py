"""The one error for every medium that cannot be read."""

from __future__ import annotations


class MediaError(Exception):
    """A medium that cannot be read: missing, empty, not a video, truncated, audio only, without frames, too slow.

    Args:
        path: the file or folder.
        reason: one sentence, ready for the ledger of bad media.
    """

    def __init__(self, path: str, reason: str) -> None:
        # Both go to ``args`` so that the error survives the trip from a data worker to the main process.
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
