"""Controls change what is seen and nothing else; gains that are not there are said not to be."""

from collections import Counter
from dataclasses import replace

import pytest

from vidtune.contracts import MediaInfo, MediaPlan, MediaRef, Message, Sample, UserError, VisualSpan
from vidtune.evaluation.controls import CONTROLS
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.run_table import RunPredictions, compare_runs
from vidtune.evaluation.video_gain import control_table, gain_sentence, video_gain

VIDEOS = [MediaRef(f"/{name}.mp4") for name in "abcde"]


def samples() -> list[Sample]:
    """Two questions per video."""
    return [
        Sample(f"{video.path}{i}", (Message("user", (video, f"question {i} ?")), Message("assistant", ("yes",))))
        for video in VIDEOS
        for i in range(2)
    ]


def plan(indices: tuple[int, ...], video: MediaRef = VIDEOS[0]) -> MediaPlan:
    info = MediaInfo(video, 100, 10.0, 10.0, 64, 64)
    return MediaPlan(info, indices, tuple(i / 10 for i in indices), ("at 0.0 s", VisualSpan(len(indices))))


def test_without_a_video_the_text_alone_is_asked():
    for before, after in zip(samples(), CONTROLS["no_video"].samples(samples(), 0), strict=True):
        assert after.media == () and [m.text for m in after.messages] == [m.text for m in before.messages]
        assert after.sample_id == before.sample_id


def test_every_video_is_replaced_by_another_one_and_each_is_used_once():
    changed = CONTROLS["other_video"].samples(samples(), 3)
    pairs = {(before.media[0], after.media[0]) for before, after in zip(samples(), changed, strict=True)}
    assert len(pairs) == len(VIDEOS), "all questions of a video see the same other one"
    assert all(one != other for one, other in pairs)
    assert Counter(other for _, other in pairs) == Counter(VIDEOS)
    assert changed == CONTROLS["other_video"].samples(samples(), 3)


def test_a_single_video_has_no_other_one():
    with pytest.raises(UserError, match=r"single video \(/a.mp4\)"):
        CONTROLS["other_video"].samples(samples()[:2], 0)


def test_one_frame_and_shuffled_frames_keep_the_prompt():
    before = plan((0, 10, 20, 30))
    one, mixed = (CONTROLS[name].frames(before, 0) for name in ("one_frame", "shuffled"))
    assert one.frame_indices == (20, 20, 20, 20)
    assert sorted(mixed.frame_indices) == [0, 10, 20, 30] and mixed.frame_indices != before.frame_indices
    for changed in (one, mixed):
        assert replace(changed, frame_indices=before.frame_indices) == before
    assert mixed == CONTROLS["shuffled"].frames(before, 0), "all questions of a video see the same order"
    assert CONTROLS["shuffled"].frames(plan((5, 5)), 0).frame_indices == (5, 5)


def answers(right: range) -> list[Prediction]:
    return [Prediction(str(i), question_type="AB"[i % 2], answer="x", correct=i in right) for i in range(40)]


def controls(**right: range) -> dict[str, list[Prediction]]:
    return {name: answers(right.get(name, range(0))) for name in CONTROLS}


def test_the_gain_counts_against_the_better_blind_control():
    # Nothing right without a video, but 30 of 40 with any video: the video itself is worth 10 questions.
    gain = video_gain(answers(range(40)), controls(other_video=range(30)))
    assert gain.mean == pytest.approx(0.25) and gain.distinguishable
    assert "it uses the video" in gain_sentence(gain)


def test_a_model_that_answers_blindly_is_told_so_in_one_sentence():
    gain = video_gain(answers(range(20)), controls(no_video=range(1, 21)))
    assert gain.mean == 0
    assert "is not distinguishable from zero: it answers as well without the video." in gain_sentence(gain)


def test_a_model_that_any_video_disturbs_gains_nothing_from_the_right_one():
    # Trained on text alone: 30 of 40 right without a video, 10 with any. The right one is worth 0 points, not -50.
    gain = video_gain(answers(range(10)), controls(no_video=range(30), other_video=range(1, 11)))
    assert gain.mean == 0
    assert "not distinguishable from zero: it answers as well with another video." in gain_sentence(gain)


def test_a_model_that_the_right_video_misleads_is_told_so():
    gain = video_gain(answers(range(10)), controls(no_video=range(10), other_video=range(30)))
    assert gain.mean == -0.5 and "worse with the right video than with another video." in gain_sentence(gain)


def test_tables_show_every_control_by_type_and_in_total():
    shown = controls(no_video=range(10), one_frame=range(20), shuffled=range(30), other_video=range(12))
    table = control_table({"run": (answers(range(40)), shown)})
    assert table.column("question type") == ["A", "B", "total"]
    [total] = [row for row in table.rows if row[1] == "total"]
    assert list(total[2:8]) == [40, 1.0, 0.25, 0.5, 0.75, 0.3] and total[8] == pytest.approx(0.7)
    joint = compare_runs([RunPredictions("run", answers(range(40)), {"frames": 8}, shown)])
    assert joint.cell("run", "shuffled frames") == 0.75 and joint.cell("run", "video gain") == pytest.approx(0.7)
    assert any("it uses the video" in note for note in joint.notes)
