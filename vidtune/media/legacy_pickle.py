"""Feature files that older projects pickled, one numpy array each, read without running what is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vidtune.media.container import check_regular_file
from vidtune.media.errors import MediaError

_ALLOWED = {
    # numpy 2 moved its core package; files of either version name one of the two.
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how protocol 2 writes bytes
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def load_pickled_array(path: str) -> np.ndarray:
    """The (T, A) floating-point array that a file holds.

    Raises:
        MediaError: missing or damaged, or anything else than such an array in it.
    """
    check_regular_file(path)
    try:
        with open(path, "rb") as handle:
            array = _ArrayUnpickler(handle).load()
    except Exception as error:  # a damaged stream can raise almost anything on its way
        raise MediaError(path, f"is no pickled array: {error or type(error).__name__}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise MediaError(path, f"holds {found}; expected a (rows, width) array of floats")
    return array


def convert_pickled_features(source: Path, target: Path, tensor: str = "features") -> tuple[int, list[MediaError]]:
    """Write every ``.pkl`` in ``source`` once as ``<name>.safetensors``, values and type as they are.

    Files that are already in ``target`` are left alone, so that an interrupted conversion goes on where it stopped.

    Returns:
        How many were written, and the files that were refused.
    """
    target.mkdir(parents=True, exist_ok=True)
    written, refused = 0, []
    for file in sorted(source.glob("*.pkl")):
        converted = target / f"{file.stem}.safetensors"
        if converted.exists():
            continue
        try:
            array = load_pickled_array(str(file))
        except MediaError as error:
            refused.append(error)
            continue
        partial = converted.with_suffix(".partial")
        save_file({tensor: np.ascontiguousarray(array)}, partial)
        partial.rename(converted)
        written += 1
    return written, refused
