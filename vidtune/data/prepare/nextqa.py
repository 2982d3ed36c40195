"""NExT-QA, multiple choice: the hub release or the official files to one annotation per split.

Layouts that are understood below ``root``:

- the hub's (``rhymes-ai/NeXTVideo``): ``train.jsonl``, ``val.jsonl`` and ``NExTVideo/<folder>/<video>.mp4`` or the
  archive ``NExTVideo.zip`` of it; downloaded with ``download=true``;
- the official one (``doc-doc/NExT-QA``): ``train.csv``, ``val.csv``, ``test.csv`` as far as they are there,
  ``map_vid_vidorID.json``, and a folder of videos.

A written row is the hub's row, byte for byte, with further columns at its end: ``id``, ``split``, ``qid``, ``type`` and
``video_id``. The hub's own files know neither type nor qid; where the official CSV lies beside them, it gives both.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from vidtune.contracts import UserError
from vidtune.data.annotations import read_rows
from vidtune.data.multiple_choice import read_table
from vidtune.data.prepare import Report
from vidtune.data.prepare.unzip import unzip

HUB = "rhymes-ai/NeXTVideo"
SPLITS = ("train", "val", "test")
LETTERS = "ABCDE"
COLUMNS = ("video", "question", "answer", "qid", "type", "a0", "a1", "a2", "a3", "a4")
MAP = "map_vid_vidorID.json"
ARCHIVE = "NExTVideo.zip"
INSTRUCTION = " Answer with the option's letter from the given choices directly."
FOLDER = "annotations"
NUM_FRAMES = 8
"""Written into the rows as in the hub's; a run uses ``data.num_frames``."""

SETTINGS: dict[str, str] = {
    "videos": "folder of the videos, as <folder>/<video>.mp4 or flat (default: <root>/NExTVideo)",
    "download": "true downloads the hub release (24 GB) into root; false (default) only converts what is there",
}

RULES = {
    "question_mark": "questions that already end in a question mark, full-width ones included: it is not doubled",
    "blanks": "cells with blanks around their text: removed",
    "equal_options": "rows with two equal options: kept as they are; either letter is right",
}


def prepare(root: Path, options: Mapping[str, str], console: Console) -> Report:
    """See ``vidtune.data.prepare.Preparation``."""
    report = Report()
    if options.get("download", "false").lower() == "true":
        download(root)
    if (root / ARCHIVE).is_file():
        written = unzip(root / ARCHIVE, root, console)
        report.notes.append(f"{ARCHIVE}: {written} files unpacked now.")
    videos = Path(options["videos"]) if "videos" in options else root / "NExTVideo"
    found = False
    for split in SPLITS:
        rows = _official(root, split, report) or _hub(root, split, report)
        if not rows:
            continue
        found = True
        file = root / FOLDER / f"{split}.jsonl"
        _write(file, rows)
        report.files[file] = len(rows)
        missing = sorted({row["video"]["path"] for row in rows if video_file(videos, row["video"]["path"]) is None})
        if missing:
            report.notes.append(
                f"{split}: {len(missing)} videos are not below {videos}, first {missing[0]}. Put them there, or name "
                f"their folder with --videos."
            )
    if not found:
        raise UserError(
            f"{root}: holds neither {', '.join(f'{split}.csv' for split in SPLITS)} with {MAP} nor train.jsonl and "
            f"val.jsonl. Put the official files of NExT-QA (multiple choice) there, or the files of {HUB}, or start "
            f"with --download true where there is a connection."
        )
    for rule, count in report.counts.items():
        report.notes.append(f"{count} {RULES[rule]}.")
    return report


def download(root: Path) -> None:
    """The hub release; goes on where an earlier download stopped.

    Raises:
        UserError: the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        snapshot_download(HUB, repo_type="dataset", local_dir=root)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{HUB} cannot be downloaded ({type(error).__name__}). Put its train.jsonl, val.jsonl and {ARCHIVE} into "
            f"{root} by other means, and start again without --download."
        ) from error


def hub_row(record: Mapping[str, str], video: str, split: str, counts: Counter[str] | None = None) -> dict[str, Any]:
    """An official record as the hub writes it; ``json.dumps`` gives its bytes.

    Args:
        record: a row of the official CSV.
        video: ``folder/id`` of the video, from the official map.
        split: training rows carry the answer as a turn, the others as ``gt``.
        counts: of the rules that took effect.

    Raises:
        UserError: an answer that is no number from 0 to 4.
    """
    cells = {name: record[name].strip() for name in ("question", "a0", "a1", "a2", "a3", "a4")}
    question = cells["question"].rstrip("?？")
    options = [cells[f"a{number}"] for number in range(len(LETTERS))]
    if counts is not None:
        counts["question_mark"] += question != cells["question"]
        counts["blanks"] += sum(cells[name] != record[name] for name in cells)
        counts["equal_options"] += len(set(options)) < len(options)
    if record["answer"] not in set("01234"):
        raise UserError(
            f"NExT-QA video {record['video']}, qid {record['qid']}: answer {record['answer']!r}; expected 0 to 4. "
            f"The open-ended files of the release are not read."
        )
    letter = LETTERS[int(record["answer"])]
    text = f"{question}?\n" + "".join(f"{name}. {option}\n" for name, option in zip(LETTERS, options)) + INSTRUCTION
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "video", "text": None}, {"type": "text", "text": text}]}
    ]
    medium = {"path": f"./NExTVideo/{video}.mp4", "num_frames": NUM_FRAMES}
    if split == "train":
        turns.append({"role": "assistant", "content": [{"type": "text", "text": letter}]})
        return {"messages": turns, "video": medium}
    by_letter = dict(zip(LETTERS, options))
    return {"messages": turns, "video": medium, "gt": letter, "all_choices": list(LETTERS), "index2ans": by_letter}


def video_file(videos: Path, path: str) -> Path | None:
    """The video of a row below the folder of videos: in its subfolder, or flat; None where it is in neither."""
    folder, name = Path(path).parts[-2:]
    return next((file for file in (videos / folder / name, videos / name) if file.is_file()), None)


def _official(root: Path, split: str, report: Report) -> list[dict[str, Any]]:
    file = root / f"{split}.csv"
    if not file.is_file():
        return []
    if not (root / MAP).is_file():
        raise UserError(f"{file} is there, but {root / MAP} is not; it comes with the official files.")
    mapping = json.loads((root / MAP).read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    rows = []
    for number, record in enumerate(read_table(file, COLUMNS), start=1):
        if record["video"] not in mapping:
            raise UserError(f"{file}, row {number}: video {record['video']!r} is not in {MAP}.")
        row = hub_row(record, mapping[record["video"]], split, counts)
        rows.append(row | _columns(split, record["video"], record["qid"], record["type"]))
    report.counts = dict(Counter(report.counts) + counts)
    return rows


def _columns(split: str, video: str, qid: str, question_type: str) -> dict[str, str]:
    return {"id": f"{video}_{qid}", "split": split, "qid": qid, "type": question_type, "video_id": video}


def _hub(root: Path, split: str, report: Report) -> list[dict[str, Any]]:
    file = root / f"{split}.jsonl"
    if not file.is_file():
        return []
    seen: Counter[str] = Counter()
    rows = []
    for row in read_rows(file, "root"):
        video = Path(row["video"]["path"]).stem
        rows.append(row | _columns(split, video, f"hub{seen[video]}", ""))
        seen[video] += 1
    report.notes.append(
        f"{split}: the hub's file knows no question types; put the official {split}.csv and {MAP} into {root} for them."
    )
    return rows


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(part, file)
