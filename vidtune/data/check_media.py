"""Every medium of a data set, opened or decoded: which are unreadable, which show the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vidtune.contracts import MediaInfo, MediaRef
from vidtune.data.media_source import MediaSource
from vidtune.media import MediaError, read_frames

_BLOCK = 1 << 20


@dataclass(frozen=True)
class MediumCheck:
    """What was found of one medium.

    Args:
        info: its header; None where that is unreadable.
        reason: why it cannot be read; empty where it can.
        content: digest of its frames or, in a fast check, of its bytes and segment; empty where unreadable.
    """

    ref: MediaRef
    info: MediaInfo | None
    reason: str = ""
    content: str = ""


def check_media(refs: Sequence[MediaRef], source: MediaSource, fast: bool, workers: int) -> Iterator[MediumCheck]:
    """Check media several at a time, in order.

    Args:
        fast: read headers and bytes only; the default decodes every frame.
        workers: threads; decoding releases the interpreter's lock.
    """
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda ref: _check(ref, source, fast), refs)


def _check(ref: MediaRef, source: MediaSource, fast: bool) -> MediumCheck:
    info = source.info(ref)
    if reason := source.bad.headers.get(ref.stretch):
        return MediumCheck(ref, None, reason)
    try:
        return MediumCheck(ref, info, content=_bytes_digest(ref) if fast else _frames_digest(info, source))
    except (MediaError, OSError) as error:
        return MediumCheck(ref, info, error.reason if isinstance(error, MediaError) else str(error))


def _frames_digest(info: MediaInfo, source: MediaSource) -> str:
    """Of all decoded frames, so that copies in another container are found too."""
    digest = hashlib.blake2b(digest_size=16)
    # The limit is per pass over the whole medium, not over the few frames that training reads.
    deadline = None if source.deadline_s is None else source.deadline_s + info.duration_s
    for frame in read_frames(info.ref, range(info.num_frames), backend=source.backend, deadline_s=deadline):
        digest.update(frame.data if frame.flags.c_contiguous else frame.tobytes())
    return digest.hexdigest()


def _bytes_digest(ref: MediaRef) -> str:
    digest = hashlib.blake2b(f"{ref.start_s}-{ref.end_s}".encode(), digest_size=16)
    path = Path(ref.path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if not os.path.isfile(file):
            continue
        with file.open("rb") as handle:
            while block := handle.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
