"""QEVD-Fit-300k: the official release, or the guide's folders, to one JSONL per split.

Layouts that are understood below ``root``:

- the guide's: ``ground_truth.json``, ``manifest.json`` and ``<class>/<file>.mp4``;
- the official one: ``fine_grained_labels.json`` (in ``root`` or in ``QEVD-FIT-COACH``), where they are there
  ``feedbacks_short_clips.json`` and ``fine_grained_labels_with_worker_ids.json``, and the videos in any folder.

A written row is the guide's, with further keys at its end: ``id``, ``question_type`` (the exercise) and ``worker_id``.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.progress import track

from vidtune.contracts import MediaRef, UserError
from vidtune.data.annotations import read_rows, required
from vidtune.data.prepare import Report
from vidtune.data.prepare.qevd_rows import (
    FALLBACK_S,
    Measure,
    answer_of,
    exercise_of,
    guide_rows,
    guide_split,
    manifest_paths,
    official_split,
    original_of,
    row_of,
    video_of,
)
from vidtune.media import DEADLINE_S, MediaError, probe

FOLDER = "annotations"
FILE = "qevd_fit_300k_{split}.jsonl"
SPLITS = ("train", "val", "test")
COACH = "QEVD-FIT-COACH"
LABELS, WORKERS, FEEDBACKS = (
    "fine_grained_labels.json",
    "fine_grained_labels_with_worker_ids.json",
    "feedbacks_short_clips.json",
)
SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm"}

SETTINGS: dict[str, str] = {
    "split": "official (default): the release's test set, persons apart; guide: its 60/20/20 shuffle with seed 42",
    "videos": "folder of the videos (default: root)",
    "answers": "labels (default) or feedbacks: the release's spoken feedback, which about 15 % of the clips have",
    "val_fraction": "share of the training persons held back by the official split (default 0.05)",
}


def prepare(root: Path, options: Mapping[str, str], console: Console) -> Report:
    """See ``vidtune.data.prepare.Preparation``."""
    split = _choice(options, "split", ("official", "guide"))
    feedbacks = _choice(options, "answers", ("labels", "feedbacks")) == "feedbacks"
    videos = Path(options.get("videos", root))
    records, paths = _read(root, videos)
    report = Report()
    if feedbacks:
        records = _with_feedbacks(root, records, report)
    known = [record for record in records if video_of(record, paths) is not None]
    if not known:
        raise UserError(f"none of the {len(records)} labelled videos lies below {videos}. Name their folder: --videos.")
    report.counts["videos without a file"] = len(records) - len(known)
    measure = _Durations(videos, sorted(str(video_of(record, paths)) for record in known), console)
    if split == "guide":
        by_split = _guide(known, paths, measure, report)
    else:
        by_split = _official(root, known, paths, measure, float(options.get("val_fraction", 0.05)), report)
    for name in SPLITS:
        file = root / FOLDER / FILE.format(split=name)
        if not by_split[name]:
            file.unlink(missing_ok=True)
            report.notes.append(f"split {name} holds no rows; train without it: data.{name}_split=''.")
            continue
        _write(file, by_split[name])
        report.files[file] = len(by_split[name])
    return report


def _guide(
    records: Sequence[Mapping[str, Any]], paths: Mapping[str, str], measure: Measure, report: Report
) -> dict[str, list[dict[str, Any]]]:
    rows, unmeasured = guide_rows(records, paths, measure)
    # Labels of the guide's own form name no exercise; its folders do.
    exercises = {
        video: exercise_of(record) or PurePosixPath(video).parent.name
        for record in records
        if (video := video_of(record, paths)) is not None
    }
    report.counts["unmeasured"] = len(unmeasured)
    if unmeasured:
        report.notes.append(
            f"{len(unmeasured)} videos could not be measured and have the guide's {FALLBACK_S} s: "
            f"{', '.join(unmeasured[:20])}{' ...' if len(unmeasured) > 20 else ''}."
        )
    report.notes.append("The guide's split puts one person's clips, and augmented twins, on both sides of its cuts.")
    splits = guide_split(rows)
    return {
        name: [row | _columns(row["video"], exercises[row["video"]]) for row in part] for name, part in splits.items()
    }


def _official(
    root: Path,
    records: Sequence[Mapping[str, Any]],
    paths: Mapping[str, str],
    measure: Measure,
    val_fraction: float,
    report: Report,
) -> dict[str, list[dict[str, Any]]]:
    file = _find(root, WORKERS)
    workers: dict[str, str] = {}
    if file is None:
        report.notes.append(f"without {WORKERS} clips are divided by clip: one person may be in train and val.")
    else:
        workers = {PurePosixPath(row["video_path"]).stem: str(row["worker_id"]) for row in read_rows(file)}
    splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    dropped = []
    for record in records:
        video = str(video_of(record, paths))
        duration = measure(video)
        if duration is None:
            dropped.append(video)
            continue
        worker = workers.get(original_of(video))
        columns = _columns(video, exercise_of(record)) | ({} if worker is None else {"worker_id": worker})
        split = official_split(record, video, workers, val_fraction)
        splits[split].append(row_of(video, answer_of(record), duration) | columns)
    report.counts["unmeasured"] = len(dropped)
    if dropped:
        report.notes.append(f"{len(dropped)} videos could not be measured and are left out: {', '.join(dropped[:20])}.")
    return splits


def _columns(video: str, exercise: str) -> dict[str, str]:
    return {"id": video, "question_type": exercise}


def _read(root: Path, videos: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Records, and name -> path below ``videos``."""
    truth, manifest = root / "ground_truth.json", root / "manifest.json"
    if truth.is_file() and manifest.is_file():
        return _records(truth), manifest_paths(json.loads(manifest.read_text(encoding="utf-8")))
    labels = _find(root, LABELS)
    if labels is None:
        raise UserError(
            f"{root}: holds neither ground_truth.json with manifest.json (the guide's folders) nor {LABELS} (the "
            f"release's, which lies in {COACH}.zip). Its videos come as "
            f"multi-volume archives, unpack them with `7z x QEVD-FIT-300k-Part-1.zip` and so on."
        )
    found = (path for path in videos.rglob("*") if path.suffix.lower() in SUFFIXES)
    return _records(labels), {path.name: path.relative_to(videos).as_posix() for path in sorted(found)}


def _records(file: Path) -> list[dict[str, Any]]:
    records = read_rows(file, "--root")
    for number, record in enumerate(records, start=1):
        required(record, "video_path", f"{file}, record {number}")
    return records


def _find(root: Path, name: str) -> Path | None:
    return next((path for path in (root / name, root / COACH / name) if path.is_file()), None)


def _with_feedbacks(root: Path, records: Sequence[dict[str, Any]], report: Report) -> list[dict[str, Any]]:
    """Records of the clips that have feedback, with it in place of the labels' description."""
    file = _find(root, FEEDBACKS)
    if file is None:
        raise UserError(f"--answers feedbacks needs {FEEDBACKS} in {root} or {root / COACH}.")
    given = {
        PurePosixPath(row["video_path"]).name: row.get("feedbacks") or row.get("feedback") for row in read_rows(file)
    }
    names = [PurePosixPath(record["video_path"]).name for record in records]
    kept = [record | {"labels_descriptive": given[n]} for record, n in zip(records, names) if given.get(n)]
    report.counts["videos without feedback"] = len(records) - len(kept)
    return kept


class _Durations:
    """Durations in seconds, two decimals, frame count by frame rate as in the guide; read from headers, several at a
    time."""

    def __init__(self, videos: Path, names: Sequence[str], console: Console) -> None:
        self.videos = videos
        with ThreadPoolExecutor(4) as pool:
            seconds = track(pool.map(self._measure, names), "durations", len(names), console=console, transient=True)
            self.seconds = dict(zip(names, seconds))

    def __call__(self, video: str) -> float | None:
        return self.seconds[video]

    def _measure(self, video: str) -> float | None:
        try:
            info = probe(MediaRef(str((self.videos / video).absolute())), deadline_s=DEADLINE_S)
        except MediaError:
            return None
        return round(info.num_frames / info.fps, 2) if info.fps > 0 and info.num_frames > 0 else None


def _choice(options: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    value = options.get(name, known[0])
    if value not in known:
        raise UserError(f"--{name} {value}: expected one of {', '.join(known)}.")
    return value


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    repeated = Counter(row["video"] for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("w", encoding="utf-8") as handle:
        for number, row in enumerate(rows, start=1):
            unique = row if repeated[row["video"]] == 1 else {**row, "id": f"{row['video']}:{number}"}
            handle.write(json.dumps(unique, ensure_ascii=False) + "\n")
    os.replace(part, file)
