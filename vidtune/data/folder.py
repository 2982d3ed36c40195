"""A folder per class: ``<root>/<class>/*.mp4``, or ``<root>/<split>/<class>/*.mp4`` where splits exist."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

from vidtune.contracts import MediaRef, Message, Sample, UserError
from vidtune.data.annotations import check_fractions, split_of

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".gif"}


class FolderReader:
    """Asks one question of every video and expects its folder's name as the answer.

    Without split folders, videos are divided by a hash of their name, so that adding one never moves another. Copies
    whose name differs only in a suffix of ``twin_suffixes`` (mirrored clips) stay in the split of their original.

    Args:
        root: the folder.
        question: the user turn after the video.
        val_fraction, test_fraction: shares of the videos, where there are no split folders.
        twin_suffixes: endings of file stems that mark a copy.
        name: name of the set.
    """

    def __init__(
        self,
        root: str,
        question: str,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        twin_suffixes: tuple[str, ...] = ("_flip",),
        name: str = "folder",
    ) -> None:
        self.root, self.question, self.name = Path(root), question, name
        self.val_fraction, self.test_fraction, self.twin_suffixes = val_fraction, test_fraction, tuple(twin_suffixes)
        check_fractions(val_fraction, test_fraction)

    def __call__(self, split: str) -> list[Sample]:
        """Samples of a split, sorted by path.

        Raises:
            UserError: no such folder, fewer than two classes, or no video in the split; a small folder may do without
                validation videos.
        """
        if not self.root.is_dir():
            raise UserError(f"data.root={str(self.root)!r}: there is no such folder.")
        base = self.root / split if (self.root / split).is_dir() else self.root
        has_splits = base != self.root or any((self.root / name).is_dir() for name in ("train", "val", "test"))
        if has_splits and base == self.root:
            raise UserError(f"{self.root}: it has split folders, but none called {split!r}. Set split= or add it.")
        videos = sorted(
            path for path in base.glob("*/*") if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")
        )
        classes = sorted({path.parent.name for path in videos})
        if len(classes) < 2:
            raise UserError(
                f"{base}: found {len(videos)} videos in {len(classes)} class folders; expected at least two folders "
                f"<class>/ with videos ({', '.join(sorted(VIDEO_SUFFIXES))}). Set data.root."
            )
        labels = {name: class_label(name) for name in classes}
        doubled = [label for label, count in Counter(labels.values()).items() if count > 1]
        if doubled:
            raise UserError(f"{base}: several class folders read as {doubled[0]!r}; rename one.")
        chosen = videos if has_splits else [path for path in videos if self._split_of(path) == split]
        if not chosen and split == "val":
            log.warning("%s: no video falls into the validation split (%d in all).", base, len(videos))
        elif not chosen:
            raise UserError(
                f"{base}: no video falls into split {split!r} ({len(videos)} in all). Add videos or change "
                f"data.reader.val_fraction / test_fraction."
            )
        options = tuple(labels[name] for name in classes)
        return [
            Sample(
                sample_id=str(path.relative_to(self.root)),
                messages=(
                    Message("user", (MediaRef(str(path.absolute())), self.question)),
                    Message("assistant", (labels[path.parent.name],)),
                ),
                source=self.name,
                question_type=labels[path.parent.name],
                options=options,
                answer=labels[path.parent.name],
            )
            for path in chosen
        ]

    def _split_of(self, path: Path) -> str:
        stem = path.stem
        for suffix in self.twin_suffixes:
            stem = stem.removesuffix(suffix)
        return split_of(f"{path.parent.name}/{stem}", self.val_fraction, self.test_fraction)


def class_label(folder: str) -> str:
    """A folder's name as an answer: spaces for underscores, sentence case: ``Fall_Down`` -> ``Fall down``."""
    words = re.sub(r"[_\-\s]+", " ", folder).strip()
    return words[:1].upper() + words[1:].lower()
