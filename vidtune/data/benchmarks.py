"""Question files of the Video-ChatGPT benchmark, in the form in which they are published.

Generative benchmark: lists of ``{"video_name", "Q", "A"}``, and of ``{"video_name", "Q1", "Q2", "A"}`` for consistency.
Zero-shot QA: ``test_q.json`` with ``{"video_name", "question", "question_id"}`` and ``test_a.json`` with ``{"answer",
"question_id"}``, of ActivityNet-QA also ``type``; or one file whose rows hold the answer too.

Each sample keeps its row in ``extra``, so that ``vidtune.evaluation.judge_files`` can write it back for the judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from vidtune.contracts import MediaRef, Message, Sample, UserError
from vidtune.data.annotations import find_annotation, read_rows, required
from vidtune.data.folder import VIDEO_SUFFIXES

MediaPlacement = Literal["original", "video_first"]
_SUFFIXES = frozenset({*VIDEO_SUFFIXES, ".safetensors", ".pkl"})
_QUESTIONS = {"Q": "pred", "Q1": "pred1", "Q2": "pred2"}
"""Key of a question -> key under which the judge reads its answer."""


class _BenchmarkReader:
    """What both kinds of files share: videos by name, and where the video stands."""

    def __init__(self, root: str, videos: str, prompt: str, media_placement: str, name: str) -> None:
        if media_placement not in get_args(MediaPlacement):
            raise UserError(
                f"data.media_placement={media_placement!r}; expected one of {', '.join(get_args(MediaPlacement))}."
            )
        if "{question}" not in prompt:
            raise UserError(f"data.reader.prompt={prompt!r}: the prompt must hold {{question}}.")
        self.root, self.prompt, self.media_placement, self.name = Path(root), prompt, media_placement, name
        folder = Path(root) / videos
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        # ``with_suffix`` alone: names of videos hold points.
        self._videos = {path.with_suffix("").name: path for path in files if path.suffix.lower() in _SUFFIXES}
        if not self._videos:
            raise UserError(
                f"{folder}: no video or feature file lies there. Put the videos of {name} into it under the names of "
                f"its question files, or set data.reader.videos."
            )
        self._missing = folder / "missing"

    def _video(self, name: str) -> MediaRef:
        """The file, with or without the suffix that a row names, with or without ActivityNet's ``v_``.

        A video that is not there is a bad medium: its questions are listed and count as wrong. (The original's script
        answers them from the video of the row before.)
        """
        stem = Path(name).stem if Path(name).suffix.lower() in _SUFFIXES else name
        found = next((self._videos[key] for key in (stem, f"v_{stem}") if key in self._videos), None)
        return MediaRef(str((found or self._missing / f"{stem}.mp4").absolute()))

    def _sample(self, sample_id: str, question: str, answer: str, kind: str, video: str, extra: dict) -> Sample:
        text, ref = self.prompt.replace("{question}", question), self._video(video)
        content = (ref, text) if self.media_placement == "video_first" else (f"{text}\n", ref)
        messages = (Message("user", content), Message("assistant", (answer,)))
        return Sample(sample_id, messages, self.name, kind, answer=answer, extra=extra)


class GenerativeReader(_BenchmarkReader):
    """The generative benchmark; every file is a question type.

    Args:
        root: folder of the question files.
        files: question type -> file below ``root``; null leaves a type out.
        videos: folder of the videos, below ``root`` or absolute.
        prompt: the text of the user turn.
        media_placement: ``original``: the video stands after the question, as in the original's inference;
            ``video_first``: before it, so that the questions of a video can share its tokens.
        name: name of the set.
    """

    def __init__(
        self,
        root: str,
        files: Mapping[str, str | None],
        videos: str = "Test_Videos",
        prompt: str = "{question}",
        media_placement: MediaPlacement = "video_first",
        name: str = "generative_benchmark",
    ) -> None:
        super().__init__(root, videos, prompt, media_placement, name)
        self.files = {kind: file for kind, file in files.items() if file}
        if not self.files:
            raise UserError("data.reader.files names no file; set one of them, e.g. data.reader.files.generic=...")

    def __call__(self, split: str) -> list[Sample]:
        """All questions of all files, whatever ``split`` says; of a consistency row both questions.

        Raises:
            UserError: see ``read_rows``; a row without video, question or answer.
        """
        samples: list[Sample] = []
        for kind, file in self.files.items():
            path = find_annotation(self.root, file, split)
            for number, row in enumerate(read_rows(path, f"data.reader.files.{kind}"), start=1):
                samples += self._of_row(row, kind, number, f"{path}, row {number}")
        return samples

    def _of_row(self, row: Mapping[str, Any], kind: str, number: int, where: str) -> Iterator[Sample]:
        video, answer = str(required(row, "video_name", where)), str(required(row, "A", where))
        asked = [key for key in ("Q1", "Q2") if key in row] or ["Q"]
        for key in asked:
            sample_id = f"{kind}:{number}" if key == "Q" else f"{kind}:{number}:{key}"
            extra = {"row": dict(row), "number": number, "answer_key": _QUESTIONS[key]}
            yield self._sample(sample_id, str(required(row, key, where)), answer, kind, video, extra)


class ZeroShotReader(_BenchmarkReader):
    """Short questions about many videos: MSVD, MSRVTT, TGIF, ActivityNet-QA.

    Args:
        root: folder of the question files.
        questions: file of the questions below ``root``; ``{split}`` in it is filled in.
        answers: file of the answers, matched by ``question_id``; None where the questions' rows hold them.
        videos: folder of the videos, below ``root`` or absolute.
        video: name of a row's video; any column can be filled in, e.g. ``vid{video_id}``.
        types: code in the column ``type`` -> question type; None leaves the codes as they are.
        prompt: the text of the user turn.
        media_placement: ``original``: the video stands after the question, as in the original's inference;
            ``video_first``: before it, so that the questions of a video can share its tokens.
        name: name of the set.
    """

    def __init__(
        self,
        root: str,
        questions: str = "{split}_q.json",
        answers: str | None = "{split}_a.json",
        videos: str = "videos",
        video: str = "{video_name}",
        types: Mapping[Any, str] | None = None,
        prompt: str = "{question}",
        media_placement: MediaPlacement = "video_first",
        name: str = "zero_shot_qa",
    ) -> None:
        super().__init__(root, videos, prompt, media_placement, name)
        self.questions, self.answers, self.video = questions, answers, video
        self.types = {str(code): kind for code, kind in (types or {}).items()}

    def __call__(self, split: str) -> list[Sample]:
        """All questions of a split, in file order.

        Raises:
            UserError: see ``read_rows``; two rows with one id, a question without answer, a column that ``video``
                names and the row lacks, an unknown type.
        """
        path = find_annotation(self.root, self.questions, split)
        answers = self._answers(split)
        samples: dict[str, Sample] = {}
        for number, row in enumerate(read_rows(path, "data.reader.questions"), start=1):
            where = f"{path}, row {number}"
            sample_id = _id(row, where)
            if sample_id in samples:
                raise UserError(f"{where}: question_id {sample_id!r} stands in an earlier row too.")
            if answers is not None and sample_id not in answers:
                raise UserError(f"{where}: {self.answers} has no answer to question_id {sample_id!r}.")
            row = {**row, **(answers[sample_id] if answers is not None else {})}
            question, answer = str(required(row, "question", where)), str(required(row, "answer", where))
            extra = {"row": {"video_name": self._name(row, where), **row, "question_id": sample_id}}
            kind = self._type(row, where)
            samples[sample_id] = self._sample(sample_id, question, answer, kind, extra["row"]["video_name"], extra)
        return list(samples.values())

    def _answers(self, split: str) -> dict[str, dict[str, Any]] | None:
        if self.answers is None:
            return None
        path = find_annotation(self.root, self.answers, split)
        rows = read_rows(path, "data.reader.answers")
        return {_id(row, f"{path}, row {number}"): row for number, row in enumerate(rows, start=1)}

    def _name(self, row: Mapping[str, Any], where: str) -> str:
        try:
            return self.video.format_map(row)
        except KeyError as error:
            raise UserError(
                f"{where}: data.reader.video={self.video!r} names {error}, and the row has {', '.join(map(repr, row))}."
            ) from None

    def _type(self, row: Mapping[str, Any], where: str) -> str:
        code = str(row.get("type", ""))
        if not self.types or not code:
            return code
        if code not in self.types:
            raise UserError(f"{where}: type {code!r}; data.reader.types has {', '.join(self.types)}.")
        return self.types[code]


def _id(row: Mapping[str, Any], where: str) -> str:
    return str(row["id"] if "id" in row and "question_id" not in row else required(row, "question_id", where))
