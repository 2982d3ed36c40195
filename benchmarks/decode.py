"""CPU time of reading frames: vidtune against plain use of decord, PyAV, OpenCV and torchcodec.

    python benchmarks/decode.py                  # all clips, 8, 32 and 128 frames
    python benchmarks/decode.py --quick          # two short clips, for a first look
    python benchmarks/decode.py --size 224       # scaled by the decoder instead of native frames

Every reader runs with one decode thread, in turns, in this process; vidtune, as in a run, in its child, whose CPU time
counts too. The least of ``--repeats`` runs counts: on a shared machine CPU time is the figure to trust, wall time is
not. Nothing is cached between runs. A reader takes part in
a cell only if its frames carry the bar codes asked for; the ratio is ours to the best of the exact others.
Backends that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from vidtune.contracts import MediaRef
from vidtune.media import DEADLINE_S, deadline, read_frames, read_with_deadline, start_reader
from vidtune.media.container import clear_index_cache

BITS = 12
GOAL = 1.2


@dataclass(frozen=True)
class Clip:
    """A generated H.264 clip with B frames; ``group`` is the key frame distance."""

    name: str
    height: int
    width: int
    seconds: int
    group: int
    variable: bool = False

    @property
    def num_frames(self) -> int:
        return self.seconds * 30

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.name}.mp4"
        rng = np.random.default_rng(0)
        texture = rng.integers(0, 256, (self.height // 4, self.width // 4, 3), dtype=np.uint8)
        texture = texture.repeat(4, 0).repeat(4, 1)
        with av.open(str(path), "w") as container:
            options = {"g": str(self.group), "bf": "3", "preset": "veryfast", "crf": "23"}
            stream = container.add_stream("libx264", rate=30, options=options)
            stream.height, stream.width, stream.pix_fmt = self.height, self.width, "yuv420p"
            if self.variable:
                stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(self.num_frames):
                image = np.roll(texture, (number, 2 * number), axis=(0, 1))
                image = image // 2 + rng.integers(0, 24, image.shape[:2] + (1,), dtype=np.uint8)
                bar = self.width // BITS
                for bit in range(BITS):
                    image[: self.height // 6, bit * bar : (bit + 1) * bar] = 255 if number >> bit & 1 else 0
                frame = av.VideoFrame.from_ndarray(image, "rgb24")
                frame.pts = number * 33 + number * 37 % 31 if self.variable else number
                frame.time_base = Fraction(1, 1000 if self.variable else 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path


CLIPS = (
    Clip("320x240 10 s g12", 240, 320, 10, 12),
    Clip("320x240 10 s g250", 240, 320, 10, 250),
    Clip("640x360 60 s g250", 360, 640, 60, 250),
    Clip("1280x720 30 s g48", 720, 1280, 30, 48),
    Clip("640x360 10 s variable", 360, 640, 10, 30, variable=True),
)


def read_number(image: np.ndarray) -> int:
    """The bar code in an (H, W, 3) uint8 frame of any size."""
    height, bar = image.shape[0] // 12, image.shape[1] / BITS
    return sum(1 << bit for bit in range(BITS) if image[height, int((bit + 0.5) * bar)].mean() > 128)


Reader = Callable[[str, list[int], int], list[int]]
"""(path, ascending indices, side length or 0 for native) -> numbers in the frames."""


def fresh_read(path: str, indices: list[int], backend: str, side: int) -> Iterator[np.ndarray]:
    clear_index_cache()
    scale = {"size": (side, side), "frame_filter": "swscale_bilinear"} if side else {}
    yield from read_frames(MediaRef(path), indices, backend=backend, **scale)


def in_child(path: str, indices: list[int], side: int) -> list[int]:
    """As a run reads, in a process that can be killed."""
    frames = read_with_deadline(fresh_read, path, indices, "auto", side, seconds=DEADLINE_S, path=path)
    return [read_number(frame) for frame in frames]


def in_process(backend: str) -> Reader:
    return lambda path, indices, side: [read_number(frame) for frame in fresh_read(path, indices, backend, side)]


def cpu_seconds() -> float:
    """CPU time of this process and of its reader children."""
    children = [Path(f"/proc/{reader.pid}/schedstat") for reader in deadline.idle_readers()]
    return time.process_time() + sum(int(file.read_text().split()[0]) for file in children) / 1e9


def plain_decord(path: str, indices: list[int], side: int) -> list[int]:
    import decord

    scale = {"width": side, "height": side} if side else {}
    return [read_number(f) for f in decord.VideoReader(path, num_threads=1, **scale).get_batch(indices).asnumpy()]


def plain_pyav(path: str, indices: list[int], side: int) -> list[int]:
    """Decode from the start, keep what is wanted: what most code that uses PyAV does."""
    wanted, numbers = set(indices), []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for count, frame in enumerate(container.decode(stream)):
            if count in wanted:
                scale = {"width": side, "height": side} if side else {}
                numbers.append(read_number(frame.reformat(format="rgb24", **scale).to_ndarray()))
            if count == indices[-1]:
                return numbers
    return numbers


def plain_opencv(path: str, indices: list[int], side: int) -> list[int]:
    import cv2

    cv2.setNumThreads(1)
    capture, wanted, numbers = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), set(indices), []
    for count in range(indices[-1] + 1):
        if not capture.grab():
            break
        if count in wanted:
            frame = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
            numbers.append(read_number(cv2.resize(frame, (side, side)) if side else frame))
    capture.release()
    return numbers


def plain_torchcodec(path: str, indices: list[int], side: int) -> list[int]:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    transforms = [Resize(size=(side, side))] if side else None
    decoder = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC", transforms=transforms)
    return [read_number(frame.numpy()) for frame in decoder.get_frames_at(indices).data]


def available() -> tuple[dict[str, Reader], list[str]]:
    """Readers that work here, and why the others do not."""
    readers: dict[str, Reader] = {
        "vidtune": in_child,
        "vidtune (no deadline)": in_process("auto"),
        "PyAV": plain_pyav,
    }
    absent = []
    try:
        import decord  # noqa: F401

        readers["vidtune (decord)"] = in_process("decord")
        readers["decord"] = plain_decord
    except ImportError:
        absent.append("decord is not installed")
    try:
        import cv2  # noqa: F401

        readers["OpenCV"] = plain_opencv
    except ImportError:
        absent.append("OpenCV is not installed")
    try:
        import torchcodec

        if torchcodec.ffmpeg_major_version is None:  # its import succeeds without FFmpeg, its first decoder does not
            absent.append("torchcodec finds no FFmpeg")
        else:
            readers["torchcodec"] = plain_torchcodec
    except (ImportError, AttributeError, RuntimeError):
        absent.append("torchcodec is not installed")
    return readers, absent


def measure(path: str, count: int, num_frames: int, side: int, readers: dict[str, Reader], repeats: int) -> dict:
    """CPU milliseconds per reader, None where a frame is not the one that was asked for."""
    indices = sorted({(2 * k + 1) * num_frames // (2 * count) for k in range(count)})
    times: dict[str, float | None] = {name: float("inf") for name in readers}
    for _ in range(repeats):
        for name, read in readers.items():
            if times[name] is None:
                continue
            began = cpu_seconds()
            numbers = read(path, indices, side)
            spent = 1000 * (cpu_seconds() - began)
            times[name] = min(times[name], spent) if numbers == indices else None
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two short clips only")
    parser.add_argument(
        "--size", type=int, default=0, help="side length in pixels the frames are scaled to; 0 = native"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs per cell; the least counts")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    start_reader()
    readers, absent = available()
    clips = [clip for clip in CLIPS if not arguments.quick or clip.seconds == 10]
    table = Table("clip", "frames", *readers, "ratio", title="CPU ms per read; ratio = vidtune / best exact other")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for clip in clips:
            path = str(clip.write(Path(folder)))
            for count in (8, 32, 128):
                times = measure(path, count, clip.num_frames, arguments.size, readers, arguments.repeats)
                others = [t for name, t in times.items() if not name.startswith("vidtune") and t is not None]
                own = times["vidtune"]
                ratio = own / min(others) if own is not None else float("inf")
                rows.append({"clip": clip.name, "frames": count, "cpu_ms": times, "ratio": ratio})
                cells = ["wrong" if t is None else f"{t:.0f}" for t in times.values()]
                table.add_row(clip.name, str(count), *cells, f"{ratio:.2f}")
    console = Console(width=max(110, Console().width))
    console.print(table)
    for line in absent:
        console.print(f"left out: {line}")
    worst = max(row["ratio"] for row in rows)
    console.print(f"worst ratio {worst:.2f} (goal: at most {GOAL})")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    sys.exit(worst > GOAL)


if __name__ == "__main__":
    main()
