"""The shapes questions about motion and order are about the video, not about a picture of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers import config
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE


def test_with_one_frame_direction_and_order_stay_near_chance_while_count_is_learnt(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    overrides = [
        f"data.root={tmp_path / 'shapes'}",
        "data.prepare.num_train=400",
        "data.prepare.num_val=2",
        "data.prepare.num_test=100",
        "data.num_frames=1",
        "data.num_workers=0",
        "hardware=cpu",
        f"paths.cache_dir={cache_dir}",
        f"paths.runs_dir={tmp_path}",
        "run_name=one_frame",
        "trainer.max_steps=200",
        "trainer.val_every=200",
    ]
    train(config("train", overrides), overrides)
    os.environ.pop(RUN_DIR_VARIABLE, None)
    arguments = [f"run={tmp_path / 'one_frame'}", "checkpoint=last", "eval.report_samples=0", "hardware=cpu"]
    metrics = evaluate(config("evaluate", arguments), arguments)
    assert metrics["accuracy/count"] > 0.8
    # Three standard errors of 100 questions at chance.
    assert abs(metrics["accuracy/direction"] - 0.25) < 0.13
    assert abs(metrics["accuracy/order"] - 0.50) < 0.15
