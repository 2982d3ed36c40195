"""VideoInstruct-100K as ``vidtune prepare video_instruct_100k`` or the original's script wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from vidtune.contracts import MediaRef, Sample, UserError
from vidtune.data.annotations import check_fractions, find_annotation, read_rows, split_of
from vidtune.data.conversations import place_media, read_turns, without_tags
from vidtune.data.prepare.video_instruct_100k import SUFFIXES, media_files, media_folder

MediaPlacement = Literal["original", "video_first"]


class VideoInstructReader:
    """Questions about ActivityNet videos, or about the features computed from them.

    Args:
        root: folder that was prepared.
        annotation: the training JSON, below ``root`` or a path of its own.
        media: folder of videos or feature files; None for ``features``, else ``videos`` below ``root``.
        media_placement: ``original``: the video stands where the row has it, in every second row after the question;
            ``video_first``: always before it, so that all questions of a video can share its tokens.
        val_fraction: share of the videos held back for validation, with all their questions.
        name: name of the set.
    """

    def __init__(
        self,
        root: str,
        annotation: str,
        media: str | None = None,
        media_placement: MediaPlacement = "original",
        val_fraction: float = 0.0,
        name: str = "video_instruct_100k",
    ) -> None:
        if media_placement not in get_args(MediaPlacement):
            raise UserError(
                f"data.media_placement={media_placement!r}; expected one of {', '.join(get_args(MediaPlacement))}."
            )
        check_fractions(val_fraction, 0.0)
        self.root, self.annotation, self.media, self.name = Path(root), annotation, media, name
        self.media_placement, self.val_fraction = media_placement, val_fraction

    def __call__(self, split: str) -> list[Sample]:
        """Samples of ``train`` or ``val``, in file order; a row without ``video`` is text.

        Raises:
            UserError: see ``read_rows``; another split, or no folder of media.
        """
        if split not in ("train", "val"):
            raise UserError(f"split {split!r}: {self.name} has train and val only.")
        path = find_annotation(self.root, self.annotation, split)
        rows = read_rows(path)
        folder = media_folder(self.root, self.media)
        if folder is None:
            raise UserError(
                f"{self.root}: neither features nor videos below it hold a file ({', '.join(SUFFIXES)}). Set "
                f"data.reader.media to their folder."
            )
        files = media_files(folder)
        samples = []
        for number, row in enumerate(rows, start=1):
            where = f"{path}, row {number}"
            if not row.get("video"):
                if split_of(str(row.get("id", number)), self.val_fraction, 0.0) == split:
                    samples.append(self._sample(row, number, [], where))
                continue
            video = Path(str(row["video"])).name.split(".")[0]
            if split_of(video, self.val_fraction, 0.0) == split:
                # A file that is not there is a bad medium, listed and bounded like an unreadable one.
                file = files.get(video, folder / f"{video}{SUFFIXES[0]}")
                samples.append(self._sample(row, number, [MediaRef(str(file.absolute()))], where))
        return samples

    def _sample(self, row: Mapping[str, Any], number: int, media: list[MediaRef], where: str) -> Sample:
        turns = read_turns(row, where)
        if self.media_placement == "video_first":
            turns = [(role, without_tags(text) if role == "user" else text) for role, text in turns]
        messages = place_media(turns, media, "\n", where)
        return Sample(
            sample_id=f"{row.get('id', 'row')}:{number}",
            messages=tuple(messages),
            source=self.name,
            answer=messages[-1].text,
        )
