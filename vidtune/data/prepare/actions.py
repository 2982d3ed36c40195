"""A folder per action to the annotation that Video-LLaMA reads: ``{"video", "QA": [{"q", "a"}]}``, a file per split.

Understood below ``root``: ``<class>/*.avi`` or ``<split>/<class>/*.avi``, with train and test and perhaps val. Mirrored
copies (``_flip``) stay in the split of their original. ``classes.json`` lists the answers with their counts.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from vidtune.contracts import MediaRef, UserError
from vidtune.data.annotations import check_fractions, split_of
from vidtune.data.folder import VIDEO_SUFFIXES, class_label
from vidtune.data.prepare import Report
from vidtune.data.prepare.joined import join_by_class
from vidtune.media import DEADLINE_S, MediaError, probe

FOLDER, CLASSES = "annotations", "classes.json"
SPLITS = ("train", "val", "test")
TWIN_SUFFIX = "_flip"
WORDINGS = (
    "What is the action shown in the displayed video.",  # the guide's
    "What is the person in the video doing?",
    "Which action does this video show?",
    "Name the human action in this clip.",
    "Watch the movement of the person. Which action is it?",
)

SETTINGS: dict[str, str] = {
    "questions": "text file with one question per line (default: the guide's and four of ours), {classes} in it stands "
    "for the list of all answers; training videos draw one of them, all others get the first",
    "val_fraction": "share of the training videos held back for validation, where there is no folder val (default 0.1)",
    "test_fraction": "share of all videos held back for the test, where there are no split folders (default 0.2)",
    "min_frames": "videos with fewer frames are reported; 0 (default 8) looks at no video",
    "join": "how many clips of one class, one after the other, make one longer video (default 1: clips as they are)",
    "seed": "of the questions (default 42)",
}


def prepare(root: Path, options: Mapping[str, str], console: Console) -> Report:
    """See ``vidtune.data.prepare.Preparation``."""
    report = Report()
    val_fraction, test_fraction = (float(options.get(f"{s}_fraction", d)) for s, d in (("val", 0.1), ("test", 0.2)))
    check_fractions(val_fraction, test_fraction)
    videos = find_videos(root)
    parts = divide(root, videos, val_fraction, test_fraction)
    min_frames = int(options.get("min_frames", 8))
    unreadable = _check(videos, min_frames, console, report) if min_frames else set()
    labels = ", ".join(sorted({class_label(video.parent.name) for video in videos}))
    questions = tuple(question.replace("{classes}", labels) for question in _questions(options))
    if (join := int(options.get("join", 1))) < 1:
        raise UserError(f"--join {join}: expected 1 or more clips per video.")
    seed = int(options.get("seed", 42))
    counts: dict[str, Counter[str]] = {}
    for split in SPLITS:
        kept = [video for video in parts[split] if video not in unreadable]
        if join > 1:
            kept = join_by_class(kept, join, root / FOLDER / "joined" / split)
        rows = [row_of(root, video, questions if split == "train" else questions[:1], seed) for video in kept]
        for row in rows:
            counts.setdefault(row["QA"][0]["a"], Counter())[split] += 1
        if rows:
            _write(root / FOLDER / f"{split}.json", rows)
            report.files[root / FOLDER / f"{split}.json"] = len(rows)
        else:
            (root / FOLDER / f"{split}.json").unlink(missing_ok=True)
            report.notes.append(f"split {split} holds no rows; train without it: data.{split}_split=''.")
    _write(root / FOLDER / CLASSES, {label: dict(counts[label]) for label in sorted(counts)})
    for label in sorted(counts):
        report.notes.append(f"{label}: " + ", ".join(f"{counts[label][split]} {split}" for split in SPLITS))
    return report


def find_videos(root: Path) -> list[Path]:
    """Videos of all classes, sorted.

    Raises:
        UserError: no such folder, or fewer than two classes.
    """
    if not root.is_dir():
        raise UserError(f"--root {root}: there is no such folder.")
    depth = "*/*/*" if _split_folders(root) else "*/*"
    videos = sorted(p for p in root.glob(depth) if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith("."))
    classes = {class_label(video.parent.name) for video in videos}
    if len(classes) < 2:
        raise UserError(
            f"{root}: found {len(videos)} videos in {len(classes)} classes; expected at least two folders <class>/ "
            f"with videos ({', '.join(sorted(VIDEO_SUFFIXES))}), or these below train/ and test/."
        )
    return videos


def divide(root: Path, videos: Sequence[Path], val_fraction: float, test_fraction: float) -> dict[str, list[Path]]:
    """Videos by split: that of their folder, else by a hash of class and name without the ending of a mirrored copy, so
    that adding a video moves no other."""
    folders = _split_folders(root)
    parts: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for video in videos:
        key = f"{video.parent.name}/{video.stem.removesuffix(TWIN_SUFFIX)}"
        split = video.parent.parent.name if folders else split_of(key, val_fraction, test_fraction)
        if folders and split == "train" and "val" not in folders:
            split = split_of(key, val_fraction, 0.0)
        parts[split].append(video)
    return parts


def row_of(root: Path, video: Path, questions: Sequence[str], seed: int) -> dict[str, Any]:
    """The row of a video; its question is drawn by seed and name."""
    name = video.relative_to(root).as_posix()
    question = random.Random(f"{seed}/{name}").choice(questions)
    return {"video": name, "QA": [{"q": question, "a": class_label(video.parent.name)}]}


def _split_folders(root: Path) -> list[str]:
    return [split for split in SPLITS if (root / split).is_dir()]


def _questions(options: Mapping[str, str]) -> tuple[str, ...]:
    if "questions" not in options:
        return WORDINGS
    file = Path(options["questions"])
    if not file.is_file():
        raise UserError(f"--questions {file}: there is no such file; expected one question per line.")
    lines = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    if not lines:
        raise UserError(f"--questions {file}: it holds no question.")
    return lines


def _check(videos: Sequence[Path], min_frames: int, console: Console, report: Report) -> set[Path]:
    """Report short videos; the unreadable ones, which are left out."""
    short, unreadable = [], set()
    for video in track(videos, "frames", console=console, transient=True):
        try:
            if probe(MediaRef(str(video.absolute())), deadline_s=DEADLINE_S).num_frames < min_frames:
                short.append(video.name)
        except MediaError as error:
            unreadable.add(video)
            report.notes.append(f"left out: {video}: {error.reason}")
    report.counts |= {"short": len(short), "unreadable": len(unreadable)}
    if short:
        report.notes.append(
            f"{len(short)} videos have fewer than {min_frames} frames, first {short[0]}; media.short says "
            f"what is done with them."
        )
    return unreadable


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(part, file)
