"""Rows that share a video: who may, where each token stands, and what is supervised."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from vidtune.contracts import IGNORE, Batch, Encoded, MediaInfo, MediaPlan, MediaRef
from vidtune.data.rows import PackedRow, prefix_key

VIDEO = MediaPlan(MediaInfo(MediaRef("clip.mp4"), 8, 4.0, 2.0, 48, 64), (0, 4), (0.0, 1.0), ())
PROCESSOR = SimpleNamespace(dummy_media=lambda: None)


def asked(question: list[int], answer: list[int], before: tuple[int, ...] = (5, 0, 0, 6)) -> Encoded:
    """``before``: up to the end of the video, whose two placeholders stand in the middle."""
    ids = [*before, *question, *answer]
    return Encoded(ids, [IGNORE] * (len(ids) - len(answer)) + answer, [1, 2], (VIDEO,), len(before))


def packed(*encoded: Encoded) -> Batch:
    row = PackedRow()
    row.add_segment(0, encoded, [1.0] * len(encoded), [f"q{i}" for i in range(len(encoded))], "token")
    return row.batch(1.0, PROCESSOR)


def test_only_equal_beginnings_share_a_video() -> None:
    one = asked([11, 12], [13])
    assert prefix_key(one) == prefix_key(asked([21], [22, 23])) != ""
    elsewhere = replace(VIDEO, info=replace(VIDEO.info, ref=MediaRef("other.mp4")))
    later = replace(VIDEO, info=replace(VIDEO.info, ref=MediaRef("clip.mp4", start_s=1.0)))
    strangers = [asked([11, 12], [13], (9, 0, 0, 6)), replace(one, plans=(elsewhere,)), replace(one, plans=(later,))]
    assert len({prefix_key(row) for row in (one, *strangers)}) == 4


def test_a_row_shares_nothing_without_a_video_or_with_a_target_in_front_of_it() -> None:
    assert prefix_key(Encoded([1, 2], [IGNORE, 2], [], (), 0)) == ""
    answered = asked([11, 12], [13])
    answered.labels[3] = 6
    assert prefix_key(answered) == ""
    # The token before the first of a branch is the video's, which belongs to every question.
    assert prefix_key(asked([], [13])) == ""


def test_a_question_goes_on_behind_the_video_as_if_it_were_alone() -> None:
    batch = packed(asked([11, 12], [13]), asked([21], [22, 23]))
    assert batch.input_ids.tolist() == [[5, 0, 0, 6, 11, 12, 13, 21, 22, 23]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 4, 5, 6]]
    assert batch.branch_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 2, 2]]
    assert batch.segment_ids.eq(0).all() and batch.visual_positions.tolist() == [1, 2]
    assert batch.token_weights.tolist() == [[2, 2, 2, 2, 1, 1, 1, 1, 1, 1]]
    assert list(zip(batch.target_positions.tolist(), batch.target_ids.tolist())) == [(5, 13), (7, 22), (8, 23)]
    assert batch.target_samples.tolist() == [0, 1, 1] and batch.tokens_separate == 14


def test_questions_that_begin_otherwise_are_never_put_behind_one_video() -> None:
    with pytest.raises(ValueError, match="q0 and q1 were planned to share a prefix but differ in its ids"):
        packed(asked([11], [12]), asked([11], [12], (9, 0, 0, 6)))
