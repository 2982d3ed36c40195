"""What made the answers of an evaluation: the settings that decide them, and facts for the table."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vidtune.contracts import Processor, Sample
from vidtune.data.media_source import MediaSource
from vidtune.data.rows import Encoder
from vidtune.media import decoder_name
from vidtune.run.recipe import RECIPE_KEYS
from vidtune.run.table_rows import TableRow

_HASHED_PROMPTS = 8


def deciding_settings(row: TableRow, split: str) -> dict[str, Any]:
    """Half-written predictions are never continued with other ones than these. How answers are scored is not among
    them: scores are computed anew from the answers every time."""
    cfg = row.cfg
    recipe = OmegaConf.to_container(
        OmegaConf.masked_copy(cfg, [k for k in RECIPE_KEYS if k not in ("paths", "tuning")])
    )
    assert isinstance(recipe, dict)
    for key in ("task", "num_workers"):
        recipe["data"].pop(key, None)
    recipe["eval"] = {key: cfg.eval[key] for key in ("scoring", "max_new_tokens", "limit")}
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return {
        "model": cfg.model.name,
        "model_path": str(cfg.model.path),
        "checkpoint": row.checkpoint.name if row.checkpoint else None,
        "adapter": row.adapter,
        "data": cfg.data.name,
        "split": split,
        "num_frames": cfg.data.num_frames,
        "scoring": cfg.eval.scoring,
        "precision": cfg.hardware.precision,
        "recipe": digest,
    }


def table_facts(row: TableRow, processor: Processor, source: MediaSource, samples: Sequence[Sample]) -> dict[str, Any]:
    """What a reader of the table must know about a row: one column each."""
    cfg = row.cfg
    trained = "adapter" if row.adapter else "untuned"
    return {
        "frames": cfg.data.num_frames,
        "resolution": _resolution(processor),
        "prompt": prompt_hash(processor, source, samples),
        "decoder": decoder_name(cfg.media.backend),
        "precision": f"{cfg.model.dtype}, {cfg.hardware.precision}",
        "scoring": cfg.eval.scoring,
        "checkpoint": row.checkpoint.stem if row.checkpoint else trained,
        "seed": cfg.seed,
        "commit": commit(),
    }


def prompt_hash(processor: Processor, source: MediaSource, samples: Sequence[Sample]) -> str:
    """Equal for rows that were asked in the same words and tokens: of the first prompts' ids, placeholders included."""
    encoder = Encoder(processor, source, "infer")
    ids = [encoder(sample, generation=True).input_ids for sample in samples[:_HASHED_PROMPTS]]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8]


def commit() -> str | None:
    """Commit of the code, with a plus where files were changed since; None outside of a clone."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _resolution(processor: Processor) -> str | None:
    """Height x width of what the tower sees (of one tile, for a model that cuts images); None for feature files."""
    pixels = processor.dummy_media().tensors.get("pixel_values")
    return None if pixels is None or pixels.ndim < 4 else "x".join(str(size) for size in pixels.shape[-2:])
