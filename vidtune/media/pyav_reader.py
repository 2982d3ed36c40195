"""Frame-exact reading with PyAV.

Two ways lead to a frame. The *fast* way maps display index to time stamp, decodes from the key frame before it, and
feeds only packets that a wanted frame can depend on. The *counting* way decodes from the start and counts frames in
the order in which they come out. Which one is allowed is decided by ``container.VideoIndex.count_reason``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtune.media.container import VideoIndex, load_index, open_video
from vidtune.media.errors import MediaError

JOIN_GAP = 4
"""Packets between two runs that are decoded rather than skipped: restarting the decoder costs about as much."""
SEEK_GAP = 64
"""Packets between two runs that are read and dropped rather than jumped over."""
TAIL_TOLERANCE = 0.02
"""Share of the frames (at least 2) that may be missing at the end; the last frame stands in for them."""


@dataclass
class Run:
    """Packets ``start`` ... ``end`` (coded positions, inclusive) that yield the ``wanted`` frames: pts -> index."""

    start: int
    end: int
    wanted: dict[int, int] = field(default_factory=dict)


def plan_runs(index: VideoIndex, wanted: Sequence[int]) -> list[Run]:
    """Stretches of packets to decode for display indices ``wanted``, ascending; each starts at a key frame."""
    positions = index.order[np.asarray(wanted)]
    stamps = index.pts[positions]
    # By time, not by position: leading pictures of an open group follow their key frame in the file but need the one
    # before it.
    nearest = np.searchsorted(index.pts[index.keys], stamps, side="right") - 1
    runs: list[Run] = []
    for display, position, pts, key in zip(wanted, positions.tolist(), stamps.tolist(), index.keys[nearest].tolist()):
        if not runs or key > runs[-1].end + JOIN_GAP:
            runs.append(Run(start=key, end=position))
        run = runs[-1]
        run.end = max(run.end, position)
        run.wanted[pts] = display
    return runs


class _PacketReader:
    """Packets by coded position, going forward."""

    def __init__(self, container: InputContainer, stream: VideoStream, index: VideoIndex) -> None:
        self._container, self._stream, self._index = container, stream, index
        self._packets = container.demux(stream)
        self._next = 0

    def run(self, start: int, end: int) -> Iterator[av.Packet]:
        """Packets ``start`` ... ``end``."""
        if start - self._next > SEEK_GAP:
            self._seek(start)
        for packet in self._packets:
            if not packet.size or packet.is_discard:
                continue
            position, self._next = self._next, self._next + 1
            if position >= start:
                yield packet
            if position >= end:
                return

    def _seek(self, start: int) -> None:
        stamps = self._index.pts[self._index.order]
        keys = self._index.keys
        # A container may jump past the target when key frames stand close together; then the one before is tried.
        for key in keys[keys <= start][::-1][:2].tolist():
            if key <= self._next:
                return
            self._container.seek(int(self._index.pts[key]), stream=self._stream, backward=True, any_frame=False)
            self._packets = self._container.demux(self._stream)
            packet = next((p for p in self._packets if p.size and not p.is_discard), None)
            if packet is None or packet.pts is None:
                continue
            rank = int(np.searchsorted(stamps, packet.pts))
            if rank == len(stamps) or stamps[rank] != packet.pts:
                continue
            landed = int(self._index.order[rank])
            if landed <= start:
                self._packets = _chain(packet, self._packets)
                self._next = landed
                return
        self._container.seek(0, stream=self._stream, backward=True)
        self._packets = self._container.demux(self._stream)
        self._next = 0


def _chain(first: av.Packet, rest: Iterator[av.Packet]) -> Iterator[av.Packet]:
    yield first
    yield from rest


def _read_fast(path: str, index: VideoIndex, wanted: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Wanted frames by time stamp; ends early, without an error, where one does not appear."""
    with open_video(path) as (container, stream):
        decoder = stream.codec_context
        # Only H.264 marks pictures that nothing refers to in a way that holds for every encoder.
        skip: Literal["NONREF", "DEFAULT"] = "NONREF" if decoder.name == "h264" else "DEFAULT"
        packets = _PacketReader(container, stream, index)
        for number, run in enumerate(plan_runs(index, wanted)):
            if number:
                decoder.flush_buffers()
            missing = dict(run.wanted)
            for packet in packets.run(run.start, run.end):
                decoder.skip_frame = "DEFAULT" if packet.pts in missing else skip
                for frame in decoder.decode(packet):
                    if frame.pts in missing:
                        yield missing.pop(frame.pts), frame
            decoder.skip_frame = "DEFAULT"
            if missing:
                for frame in decoder.decode(None):
                    if frame.pts in missing:
                        yield missing.pop(frame.pts), frame
            if missing:
                return


def _read_counting(path: str, num_frames: int, wanted: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Wanted frames by their place in a full decode."""
    pending = iter(wanted)
    target = next(pending, None)
    count, last = 0, None
    with open_video(path) as (container, stream):
        for frame in container.decode(stream):
            last = frame
            if count == target:
                yield count, frame
                target = next(pending, None)
                if target is None:
                    return
            count += 1
        allowed = num_frames - max(2, round(TAIL_TOLERANCE * num_frames))
        if last is None or count < allowed:
            raise MediaError(path, f"is damaged or truncated: only {count} of its {num_frames} frames can be decoded")
        while target is not None:
            yield target, last
            target = next(pending, None)


def count_frames(path: str) -> int:
    """Frames of a full decode."""
    with open_video(path) as (container, stream):
        return sum(1 for _ in container.decode(stream))


def read_pyav(path: str, wanted: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames at display indices ``wanted`` (ascending, no repeats), each with its index.

    Raises:
        MediaError: the file is damaged, or holds fewer frames than asked for.
    """
    index = load_index(path)
    rest = list(wanted)
    if not rest:
        return
    if rest[-1] >= index.num_packets:
        raise MediaError(path, f"frame {rest[-1]} was asked for but the file holds {index.num_packets} frames")
    if not index.count_reason:
        done = 0
        try:
            for done, (display, frame) in enumerate(_read_fast(path, index, rest), start=1):
                if display != rest[done - 1]:
                    done -= 1
                    break
                yield display, frame
        except MediaError:
            # A damaged packet; the counting way decides whether the wanted frames can still be had.
            pass
        rest = rest[done:]
    if rest:
        yield from _read_counting(path, index.num_packets, rest)
