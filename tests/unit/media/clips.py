"""Generated clips whose frames carry their own number as a bar code."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH, BAR, BITS = 96, 160, 16, 10


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 3) uint8: moving blocks, the number in the top row as white and black squares, the rest of it noise-free
    so that every encoder keeps it."""
    blocks = np.random.default_rng(0).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    image = np.roll(blocks.repeat(8, 0).repeat(8, 1)[:height, :width], number * 3, axis=1)
    for bit in range(BITS):
        image[:BAR, bit * BAR : (bit + 1) * BAR] = 255 if number >> bit & 1 else 0
    return image


def read_number(image: np.ndarray) -> int:
    """The number in an upright frame of at least native size."""
    squares = [image[4:12, bit * BAR + 4 : bit * BAR + 12].mean() > 128 for bit in range(BITS)]
    return sum(1 << bit for bit, white in enumerate(squares) if white)


@dataclass(frozen=True)
class Clip:
    """How to encode a clip, and what is true of it.

    Args:
        first: number on the first frame that players show; None where it depends on the decoder.
        starts_at: time stamp of the first frame, in frames.
        decord: decord is exact on it (measured), so that asking for decord must work.
        finish: changes the finished file.
        turns: counter-clockwise quarter turns of the stored pictures, undone by the rotation in the header.
    """

    name: str
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: {"g": "12", "bf": "2", "sc_threshold": "0"})
    num_frames: int = 150
    size: tuple[int, int] = (HEIGHT, WIDTH)
    pixels: str = "yuv420p"
    variable: bool = False
    muxer: dict[str, str] = field(default_factory=dict)
    first: int | None = 0
    starts_at: int = 0
    decord: bool = True
    finish: Callable[[Path], None] | None = None
    turns: int = 0

    def stored(self, number: int) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(picture(number, *self.size), self.turns))

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        with av.open(str(path), "w", options=self.muxer) as container:
            stream = container.add_stream(self.codec, rate=25, options=self.options)
            stream.height, stream.width = self.size[:: -1 if self.turns % 2 else 1]
            stream.pix_fmt = self.pixels
            if self.variable:
                stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(self.num_frames):
                frame = av.VideoFrame.from_ndarray(self.stored(number), "rgb24")
                frame.pts = number * 40 + number * 37 % 31 if self.variable else number + self.starts_at
                frame.time_base = Fraction(1, 1000 if self.variable else 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if self.finish is not None:
            self.finish(path)
        return path


def rotate(degrees: int) -> Callable[[Path], None]:
    """Writes a clockwise display rotation into the track header of an MP4."""
    one = 1 << 16
    matrix = {90: (0, one, 0, -one, 0), 180: (-one, 0, 0, 0, -one), 270: (0, -one, 0, one, 0)}[degrees]

    def finish(path: Path) -> None:
        data = bytearray(path.read_bytes())
        # After the name: version and flags (4), times, id, duration (20), reserved (8), layer ... volume (8).
        place = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
        data[place : place + 36] = struct.pack(">9i", *matrix, 0, 0, 0, 1 << 30)
        path.write_bytes(data)

    return finish


def cut_head(path: Path) -> None:
    """Drops the first third of a transport stream, so that it starts between key frames."""
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 3 // 188 * 188 :])


def remux(start: int, shift: int, twice: int = 0, **muxer: str) -> Callable[[Path], None]:
    """Copies the packets from coded position ``start`` on, ``shift`` frames earlier: frames before 0 are hidden; every
    ``twice``-th packet gets the time stamp of the one after it."""

    def finish(path: Path) -> None:
        source = path.with_name("source_" + path.name)
        path.rename(source)
        with av.open(str(source)) as old, av.open(str(path), "w", options=muxer) as new:
            stream = old.streams.video[0]
            copy = new.add_stream_from_template(stream)
            step = int(1 / (stream.average_rate * stream.time_base))
            for position, packet in enumerate(p for p in old.demux(stream) if p.size):
                if position >= start:
                    packet.pts -= shift * step
                    packet.dts -= shift * step
                    packet.pts += step if twice and position % twice == 0 else 0
                    packet.stream = copy
                    new.mux(packet)
        source.unlink()

    return finish


LONG = {"g": "250", "bf": "2", "sc_threshold": "0"}
NO_B = {"g": "12", "bf": "0", "sc_threshold": "0"}

CLIPS = {
    clip.name: clip
    for clip in [
        Clip("short_groups.mp4"),
        Clip("long_groups.mp4", options=LONG),
        Clip("no_b.mp4", options=NO_B),
        Clip("pyramid.mp4", options={"g": "24", "bf": "5", "b-pyramid": "normal", "sc_threshold": "0"}),
        Clip("intra.mp4", options={"g": "1", "bf": "0"}),
        Clip("open_groups.mp4", options={"g": "12", "bf": "2", "x264-params": "open-gop=1"}, decord=False),
        Clip("variable.mp4", variable=True),
        Clip("fragments.mp4", muxer={"movflags": "frag_keyframe+empty_moov"}),
        Clip("odd_size.mp4", size=(101, 163), pixels="yuv444p"),
        Clip("deep.mp4", pixels="yuv420p10le"),
        Clip("faststart.mov", muxer={"movflags": "faststart"}),
        Clip("short_groups.mkv"),
        Clip("late_start.mkv", starts_at=125),
        Clip("variable.mkv", variable=True),
        Clip("same_times.mp4", options=NO_B, finish=remux(0, 0, twice=40), decord=False),
        Clip("hevc.mp4", codec="libx265", options={"g": "12", "x265-params": "log-level=none"}, decord=False),
        Clip("vp9.webm", codec="libvpx-vp9", options={"g": "12", "deadline": "realtime", "cpu-used": "8"}),
        Clip("av1.mp4", codec="libsvtav1", options={"g": "24", "preset": "12"}, decord=False),
        Clip("mpeg4_b.mp4", codec="mpeg4", options={"g": "12", "bf": "2", "qscale": "3"}, decord=False),
        Clip("mpeg4_b.avi", codec="mpeg4", options={"g": "12", "bf": "2", "qscale": "3"}, decord=False),
        Clip("mpeg4.avi", codec="mpeg4", options={"g": "12", "qscale": "3"}, decord=False),
        Clip("h264_b.avi", decord=False),
        Clip("h264.avi", options=NO_B, decord=False),
        Clip("stream.ts", decord=False),
        Clip("cut_head.ts", options=LONG | {"g": "60"}, finish=cut_head, first=None, decord=False),
        Clip("stream.mpg", codec="mpeg2video", options={"g": "12", "bf": "2"}, decord=False),
        Clip("rotated_90.mp4", turns=1, finish=rotate(90)),
        Clip("rotated_180.mp4", turns=2, finish=rotate(180)),
        Clip("rotated_270.mp4", turns=3, finish=rotate(270)),
        Clip(
            "edit_list.mp4",
            finish=remux(96, 100, avoid_negative_ts="disabled"),
            first=100,
            num_frames=150,
            decord=False,
        ),
    ]
}
