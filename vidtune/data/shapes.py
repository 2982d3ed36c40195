"""Write the embedded data set: mp4 files and annotations in the form of any user's data.

::

    <root>/shapes.json                   the settings; written first, so that an interrupted run knows what it resumes
    <root>/videos/<split>/000012.mp4     h264, written under another name and then renamed, never truncated
    <root>/<split>.jsonl                 one line per question, the four of a video together; written last
"""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidtune.contracts import UserError
from vidtune.data.shapes_drawing import FPS, SPLITS, ShapesVideo, draw_frames, draw_video

FORMAT_VERSION = 1
"""Raise it when the same settings would give other videos, so that folders of the older kind are refused."""

_X264 = {"crf": "12", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
"""Colours survive at crf 12. With its macroblock tree and B frames together x264 gave, for the same frames, other bytes
in about half of the encodings (measured with PyAV 18.1); without the tree, none of 1,000 differed."""

_MANIFEST = "shapes.json"
_PART = ".part"


def prepare_shapes(
    root: Path, *, num_train: int, num_val: int, num_test: int, seed: int, progress: bool = True
) -> None:
    """Make sure that the data set lies complete in ``root``.

    Whatever is there already stays; a run that was interrupted goes on where it stopped. Each video depends only on
    (seed, split, index). Processes that start at the same time wait for one of them to write.

    Args:
        root: folder of the data set, made if needed.
        num_train, num_val, num_test: videos per split; each has four questions.
        seed: of everything random in the videos and questions.
        progress: show a bar while videos are written.

    Raises:
        UserError: the settings are out of range, or ``root`` holds other data or was written with other settings.
    """
    counts = {"train": num_train, "val": num_val, "test": num_test}
    for name, value in {"seed": seed, **{f"num_{split}": count for split, count in counts.items()}}.items():
        if value < 0:
            raise UserError(f"shapes data: {name} is {value}; expected 0 or more. Change data.{name}.")
    root = Path(root)
    settings = {"format_version": FORMAT_VERSION, "seed": seed, "num_videos": counts}
    videos = {split: [draw_video(seed, split, index) for index in range(counts[split])] for split in SPLITS}
    _check_disjoint(videos)

    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file; expected the folder of the shapes data. Change data.root.")
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        _claim(root, settings)
        for leftover in root.rglob(f"*{_PART}"):
            leftover.unlink()
        missing = [
            (split, index)
            for split in SPLITS
            for index in range(counts[split])
            if not (root / _video_path(split, index)).exists()
        ]
        if missing:
            _write_videos(root, seed, videos, missing, progress)
        for split in SPLITS:
            if not (root / f"{split}.jsonl").exists():
                _write_atomically(root / f"{split}.jsonl", _annotation(split, videos[split]).encode())


def _video_path(split: str, index: int) -> str:
    return f"videos/{split}/{index:06d}.mp4"


def _check_disjoint(videos: dict[str, list[ShapesVideo]]) -> None:
    drawn = [video.signature for split in SPLITS for video in videos[split]]
    assert len(set(drawn)) == len(drawn), "two videos of the shapes data show the same"


def _claim(root: Path, settings: dict[str, Any]) -> None:
    """Accept an empty folder, or one that these settings wrote or began; refuse any other."""
    manifest = root / _MANIFEST
    remedy = "Set data.root to another folder, or delete this one to have it written anew."
    if not manifest.exists():
        foreign = sorted(path.name for path in root.iterdir() if path.name != ".lock" and path.suffix != _PART)
        if foreign:
            raise UserError(
                f"{root}: holds {', '.join(foreign[:3])} but no {_MANIFEST}, so it was not written as shapes data; "
                f"expected an empty folder. {remedy}"
            )
        _write_atomically(manifest, (json.dumps(settings, indent=2) + "\n").encode())
        return
    try:
        found = json.loads(manifest.read_text())
    except ValueError as error:
        raise UserError(f"{manifest}: not readable as JSON ({error}). {remedy}") from error
    if found != settings:
        known, asked = _flat(found), _flat(settings)
        different = [
            f"{name} is {known.get(name)}, asked {asked.get(name)}"
            for name in sorted(known.keys() | asked.keys())
            if known.get(name) != asked.get(name)
        ]
        raise UserError(f"{manifest}: written with other settings ({'; '.join(different)}). {remedy}")


def _flat(settings: object) -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {"content": settings}
    counts = settings.get("num_videos")
    rest = {name: value for name, value in settings.items() if name != "num_videos"}
    return rest | ({f"num_{split}": count for split, count in counts.items()} if isinstance(counts, dict) else {})


def _write_videos(
    root: Path, seed: int, videos: dict[str, list[ShapesVideo]], missing: list[tuple[str, int]], progress: bool
) -> None:
    for split in SPLITS:
        (root / "videos" / split).mkdir(parents=True, exist_ok=True)

    def write(place: tuple[str, int]) -> None:
        split, index = place
        frames = draw_frames(videos[split][index], seed, split, index)
        _write_atomically(root / _video_path(split, index), encode_mp4(frames, fps=FPS))

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not progress)
    # Threads, not processes: drawing and encoding leave the interpreter lock for most of their time.
    pool = ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1))
    try:
        with bar:
            for _ in bar.track(pool.map(write, missing), total=len(missing), description=f"writing videos to {root}"):
                pass
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C: finish the videos at hand, drop the waiting ones


def encode_mp4(frames: np.ndarray, *, fps: int) -> bytes:
    """Encode frames, (T, H, W, 3) uint8 RGB with even H and W, as an h264 mp4 file.

    The bytes depend on the frames alone: one encoder thread, no time stamp in the header.
    """
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=_X264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _annotation(split: str, videos: list[ShapesVideo]) -> str:
    lines = []
    for index, video in enumerate(videos):
        for question_type, question, answer, options in video.questions():
            row = {
                "id": f"{split}-{index:06d}-{question_type}",
                "video": _video_path(split, index),
                "question": question,
                "answer": answer,
                "options": list(options),
                "question_type": question_type,
            }
            lines.append(json.dumps(row) + "\n")
    return "".join(lines)


def _write_atomically(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + _PART)
    part.write_bytes(content)
    part.replace(path)
