"""Feature files: media that another network has already encoded, one row per frame or clip, read like frames."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
from safetensors import SafetensorError, safe_open

from vidtune.contracts import MediaInfo, MediaRef
from vidtune.media.container import check_regular_file
from vidtune.media.errors import MediaError
from vidtune.media.legacy_pickle import load_pickled_array

FEATURES = "features"
"""Name of the (T, A) float tensor; metadata ``fps`` says how many rows make a second, 1 where it is missing."""


def is_features(path: str) -> bool:
    """A ``.safetensors`` file, or an array that an older project pickled."""
    return os.path.splitext(path)[1].lower() == ".safetensors" or _is_pickled(path)


def _is_pickled(path: str) -> bool:
    return os.path.splitext(path)[1].lower() == ".pkl"


def probe_features(path: str) -> MediaInfo:
    """Rows as frames; the width of a row stands as ``width``, with ``height`` 1.

    Raises:
        MediaError: missing, damaged, or without a (T, A) tensor ``features``.
    """
    if _is_pickled(path):
        count, width = load_pickled_array(path).shape
        return MediaInfo(MediaRef(path), count, 1.0, float(count), 1, width)
    with _open(path) as handle:
        count, width = _shape(handle, path)
        fps = float((handle.metadata() or {}).get("fps", 1.0))
    return MediaInfo(MediaRef(path), count, fps, count / fps, 1, width)


def read_features(path: str, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(A,) float32 rows at ``wanted``, each with its index.

    Raises:
        MediaError: as ``probe_features``, or an index beyond the last row.
    """
    if _is_pickled(path):
        array = load_pickled_array(path).astype(np.float32)
        yield from ((index, array[_within(index, len(array), path)]) for index in wanted)
        return
    with _open(path) as handle:
        count, _ = _shape(handle, path)
        rows = handle.get_slice(FEATURES)
        for index in wanted:
            index = _within(index, count, path)
            yield index, rows[index : index + 1][0].float().numpy()


def _within(index: int, count: int, path: str) -> int:
    if index >= count:
        raise MediaError(path, f"row {index} was asked for but there are {count}")
    return index


def _open(path: str) -> safe_open:
    check_regular_file(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise MediaError(path, f"cannot be read as a feature file: {error}") from error


def _shape(handle: safe_open, path: str) -> tuple[int, int]:
    names = list(handle.keys())
    shape = handle.get_slice(FEATURES).get_shape() if FEATURES in names else []
    if len(shape) != 2 or 0 in shape:
        raise MediaError(path, f"holds {', '.join(names) or 'nothing'}; expected a (rows, width) tensor {FEATURES!r}")
    return shape[0], shape[1]
