"""QEVD-Fit-300k as pure functions: records to rows of the guide's JSONL, rows to splits.

A record is an entry of ``fine_grained_labels.json``: ``{"video_path", "labels": [...], "labels_descriptive": [...],
"split"}``; labels read ``<exercise> - <variation>``. Videos are told apart by their base names, as in the release.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from vidtune.data.annotations import split_of

PROMPT = (
    "Please evaluate the exercise form shown. What mistakes, if any, are present, and what corrections would you "
    "recommend?"
)
NO_FEEDBACK = "No feedback available."
FALLBACK_S = 30.0
"""Duration that the guide writes where a clip cannot be measured."""

Measure = Callable[[str], float | None]
"""Video, relative to the video folder -> seconds; None where it cannot be measured."""


def answer_of(record: Mapping[str, Any]) -> str:
    """The guide's answer: all descriptive labels, a line each, else the first label, else a fixed sentence."""
    for key, joined in (("labels_descriptive", True), ("labels", False)):
        value = record.get(key)
        if value:
            lines = [value] if isinstance(value, str) else [str(line) for line in value]
            return "\n".join(lines) if joined else lines[0]
    return NO_FEEDBACK


def exercise_of(record: Mapping[str, Any]) -> str:
    """The exercise: what stands before `` - `` in the first label; empty without labels. The spaces keep hyphens inside
    names whole."""
    labels = record.get("labels") or record.get("labels_descriptive") or [""]
    first = labels if isinstance(labels, str) else str(labels[0])
    return first.split(" - ")[0].strip() if " - " in first else ""


def row_of(video: str, answer: str, duration_s: float) -> dict[str, Any]:
    """A row of the guide's JSONL."""
    turns = [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": answer}]
    return {"video": video, "conversations": turns, "duration": duration_s}


def manifest_paths(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Name -> path below the video folder, of a ``manifest.json``, whose keys may begin with ``dataset/``.

    A name is the path itself or its base name; of several videos with one base name, that one leads to the last.
    """
    paths = [_below(path) for path in manifest]
    return {PurePosixPath(path).name: path for path in paths} | {path: path for path in paths}


def video_of(record: Mapping[str, Any], paths: Mapping[str, str]) -> str | None:
    """Path of a record's video below the video folder; None where it is not among ``paths``.

    The guide's script goes by base names alone, with which its own sample (``video_001.mp4`` in two folders) gets the
    wrong video.
    """
    path = _below(record["video_path"])
    return paths.get(path) or paths.get(PurePosixPath(path).name)


def _below(path: str) -> str:
    return path.removeprefix("./").removeprefix("dataset/")


def guide_rows(
    records: Sequence[Mapping[str, Any]], paths: Mapping[str, str], measure: Measure
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows in the order of the records, those of unknown videos left out.

    Args:
        paths: name -> path below the video folder; see ``manifest_paths``.

    Returns:
        The rows, and the videos that have the fallback's duration.
    """
    rows, unmeasured = [], []
    for record in records:
        video = video_of(record, paths)
        if video is None:
            continue
        duration = measure(video)
        if duration is None:
            unmeasured.append(video)
        rows.append(row_of(video, answer_of(record), FALLBACK_S if duration is None else duration))
    return rows, unmeasured


def guide_split(rows: Sequence[dict[str, Any]], seed: int = 42) -> dict[str, list[dict[str, Any]]]:
    """60/20/20 of a shuffle, bit for bit the guide's: Python's generator, cuts at ``int(0.6 n)`` and ``int(0.2 n)``
    more. Persons and augmented copies end up on both sides of the cuts. Source: EdgeVLM-Labs/internvideo2.5-adaptation,
    ``utils/qved_from_fine_labels.py``."""
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    first = int(0.6 * len(rows))
    second = first + int(0.2 * len(rows))
    return {"train": shuffled[:first], "val": shuffled[first:second], "test": shuffled[second:]}


def original_of(video: str) -> str:
    """What augmented twins have in common: the stem without the ``_<k>`` that the guide's augmenter appends to the
    release's eight digits; other names stay as they are."""
    stem = PurePosixPath(video).stem
    twin = re.fullmatch(r"(\d{8})_\d+", stem)
    return twin.group(1) if twin else stem


def official_split(record: Mapping[str, Any], video: str, workers: Mapping[str, str], val_fraction: float) -> str:
    """The split of a clip: the release's test set as it is, and of its training set a share by person.

    Args:
        workers: stem of the original clip -> person; clips without one are kept apart by clip, twins together.
        val_fraction: share of the training persons held back.
    """
    original = original_of(video)
    if record.get("split") == "test":
        return "test"
    key = f"worker {workers[original]}" if original in workers else f"clip {original}"
    # Without the release's mark, a fifth of the persons is held back for the test as well.
    return split_of(key, val_fraction, 0.0 if record.get("split") == "train" else 0.2)
