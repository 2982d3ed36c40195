"""Curves go where the user asked, a resumed run goes on under its id, and a run that stops learning may end early."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.distributed.group import cut
from tests.helpers import config, small_run
from vidtune.run import train
from vidtune.run.train import RUN_DIR_VARIABLE


def run(overrides: list[str]) -> None:
    os.environ.pop(RUN_DIR_VARIABLE, None)
    try:
        train(config("train", overrides), overrides)
    finally:
        os.environ.pop(RUN_DIR_VARIABLE, None)


def test_early_stopping_ends_a_run_that_no_longer_improves(shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    words = [word for word in small_run(shapes, cache_dir, tmp_path) if not word.startswith("trainer.val_every")]
    words += ["trainer.val_every=1", "optim.lr=0.0", "trainer.monitor=val/loss", "trainer.monitor_mode=min"]
    run([*words, "run_name=on", "trainer.early_stopping=2"])
    assert json.loads((tmp_path / "on" / "summary.json").read_text())["step"] == 3
    run([*words, "run_name=off"])
    assert json.loads((tmp_path / "off" / "summary.json").read_text())["step"] == 6


def test_a_resumed_run_goes_on_under_the_same_id(
    shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = small_run(shapes, cache_dir, tmp_path, "logger=wandb", "logger.wandb.offline=true")
    words = [word for word in words if not word.startswith("trainer.val_every")]
    run([*words, "trainer.val_every=6", "trainer.checkpoint_every=3", "run_name=curves"])
    (first,) = (tmp_path / "curves" / "wandb").glob("offline-run-*")
    cut(tmp_path / "curves", tmp_path / "again" / "curves", 3)
    run([f"resume={tmp_path / 'again' / 'curves'}"])
    runs = {path.name.rsplit("-", 1)[1] for path in (tmp_path / "again" / "curves" / "wandb").glob("offline-run-*")}
    assert first.name.endswith("-curves") and runs == {"curves"}
    assert len(list((tmp_path / "again" / "curves" / "wandb").glob("offline-run-*"))) == 2


def test_tensorboard_curves_lie_in_the_run_folder(shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    run(small_run(shapes, cache_dir, tmp_path, "logger=tensorboard", "run_name=board"))
    assert list((tmp_path / "board").rglob("events.out.tfevents.*"))
