"""The original's extraction of features as one command, and the recipe trained from what it wrote."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.helpers import config
from tests.integration.test_recipes import video_instruct
from vidtune.commands.main import main as vidtune
from vidtune.run import train
from vidtune.run.train import RUN_DIR_VARIABLE


@pytest.fixture
def words(shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tiny recipe on four videos, one of which cannot be read."""
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")
    data = video_instruct(tmp_path / "data", sorted(shapes.rglob("*.mp4"))[:4])
    broken = tmp_path / "data/videos/v_00000000003.mp4"
    broken.write_bytes(broken.read_bytes()[:100])
    recipe = ["experiment=video_chatgpt_100k_connector", "model=video_chatgpt_tiny", *data, "hardware=cpu"]
    recipe += ["data.num_workers=0", "global_batch_size=4", "micro_batch_size=2", "media.max_bad_fraction=0.5"]
    return [*recipe, f"paths.cache_dir={cache_dir}", f"paths.runs_dir={tmp_path}"]


def losses(words: list[str], monkeypatch: pytest.MonkeyPatch, runs: Path, name: str) -> list[float]:
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")
    words = [*words, "trainer.max_steps=3", "trainer.log_every=1", f"run_name={name}"]
    train(config("train", words), words)
    with (runs / name / "metrics.csv").open() as handle:
        return [float(row["train/loss"]) for row in csv.DictReader(handle) if row.get("train/loss")]


def test_features_ahead_of_time_are_half_precision_survive_a_bad_clip_and_train_without_the_tower(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = [*words, f"media.feature_cache={tmp_path / 'features'}"]
    named = []
    for shard in ("0/2", "1/2"):  # two processes, or two nodes
        assert vidtune(["precompute", "--shard", shard, *cached]) == 0
        named.append("v_00000000003.mp4" in capsys.readouterr().out)
    assert sorted(named) == [False, True]
    stored = []
    for file in (tmp_path / "features").rglob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            stored += [shard.get_tensor(name) for name in shard.keys()]
    pooled = [tensor for tensor in stored if tensor.shape == (72, 32)]
    assert len(pooled) >= 4 and {tensor.dtype for tensor in pooled} == {torch.float16}

    expected = losses(words, monkeypatch, tmp_path, "frames")
    monkeypatch.setattr("vidtune.data.media_source.read_frames", None)  # nothing is decoded any more
    read = losses([*cached, "media.feature_cache_mode=read"], monkeypatch, tmp_path, "stored")
    assert len(read) == 3 and read == pytest.approx(expected, rel=1e-6)
