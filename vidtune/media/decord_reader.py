"""Reading with decord, where it is exact.

decord 0.6 silently returns frames of the wrong group of pictures on AVI, MPEG-PS and MPEG-TS, mixes frames on edit
lists, and can hang for ever on MPEG-TS; there it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vidtune.contracts import UserError
from vidtune.media.container import load_index, open_video
from vidtune.media.errors import MediaError

UNKNOWN_CODECS = frozenset({"av1", "libdav1d", "libaom-av1", "gif", "vvc"})
"""Codecs newer than the FFmpeg 4 inside decord 0.6."""


def decord_refusal(path: str) -> str:
    """Why decord would not be exact on this file; empty where it is."""
    index = load_index(path)
    if index.count_reason:
        return index.count_reason
    if index.open_groups:
        return "its groups of pictures are open, and decord is off by some frames at their borders"
    with open_video(path) as (_, stream):
        codec = stream.codec_context.name
    return f"decord cannot decode {codec}" if codec in UNKNOWN_CODECS else ""


def read_decord(path: str, wanted: Sequence[int], size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
    """(H, W, 3) uint8 RGB frames at ``wanted`` (ascending), each with its index; ``size`` as (height, width).

    Raises:
        UserError: decord is not installed, or is not exact for this file.
        MediaError: decord cannot read the file.
    """
    reason = decord_refusal(path)
    if reason:
        raise UserError(
            f"media.backend=decord is not frame-exact for {path}: {reason}. "
            "Use media.backend=auto or media.backend=pyav."
        )
    try:
        import decord
    except ImportError as error:
        raise UserError(
            f"media.backend=decord was asked for but decord cannot be imported ({error}). Use media.backend=auto."
        ) from error
    scale = {} if size is None else {"height": size[0], "width": size[1]}
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1, **scale)
        for index in wanted:
            yield index, reader[index].asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise MediaError(path, f"decord cannot read it: {str(error).strip().splitlines()[-1]}") from error
