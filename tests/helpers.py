"""Pieces that tests share: a readable tokenizer, small data, composed configurations, runs in a process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vidtune.config import resolvers, schema
from vidtune.data.shapes import prepare_shapes

ROOT = Path(__file__).parents[1]
SMALL_SHAPES = {"num_train": 16, "num_val": 6, "num_test": 8, "seed": 0}


class CountingTokenizer:
    """One id per character (its code point), with offsets; ids of special tokens are below 8."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __call__(self, text: str, add_special_tokens: bool = True, return_offsets_mapping: bool = False) -> dict:
        assert not add_special_tokens
        encoding = {"input_ids": [ord(character) for character in text]}
        if return_offsets_mapping:
            encoding["offset_mapping"] = [(index, index + 1) for index in range(len(text))]
        return encoding

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(token) for token in token_ids if token >= 8)


def small_shapes(root: Path) -> Path:
    prepare_shapes(root, progress=False, **SMALL_SHAPES)
    return root


def config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A configuration as the command line composes it."""
    schema.register()
    resolvers.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, list(overrides))


def small_run(shapes: Path, cache_dir: Path, runs_dir: Path, *overrides: str) -> list[str]:
    """Overrides of a training run of six steps on the small shapes."""
    return [
        f"data.root={shapes}",
        *(f"data.prepare.{key}={value}" for key, value in SMALL_SHAPES.items()),
        "data.num_workers=0",
        "hardware=cpu",
        f"paths.runs_dir={runs_dir}",
        f"paths.cache_dir={cache_dir}",
        "global_batch_size=8",
        "micro_batch_size=4",
        "trainer.max_steps=6",
        "trainer.val_every=3",
        "trainer.val_samples=8",
        "trainer.log_every=1",
        "optim.schedule.warmup_steps=1",
        *overrides,
    ]


def python(script: str, *arguments: str, cwd: Path = ROOT, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """A script of the repository in a process of its own, as a user types it."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
