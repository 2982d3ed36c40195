"""Several processes write parts; what is joined is what one process would have written."""

import pytest

from vidtune.contracts import UserError
from vidtune.evaluation.parts import join_parts, part_path, rewrite
from vidtune.evaluation.records import Prediction, PredictionWriter, meta_path, read_predictions

MADE_BY = {"checkpoint": "last"}


def write(path, ids, made_by=MADE_BY):
    with PredictionWriter(path, made_by, 4) as writer:
        for name in ids:
            writer.write(Prediction(name, options=("x", "y"), prediction="x"))


def test_parts_of_a_killed_evaluation_are_joined_and_go_on(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write(path, "a")
    part = part_path(path, 1)
    write(part, "bad")  # holds one that is there already, and its last line is cut
    part.write_bytes(part.read_bytes()[:-5])
    assert join_parts(path, MADE_BY, 4, {"commit": "x"}) == {"a", "b"}
    assert not part.exists() and not meta_path(part).exists()
    write(path, "dc")
    rewrite(path, [Prediction(name, options=("x", "y"), prediction="x") for name in "abcd"])
    one_process = tmp_path / "one.jsonl"
    write(one_process, "abcd")
    assert path.read_bytes() == one_process.read_bytes()
    assert len(read_predictions(path)) == 4


def test_a_part_of_another_checkpoint_is_refused(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write(path, "a")
    write(part_path(path, 2), "b", {"checkpoint": "best"})
    with pytest.raises(UserError, match="begun with other settings"):
        join_parts(path, MADE_BY, 4, {})
