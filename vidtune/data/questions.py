"""One question per row: ``{"id", "video" | "image", "question", "answer", "options", "question_type"}``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidtune.contracts import MediaRef, Message, Sample, UserError
from vidtune.data.annotations import media_path, read_rows, required

_KNOWN = {"id", "video", "image", "question", "answer", "options", "question_type", "start", "end"}


class QuestionsReader:
    """Reads questions about videos or images; the medium stands before the question.

    Args:
        root: folder that media paths and annotation files are relative to.
        annotation: file name with ``{split}`` in it.
        prompt: the user turn; ``{question}`` and, where the prompt names them, ``{options}`` are filled in.
        name: name of the set, for messages and tables.
    """

    def __init__(self, root: str, annotation: str, prompt: str = "{question}", name: str = "questions") -> None:
        self.root, self.annotation, self.prompt, self.name = Path(root), annotation, prompt, name
        if "{question}" not in prompt:
            raise UserError(f"data.reader.prompt={prompt!r}: the prompt must hold {{question}}.")

    def __call__(self, split: str) -> list[Sample]:
        """All samples of a split, in file order.

        Raises:
            UserError: see ``read_rows``; a row without a question, or two rows with one id.
        """
        path = self.root / self.annotation.format(split=split)
        samples: list[Sample] = []
        seen: dict[str, int] = {}
        for number, row in enumerate(read_rows(path), start=1):
            sample = self._sample(row, f"{path}, row {number}", number)
            if sample.sample_id in seen:
                raise UserError(
                    f"{path}: rows {seen[sample.sample_id]} and {number} have one id, {sample.sample_id!r}."
                )
            seen[sample.sample_id] = number
            samples.append(sample)
        return samples

    def _sample(self, row: dict[str, Any], where: str, number: int) -> Sample:
        question, options = str(required(row, "question", where)), tuple(map(str, row.get("options", ())))
        text = self.prompt.format(question=question, options="\n".join(options))
        media: tuple[MediaRef, ...] = ()
        if "video" in row:
            media = (MediaRef(media_path(self.root, row["video"]), "video", row.get("start"), row.get("end")),)
        elif "image" in row:
            media = (MediaRef(media_path(self.root, row["image"]), "image"),)
        messages: tuple[Message, ...] = (Message("user", (*media, text)),)
        answer = str(row.get("answer", ""))
        if answer:
            messages += (Message("assistant", (answer,)),)
        return Sample(
            sample_id=str(row.get("id", number)),
            messages=messages,
            source=self.name,
            question_type=str(row.get("question_type", "")),
            options=options,
            answer=answer,
            extra={key: value for key, value in row.items() if key not in _KNOWN},
        )
