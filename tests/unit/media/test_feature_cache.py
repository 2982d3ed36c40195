"""Stored features: the right ones, or none."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vidtune.contracts import MediaInfo, MediaItem, MediaPlan, MediaRef, UserError, VisualSpan
from vidtune.media import feature_store
from vidtune.media.feature_cache import FeatureCache, drawn
from vidtune.media.feature_store import FeatureStore

ABOUT = {"weights": "one", "processor": {"image_size": 64}}


@pytest.fixture
def video(tmp_path: Path) -> Path:
    file = tmp_path / "video.mp4"
    file.write_bytes(b"frames")
    return file


def plan(video: Path, frames: tuple[int, ...] = (0, 4), **options) -> MediaPlan:
    ref = MediaRef(str(video), **options.pop("ref", {}))
    return MediaPlan(MediaInfo(ref, 8, 4.0, 2.0, 48, 64), frames, (0.0, 1.0), (VisualSpan(3),), **options)


def item(key: str, values: torch.Tensor | None = None) -> MediaItem:
    values = torch.arange(6.0).reshape(3, 2) if values is None else values
    return MediaItem("video", {"values": values, "grid": torch.tensor([2, 3])}, 3, "video.mp4", "features", key)


def cache(folder: Path, about: dict = ABOUT, **options) -> FeatureCache:
    return FeatureCache(folder, about, "features", **options)


def stored(folder: Path, planned: MediaPlan, **options) -> FeatureCache:
    filled = cache(folder, **options)
    filled.add(item(filled.key(planned)))
    filled.flush()
    return filled


def test_features_come_back_with_values_layout_kind_and_stage(tmp_path: Path, video: Path) -> None:
    stored(tmp_path / "cache", plan(video))
    again = cache(tmp_path / "cache")
    found, bad = again.get(again.key(plan(video)))
    assert bad == "" and (found.kind, found.stage, found.num_placeholders) == ("video", "features", 3)
    assert torch.equal(found.tensors["values"], torch.arange(6.0).reshape(3, 2))
    assert torch.equal(found.tensors["grid"], torch.tensor([2, 3]))


@pytest.mark.parametrize(
    "other",
    [
        {"frames": (0, 5)},
        {"frame_size": (32, 32)},
        {"frame_filter": "swscale_bilinear"},
        {"extra": {"crop": (0, 0, 8, 8)}},
        {"ref": {"start_s": 0.5}},
        {"ref": {"kind": "image"}},
        {"ref": {"tiled": False}},
    ],
    ids=str,
)
def test_another_plan_of_the_same_file_is_a_miss(tmp_path: Path, video: Path, other: dict) -> None:
    filled = stored(tmp_path / "cache", plan(video))
    assert filled.get(filled.key(plan(video, **other))) is None


def test_a_changed_file_is_a_miss(tmp_path: Path, video: Path) -> None:
    filled = stored(tmp_path / "cache", plan(video))
    key = filled.key(plan(video))
    video.write_bytes(b"other!")
    os.utime(video, ns=(1, 1))
    assert filled.key(plan(video)) != key and filled.get(filled.key(plan(video))) is None


@pytest.mark.parametrize("about", [{"weights": "two"}, {"processor": {"image_size": 32}}], ids=str)
def test_features_of_other_weights_or_settings_are_never_found(tmp_path: Path, video: Path, about: dict) -> None:
    stored(tmp_path / "cache", plan(video))
    other = cache(tmp_path / "cache", ABOUT | about)
    assert other.get(other.key(plan(video))) is None


def test_a_truncated_shard_is_removed_and_its_features_are_missing(tmp_path: Path, video: Path) -> None:
    filled = stored(tmp_path / "cache", plan(video))
    (shard,) = filled.folder.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-5])
    again = cache(tmp_path / "cache")
    assert again.get(again.key(plan(video))) is None and not shard.exists()
    again.add(item(again.key(plan(video))))
    again.flush()
    assert again.get(again.key(plan(video))) is not None


def test_half_precision_on_disk_comes_back_in_the_type_the_network_made(tmp_path: Path, video: Path) -> None:
    filled = stored(tmp_path / "cache", plan(video), dtype=torch.float16)
    found, _ = filled.get(filled.key(plan(video)))
    assert found.tensors["values"].dtype == torch.float32
    assert found.tensors["grid"].dtype == torch.int64
    (shard,) = filled.folder.glob("*.safetensors")
    assert b'"F16"' in shard.read_bytes()[:1000]


def test_a_full_disk_is_named_and_leaves_nothing_half_written(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_half_way(tensors, path, metadata):
        save_file(tensors, path, metadata)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store, "save_file", fails_half_way)
    with pytest.raises(UserError, match=r"No space left on device.*media\.feature_cache"):
        stored(tmp_path / "cache", plan(video))
    assert not [file for file in (tmp_path / "cache").rglob("*") if "safetensors" in file.name]


def test_what_will_not_fit_is_refused_before_it_is_written(tmp_path: Path, video: Path) -> None:
    filled = cache(tmp_path / "cache")
    key = filled.key(plan(video))
    filled.expect([key, "another"], 10**15)
    with pytest.raises(UserError, match=r"needs .* GB more and .* GB are free"):
        filled.add(item(key))


def test_a_shard_is_written_when_the_last_expected_medium_has_come(tmp_path: Path, video: Path) -> None:
    filled = cache(tmp_path / "cache")
    filled.expect(["a", "b"], 6)
    filled.add(item("a"))
    assert "a" not in filled
    filled.add(item("b"))
    assert "a" in filled and "b" in filled


def test_another_process_finds_what_was_stored_after_it_opened_the_cache(tmp_path: Path, video: Path) -> None:
    reader = cache(tmp_path / "cache")
    filled = stored(tmp_path / "cache", plan(video))
    assert reader.get(filled.key(plan(video))) is not None


def _fill(folder: Path, first: int) -> None:
    store = FeatureStore(folder, shard_bytes=200)
    for number in range(first, first + 20):
        store.add(f"key{number}", {"values": torch.full((4, 4), float(number))}, {})
    store.flush()


def test_two_processes_fill_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, first)) for first in (0, 10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    store = FeatureStore(tmp_path)
    for number in range(30):
        assert torch.equal(store.read(f"key{number}").tensors["values"], torch.full((4, 4), float(number)))
    assert not list(tmp_path.glob("*.part"))


def test_draws_are_compared_by_all_that_pixels_depend_on(video: Path) -> None:
    assert drawn(plan(video)) == drawn(plan(video))
    assert drawn(plan(video, extra={"crop": (0, 1)})) != drawn(plan(video, extra={"crop": (0, 2)}))
