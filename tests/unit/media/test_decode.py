"""Frames by number: the bar code in the frame must be the number asked for, in every container and codec."""

import logging

import av
import numpy as np
import pytest
from PIL import Image

from tests.unit.media.clips import CLIPS, HEIGHT, WIDTH, picture, read_number
from vidtune.contracts import MediaRef, UserError
from vidtune.media import MediaError, ProbeCache, probe, read_frames
from vidtune.media import decode as decode_module
from vidtune.media.container import load_index
from vidtune.media.pyav_reader import plan_runs


def sequential(path: str) -> list[int]:
    """Numbers in a plain decode from start to end."""
    with av.open(path) as container:
        frames = container.decode(container.streams.video[0])
        return [read_number(np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90)) for f in frames]


def wanted_sets(count: int) -> list[list[int]]:
    spread = np.round(np.linspace(0, count - 1, 8)).astype(int).tolist()
    shuffled = np.random.default_rng(3).integers(0, count, 20).tolist()
    return [list(range(count)), spread, shuffled, [count - 1], [0], [1, 2, 3, count - 2], [5, 5, 4, 5]]


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
@pytest.mark.parametrize("name", CLIPS)
def test_frame_i_is_the_frame_of_a_sequential_decode(clip, name, backend):
    spec, path = CLIPS[name], clip(name)
    truth = sequential(path)
    if spec.first is not None:
        assert truth == list(range(spec.first, spec.num_frames))
    ref = MediaRef(path)
    if backend == "decord":
        pytest.importorskip("decord", reason="no decord on this platform")
        if not spec.decord:
            with pytest.raises(UserError, match=r"media\.backend=decord.*media\.backend=auto"):
                next(read_frames(ref, [0], backend=backend))
            return
    for indices in wanted_sets(len(truth)):
        numbers = [read_number(frame) for frame in read_frames(ref, indices, backend=backend)]
        assert numbers == [truth[index] for index in indices], (name, indices)


@pytest.mark.parametrize("name", CLIPS)
def test_probe_counts_the_frames_that_can_be_read(clip, name):
    path = clip(name)
    count = len(sequential(path))
    header, exact = probe(MediaRef(path)), probe(MediaRef(path), exact=True)
    assert header.num_frames == exact.num_frames == count
    assert exact.exact
    assert header.fps == pytest.approx(25, rel=0.02)
    assert header.duration_s == pytest.approx(count / header.fps)
    frame = next(read_frames(MediaRef(path), [0]))
    assert frame.shape == (header.height, header.width, 3) and frame.dtype == np.uint8


def test_most_phone_and_web_videos_are_probed_without_reading_them(clip, monkeypatch):
    path = clip("short_groups.mp4")
    monkeypatch.setattr(decode_module, "load_index", lambda path: pytest.fail("the file was read through"))
    assert probe(MediaRef(path)).num_frames == 150


@pytest.mark.parametrize("name", ["short_groups.mp4", "odd_size.mp4", "rotated_90.mp4", "rotated_180.mp4"])
@pytest.mark.parametrize("size", [None, (64, 80), (224, 224)])
def test_both_backends_give_the_same_pixels(clip, name, size):
    pytest.importorskip("decord", reason="no decord on this platform")
    scale = {} if size is None else {"size": size, "frame_filter": "swscale_bilinear"}
    ours, theirs = (
        list(read_frames(MediaRef(clip(name)), [0, 30, 31, 149], backend=backend, **scale))
        for backend in ("pyav", "decord")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert size is None or a.shape[:2] == size
        np.testing.assert_array_equal(a, b)


def test_scaling_needs_a_named_filter(clip):
    ref = MediaRef(clip("short_groups.mp4"))
    with pytest.raises(UserError, match="swscale_bilinear"):
        next(read_frames(ref, [0], size=(64, 64)))
    with pytest.raises(UserError, match="without a size"):
        next(read_frames(ref, [0], frame_filter="swscale_bilinear"))


def test_unneeded_packets_are_not_decoded(clip):
    index = load_index(clip("short_groups.mp4"))
    runs = plan_runs(index, [0, 75, 149])
    assert [sorted(run.wanted.values()) for run in runs] == [[0], [75], [149]]
    assert sum(run.end - run.start + 1 for run in runs) <= 3 * 14
    dense = plan_runs(index, list(range(150)))
    assert len(dense) == 1 and (dense[0].start, dense[0].end) == (0, 149)


@pytest.mark.parametrize("name", ["short_groups.mp4", "short_groups.mkv", "intra.mp4"])
def test_jumping_over_many_groups_lands_on_the_right_frame(clip, name, monkeypatch):
    monkeypatch.setattr("vidtune.media.pyav_reader.SEEK_GAP", 1)
    for indices in wanted_sets(150):
        assert [read_number(frame) for frame in read_frames(MediaRef(clip(name)), indices)] == indices


def test_opencv_is_served_and_said_once(clip, caplog):
    decode_module._say_opencv.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert read_number(next(read_frames(MediaRef(clip("short_groups.mp4")), [7], backend="opencv"))) == 7
    assert len([r for r in caplog.records if "opencv" in r.getMessage()]) == 1


def test_unknown_backend_is_named(clip):
    with pytest.raises(UserError, match="torchcodec"):
        next(read_frames(MediaRef(clip("short_groups.mp4")), [0], backend="torchcodec"))


@pytest.mark.parametrize("name", ["short_groups.mp4", "h264_b.avi", "edit_list.mp4"])
@pytest.mark.parametrize("indices", [[150], [3, 9999], [-1]])
def test_an_index_outside_is_an_error_not_another_frame(clip, name, indices):
    with pytest.raises(MediaError, match="was asked for"):
        list(read_frames(MediaRef(clip(name)), indices))


@pytest.mark.parametrize("name", ["short_groups.mp4", "short_groups.mkv", "h264_b.avi"])
def test_a_segment_counts_from_its_own_start(clip, name):
    ref = MediaRef(clip(name), start_s=2.0, end_s=4.0)
    info = probe(ref)
    assert (info.num_frames, info.duration_s, info.ref) == (50, 2.0, ref)
    assert [read_number(frame) for frame in read_frames(ref, [0, 49, 1])] == [50, 99, 51]
    with pytest.raises(MediaError, match="segment holds 50"):
        list(read_frames(ref, [50]))
    with pytest.raises(MediaError, match="outside"):
        probe(MediaRef(clip(name), start_s=60.0))


def test_images_and_folders_are_short_videos(tmp_path):
    for number in (2, 10, 1):
        Image.fromarray(picture(number)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    one, folder = MediaRef(str(tmp_path / "frame_10.png"), "image"), MediaRef(str(tmp_path))
    info = probe(one)
    assert (info.num_frames, info.fps, info.height, info.width) == (1, 1.0, HEIGHT, WIDTH)
    assert read_number(next(read_frames(one, [0]))) == 10
    assert probe(folder).num_frames == 3
    assert [read_number(frame) for frame in read_frames(folder, [2, 0, 1])] == [10, 1, 2]
    small = next(read_frames(one, [0], size=(48, 80), frame_filter="swscale_bilinear"))
    assert small.shape == (48, 80, 3)


def test_an_animated_gif_is_a_video(tmp_path):
    path = str(tmp_path / "moving.gif")
    frames = [Image.fromarray(picture(number)) for number in range(6)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=200)
    info = probe(MediaRef(path))
    assert info.num_frames == 6 and info.fps == pytest.approx(5)
    assert [read_number(frame) for frame in read_frames(MediaRef(path), [5, 0, 3])] == [5, 0, 3]


def test_probe_cache_answers_without_the_file(clip, tmp_path, monkeypatch):
    path = clip("short_groups.mkv")
    first = ProbeCache(tmp_path).probe(MediaRef(path))
    (tmp_path / "headers.jsonl").open("a").write('{"path": "torn by a cra')
    again = ProbeCache(tmp_path)
    monkeypatch.setattr("vidtune.media.probe_cache.probe", lambda ref: pytest.fail("the file was opened again"))
    assert again.probe(MediaRef(path)) == first
    segment = again.probe(MediaRef(path, start_s=1.0, end_s=2.0))
    assert segment.num_frames == 25


def test_probe_cache_notices_a_changed_file(tmp_path):
    path = tmp_path / "image.png"
    cache = ProbeCache(tmp_path / "cache")
    Image.fromarray(picture(1)).save(path)
    assert cache.probe(MediaRef(str(path))).height == HEIGHT
    Image.fromarray(picture(1)[:50]).save(path)
    assert cache.probe(MediaRef(str(path))).height == 50
    path.unlink()
    with pytest.raises(MediaError, match="does not exist"):
        cache.probe(MediaRef(str(path)))
