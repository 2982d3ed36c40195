"""Mixtures: which rows of which set a run sees, by each original's rule."""

import json
from collections import Counter

import pytest

from tests.families.golden import golden_cases
from vidtune.contracts import UserError
from vidtune.data.mixing import MIXING, SetShare, by_nvila, parse_sets, strategy_rows
from vidtune.data.mixture import MixtureReader

ARIA_TEN = [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]


def counts(rule: str, *shares: SetShare, batch: int | None = None) -> list[Counter]:
    picks = MIXING[rule](shares, 0, batch)
    return [Counter(row for number, row in picks if number == index) for index in range(len(shares))]


def test_aria_order_is_that_of_the_original():
    # The first table is the golden's; the others are read where the goldens hold more than the committed case.
    recorded = [{"datasets": [{"name": "d0", "rows": 10, "weight": 1}], "order": [f"d0:{i}" for i in ARIA_TEN]}]
    for case in golden_cases("aria"):
        file = case / "tables/mixing.json"
        recorded += json.loads(file.read_text()) if file.exists() else []
    for table in recorded:
        shares = [SetShare(entry["name"], entry["rows"], entry["weight"]) for entry in table["datasets"]]
        order = [f"{shares[number].name}:{row}" for number, row in MIXING["aria"](shares, 7, None)]
        assert order == table["order"]


def test_aria_takes_first_rows_below_one_and_whole_repeats_above():
    first, repeated = counts("aria", SetShare("a", 7, 0.5), SetShare("b", 2, 2.7))
    assert (first, repeated) == ({0: 1, 1: 1, 2: 1}, {0: 2, 1: 2})


def test_weights_copy_sets_and_draw_the_rest_without_repeats():
    whole, part, both = counts("weights", SetShare("a", 4, 2), SetShare("b", 10, 0.3), SetShare("c", 4, 1.5))
    assert whole == {0: 2, 1: 2, 2: 2, 3: 2}
    assert len(part) == 3 and set(part.values()) == {1}
    assert len(both) == 4 and sorted(both.values()) == [1, 1, 2, 2]


def test_nvila_fills_to_the_batch():
    # 3 rows, batch 64: 21 copies are 63, one row more; 100 rows: 28 more; the order of sets is that of their names.
    large, small = counts("nvila", SetShare("zebra", 100), SetShare("ant", 3), batch=64)
    assert sorted(small.values()) == [21, 21, 22] and small.total() == 64
    assert large.total() == 128 and min(large.values()) == 1
    assert by_nvila([SetShare("zebra", 64), SetShare("ant", 64)], 0, 64)[0] == (1, 0)
    assert counts("nvila", SetShare("a", 40), batch=64)[0].total() == 64  # above half a batch: no copies first
    assert counts("nvila", SetShare("a", 64, 2), batch=64)[0].total() == 128


def test_nvila_needs_a_batch_and_whole_weights():
    with pytest.raises(UserError, match="global_batch_size"):
        counts("nvila", SetShare("a", 3))
    with pytest.raises(UserError, match=r"a\*1.5"):
        counts("nvila", SetShare("a", 3, 1.5), batch=2)


def test_qevd_repeats_and_keeps_prefixes():
    twice, half, last = counts("qevd", SetShare("a", 3, 2.9), SetShare("b", 5, 0.5), SetShare("c", 7, 1, "end:2"))
    assert (twice, half, last) == ({0: 2, 1: 2, 2: 2}, {0: 1, 1: 1}, {5: 1, 6: 1})
    assert strategy_rows(SetShare("c", 7, 1, "first:25%"), 0) == [0, 1]  # 1.75 rounds up
    assert len(strategy_rows(SetShare("c", 7, 1, "random:3"), 0)) == 3
    with pytest.raises(UserError, match="sampling_strategy='middle:3'"):
        strategy_rows(SetShare("c", 7, 1, "middle:3"), 0)


def test_the_names_of_sets():
    assert parse_sets("A + B*2+C*0.5+A") == [("A", 1.0), ("B", 2.0), ("C", 0.5), ("A", 1.0)]
    for wrong in ("A++B", "A*x", "A*0", "A*-1", "A@part"):
        with pytest.raises(UserError, match=r"data\.sets"):
            parse_sets(wrong)


@pytest.fixture
def registry(tmp_path):
    def rows(name, *rows):
        (tmp_path / name).write_text(json.dumps(rows))

    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "x"}]
    rows("qa.json", {"image": "a.png", "conversations": turns})
    rows("video.json", {"video": "v.mp4", "conversations": turns}, {"image": "b.png", "conversations": turns})
    rows("text.json", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]})
    (tmp_path / "own.jsonl").write_text(json.dumps({"id": "r", "video": "w.mp4", "question": "q", "answer": "a"}))
    text = f"""
SampleQA:
    _target_: llava.data.LLaVADataset
    data_path: {tmp_path}/qa.json
    media_dir: {tmp_path}/media
SampleVideo:
    _target_: llava.data.LLaVADataset
    data_path: {tmp_path}/video.json
    media_dir: {tmp_path}
    is_video: true
    num_frames: 4
    sampling: uniform
Fit:
    root: {tmp_path}
    annotation: {tmp_path}/text.json
    repeat_time: 3
    video_read_type: opencv
Own:
    _target_: vidtune.data.questions.QuestionsReader
    root: {tmp_path}
    annotation: own.jsonl
Mistyped:
    data_path: x
    media_dri: y
Slow:
    _target_: llava.data.LLaVANextVideoDataset
    data_path: x
"""
    (tmp_path / "sets.yaml").write_text(text)
    return str(tmp_path / "sets.yaml")


def test_a_registry_of_the_guides_is_read_as_it_stands(registry, tmp_path):
    samples = MixtureReader("SampleQA+SampleVideo*2+Fit+Own", registry)("train")
    ids = [sample.sample_id for sample in samples]
    assert ids == [
        "SampleQA/1", "SampleVideo/1", "SampleVideo/2", "SampleVideo/1#2", "SampleVideo/2#2",
        "Fit/1", "Fit/1#2", "Fit/1#3", "Own/r",
    ]  # fmt: skip
    by_id = dict(zip(ids, samples))
    image, video = by_id["SampleQA/1"].media[0], by_id["SampleVideo/1"].media[0]
    assert (image.path, image.tiled, image.num_frames) == (f"{tmp_path}/media/a.png", True, None)
    assert (video.num_frames, video.sampling) == (4, "uniform")
    assert not by_id["SampleVideo/2"].media[0].tiled and by_id["SampleVideo/2"].media[0].num_frames is None
    assert by_id["SampleQA/1"].messages[0].content[1] == "what?"  # VILA's rule: the tag's newline goes with it
    assert not by_id["Fit/1"].media and by_id["Own/r"].source == "Own"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("SampleQ", "Did you mean 'SampleQA'"),
        ("Mistyped", "unknown key 'media_dri'"),
        ("Slow", "LLaVANextVideoDataset"),
    ],
)
def test_a_wrong_set_is_named_before_anything_is_read(registry, sets, message):
    with pytest.raises(UserError, match=message):
        MixtureReader(sets, registry)
