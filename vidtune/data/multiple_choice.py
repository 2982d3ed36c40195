"""Multiple-choice questions from a table: one row per question, one column per option."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vidtune.contracts import MediaRef, Message, Sample, UserError
from vidtune.data.annotations import check_fractions, find_annotation, media_path, split_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class MultipleChoiceReader:
    """Reads a CSV file; the answer is a letter, or the option's text.

    Args:
        root: folder of videos and annotation.
        annotation: CSV with a header, below ``root`` or a path of its own. With ``{split}`` in it one file per split;
            without, rows are divided by ``val_fraction`` and ``test_fraction``, questions of one video together.
        video: template of the media path; ``{video}`` is the cell, or what ``video_map`` has for it.
        video_map: JSON object from the cell to the path, below ``root``; NExT-QA comes with one. None for none.
        prompt: the user turn after the video, from ``{question}`` and ``{options}``.
        option: one line of ``{options}``, from ``{letter}`` and ``{text}``.
        answer: the assistant's turn, from ``{letter}`` and ``{text}``.
        columns: our name -> theirs, for video, question, answer and, where there, id, question_type, start and end.
            Without an id, the row's number is taken.
        option_columns: the options, in the order of their letters. Empty cells are no options.
        one_based: the answer column counts from 1. Letters, and an option's text, are understood in any case.
        val_fraction, test_fraction: shares held back, where the annotation names no split.
        name: name of the set.
    """

    def __init__(
        self,
        root: str,
        annotation: str,
        video: str = "{video}",
        video_map: str | None = None,
        prompt: str = "{question}\n{options}Answer with the option's letter from the given choices directly.",
        option: str = "{letter}. {text}\n",
        answer: str = "{letter}",
        columns: Mapping[str, str] | None = None,
        option_columns: Sequence[str] = ("a0", "a1", "a2", "a3", "a4"),
        one_based: bool = False,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        name: str = "multiple_choice",
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        for key, text, needed in (("prompt", prompt, "{question}"), ("prompt", prompt, "{options}")):
            if needed not in text:
                raise UserError(f"data.reader.{key}={text!r}: it must hold {needed}.")
        self.root, self.annotation, self.video, self.video_map = Path(root), annotation, video, video_map
        self.prompt, self.option, self.answer, self.name = prompt, option, answer, name
        self.columns = {"video": "video", "question": "question", "answer": "answer"} | dict(columns or {})
        self.option_columns, self.first = list(option_columns), int(one_based)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def __call__(self, split: str) -> list[Sample]:
        """Samples of a split, in file order.

        Raises:
            UserError: no such file or column; a row with fewer than two options, an answer that is none of them, a
                video that the map does not have, or an id that occurs twice.
        """
        path = find_annotation(self.root, self.annotation, split)
        rows = read_table(path, [*self.columns.values(), *self.option_columns])
        mapping = self._read_map()
        samples: list[Sample] = []
        seen: dict[str, int] = {}
        for number, row in enumerate(rows, start=1):
            if "{split}" not in self.annotation:
                key = row[self.columns["video"]]
                if split_of(key, self.val_fraction, self.test_fraction) != split:
                    continue
            sample = self._sample(row, mapping, f"{path}, row {number}", number)
            if sample.sample_id in seen:
                raise UserError(
                    f"{path}: rows {seen[sample.sample_id]} and {number} have one id, {sample.sample_id!r}. Name the "
                    f"columns that make it unique in data.reader.columns.id, joined by +."
                )
            seen[sample.sample_id] = number
            samples.append(sample)
        return samples

    def _sample(self, row: Mapping[str, str], mapping: Mapping[str, str] | None, where: str, number: int) -> Sample:
        cell = {ours: row[theirs] for ours, theirs in self.columns.items() if "+" not in theirs}
        options = [row[column].strip() for column in self.option_columns if row[column].strip()]
        if not 2 <= len(options) <= len(LETTERS):
            raise UserError(f"{where}: {len(options)} options; expected 2 to {len(LETTERS)}.")
        index = self._answer(cell["answer"].strip(), options, where)
        video = cell["video"].strip()
        if mapping is not None:
            if video not in mapping:
                raise UserError(f"{where}: video {video!r} is not in {self.video_map} ({len(mapping)} entries).")
            video = mapping[video]
        start, end = (float(cell[key]) if cell.get(key) else None for key in ("start", "end"))
        ref = MediaRef(media_path(self.root, self.video.format(video=video)), "video", start, end)
        lines = [self.option.format(letter=letter, text=text) for letter, text in zip(LETTERS, options)]
        text = self.prompt.format(question=cell["question"].strip(), options="".join(lines))
        reply = self.answer.format(letter=LETTERS[index], text=options[index])
        parts = [row[column] for column in self.columns.get("id", "").split("+") if column]
        used = {*self.option_columns, *self.columns.values()}
        return Sample(
            sample_id="_".join(parts) or str(number),
            messages=(Message("user", (ref, text)), Message("assistant", (reply,))),
            source=self.name,
            question_type=cell.get("question_type", ""),
            options=tuple(options),
            answer=options[index],
            extra={key: value for key, value in row.items() if key not in used},
        )

    def _answer(self, value: str, options: Sequence[str], where: str) -> int:
        """Index of the right option, from a number, a letter or its text."""
        index = -1
        if value.isdecimal():
            index = int(value) - self.first
        elif len(value) == 1 and value.upper() in LETTERS:
            index = LETTERS.index(value.upper())
        elif value in options:
            index = options.index(value)
        if not 0 <= index < len(options):
            raise UserError(
                f"{where}: answer {value!r} is none of the {len(options)} options; expected a number from "
                f"{self.first} (data.reader.one_based), a letter, or an option's text."
            )
        return index

    def _read_map(self) -> dict[str, str] | None:
        if self.video_map is None:
            return None
        path = find_annotation(self.root, self.video_map, "")
        if not path.is_file():
            raise UserError(f"data.reader.video_map={self.video_map}: there is no such file below {self.root}.")
        return {str(key): str(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file, all cells as text.

    Args:
        columns: that must be there; ``a+b`` means both.

    Raises:
        UserError: no such file, a column that is not there, a row of another length, or no rows.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such annotation file. Set data.annotation or data.root.")
    with path.open(encoding="utf-8-sig", newline="") as handle:
        table = csv.DictReader(handle)
        header = list(table.fieldnames or ())
        missing = [name for column in columns for name in column.split("+") if name not in header]
        if missing:
            raise UserError(
                f"{path}: no column {missing[0]!r}; it has {', '.join(header)}. Set data.reader.columns and "
                f"data.reader.option_columns."
            )
        rows = list(table)
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise UserError(f"{path}, row {number}: expected {len(header)} cells; a comma inside a cell needs quotes.")
    if not rows:
        raise UserError(f"{path}: the table holds no rows.")
    return rows
