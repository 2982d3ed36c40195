from __future__ import annotations

from itertools import chain

import pytest

from vidtune.contracts import UserError
from vidtune.data.planner import Planner, SampleSize


def sizes(count: int, per_video: int = 4) -> list[SampleSize]:
    return [SampleSize(20 + index % 7, 3 + index % 2, 10, f"video{index // per_video}") for index in range(count)]


def planner(count: int = 64, **options) -> Planner:
    options = {"global_batch_size": 16, "rows_per_step": 4, "max_tokens": 400, "questions_per_video": 4} | options
    return Planner(sizes(count), **options)


def samples_of(rows) -> list[int]:
    return [index for row in rows if not row.filler for segment in row.segments for index in segment]


@pytest.mark.parametrize("questions", [1, 2, 4, 16])
def test_every_sample_is_seen_exactly_once_per_epoch(questions: int) -> None:
    plan = planner(70, questions_per_video=questions)
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        assert sorted(chain.from_iterable(samples_of(plan.step(step)) for step in steps)) == list(range(70))


def test_every_step_holds_exactly_the_global_batch_and_every_process_gets_as_many_rows() -> None:
    plan = planner(70)
    counts = [len(samples_of(plan.step(step))) for step in range(plan.steps_per_epoch)]
    assert counts == [16, 16, 16, 16, 6]
    assert all(len(plan.step(step)) == 4 for step in range(plan.steps_per_epoch))


def test_normalizer_is_the_number_of_supervised_tokens_of_the_whole_step() -> None:
    plan = planner()
    for step in range(plan.steps_per_epoch):
        rows = plan.step(step)
        assert {row.normalizer for row in rows} == {sum(plan.sizes[i].num_targets for i in samples_of(rows))}


def test_sample_reduction_counts_samples_and_leaves_out_those_without_weight() -> None:
    weighted = [SampleSize(10, 2, weight=weight) for weight in (1.0, 0.0, 0.5, 1.0)]
    plan = Planner(weighted, global_batch_size=4, rows_per_step=1, max_tokens=100, reduction="sample")
    assert plan.step(0)[0].normalizer == 2.5


def test_a_step_is_the_same_whatever_was_planned_before() -> None:
    assert planner().step(7) == [planner().step(step) for step in range(8)][7]


def test_questions_of_one_video_share_a_segment_and_others_do_not() -> None:
    plan = planner()
    for row in plan.step(1):
        for segment in row.segments:
            assert len({index // 4 for index in segment}) == 1
    alone = planner(questions_per_video=1)
    assert all(len(segment) == 1 for row in alone.step(1) for segment in row.segments)


def test_processes_share_the_rows_of_a_step_without_overlap() -> None:
    plan = planner()
    shares = [list(plan.rows(0, 3, rank, 2)) for rank in (0, 1)]
    together = samples_of(shares[0]) + samples_of(shares[1])
    assert sorted(together) == sorted(samples_of(plan.rows(0, 3)))
    assert len(shares[0]) == len(shares[1]) == 6


def test_fewer_videos_than_rows_still_fill_every_row() -> None:
    plan = planner(8, global_batch_size=8, questions_per_video=16)
    rows = plan.step(0)
    assert all(row.segments and not row.filler for row in rows)


def test_fewer_samples_than_rows_give_fillers_without_changing_the_normalizer() -> None:
    plan = planner(2, global_batch_size=16)
    rows = plan.step(0)
    assert [row.filler for row in rows] == [False, False, True, True]
    assert {row.normalizer for row in rows} == {3 + 4}


def test_the_longest_row_comes_first_so_that_an_out_of_memory_shows_at_once() -> None:
    plan = planner(64)
    longest = [max(map(plan.row_tokens, plan.step(step))) for step in range(plan.steps_per_epoch)]
    assert longest[0] == max(longest)
    assert plan.row_tokens(plan.step(0)[0]) == longest[0]


def test_shared_tokens_are_counted_once() -> None:
    plan = Planner(
        [SampleSize(110, 1, 100, "v"), SampleSize(120, 1, 100, "v")],
        global_batch_size=2,
        rows_per_step=1,
        max_tokens=1000,
        questions_per_video=2,
    )
    assert plan.row_tokens(plan.step(0)[0]) == 100 + 10 + 20


def test_a_sample_longer_than_a_row_is_refused_with_the_settings_to_change() -> None:
    with pytest.raises(UserError, match=r"26 > batch.max_tokens=25.*num_frames"):
        planner(max_tokens=25)


def test_questions_that_do_not_fit_behind_one_video_go_to_several_rows_with_a_video_each() -> None:
    """8 questions of 30 tokens behind 100: a budget of 200 holds 3 of them."""
    plan = Planner(
        [SampleSize(130, 1, 100, "v")] * 8,
        global_batch_size=8,
        rows_per_step=3,
        max_tokens=200,
        questions_per_video=8,
    )
    rows = plan.step(0)
    assert sorted(samples_of(rows)) == list(range(8))
    assert [plan.row_tokens(row) for row in rows if not row.filler] == [190, 190, 160]


def test_a_step_that_does_not_fit_its_rows_is_refused_with_the_settings_to_change() -> None:
    with pytest.raises(UserError, match=r"accumulation"):
        planner(max_tokens=60).step(0)
