"""A ledger of media that could not be read."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import lightning as L

from vidtune.contracts import Batch, UserError

log = logging.getLogger(__name__)

Entries = dict[str, tuple[str, int]]
"""Medium -> reason and number of samples that lost their weight by it, counted anew in every epoch."""


class BadMediaLedger(L.Callback):
    """Lists bad media in ``bad_media.csv``, counts the samples they hit, and stops the run above a bound.

    With several processes each keeps what its own rows showed in a file beside the ledger; the ledger joins them.

    Args:
        file: the ledger.
        num_media: distinct media of the training split.
        max_fraction: share of them that may be bad.
    """

    def __init__(self, file: Path, num_media: int, max_fraction: float) -> None:
        self.file, self.num_media, self.max_fraction = file, num_media, max_fraction
        self.entries: Entries = {}
        self.rank = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.rank = trainer.global_rank
        self._part(self.rank).unlink(missing_ok=True)  # of the run that is resumed; its numbers are in the checkpoint

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.note(batch.bad_media)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.note(batch.bad_media)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if self.rank == 0 and (merged := self.merged()):
            write_ledger(self.file, merged)

    def note(self, bad_media: tuple[tuple[str, str], ...]) -> None:
        """Add the bad media of a row.

        Raises:
            UserError: too many are bad.
        """
        if not bad_media:
            return
        for name, reason in bad_media:
            known = name in self.entries
            self.entries[name] = (reason, self.entries.get(name, ("", 0))[1] + 1)
            if not known:
                log.warning("%s cannot be read (%s); its samples carry no weight.", name, reason)
        if self.rank:
            write_ledger(self._part(self.rank), self.entries)
        merged = self.merged()
        if self.rank == 0:
            write_ledger(self.file, merged)
        if len(merged) > self.max_fraction * self.num_media:
            name, (reason, _) = next(iter(merged.items()))
            raise UserError(
                f"{len(merged)} of {self.num_media} media cannot be read, more than media.max_bad_fraction="
                f"{self.max_fraction:g} allows. First: {name} ({reason}). All are listed in {self.file}. Repair or "
                f"remove them, start anew without them (media.known_bad={self.file}), or raise media.max_bad_fraction."
            )

    def merged(self) -> Entries:
        """What all processes have found so far."""
        merged = dict(self.entries)
        for part in sorted(self.file.parent.glob(f".{self.file.stem}.rank*{self.file.suffix}")):
            if part == self._part(self.rank):
                continue
            with part.open(newline="", encoding="utf-8") as handle:
                for name, reason, hits in list(csv.reader(handle))[1:]:
                    merged[name] = (reason, int(hits) + merged.get(name, ("", 0))[1])
        return merged

    def counts(self) -> dict[str, int]:
        """For the summary of the run."""
        merged = self.merged()
        return {"bad_media": len(merged), "bad_media_rows": sum(hits for _, hits in merged.values())}

    def _part(self, rank: int) -> Path:
        return self.file.with_name(f".{self.file.stem}.rank{rank}{self.file.suffix}")

    def state_dict(self) -> dict[str, Any]:
        return {"entries": {name: list(entry) for name, entry in self.merged().items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.rank == 0:
            self.entries = {name: (entry[0], entry[1]) for name, entry in state_dict["entries"].items()}


def write_ledger(file: Path, entries: Entries) -> None:
    """Replaced as a whole, so that another process never reads half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    with part.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["file", "reason", "rows_hit"])
        writer.writerows((name, reason, hits) for name, (reason, hits) in entries.items())
    part.replace(file)
