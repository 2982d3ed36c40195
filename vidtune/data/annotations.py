"""Annotation files: rows from JSON and JSON lines, media paths, with errors that name the row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidtune.contracts import UserError


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
            for number, line in enumerate(text.splitlines(), start=1):
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
    return str(root / path)
