"""Likelihood compares answers in the wording that the model was trained on."""

import pytest

from vidtune.contracts import Message, Sample
from vidtune.evaluation.tasks import build_task

OPTIONS = ("a red cat", "a dog", "two dogs")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("B", ("A", "B", "C")),
        ("(B)", ("(A)", "(B)", "(C)")),
        ("B. a dog", ("A. a red cat", "B. a dog", "C. two dogs")),
        ("a dog", OPTIONS),
        ("", ("A", "B", "C")),
    ],
)
def test_options_are_worded_like_the_data_sets_own_answers(reply: str, expected: tuple[str, ...]) -> None:
    messages = (Message("user", ("what ?",)), *((Message("assistant", (reply,)),) if reply else ()))
    sample = Sample("1", messages, options=OPTIONS, answer="a dog")
    task = build_task("multiple_choice", accept_option_text=True)
    assert task.candidates(sample) == expected
    assert [task.score(sample, answer).correct for answer in expected] == [False, True, False]


def test_labels_of_a_classification_are_its_candidates() -> None:
    sample = Sample("1", (Message("user", ("what ?",)),), answer="x")
    assert build_task("closed_set", labels=("x", "y")).candidates(sample) == ("x", "y")
    assert build_task("open_answer").candidates(sample) == ()
