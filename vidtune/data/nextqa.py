"""NExT-QA as ``vidtune prepare nextqa`` wrote it; the hub's own rows are understood too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidtune.contracts import MediaRef, Message, Sample, UserError
from vidtune.data.annotations import read_rows, required
from vidtune.data.prepare.nextqa import FOLDER, LETTERS, video_file

_OPTION = re.compile(r"^([A-E])\. (.*)$", re.MULTILINE)


class NextQAReader:
    """Multiple-choice questions; the model answers with a letter.

    Args:
        root: folder that was prepared.
        videos: folder of the videos; None for ``NExTVideo`` below ``root``.
        name: name of the set.
    """

    def __init__(self, root: str, videos: str | None = None, name: str = "nextqa") -> None:
        self.root, self.name = Path(root), name
        self.videos = Path(videos) if videos else self.root / "NExTVideo"

    def __call__(self, split: str) -> list[Sample]:
        """Samples of a split, in file order.

        Raises:
            UserError: the set was not prepared, or a row that is not NExT-QA's.
        """
        path = self.root / FOLDER / f"{split}.jsonl"
        if not path.is_file():
            raise UserError(
                f"{path}: there is no such annotation. Put the release below data.root={self.root} and run `vidtune "
                f"prepare nextqa --root {self.root}`, or set data.root to where that was done."
            )
        return [self._sample(row, f"{path}, row {number}", number) for number, row in enumerate(read_rows(path), 1)]

    def _sample(self, row: Mapping[str, Any], where: str, number: int) -> Sample:
        turns = required(row, "messages", where)
        text = "".join(part["text"] for part in turns[0]["content"] if part["type"] == "text")
        options = row.get("index2ans") or dict(_OPTION.findall(text))
        letter = row["gt"] if "gt" in row else turns[-1]["content"][0]["text"]
        if sorted(options) != list(LETTERS) or letter not in options:
            raise UserError(f"{where}: options {sorted(options)} and answer {letter!r}; expected A to E.")
        path = required(row, "video", where)["path"]
        file = video_file(self.videos, path) or self.videos.joinpath(*Path(path).parts[-2:])
        kept = {key: row[key] for key in ("qid", "video_id", "split") if key in row}
        return Sample(
            sample_id=str(row.get("id", number)),
            messages=(Message("user", (MediaRef(str(file.absolute())), text)), Message("assistant", (letter,))),
            source=self.name,
            question_type=str(row.get("type", "")),
            options=tuple(options[name] for name in LETTERS),
            answer=options[letter],
            extra=kept,
        )
