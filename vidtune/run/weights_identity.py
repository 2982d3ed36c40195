"""Which weights a configuration means: known from files before they are loaded, exactly once they are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vidtune.contracts import UserError
from vidtune.models.loading import resolve_folder

KNOWN = "weights.json"


def settings_without_paths(cfg: DictConfig, section: Mapping[str, Any]) -> dict[str, Any]:
    """A section of the model's configuration without the values that name files: those count by their content."""
    return {key: value for key, value in section.items() if _file(cfg, value) is None}


def source_identity(cfg: DictConfig, stage: str, *more: Path) -> str:
    """Digest of name, size and time of change of every file that ``model.network`` and ``model.weights`` name.

    Args:
        stage: of the cache; it decides which weights are meant.
        more: files or folders that change weights after loading (an adapter).
    """
    roots = {file for value in _values(cfg) if (file := _file(cfg, value)) is not None} | set(more)
    files = sorted({file for root in roots for file in ([root] if root.is_file() else root.rglob("*"))})
    facts = [
        (file.name, found.st_size, found.st_mtime_ns) for file in files if not file.is_dir() and (found := file.stat())
    ]
    settings = [OmegaConf.to_container(part, resolve=True) for part in (cfg.model.network, cfg.model.weights)]
    # The seed counts where a part of the connector starts from random values.
    text = json.dumps([facts, settings, stage, cfg.seed if stage == "connected" else None], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def config_digest(cfg: DictConfig) -> str:
    """Content of the ``config.json`` files of the checkpoint: geometry that is in no tensor."""
    digest = hashlib.sha256()
    roots = {file for value in _values(cfg) if (file := _file(cfg, value)) is not None and file.is_dir()}
    for file in sorted({file for root in roots for file in root.rglob("config.json")}):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def fingerprint(modules: Iterable[nn.Module]) -> str:
    """Digest of all tensors of modules: names, types, shapes, values."""
    digest = hashlib.blake2b(digest_size=16)
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class KnownWeights:
    """Fingerprints of weights that were loaded before, by ``source_identity``.

    Args:
        folder: of the feature caches.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / KNOWN

    def get(self, source: str) -> str | None:
        """None where these files were never loaded."""
        return self._read().get(source)

    def remember(self, source: str, weights: str) -> None:
        known = self._read()
        if known.get(source) == weights:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(known | {source: weights}, indent=2) + "\n", encoding="utf-8")
        part.replace(self.file)

    def _read(self) -> dict[str, str]:
        try:
            return json.loads(self.file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}


def _values(cfg: DictConfig) -> Iterator[Any]:
    for section in (cfg.model.network, cfg.model.weights):
        yield from (value for value in OmegaConf.to_container(section, resolve=True).values())  # type: ignore[union-attr]


def _file(cfg: DictConfig, value: Any) -> Path | None:
    """The file or folder that a value names: absolute, inside ``model.path``, or a hub id."""
    if not isinstance(value, str) or not value:
        return None
    inside = Path(str(cfg.model.path)) / value
    for candidate in (Path(value).expanduser(), inside):
        if (candidate.is_absolute() or "/" in str(candidate)) and candidate.exists():
            return candidate
    if value.count("/") == 1 and not value.startswith((".", "/", "~")):
        try:
            return resolve_folder(value)
        except UserError:
            return None
    return None
