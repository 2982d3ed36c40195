"""Processes whose rows differ in kind never wait for each other."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from tests.distributed.group import losses, run_group
from tests.helpers import small_run

pytestmark = pytest.mark.slow

STRATEGIES = ("ddp", "zero2", "zero3", "fsdp")


@pytest.fixture(scope="module")
def questions(shapes, tmp_path_factory):
    """Four samples, all of one step: the long text fills one row alone, video and image share the other."""
    folder = tmp_path_factory.mktemp("questions")
    shutil.copy(next(shapes.rglob("*.mp4")), folder / "video.mp4")
    Image.new("RGB", (64, 64), "red").save(folder / "image.png")
    rows = [
        {"id": "text", "question": "how many " * 40, "answer": "red green blue yellow"},
        {"id": "video", "video": "video.mp4", "question": "which shape ?", "answer": "circle"},
        {"id": "image", "image": "image.png", "question": "which colour ?", "answer": "red"},
        {"id": "short", "question": "count ?", "answer": "1"},
    ]
    for split in ("train", "val"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.timeout(600)
def test_a_text_row_beside_a_row_of_image_and_video_trains_under_every_strategy(
    questions, shapes, cache_dir, tmp_path_factory
):
    runs = tmp_path_factory.mktemp("mixed")
    shapes_keys = ("data.root", "data.prepare")

    def job(name, *overrides):
        base = [word for word in small_run(shapes, cache_dir, runs) if not word.startswith(shapes_keys)]
        data = ("data=questions", f"data.root={questions}", "data.num_workers=0", "tuning=full")
        sizes = ("global_batch_size=4", "micro_batch_size=2", "trainer.max_steps=2", "trainer.val_every=2")
        return [*data, *base, *sizes, f"run_name={name}", *overrides]

    run_group(runs / "one", [job("single")], processes=1)
    # Two targets per call of the head: the rows then call it a different number of times.
    jobs = [["head_chunk", "2"], *(job(name, f"strategy={name}", "hardware.devices=2") for name in STRATEGIES)]
    run_group(runs / "two", jobs)
    expected = losses(runs / "single")
    assert len(expected) == 2
    for name in STRATEGIES:
        assert losses(runs / name) == pytest.approx(expected, rel=2e-5), name
