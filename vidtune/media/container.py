"""What a container says about its video stream: frame count, time stamps, key frames. Nothing is decoded here
except the first frame, which alone carries the rotation.

Order matters twice in a video with B frames: *coded* order is that of the packets in the file, *display* order that
of the frames a sequential decode gives. A frame index of vidtune counts in display order.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtune.media.errors import MediaError

SEEKABLE_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm"})
"""Containers in which time stamps name frames reliably; measured on 28 container and codec variants."""


def check_regular_file(path: str) -> os.stat_result:
    """Stat of a readable regular file.

    Raises:
        MediaError: missing, empty, or something that would block for ever when opened (a pipe, a device).
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise MediaError(
            path, "the file does not exist" if isinstance(error, FileNotFoundError) else str(error)
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise MediaError(path, "is neither a regular file nor a folder of images")
    if found.st_size == 0:
        raise MediaError(path, "the file is empty (0 bytes)")
    return found


@contextmanager
def open_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A container and its first video stream with one decode thread, closed at the end.

    Raises:
        MediaError: the file cannot be opened as a video; FFmpeg errors inside the block are turned into it too.
    """
    check_regular_file(path)
    try:
        with av.open(path) as container:
            # A cover picture of an audio file is a video stream of one frame that has nothing to do with a video.
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise MediaError(path, "holds no video stream (audio only?)")
            stream = streams[0]
            if stream.codec_context is None:
                raise MediaError(path, "its video codec is not supported by this FFmpeg")
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise MediaError(path, f"cannot be read as a video: {error.strerror or error}") from error


@dataclass(frozen=True)
class VideoIndex:
    """The packets of a video stream, from one pass over the file without decoding.

    Args:
        pts: (P,) int64 presentation time stamp of each packet in coded order.
        keys: (K,) int64 coded positions of the key frames.
        order: (P,) int64 coded position of the frame at each display index.
        count_reason: why frames can only be found by decoding from the start and counting; empty where time stamps
            can be trusted.
        leading: the stream starts with pictures that refer to something before it, which decoders drop, so that even
            the number of packets is not the number of frames.
        open_groups: some pictures refer across a key frame to the group before it.
        measured_fps: frames per second from the time stamps, 0.0 where there are none.
    """

    pts: np.ndarray
    keys: np.ndarray
    order: np.ndarray
    count_reason: str
    leading: bool
    open_groups: bool
    measured_fps: float

    @property
    def num_packets(self) -> int:
        return len(self.pts)


def _demux(path: str) -> VideoIndex:
    pts: list[int | None] = []
    keys: list[int] = []
    cut = False
    with open_video(path) as (container, stream):
        names = frozenset(container.format.name.split(","))
        header_count(container, stream, path)  # raises for a truncated file, which FFmpeg reads without complaint
        codec, time_base = stream.codec_context.name, stream.time_base
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_discard:
                    cut = True
                    continue
                if packet.is_keyframe:
                    keys.append(len(pts))
                pts.append(packet.pts)
        except av.FFmpegError as error:
            raise MediaError(path, f"is damaged or truncated after {len(pts)} frames: {error.strerror}") from error
    if not pts:
        raise MediaError(path, "holds no video frames")
    stamped = [value for value in pts if value is not None]
    unique = len(stamped) == len(pts) == len(set(stamped))
    first_key = keys[0] if keys else 0
    leading = first_key > 0 or (unique and min(stamped) < stamped[first_key])
    if not names & SEEKABLE_CONTAINERS:
        reason = f"the container {container.format.name} has no reliable time stamps"
    elif codec == "mpeg4":
        reason = "MPEG-4 ASP streams number their B frames inconsistently"
    elif not unique:
        reason = "time stamps are missing or occur twice"
    elif cut:
        reason = "an edit list hides some of its frames"
    elif leading:
        reason = "the stream does not start with a key frame"
    elif not keys:
        reason = "no key frames are marked"
    else:
        reason = ""
    stamps = np.array(stamped if unique else range(len(pts)), dtype=np.int64)
    key_positions = np.array(keys, dtype=np.int64)
    if not reason and (np.diff(stamps[key_positions]) <= 0).any():
        reason = "key frames are not in display order"
    span = float((stamps.max() - stamps.min()) * time_base) if unique and len(pts) > 1 else 0.0
    return VideoIndex(
        pts=stamps,
        keys=key_positions,
        order=np.argsort(stamps, kind="stable"),
        count_reason=reason,
        leading=leading,
        open_groups=bool(keys) and bool((np.minimum.reduceat(stamps, key_positions) < stamps[key_positions]).any()),
        measured_fps=(len(pts) - 1) / span if span > 0 else 0.0,
    )


@lru_cache(maxsize=64)
def _cached_index(path: str, size: int, mtime_ns: int) -> VideoIndex:
    return _demux(path)


def load_index(path: str) -> VideoIndex:
    """The packets of a video; kept for the last 64 files of this process.

    Raises:
        MediaError: unreadable, damaged, or without video frames.
    """
    found = check_regular_file(path)
    return _cached_index(path, found.st_size, found.st_mtime_ns)


def clear_index_cache() -> None:
    """Forget all files; for measurements of a first read."""
    _cached_index.cache_clear()


def header_count(container: InputContainer, stream: VideoStream, path: str) -> int | None:
    """Number of frames from the sample table of an MP4 file, or None where only a pass over the file can tell.

    Raises:
        MediaError: the table lists frames beyond the end of the file.
    """
    if "mp4" not in container.format.name.split(","):
        return None
    entries: Any = getattr(stream, "index_entries", ())
    count = len(entries)
    # Fragmented files keep most of their table outside the header; edit lists hide frames that the table lists.
    if not count or count != stream.frames or not entries[0].is_keyframe:
        return None
    size = os.path.getsize(path)
    missing = 0
    for entry in entries:
        if entry.is_discard:
            return None
        missing += entry.pos + entry.size > size
    if missing:
        raise MediaError(path, f"is truncated: {missing} of its {count} frames lie beyond the end of the file")
    return count
