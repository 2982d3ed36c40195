"""A ledger of media that could not be read."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import lightning as L

from vidtune.contracts import Batch, UserError

log = logging.getLogger(__name__)


class BadMediaLedger(L.Callback):
    """Lists bad media in ``bad_media.csv``, counts the rows they hit, and stops the run above a bound.

    Args:
        file: the ledger.
        num_media: distinct media of the training split.
        max_fraction: share of them that may be bad.
    """

    def __init__(self, file: Path, num_media: int, max_fraction: float) -> None:
        self.file, self.num_media, self.max_fraction = file, num_media, max_fraction
        self.entries: dict[str, tuple[str, int]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.note(batch.bad_media)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.note(batch.bad_media)

    def note(self, bad_media: tuple[tuple[str, str], ...]) -> None:
        """Add the bad media of a row.

        Raises:
            UserError: too many are bad.
        """
        for path, reason in bad_media:
            known = path in self.entries
            self.entries[path] = (reason, self.entries.get(path, ("", 0))[1] + 1)
            if not known:
                log.warning("%s cannot be read (%s); its samples carry no weight.", path, reason)
        if bad_media:
            self._write()
            if len(self.entries) > self.max_fraction * self.num_media:
                path, (reason, _) = next(iter(self.entries.items()))
                raise UserError(
                    f"{len(self.entries)} of {self.num_media} media cannot be read, more than "
                    f"media.max_bad_fraction={self.max_fraction:g} allows. First: {path} ({reason}). All are listed in "
                    f"{self.file}. Repair or remove them, or raise media.max_bad_fraction."
                )

    def _write(self) -> None:
        with self.file.open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["media", "reason", "rows_hit"])
            writer.writerows((path, reason, hits) for path, (reason, hits) in self.entries.items())

    def state_dict(self) -> dict[str, Any]:
        return {"entries": {path: list(entry) for path, entry in self.entries.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.entries = {path: (entry[0], entry[1]) for path, entry in state_dict["entries"].items()}
