"""Annotation files: rows from JSON and JSON lines, media paths, with errors that name the row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidtune.contracts import UserError


def find_annotation(root: Path, annotation: str, split: str) -> Path:
    """The annotation file of a split: below ``root``, or as a path of its own where nothing lies there.

    Args:
        annotation: file name; ``{split}`` in it is filled in.
    """
    name = annotation.replace("{split}", split)
    below = root / name
    return below if below.exists() or not Path(name).is_file() else Path(name)


def read_rows(path: Path, setting: str = "data.annotation") -> list[dict[str, Any]]:
    """Rows of a ``.json`` list or a ``.jsonl`` file.

    Raises:
        UserError: no such file, not JSON (with the line), not a list of objects, or no rows at all.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such annotation file. Set {setting} or data.root.")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            rows = []
            # Not ``splitlines``: JSON strings may hold U+2028 and its like as they are.
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    try:
                        rows.append(json.loads(line))
                    except json.JSONDecodeError as error:
                        raise UserError(f"{path}, line {number}: not JSON ({error}).") from error
        else:
            rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}). Expected a list of rows, or .jsonl.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a list of objects, found {type(rows).__name__}.")
    if not rows:
        raise UserError(f"{path}: the annotation holds no rows. Set {setting} to a file with at least one.")
    return rows


def required(row: Mapping[str, Any], key: str, where: str) -> Any:
    """``row[key]``.

    Raises:
        UserError: the row lacks the key; names the row and the keys it has.
    """
    if key not in row:
        raise UserError(f"{where}: no {key!r} in this row; it has {', '.join(map(repr, row))}.")
    return row[key]


def media_path(root: Path, path: str) -> str:
    """Absolute path of a medium; absolute paths of a row win over the media folder."""
    return str((root / path).absolute())


def split_of(key: str, val_fraction: float, test_fraction: float) -> str:
    """``train``, ``val`` or ``test`` by a hash of ``key``, so that adding a row never moves another.

    Args:
        key: what must stay together; the medium, for rows that ask about the same one.
        val_fraction, test_fraction: shares of all keys, each at least 0, together below 1.
    """
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if draw < test_fraction:
        return "test"
    return "val" if draw < test_fraction + val_fraction else "train"


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raises:
    UserError: shares below 0, or nothing left to train on.
    """
    if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise UserError(
            f"data.reader.val_fraction={val_fraction} and test_fraction={test_fraction} leave nothing to train on; "
            f"they must be at least 0 and their sum below 1."
        )
