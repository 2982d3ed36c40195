"""Files of a checkpoint folder that are not weights."""

from __future__ import annotations

import shutil
from pathlib import Path

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".index.json", ".h5", ".msgpack", ".gguf")
_OURS = ("README.md", "adapter_config.json")
_LARGEST = 100_000_000
"""Bytes; larger ones are weights under another name."""


def copy_side_files(source: Path, target: Path) -> list[str]:
    """Copy processor settings, templates, licences and the code that a hub folder brings, where the target lacks them.

    With them the folder opens wherever its source did: an image processor's ``preprocessor_config.json``, the
    ``modeling_*.py`` that ``auto_map`` in ``config.json`` names.

    Returns:
        Names of what was copied.
    """
    copied = []
    for file in sorted(source.iterdir()) if source.is_dir() else ():
        if (
            file.is_file()
            and not file.name.startswith(".")
            and not file.name.endswith(_WEIGHTS)
            and file.name not in _OURS
            and file.stat().st_size <= _LARGEST
            and not (target / file.name).exists()
        ):
            shutil.copyfile(file, target / file.name)
            copied.append(file.name)
    return copied
