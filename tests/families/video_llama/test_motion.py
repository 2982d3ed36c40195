"""Actions that differ only in the direction of a motion: learnt from eight frames, and nothing to learn from one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from rich.console import Console

from tests.helpers import config
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.data.prepare.actions import prepare
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SIDE, FRAMES, REACH = 56, 12, 20
"""Pixels, frames, pixels from the first to the last of them."""
CLASSES = {"moves_left": -1, "moves_right": 1}
NUM_TRAIN, NUM_TEST = 200, 50
"""Videos per class."""


def write_video(file: Path, direction: int, rng: np.random.Generator) -> None:
    """A square that starts somewhere in the middle, whatever its direction, and stays in the picture."""
    size, y = rng.integers(8, 13), rng.integers(0, SIDE - 12)
    start = rng.integers(REACH, SIDE - REACH - size + 1)
    ground, colour = rng.integers(0, 90, 3), rng.integers(150, 256, 3)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(FRAMES):
            x = start + round(direction * REACH * number / (FRAMES - 1))
            shown = np.full((SIDE, SIDE, 3), ground, np.uint8)
            shown[y : y + size, x : x + size] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, "rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of actions, prepared as a user prepares them."""
    root, rng = tmp_path_factory.mktemp("motion"), np.random.default_rng(0)
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        for name, direction in CLASSES.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                write_video(root / split / name / f"{number:03d}.mp4", direction, rng)
    prepare(root, {"val_fraction": "0"}, Console(quiet=True))
    return root


@pytest.fixture(scope="module", params=[8, 1], ids=["eight_frames", "one_frame"])
def learnt(
    request: pytest.FixtureRequest, actions: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """(frames per video, run folder)."""
    os.environ.pop(RUN_DIR_VARIABLE, None)
    words = [
        "model=video_llama_tiny",
        "data=actions",
        f"data.root={actions}",
        f"data.num_frames={request.param}",
        "data.val_split=''",
        "data.num_workers=0",
        "hardware=cpu",
        "global_batch_size=16",
        "micro_batch_size=16",
        "trainer.max_steps=300",
        f"paths.cache_dir={cache_dir}",
        f"paths.runs_dir={tmp_path_factory.mktemp('runs')}",
        "run_name=motion",
    ]
    cfg = config("train", words)
    train(cfg, words)
    os.environ.pop(RUN_DIR_VARIABLE, None)
    return request.param, Path(cfg.paths.runs_dir) / "motion"


@pytest.mark.parametrize("scoring", ["generate", "likelihood"])
def test_direction_is_learnt_from_eight_frames_and_left_to_chance_by_one(
    learnt: tuple[int, Path], scoring: str, tmp_path: Path
) -> None:
    num_frames, run = learnt
    trained = torch.load(find_checkpoint(run, "last"), weights_only=True)["state_dict"]
    assert any("video_qformer" in name for name in trained)
    words = [f"run={run}", "checkpoint=last", f"eval.scoring={scoring}", "hardware=cpu", f"output={tmp_path}"]
    metrics = evaluate(config("evaluate", words), words)
    print(f"{num_frames} frames, {scoring}: {json.dumps(metrics)}")
    if num_frames > 1:
        assert metrics["accuracy"] > 0.9
    else:
        # Three standard errors of 100 videos at chance.
        assert abs(metrics["accuracy"] - 0.5) <= 0.15
