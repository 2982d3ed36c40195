"""A set of small clips of which some cannot be read, each for another reason."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vidtune.media import deadline, decode

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230)}
FRAMES = 12


def write_clip(path: Path, number: int) -> str:
    """A clip of one colour with noise of its own; returns the colour's name."""
    name = list(COLORS)[number % len(COLORS)]
    rng = np.random.default_rng(number)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "12", "preset": "ultrafast", "threads": "1"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(FRAMES):
            frame = np.clip(np.array(COLORS[name]) + rng.normal(0, 12, (64, 64, 3)), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    return name


def _truncate(path: Path) -> None:
    """The header stays whole, so that only decoding shows the damage."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _no_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()


def _hang(path: Path) -> None:
    """Nothing is wrong with the file; ``hang_on_marked`` makes the decoder never return."""
    path.with_suffix(".hangs").touch()


def hang_on_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoder hang, deaf to everything but the end of its process, on the clips that are broken so."""
    read_pyav = decode.read_pyav

    def read(path: str, wanted: Sequence[int]) -> Iterator[Any]:
        while Path(path).with_suffix(".hangs").exists():
            time.sleep(3600)
        return read_pyav(path, wanted)

    monkeypatch.setattr(decode, "read_pyav", read)
    monkeypatch.setattr(deadline, "_idle", [])  # readers forked before know nothing of it


WAYS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "hangs": _hang,
    "no_video": lambda path: path.write_text("this is no video " * 50),
    "truncated": _truncate,
    "audio_only": _audio_only,
    "no_frames": _no_frames,
}


def write_set(root: Path, num_clips: int, num_broken: int) -> dict[str, str]:
    """Clips, annotations of a train and a test split (two questions a clip), and the damage.

    Returns:
        Path of each broken clip -> way in which it is broken; the ways take turns, all clips are in both splits' files
        by halves.
    """
    (root / "videos").mkdir(parents=True)
    broken: dict[str, str] = {}
    rows = []
    step = num_clips // num_broken
    for number in range(num_clips):
        path = root / "videos" / f"{number:03d}.mp4"
        answer = write_clip(path, number)
        for question in ("which color ?", "name the color ?"):
            rows.append(
                {
                    "id": f"{number}-{question}",
                    "video": f"videos/{path.name}",
                    "question": question,
                    "answer": answer,
                    "options": list(COLORS),
                }
            )
        if number % step == 0 and len(broken) < num_broken:
            way = list(WAYS)[len(broken) % len(WAYS)]
            WAYS[way](path)
            broken[str(path)] = way
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:16]))
    return broken
