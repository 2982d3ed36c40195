"""Which frames are read, and the pixels that the tower sees."""

from __future__ import annotations

import pytest
import torch

from tests.families.internvideo25.support import RNG, assert_near, each_case, golden
from vidtune.contracts import MediaInfo, MediaRef, UserError


@each_case
def test_training_rows_read_the_frames_of_the_original(case):
    files = golden(case)
    for row in range(len(files.rows)):
        if "video" in files.rows[row]:
            info, first = files.info(row)
            plan = files.processor(row).plan_media(info, RNG, "train")
            assert [first + index for index in plan.frame_indices] == files.expected[f"r{row}.frame_indices"].tolist()
            assert plan.num_placeholders == 16 * len(plan.frame_indices)


@each_case
def test_frames_are_resized_by_pil_on_uint8(case):
    files = golden(case)
    for row in files.video_rows:
        pixels = files.media(row).tensors["pixel_values"]
        assert_near(pixels[files.stored_frames(row)], files.expected[f"r{row}.pixel_values"], 1e-6, f"row {row}")


@each_case
def test_the_stand_in_is_a_group_of_the_originals_white_frame(case):
    files = golden(case)
    item = files.processor().dummy_media()
    assert len(item.tensors["pixel_values"]) == files.config["golden"]["local_num_frames"]
    assert item.num_placeholders == files.config["golden"]["num_tome_tokens"]
    for row, entry in enumerate(files.text):
        if entry["kind"] == "text_only":
            for frame in item.tensors["pixel_values"]:
                assert_near(frame, files.expected[f"r{row}.pixel_values"][0], 1e-6)


def _info(kind: str = "video", num_frames: int = 150, fps: float = 30.0) -> MediaInfo:
    return MediaInfo(MediaRef("v.mp4", kind), num_frames, fps, num_frames / fps, 32, 32)


@each_case
@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [(150, [8, 27, 46, 65, 83, 102, 121, 140]), (5, [0, 1, 2, 3, 4, 4, 4, 4]), (1, [0] * 8)],
)
def test_short_and_long_videos_fill_the_groups(case, num_frames, expected):
    plan = golden(case).processor(template="internvl2_5").plan_media(_info(num_frames=num_frames), RNG, "train")
    assert list(plan.frame_indices) == expected
    assert plan.times_s == tuple(index / 30.0 for index in expected)


@each_case
def test_chat_may_sample_as_the_original_chat_does(case):
    processor = golden(case).processor(infer_sampling="chat")
    assert processor.plan_media(_info(), RNG, "train").frame_indices == (8, 27, 46, 65, 83, 102, 121, 140)
    assert processor.plan_media(_info(), RNG, "infer").frame_indices == (9, 28, 46, 65, 83, 102, 121, 139)


@each_case
def test_longer_videos_get_more_frames_only_where_the_limits_differ(case):
    def count(duration_s: float, **options: int) -> int:
        processor = golden(case).processor(**options)
        return len(processor.plan_media(_info(num_frames=int(duration_s * 30)), RNG, "train").frame_indices)

    assert [count(seconds, num_frames=8) for seconds in (3.0, 30.0)] == [8, 8]
    assert [count(s, num_frames=64, min_frames=16) for s in (3.0, 17.0, 30.0, 100.0)] == [16, 16, 24, 64]


@each_case
@pytest.mark.parametrize("options", [{"num_frames": 6}, {"num_frames": 8, "min_frames": 2}, {"num_frames": 0}])
def test_a_frame_count_that_cannot_be_merged_is_refused(case, options):
    with pytest.raises(UserError, match="multiple of 4"):
        golden(case).processor(**options)


@each_case
def test_an_image_is_refused_by_name(case):
    with pytest.raises(UserError, match=r"v\.mp4.*takes videos"):
        golden(case).processor().plan_media(_info("image"), RNG, "train")


@each_case
def test_pixels_do_not_depend_on_what_was_read_before(case):
    files = golden(case)
    row = files.video_rows[0]
    assert torch.equal(files.media(row).tensors["pixel_values"], files.media(row).tensors["pixel_values"])
