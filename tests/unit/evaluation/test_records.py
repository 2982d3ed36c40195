import json

import pytest

from vidtune.contracts import UserError
from vidtune.evaluation.records import Prediction, PredictionWriter, done_ids, meta_path, read_predictions

MADE_BY = {"checkpoint": "last", "split": "val", "num_frames": 8, "size": (224, 224)}


def prediction(sample_id: str, **kwargs) -> Prediction:
    return Prediction(sample_id=sample_id, options=("x", "ü|y"), prediction='he said "ü"\n', correct=True, **kwargs)


def begin(path, ids, num_samples=3, made_by=MADE_BY):
    with PredictionWriter(path, made_by, num_samples) as writer:
        for sample_id in ids:
            writer.write(prediction(sample_id, score={"f": 0.5}, extra={"video": sample_id}))
    return writer


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "predictions.jsonl"
    begin(path, "abc")
    assert read_predictions(path) == [prediction(i, score={"f": 0.5}, extra={"video": i}) for i in "abc"]


def test_every_record_is_on_disk_at_once(tmp_path):
    path = tmp_path / "predictions.jsonl"
    writer = PredictionWriter(path, MADE_BY, 3)
    writer.write(prediction("a"))
    assert done_ids(path) == {"a"}
    writer.close()


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_interrupted_evaluation_goes_on_and_ends_like_an_uninterrupted_one(tmp_path, cut):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    begin(whole, "abc")
    begin(killed, "ab")
    killed.write_bytes(killed.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"1 of 3 predictions and a half-written last line.*goes on"):
        read_predictions(killed)
    assert done_ids(killed) == {"a"}

    with PredictionWriter(killed, MADE_BY, 3) as writer:
        assert writer.dropped
        assert writer.done == {"a"}
        for sample_id in "bc":
            writer.write(prediction(sample_id, score={"f": 0.5}, extra={"video": sample_id}))
    assert killed.read_bytes() == whole.read_bytes()


def test_unfinished_file_never_becomes_a_table(tmp_path):
    path = tmp_path / "predictions.jsonl"
    begin(path, "ab")
    with pytest.raises(UserError, match="2 of 3 predictions: the evaluation was interrupted"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("change", "named"), [({"num_frames": 16}, "num_frames: 8 there, 16 now"), ({"seed": 1}, "seed: None there, 1 now")]
)
def test_other_settings_do_not_continue_a_file(tmp_path, change, named):
    path = tmp_path / "predictions.jsonl"
    begin(path, "a")
    with pytest.raises(UserError, match=named):
        PredictionWriter(path, MADE_BY | change, 3)
    with pytest.raises(UserError, match="num_samples: 3 there, 4 now"):
        PredictionWriter(path, MADE_BY, 4)
    assert done_ids(path) == {"a"}


def test_same_sample_twice_is_refused(tmp_path):
    path = tmp_path / "predictions.jsonl"
    begin(path, "a")
    with PredictionWriter(path, MADE_BY, 3) as writer, pytest.raises(UserError, match="'a' is predicted a second time"):
        writer.write(prediction("a"))
    path.write_text(path.read_text() * 2)
    with pytest.raises(UserError, match="line 2: sample 'a' stands in line 1 too"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 1: not a JSON object"),
        ("[1]", "line 1: not a prediction; found list"),
        ('{"sample_id": "z", "colour": 1}', "line 1: not a prediction; found .*colour"),
        ('{"sample_id": "z", "status": "fine"}', "line 1: status 'fine', expected one of"),
    ],
)
def test_damage_before_the_last_line_is_named(tmp_path, line, message):
    path = tmp_path / "predictions.jsonl"
    begin(path, "a")
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(UserError, match=message):
        read_predictions(path)


def test_predictions_of_unknown_origin_are_refused(tmp_path):
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(UserError, match="no such prediction file"):
        read_predictions(path)
    begin(path, "abc")
    meta_path(path).write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_predictions(path)
    meta_path(path).unlink()
    with pytest.raises(UserError, match=r"predictions\.meta\.json is missing"):
        PredictionWriter(path, MADE_BY, 3)


def test_meta_file_says_what_made_the_predictions(tmp_path):
    path = tmp_path / "predictions.jsonl"
    begin(path, "a")
    assert json.loads(meta_path(path).read_text())["made_by"]["checkpoint"] == "last"
