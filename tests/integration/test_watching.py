"""Controls on a trained model, and on one that never saw a video: what docs/evaluation.md shows, measured again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.helpers import config
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE

pytestmark = pytest.mark.slow  # trains until directions are learnt: minutes on a CPU

VIDEOS = {"num_train": 1200, "num_val": 25, "num_test": 100}


@pytest.fixture(scope="module")
def full_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


def measure(folder: Path, *overrides: str) -> tuple[dict[str, dict[str, float]], str]:
    """Train, then accuracy by question type and control, with the sentences below the table."""
    words = ["hardware=cpu", f"paths.runs_dir={folder}", "run_name=run", "data.num_workers=1", *overrides]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(RUN_DIR_VARIABLE, raising=False)
        train(config("train", words), words)
    words = [f"run={folder}/run", "hardware=cpu", "eval.controls=true", "eval.report_samples=0", f"output={folder}/out"]
    evaluate(config("evaluate", words), words)
    rows = {row["question type"]: row for row in csv.DictReader((folder / "out/controls.csv").open())}
    numbers = ("video", "no video", "one frame", "shuffled frames", "other video", "video gain")
    notes = (folder / "out/controls.md").read_text()
    return {kind: {name: float(row[name]) for name in numbers} for kind, row in rows.items()}, notes


def test_direction_and_order_lose_without_motion_and_count_keeps(
    full_shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    prepare = [f"data.prepare.{key}={value}" for key, value in VIDEOS.items()]
    found, notes = measure(tmp_path, f"data.root={full_shapes}", *prepare, f"paths.cache_dir={cache_dir}")
    # Chance is 1/4 for a direction and 1/2 for an order; three standard errors of 100 questions are 0.13 and 0.15.
    for control in ("one frame", "shuffled frames"):
        assert found["direction"][control] < found["direction"]["video"] - 0.3
        assert found["order"][control] < found["order"]["video"] - 0.3
        assert found["count"][control] > found["count"]["video"] - 0.1
    assert found["total"]["video gain"] > 0.5 and "it uses the video." in notes


def test_a_model_trained_without_videos_is_told_that_they_do_not_matter(
    full_shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    from vidtune.data.shapes import prepare_shapes

    prepare_shapes(full_shapes, **VIDEOS, seed=0, progress=False)
    (tmp_path / "videos").symlink_to(full_shapes / "videos")
    for split in ("train", "val", "test"):
        rows = [json.loads(line) for line in (full_shapes / f"{split}.jsonl").read_text().splitlines()]
        for row in rows if split == "train" else ():
            del row["video"]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data=questions", f"data.root={tmp_path}", f"paths.cache_dir={cache_dir}", "trainer.max_steps=200"]
    found, notes = measure(tmp_path, *words)
    assert abs(found["total"]["video gain"]) < 0.05
    assert "not distinguishable from zero: it answers as well with another video." in notes
