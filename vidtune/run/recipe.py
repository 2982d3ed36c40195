"""The input recipe of a run: saved with it, and composed again from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from vidtune.config.schema import TrainConfig
from vidtune.contracts import Processor, UserError

RECIPE_KEYS = ("model", "data", "media", "batch", "tuning", "eval", "paths", "seed")
"""The input recipe: what evaluation takes from a run."""


def save_recipe(cfg: DictConfig, processor: Processor, run_dir: Path) -> None:
    """Write configuration and tokenizer: with them a run folder needs no other source of either.

    ``config.yaml`` keeps its interpolations, so that an override at evaluation reaches all that follows from it;
    ``config.resolved.yaml`` is the record of the values of this run.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    processor.save_tokenizer(run_dir / "tokenizer")
    OmegaConf.save(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)), run_dir / "config.resolved.yaml")
    OmegaConf.save(OmegaConf.create(OmegaConf.to_container(cfg, resolve=False)), run_dir / "config.yaml")


def load_recipe(run_dir: Path) -> DictConfig:
    """The configuration of a run, its tokenizer taken from the run folder.

    Raises:
        UserError: no run folder, or one without a configuration.
    """
    file = run_dir / "config.yaml"
    if not file.is_file():
        what = "holds no config.yaml" if run_dir.is_dir() else "does not exist"
        raise UserError(f"run={run_dir}: the run folder {what}. Name a folder that train.py made (paths.runs_dir).")
    cfg = OmegaConf.load(file)
    assert isinstance(cfg, DictConfig)
    tokenizer = run_dir / "tokenizer"
    if tokenizer.is_dir():
        cfg.model.tokenizer_path = str(tokenizer)
    return cfg


def with_recipe(cfg: DictConfig, run_dir: Path, overrides: Sequence[str], everything: bool = False) -> DictConfig:
    """A configuration whose recipe is that of a run, except for what the command line says.

    Keys that are younger than the run have the defaults of the schema.

    Args:
        cfg: as composed from the command line, defaults included.
        run_dir: run folder.
        overrides: the command line's ``key=value`` and ``group=choice``, which win over the run.
        everything: take the whole configuration of the run, not its recipe alone (to resume it).
    """
    saved = OmegaConf.to_container(load_recipe(run_dir), resolve=False)
    assert isinstance(saved, dict)
    kinds = get_type_hints(TrainConfig)
    merged = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    keys = [str(key) for key in saved] if everything else [key for key in RECIPE_KEYS if key in saved]
    for key in keys:
        OmegaConf.update(merged, key, _completed(saved[key], kinds.get(key)), merge=False)
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~").split("@")[0].replace("/", ".")
        if key.split(".")[0] in keys:
            OmegaConf.update(merged, key, _unresolved(cfg, key), merge=False)
    return merged


def _completed(saved: Any, kind: Any) -> Any:
    """A saved value, and what its type in the schema has beyond it."""
    if isinstance(saved, dict) and is_dataclass(kind):
        kinds = get_type_hints(kind)
        known = {str(key): _completed(value, kinds.get(str(key))) for key, value in saved.items()}
        return {**OmegaConf.to_container(OmegaConf.structured(kind)), **known}  # type: ignore[dict-item]
    if isinstance(saved, dict) and get_origin(kind) is dict:
        return {key: _completed(value, get_args(kind)[1]) for key, value in saved.items()}
    return saved


def _unresolved(cfg: DictConfig, key: str) -> Any:
    """The value at a dotted key, interpolations kept, so that it follows other overrides."""
    value = OmegaConf.to_container(cfg, resolve=False)
    for name in key.split("."):
        assert isinstance(value, dict)
        value = value[name]
    return value
