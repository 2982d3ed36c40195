"""One question about many videos that have no reference answers."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from vidtune.contracts import MediaRef, Message, Sample, UserError
from vidtune.data.folder import VIDEO_SUFFIXES
from vidtune.evaluation.records import Prediction, PredictionWriter, read_predictions
from vidtune.media.stills import IMAGE_SUFFIXES
from vidtune.run.answerer import Answerer


def media_ref(path: Path) -> MediaRef:
    """A file or folder of frames of the user's, as what its suffix says."""
    return MediaRef(str(path.absolute()), "image" if path.suffix.lower() in IMAGE_SUFFIXES else "video")


def find_videos(source: str) -> list[Path]:
    """Videos of a folder (searched through), of a text file with a path per line, or the one video itself.

    Relative paths of a list start at its folder. A listed file that is missing stays in the list: it is a bad clip.

    Raises:
        UserError: no such file or folder, or no video in it.
    """
    path = Path(source)
    if path.is_dir():
        videos = sorted(file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
    elif path.suffix.lower() in (".txt", ".list"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        videos = list(dict.fromkeys(path.parent / line.strip() for line in lines if line.strip()))
    else:
        videos = [path] if path.is_file() else []
    if not videos:
        raise UserError(
            f"--videos {source}: found no video; expected a folder with videos ({', '.join(sorted(VIDEO_SUFFIXES))}), "
            f"a video, or a .txt file with a path per line."
        )
    return videos


def predict(
    open_answerer: Callable[[], Answerer],
    videos: Sequence[Path],
    question: str,
    output: Path,
    made_by: Mapping[str, Any],
) -> list[Prediction]:
    """Ask one question about every video; goes on where an interrupted call stopped.

    Writes ``predictions.jsonl``, and when all are done ``predictions.csv`` and, if there are any, ``bad_media.csv``.

    Args:
        open_answerer: loads the model; not called where everything is answered already.
        videos: each is asked about once.
        output: folder of the answers.
        made_by: what names the model; answers of another one are never continued.

    Raises:
        UserError: the folder holds answers of another model, question or list of videos.
    """
    names = [str(video) for video in videos]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    path = output / "predictions.jsonl"
    with PredictionWriter(path, {**made_by, "question": question, "videos": digest}, len(videos)) as writer:
        todo = [
            Sample(name, (Message("user", (media_ref(video), question)),), source="predict")
            for name, video in zip(names, videos, strict=True)
            if name not in writer.done
        ]
        answers = open_answerer().generate(todo) if todo else iter(())
        for sample, text, bad in track(answers, "answering", total=len(todo), console=Console(stderr=True)):
            writer.write(_record(sample, question, text, bad))
    predictions = read_predictions(path)
    _write_csv(output / "predictions.csv", ("video", "answer"), [(p.sample_id, p.prediction) for p in predictions])
    bad_clips = [(p.sample_id, p.extra["bad_media"]) for p in predictions if p.status == "bad_media"]
    if bad_clips:
        _write_csv(output / "bad_media.csv", ("video", "reason"), bad_clips)
        print(f"{len(bad_clips)} of {len(videos)} videos could not be read; they are listed in {output}/bad_media.csv:")
        for name, reason in bad_clips[:10]:
            print(f"  {name}: {reason}")
    print(f"Answers: {output}/predictions.csv and predictions.jsonl")
    return predictions


def _record(sample: Sample, question: str, text: str, bad: str) -> Prediction:
    if bad:
        return Prediction(sample.sample_id, sample.source, question, status="bad_media", extra={"bad_media": bad})
    return Prediction(sample.sample_id, sample.source, question, prediction=text, parsed=text)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
