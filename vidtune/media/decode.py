"""Headers and frames of any medium: videos, images, folders of images, animated GIFs, and segments of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import av
import numpy as np

from vidtune.contracts import MediaInfo, MediaRef, UserError
from vidtune.media.container import header_count, load_index, open_video
from vidtune.media.convert import FrameConverter, check_filter, quarter_turns
from vidtune.media.deadline import read_with_deadline
from vidtune.media.decord_reader import read_decord
from vidtune.media.errors import MediaError
from vidtune.media.features import is_features, probe_features, read_features
from vidtune.media.pyav_reader import count_frames, read_pyav
from vidtune.media.sampling import segment_span
from vidtune.media.stills import image_size, is_still, list_images, read_stills

log = logging.getLogger(__name__)

BACKENDS = ("auto", "pyav", "decord", "opencv")

FPS_TOLERANCE = 0.02
"""Relative difference above which the rate from the time stamps replaces the one in the header."""


DEADLINE_S = 60.0
"""Seconds of decoding after which a medium counts as unreadable, where nobody says otherwise."""


def probe(ref: MediaRef, *, exact: bool = False, deadline_s: float | None = None) -> MediaInfo:
    """Frame count, rate and size of a medium or of the segment that ``ref`` names.

    MP4 files are read by their header alone; where a header cannot give the number of frames that will be readable
    (MKV, AVI, MPEG-TS, fragments, edit lists) the file is read through once without decoding.

    Args:
        exact: read the file through in any case.
        deadline_s: seconds after which the medium counts as unreadable; see ``read_frames``.

    Raises:
        MediaError: unreadable, too slow, or the segment lies outside the medium.
    """
    if is_features(ref.path):
        whole = probe_features(ref.path)
    elif is_still(ref.path):
        whole = _probe_still(ref.path)
    elif deadline_s is None:
        whole = _probe_video(ref.path, exact)
    else:
        (whole,) = read_with_deadline(_probed_video, ref.path, exact, seconds=deadline_s, path=ref.path)
    return cut_segment(whole, ref)


def cut_segment(whole: MediaInfo, ref: MediaRef) -> MediaInfo:
    """The header of the segment ``ref`` of a medium whose header is ``whole``.

    Raises:
        MediaError: the segment lies outside the medium.
    """
    if ref.start_s is None and ref.end_s is None:
        return replace(whole, ref=ref)
    _, count = _segment(whole, ref)
    return replace(whole, ref=ref, num_frames=count, duration_s=count / whole.fps)


def _segment(whole: MediaInfo, ref: MediaRef) -> tuple[int, int]:
    first, count = segment_span(whole.num_frames, whole.fps, ref.start_s, ref.end_s)
    if count <= 0:
        raise MediaError(
            ref.path,
            f"segment {ref.start_s} s - {ref.end_s} s lies outside the {whole.duration_s:.2f} s of the medium",
        )
    return first, count


def _probe_still(path: str) -> MediaInfo:
    files = list_images(path)
    height, width = image_size(files[0])
    count = len(files)
    return MediaInfo(MediaRef(path), count, 1.0, float(count), height, width)


def _probe_video(path: str, exact: bool) -> MediaInfo:
    with open_video(path) as (container, stream):
        count = None if exact else header_count(container, stream, path)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        # Rotation is stored with the frames as far as PyAV shows it, so the first one is decoded.
        frame = next(iter(container.decode(stream)), None)
        if frame is None:
            raise MediaError(path, "holds no video frames")
        height, width = frame.height, frame.width
        if quarter_turns(frame.rotation) % 2:
            height, width = width, height
    read_through = count is None
    if count is None:
        index = load_index(path)
        count = count_frames(path) if index.leading else index.num_packets
        measured = index.measured_fps
        if measured and (not rate or abs(measured / rate - 1) > FPS_TOLERANCE):
            rate = measured
    rate = rate or 25.0
    return MediaInfo(MediaRef(path), count, rate, count / rate, height, width, exact=read_through)


def _probed_video(path: str, exact: bool) -> Iterator[MediaInfo]:
    """``_probe_video`` in the form that ``read_with_deadline`` takes."""
    yield _probe_video(path, exact)


def read_frames(
    ref: MediaRef,
    indices: Sequence[int],
    *,
    backend: str = "auto",
    size: tuple[int, int] | None = None,
    frame_filter: str | None = None,
    deadline_s: float | None = None,
) -> Iterator[np.ndarray]:
    """Frames of a medium, one at a time, in the order of ``indices``.

    Frame i is the frame that a full sequential decode gives as its i-th, turned upright. All backends give the same
    pixels. Ascending indices hold one frame in memory; others hold frames that are asked for later.

    Args:
        indices: frame indices within the segment; repeats and any order are allowed.
        backend: ``pyav``, ``decord``, ``opencv`` (served by PyAV), or ``auto``: the faster one that is exact on this
            file. That is PyAV on every file we measured (``benchmarks/decode.py``: 0.67 to 1.05 of decord's CPU time),
            so ``auto`` never takes decord. Stills need none.
        size: (height, width) to let FFmpeg scale to, or None for native frames.
        frame_filter: how, with ``size``: ``swscale_bilinear``.
        deadline_s: seconds of decoding after which the medium counts as unreadable, the caller's own work between
            frames not included. Videos are then read in a child process that is killed at the deadline, and whose
            crash is no more than an unreadable medium; this works in data workers too.

    Yields:
        (H, W, 3) uint8 RGB; of a feature file (A,) float32.

    Raises:
        UserError: an unknown backend or filter, or decord where it is not exact for this file.
        MediaError: unreadable, damaged, too slow, or an index outside the medium.
    """
    check_filter(size, frame_filter)
    check_backend(backend)
    indices = [int(index) for index in indices]
    if indices and min(indices) < 0:
        raise MediaError(ref.path, f"frame {min(indices)} was asked for; frames are counted from 0")
    if deadline_s is None or is_still(ref.path) or is_features(ref.path):
        return _read(ref, indices, backend, size)
    return read_with_deadline(_read, ref, indices, backend, size, seconds=deadline_s, path=ref.path)


def check_backend(backend: str) -> None:
    """Raises:
    UserError: not one of ``BACKENDS``.
    """
    if backend not in BACKENDS:
        raise UserError(f"media.backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if backend == "opencv":
        _say_opencv()


def decoder_name(backend: str) -> str:
    """What reads the videos under a backend, with its version; ``auto`` and ``opencv`` are PyAV."""
    if backend == "decord":
        import decord

        return f"decord {decord.__version__}"
    return f"pyav {av.__version__}"


@cache
def _say_opencv() -> None:
    log.warning("media.backend=opencv is served by PyAV, which gives the same frames")


def _read(ref: MediaRef, indices: list[int], backend: str, size: tuple[int, int] | None) -> Iterator[np.ndarray]:
    if ref.start_s is not None or ref.end_s is not None:
        first, count = _segment(probe(MediaRef(ref.path, ref.kind)), ref)
        if indices and max(indices) >= count:
            raise MediaError(ref.path, f"frame {max(indices)} was asked for but the segment holds {count} frames")
        indices = [first + index for index in indices]
    return _in_order(indices, _read_sorted(ref.path, sorted(set(indices)), backend, size))


def _read_sorted(
    path: str, wanted: list[int], backend: str, size: tuple[int, int] | None
) -> Iterator[tuple[int, np.ndarray]]:
    if is_features(path):
        yield from read_features(path, wanted)
    elif is_still(path):
        convert = FrameConverter(size)
        for index, picture in read_stills(path, wanted):
            yield index, picture if size is None else convert(av.VideoFrame.from_ndarray(picture, format="rgb24"))
    elif backend == "decord":
        yield from read_decord(path, wanted, size)
    else:
        convert = FrameConverter(size)
        for index, frame in read_pyav(path, wanted):
            yield index, convert(frame)


def _in_order(indices: list[int], frames: Iterator[tuple[int, np.ndarray]]) -> Iterator[np.ndarray]:
    """Frames that come in ascending order, handed out in the order of ``indices``, each held until its last use."""
    last_use = {index: place for place, index in enumerate(indices)}
    held: dict[int, np.ndarray] = {}
    for place, index in enumerate(indices):
        while index not in held:
            found, frame = next(frames)
            held[found] = frame
        yield held[index]
        if last_use[index] == place:
            del held[index]
