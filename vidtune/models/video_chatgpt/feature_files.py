"""Precomputed features as the original stored them: one pickled array per video, read without running its code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidtune.contracts import UserError

FEATURE_SUFFIXES = (".pkl", ".safetensors")
_TENSOR = "values"
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


def load_feature_file(file: Path, num_rows: int, width: int) -> Tensor:
    """The features of one video.

    Args:
        file: ``.pkl`` of the original, or ``.safetensors`` from ``convert_feature_files``.
        num_rows: expected rows: temporal positions, then spatial ones.
        width: expected width of the tower.

    Returns:
        (num_rows, width) float16.

    Raises:
        UserError: the file is missing, damaged, holds anything but one array, or an array of another model.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such feature file. Leave its rows out, or extract features from the video.")
    try:
        values = load_file(file)[_TENSOR] if file.suffix == ".safetensors" else _load_pickled(file)
    except (SafetensorError, KeyError, pickle.UnpicklingError, EOFError, ValueError, TypeError, MemoryError) as error:
        raise UserError(
            f"{file}: not a feature file of Video-ChatGPT ({error}); expected float16 {num_rows} x {width}; "
            f"extract the features of this video again."
        ) from error
    if tuple(values.shape) != (num_rows, width) or values.dtype != torch.float16:
        raise UserError(
            f"{file}: features of another model: {tuple(values.shape)} {values.dtype}, expected ({num_rows}, {width}) "
            f"float16. Set model.processor.feature_width, or point data.root to features made with this model."
        )
    return values


def convert_feature_files(source: Path, target: Path, num_rows: int, width: int) -> tuple[int, list[str]]:
    """Write every ``.pkl`` under ``source`` once as ``<id>.safetensors``; files already there are left alone.

    Returns:
        How many were written, and one message per file that was refused.
    """
    target.mkdir(parents=True, exist_ok=True)
    written, refused = 0, []
    for file in sorted(source.glob("*.pkl")):
        converted = target / f"{file.stem}.safetensors"
        if converted.exists():
            continue
        try:
            values = load_feature_file(file, num_rows, width)
        except UserError as error:
            refused.append(str(error))
            continue
        partial = converted.with_suffix(".partial")
        save_file({_TENSOR: values}, partial)
        partial.rename(converted)  # an interrupted run leaves no half file under the final name
        written += 1
    return written, refused


def _load_pickled(file: Path) -> Tensor:
    with file.open("rb") as handle:
        array = _ArrayUnpickler(handle).load()
    if not isinstance(array, np.ndarray):
        raise pickle.UnpicklingError(f"it holds a {type(array).__name__}")
    return torch.from_numpy(np.ascontiguousarray(array))
