"""VideoInstruct-100K: the released instructions to Video-ChatGPT's training form.

The release is one file, a list of ``{"q", "a", "video_id"}``. The written rows are the original's, ``{"id", "video",
"conversations"}``, with ``<video>`` after the question in even and before it in odd rows of the *released* list.
Source: mbzuai-oryx/Video-ChatGPT, ``scripts/convert_instruction_json_to_training_format.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vidtune.contracts import UserError
from vidtune.data.annotations import read_rows, required
from vidtune.data.prepare import Report

HUB, SOURCE = "MBZUAI/VideoInstruct-100K", "VideoInstruct100K.json"
WRITTEN, IDS, MISSING = "video_chatgpt_training.json", "video_ids.txt", "missing_videos.txt"
NOISE_TAG = "QA_GT_caption_based_noisy"
MEDIA_FOLDERS = ("features", "videos")
SUFFIXES = (".safetensors", ".pkl", ".mp4", ".mkv", ".webm", ".avi", ".mov")
"""Of media, those of features first: where both are there, features save the tower."""

SETTINGS: dict[str, str] = {
    "input": f"the released JSON (default: <root>/{SOURCE})",
    "media": "folder of v_<id>.mp4, .mkv or .webm, or of feature files v_<id>.pkl or .safetensors (default: "
    "<root>/features, else <root>/videos)",
    "strip_noise_tag": f"true (default) removes the stray line {NOISE_TAG} from answers; the original left it in",
    "download": f"true fetches {HUB} into root; false (default) only converts what is there",
}


def prepare(root: Path, options: Mapping[str, str], console: Console) -> Report:
    """See ``vidtune.data.prepare.Preparation``."""
    if options.get("download", "false").lower() == "true":
        _download(root)
    source = Path(options["input"]) if "input" in options else root / SOURCE
    if not source.is_file():
        raise UserError(
            f"{source}: there is no such file. Put {SOURCE} of {HUB} there, name another with --input, or start with "
            f"--download true where there is a connection."
        )
    records = read_rows(source, "--input")
    report = Report()
    if options.get("strip_noise_tag", "true").lower() == "true":
        records, report.counts["noise tags removed"] = strip_noise_tags(records)
    videos = list(dict.fromkeys(str(required(r, "video_id", f"{source}, row {n}")) for n, r in enumerate(records, 1)))
    media = media_folder(root, options.get("media"))
    found = set() if media is None else set(media_files(media))
    missing = [video for video in videos if video not in found]
    rows = training_rows(records, found if found else None)
    _write(root / WRITTEN, json.dumps(rows))
    _write(root / IDS, "".join(f"{video}\n" for video in videos))
    _write(root / MISSING, "".join(f"{video}\n" for video in missing))
    report.files |= {root / WRITTEN: len(rows), root / IDS: len(videos), root / MISSING: len(missing)}
    report.counts["rows without a medium"] = len(records) - len(rows)
    if not found:
        where = media or root / MEDIA_FOLDERS[-1]
        report.notes.append(
            f"no video or feature file lies in {where}: all rows are kept. Put ActivityNet's videos there under their "
            f"names v_<id>.mp4, or the published feature files into {root / MEDIA_FOLDERS[0]}, and start again."
        )
    elif missing:
        report.notes.append(
            f"{len(missing)} of {len(videos)} videos are not in {media}; their {len(records) - len(rows)} rows are "
            f"left out. Their ids: {root / MISSING}."
        )
    report.notes += [f"{count} {what}." for what, count in report.counts.items()]
    return report


def training_rows(records: Sequence[Mapping[str, Any]], found: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Rows in training form.

    Args:
        records: of the release, in its order: the place of the video goes by the parity of the number.
        found: videos that are there; rows of others are left out, without changing the parity of the rest. None keeps
            all.
    """
    rows = []
    for number, record in enumerate(records):
        video, question = record["video_id"], record["q"]
        if found is not None and video not in found:
            continue
        asked = f"<video>\n{question}" if number % 2 else f"{question}\n<video>"
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": record["a"]}]
        rows.append({"id": video, "video": f"{video}.pkl", "conversations": turns})
    return rows


def strip_noise_tags(records: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Records whose answers do not end in the release's stray tag, and how many had it."""
    stripped = [
        {**record, "a": record["a"].replace(NOISE_TAG, "").rstrip()} if NOISE_TAG in record["a"] else dict(record)
        for record in records
    ]
    return stripped, sum(NOISE_TAG in record["a"] for record in records)


def media_folder(root: Path, named: str | None = None) -> Path | None:
    """The folder of media: the named one, else features or videos below ``root``, whichever holds one first.

    Raises:
        UserError: the named folder does not exist.
    """
    if named:
        if not Path(named).is_dir():
            raise UserError(f"{named}: there is no such folder of videos or feature files.")
        return Path(named)
    return next((root / name for name in MEDIA_FOLDERS if (root / name).is_dir() and media_files(root / name)), None)


def media_files(folder: Path) -> dict[str, Path]:
    """Video -> its file; the video is the file's name up to the first dot, as the original names features."""
    order = {suffix: number for number, suffix in enumerate(SUFFIXES)}
    files = sorted(
        (path for path in folder.iterdir() if path.suffix.lower() in order),
        key=lambda path: (-order[path.suffix.lower()], path.name),
    )
    return {path.name.split(".")[0]: path for path in files}


def _download(root: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        hf_hub_download(HUB, SOURCE, repo_type="dataset", local_dir=root)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{HUB} cannot be downloaded ({type(error).__name__}). Put its {SOURCE} into {root} by other means, and "
            f"start again without --download."
        ) from error


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
