"""What a user does with the feature cache: fill it, train and evaluate from it."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest

from tests.helpers import SMALL_SHAPES, config, small_run, small_shapes
from vidtune.commands.main import main
from vidtune.contracts import MediaItem
from vidtune.models.base import VideoLLM
from vidtune.run import evaluate, train
from vidtune.run.features import RunFeatures
from vidtune.run.precompute import precompute
from vidtune.run.train import RUN_DIR_VARIABLE

FROZEN = ["tuning=lora", "tuning.language.mode=full"]


@pytest.fixture(autouse=True)
def own_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of one test process choose their own folders."""
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    yield
    os.environ.pop(RUN_DIR_VARIABLE, None)


def losses(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    return [float(row[name]) for row in rows for name in ("train/loss", "val/loss") if row.get(name)]


def run(shapes: Path, cache_dir: Path, runs: Path, *overrides: str) -> list[float]:
    os.environ.pop(RUN_DIR_VARIABLE, None)
    words = small_run(shapes, cache_dir, runs, *FROZEN, "trainer.max_steps=10", "trainer.val_every=10", *overrides)
    train(config("train", words), words)
    return losses(runs / next(word.split("=")[1] for word in overrides if word.startswith("run_name=")))


def test_training_and_evaluation_with_the_cache_give_the_numbers_of_those_without(
    shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = f"media.feature_cache={tmp_path / 'features'}"
    expected = run(shapes, cache_dir, tmp_path, "run_name=frames")
    assert run(shapes, cache_dir, tmp_path, "run_name=filling", cached) == pytest.approx(expected, rel=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr("vidtune.data.media_source.read_frames", None)  # the second run decodes nothing
        read = run(shapes, cache_dir, tmp_path, "run_name=reading", cached, "media.feature_cache_mode=read")
    assert read == pytest.approx(expected, rel=1e-6)

    words = [f"run={tmp_path / 'frames'}", "hardware=cpu", "split=val", "data.num_workers=0"]
    answers = evaluate(config("evaluate", words), words)
    words = [f"run={tmp_path / 'reading'}", *words[1:], "media.feature_cache_mode=fill"]
    assert evaluate(config("evaluate", words), words) == pytest.approx(answers)


def test_precompute_in_two_shards_survives_a_bad_clip_and_leaves_nothing_to_decode(
    cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = small_shapes(tmp_path / "shapes")
    video = sorted(shapes.rglob("train/*.mp4"))[0]
    video.write_bytes(video.read_bytes()[:100])
    words = [f"data.root={shapes}", "data.num_workers=0", "hardware=cpu", f"paths.cache_dir={cache_dir}", *FROZEN]
    words += [f"data.prepare.{key}={value}" for key, value in SMALL_SHAPES.items()]
    words += [f"media.feature_cache={tmp_path / 'features'}", "global_batch_size=8", "micro_batch_size=4"]
    bad = []
    for shard in ("0/2", "1/2"):
        assert main(["precompute", "--shard", shard, *words]) == 0
        bad.append(f"train/{video.name}: " in capsys.readouterr().out)
    assert sorted(bad) == [False, True], "the bad clip is named by the process that met it"
    monkeypatch.setattr("vidtune.data.media_source.read_frames", None)
    overrides = [f"media.feature_cache={tmp_path / 'features'}", "media.feature_cache_mode=read", "run_name=read"]
    assert run(shapes, cache_dir, tmp_path, *overrides, "media.max_bad_fraction=0.5")
    shutil.rmtree(tmp_path / "features")


def test_an_interrupted_precompute_goes_on_where_it_stopped(
    shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data.root={shapes}", "data.prepare=null", "data.num_workers=0", "hardware=cpu", *FROZEN]
    words += [f"paths.cache_dir={cache_dir}", f"media.feature_cache={tmp_path}"]
    words += ["global_batch_size=8", "micro_batch_size=4"]
    encode, encoded = RunFeatures.encode, []

    def encode_some(self: RunFeatures, network: VideoLLM, item: MediaItem) -> MediaItem:
        if len(encoded) == 4:
            raise KeyboardInterrupt
        encoded.append(item.name)
        return encode(self, network, item)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFeatures, "encode", encode_some)
        precompute(config("train", words), ["train"])
    first = list(encoded)
    encoded.clear()
    monkeypatch.setattr(RunFeatures, "encode", lambda *call: encoded.append(call[2].name) or encode(*call))
    capsys.readouterr()
    precompute(config("train", words), ["train"])
    assert not set(first) & set(encoded), "nothing is encoded twice"
    assert len([name for name in (*first, *encoded) if name.endswith(".mp4")]) == SMALL_SHAPES["num_train"]
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.count("will take about") == printed.count("GB are free") == 1


@pytest.mark.parametrize("shard", ["2/2", "x", "1"])
def test_a_shard_that_does_not_exist_is_named(shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["precompute", "--shard", shard]) == 1
    assert f"--shard {shard}" in capsys.readouterr().err
