"""Short clips of one class, one after the other in a longer video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import av
import numpy as np
from PIL import Image


def join_by_class(videos: Sequence[Path], count: int, folder: Path) -> list[Path]:
    """Join every ``count`` videos of a class, in their order; the last ones of a class may be fewer.

    Args:
        videos: in folders of their classes, sorted.
        folder: where ``<class>/<name of the first>.mp4`` is written; what lies there already is left alone.

    Returns:
        The joined videos.
    """
    joined = []
    for name, group in groupby(videos, key=lambda video: video.parent.name):
        members = list(group)
        for start in range(0, len(members), count):
            target = folder / name / f"{members[start].stem}_{count}.mp4"
            if not target.exists():
                join(members[start : start + count], target)
            joined.append(target)
    return joined


def join(videos: Sequence[Path], target: Path) -> None:
    """Write all frames of the videos in order, at the rate of the first and in its size."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}")
    with av.open(str(videos[0])) as first:
        stream = first.streams.video[0]
        # The encoder takes even sides only.
        rate, width, height = stream.average_rate, stream.width // 2 * 2, stream.height // 2 * 2
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in _frames(videos, (width, height)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    partial.rename(target)


def _frames(videos: Sequence[Path], size: tuple[int, int]) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 frames."""
    for video in videos:
        with av.open(str(video)) as container:
            for frame in container.decode(video=0):
                yield np.asarray(Image.fromarray(frame.to_ndarray(format="rgb24")).resize(size))
