"""Frame choices against the tables that the originals' own functions gave."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vidtune.contracts import UserError
from vidtune.media import sampling
from vidtune.media.sampling import SAMPLING, draw_rng, fit_short, get_sampling, segment_span

GOLDEN = Path(os.environ.get("VIDTUNE_GOLDEN") or Path(__file__).parents[2] / "golden")
RNG = np.random.default_rng(0)


def tables(family: str, pattern: str) -> list[Path]:
    return sorted(GOLDEN.glob(f"{family}/case_*/{pattern}"))


def assert_every_row(paths: list[Path], policy: str, rows_of, total: str, count: str) -> None:
    assert paths, f"no golden tables under {GOLDEN}"
    checked = 0
    for path in paths:
        for row in rows_of(json.loads(path.read_text())):
            assert get_sampling(policy)(row[total], row[count], 25.0, RNG) == row["indices"], (path, row)
            checked += 1
    assert checked


def test_stride_equals_aria():
    assert_every_row(tables("aria", "tables/frame_indices.json"), "stride", iter, "total_frames", "num_frames")


def test_rounded_midpoints_equal_video_chatgpt():
    paths = tables("video_chatgpt", "expected/frame_indices.json")
    assert_every_row(paths, "rounded_midpoints", iter, "total_frames", "num_frames")


def test_linspace_equals_nvila():
    paths = [p for p in tables("nvila", "**/expected.json") if "frame_index_table" in json.loads(p.read_text())]
    rows = lambda table: table["frame_index_table"]  # noqa: E731
    assert_every_row(paths, "linspace", rows, "total_frames", "num_video_frames")


def test_segment_starts_equal_video_llama():
    paths = tables("video_llama", "expected/sampler_table.json")
    rows = lambda table: [row for row in table if row["sampling"] == "uniform"]  # noqa: E731
    assert_every_row(paths, "segment_starts", rows, "total", "n_frms")
    assert_every_row(tables("video_llama", "expected/frames.json"), "segment_starts", iter, "total", "n_frms")


def test_headtail_equals_video_llama_with_its_generator():
    rows = [row for p in tables("video_llama", "expected/sampler_table.json") for row in json.loads(p.read_text())]
    rows = [row for row in rows if row["sampling"] == "headtail"]
    assert rows
    for row in rows:
        choose = random.Random(row["seed"]).sample
        assert sampling.headtail_indices(row["total"], row["n_frms"], choose) == row["indices"]


def internvideo_rows(kind: str) -> list[dict]:
    rows = [row for p in tables("internvideo25", "expected_sampling.json") for row in json.loads(p.read_text())[kind]]
    assert rows
    return rows


@pytest.mark.parametrize("policy", ["middle", "chat"])
def test_fixed_choices_equal_internvideo(policy):
    for row in internvideo_rows(policy):
        assert SAMPLING[policy](row["vlen"], row["num_frames"], row["fps"], RNG) == row["indices"], row


def test_rand_equals_internvideo_with_its_generators():
    for row in internvideo_rows("rand"):
        pick, permute = random.Random(row["seed"]).choice, np.random.RandomState(row["seed"]).permutation
        assert sampling.rand_indices(row["vlen"], row["num_frames"], pick, permute) == row["indices"], row


def test_bounded_chat_equals_internvideo():
    for row in internvideo_rows("chat_bound"):
        indices = sampling.chat(row["vlen"], row["num_frames"], row["fps"], RNG, bound_s=tuple(row["bound"]))
        assert indices == row["indices"], row


def test_segments_equal_internvideo_clips():
    for row in internvideo_rows("middle_clip"):
        first, length = segment_span(row["vlen"], row["fps"], *row["clip"])
        chosen = sampling.middle(length, row["num_frames"], row["fps"], RNG)
        assert [first + index for index in chosen] == row["indices"], row


def test_cell_centres_equal_internvideo():
    for row in internvideo_rows("fpsX"):
        target = float(row["sample"].removeprefix("fps"))
        indices = sampling.cell_centres(row["vlen"], row["max_num_frames"], row["fps"], RNG, target_fps=target)
        assert indices == row["indices"], row


def test_frame_counts_by_duration_equal_internvideo():
    for row in internvideo_rows("num_frames_by_duration"):
        count = sampling.frame_count_by_duration(row["duration"], row["min_num_frames"], row["max_num_frames"])
        assert count == row["num_frames"], row
    for row in internvideo_rows("dynamic_fps1"):
        count = sampling.frame_count_by_duration(row["vlen"] / row["fps"], row["min_num_frames"], row["max_num_frames"])
        assert sampling.middle(row["vlen"], count, row["fps"], RNG) == row["indices"], row


def test_uniform_takes_segment_middles():
    assert SAMPLING["uniform"](8, 4, 25.0, RNG) == [1, 3, 5, 7]
    assert SAMPLING["uniform"](2, 4, 25.0, RNG) == [0, 0, 1, 1]
    assert SAMPLING["uniform"](1, 3, 25.0, RNG) == [0, 0, 0]


def test_fps_with_cap_follows_time_until_the_cap():
    assert SAMPLING["fps_with_cap"](100, 64, 25.0, RNG) == [12, 37, 62, 87]
    assert SAMPLING["fps_with_cap"](1000, 4, 25.0, RNG) == [125, 375, 625, 875]
    assert SAMPLING["fps_with_cap"](5, 8, 25.0, RNG) == [2]


@pytest.mark.parametrize("policy", sorted(SAMPLING))
def test_every_policy_stays_within_the_medium(policy):
    for num_frames in (1, 2, 3, 7, 8, 9, 31, 300):
        for count in (1, 4, 8, 13):
            indices = SAMPLING[policy](num_frames, count, 25.0, np.random.default_rng(1))
            assert 1 <= len(indices) <= count
            assert all(type(index) is int and 0 <= index < num_frames for index in indices)
            assert indices == sorted(indices)


@pytest.mark.parametrize("policy", ["headtail", "random", "rand"])
def test_random_policies_depend_on_the_given_generator_only(policy):
    draws = [SAMPLING[policy](300, 8, 25.0, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_unknown_policy_lists_the_known_ones():
    with pytest.raises(UserError, match="rounded_midpoints"):
        get_sampling("Uniform")


def test_a_policy_cannot_be_replaced_unseen():
    with pytest.raises(UserError, match="defined twice"):
        sampling.register_sampling("uniform")(sampling.uniform)


@pytest.mark.parametrize(
    "short, expected",
    [("repeat", [0, 0, 1, 1, 2, 2]), ("loop", [0, 1, 2, 0, 1, 2]), ("pad", [0, 1, 2, 2, 2, 2]), (None, [7])],
)
def test_short_media_follow_the_chosen_rule(short, expected):
    assert fit_short([7], 3, 6, short) == expected
    assert fit_short([7], 6, 6, short) == [7]


def test_unknown_short_rule_is_named():
    with pytest.raises(UserError, match=r"media\.short"):
        fit_short([0], 1, 2, "mirror")


def test_draws_differ_by_seed_epoch_and_medium():
    keys = [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 0, "a#1.0-2.0")]
    draws = [draw_rng(*key).integers(2**60) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draw_rng(0, 0, "a").integers(2**60) == draws[0]


def test_draws_are_the_same_in_another_process():
    code = "from vidtune.media.sampling import draw_rng; print(draw_rng(3, 1, 'x.mp4').integers(2**60))"
    environment = {**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == draw_rng(3, 1, "x.mp4").integers(2**60)


def test_segments_outside_are_empty():
    assert segment_span(100, 25.0, 10.0, 12.0)[1] <= 0
    assert segment_span(100, 25.0, 10.0, None)[1] <= 0
    assert segment_span(100, 25.0, 1.0, None) == (25, 75)
    assert segment_span(100, 25.0, 1.0, 1.01) == (25, 1)
