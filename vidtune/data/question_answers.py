"""Question and answer lists per video, as Video-LLaMA reads them: ``{"video", "QA": [{"q", "a"}, ...]}``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidtune.contracts import MediaRef, Message, Sample, UserError
from vidtune.data.annotations import check_fractions, find_annotation, media_path, read_rows, required, split_of


class QuestionAnswersReader:
    """The first question follows the video; further pairs are further turns. Every answer is supervised.

    Args:
        root: folder that video paths are relative to.
        annotation: ``.json`` or ``.jsonl``, below ``root`` or a path of its own. With ``{split}`` in it there is one
            file per split; without, the videos of one file are divided by ``val_fraction`` and ``test_fraction``.
        classes: file of the possible answers, a JSON list or object, below ``root``; they are the options of rows with
            one pair. Where there is no such file, the answers that occur.
        val_fraction, test_fraction: shares held back, where the annotation names no split.
        twin_suffixes: endings of file stems that mark a copy, which stays in the split of its original.
        name: name of the set.
    """

    def __init__(
        self,
        root: str,
        annotation: str,
        classes: str | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        twin_suffixes: tuple[str, ...] = ("_flip",),
        name: str = "question_answers",
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        self.root, self.annotation, self.classes, self.name = Path(root), annotation, classes, name
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.twin_suffixes = tuple(twin_suffixes)

    def __call__(self, split: str) -> list[Sample]:
        """Samples of a split, in file order.

        Raises:
            UserError: see ``read_rows``; a row without video or pairs, or a pair without ``q`` or ``a``.
        """
        path = find_annotation(self.root, self.annotation, split)
        rows = [(_pairs(row, where), row, where) for row, where in self._rows(path, split)]
        options = self._options([pairs for pairs, _, _ in rows])
        samples = [self._sample(pairs, row, where, options) for pairs, row, where in rows]
        times = Counter(sample.sample_id for sample in samples)
        return [
            sample if times[sample.sample_id] == 1 else replace(sample, sample_id=f"{sample.sample_id}:{number}")
            for number, sample in enumerate(samples, start=1)
        ]

    def _rows(self, path: Path, split: str) -> list[tuple[dict[str, Any], str]]:
        rows = [(row, f"{path}, row {number}") for number, row in enumerate(read_rows(path), start=1)]
        if "{split}" in self.annotation:
            return rows
        return [(row, where) for row, where in rows if self._split_of(str(required(row, "video", where))) == split]

    def _split_of(self, video: str) -> str:
        stem = str(Path(video).with_suffix(""))
        for suffix in self.twin_suffixes:
            stem = stem.removesuffix(suffix)
        return split_of(stem, self.val_fraction, self.test_fraction)

    def _options(self, conversations: list[list[tuple[str, str]]]) -> tuple[str, ...]:
        file = self.root / self.classes if self.classes else None
        if file is None or not file.is_file():
            return tuple(sorted({pairs[0][1] for pairs in conversations if len(pairs) == 1}))
        listed = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(listed, list | dict) or not all(isinstance(label, str) for label in listed):
            raise UserError(f"{file}: expected a list of answers, or an object whose keys they are.")
        return tuple(listed)

    def _sample(
        self, pairs: list[tuple[str, str]], row: Mapping[str, Any], where: str, options: tuple[str, ...]
    ) -> Sample:
        video = str(required(row, "video", where))
        media = MediaRef(media_path(self.root, video))
        messages: list[Message] = []
        for number, (question, answer) in enumerate(pairs):
            messages.append(Message("user", (media, question) if number == 0 else (question,)))
            messages.append(Message("assistant", (answer,)))
        single = len(pairs) == 1
        return Sample(
            sample_id=video,
            messages=tuple(messages),
            source=self.name,
            question_type=pairs[-1][1] if single else "",
            options=options if single else (),
            answer=pairs[-1][1],
            extra={key: value for key, value in row.items() if key not in ("video", "QA")},
        )


def _pairs(row: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """(question, answer) pairs of a row."""
    entries = required(row, "QA", where)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise UserError(f'{where}: QA={entries!r}; expected a list of {{"q": ..., "a": ...}} with at least one pair.')
    return [(str(required(entry, "q", where)), str(required(entry, "a", where))) for entry in entries]
