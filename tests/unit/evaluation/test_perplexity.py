"""Perplexity against a hand computation."""

import math

import pytest

from vidtune.contracts import Message, Sample
from vidtune.evaluation.perplexity import likelihood_text, perplexity
from vidtune.evaluation.tasks import build_task

TASK = build_task("perplexity")


def score(name: str, nll: float, tokens: int, right: int):
    sample = Sample(name, (Message("user", ("?",)), Message("assistant", ("a b",))), answer="a b", question_type="T")
    return TASK.score(sample, likelihood_text(nll, tokens, right))


def test_perplexity_counts_tokens_not_answers() -> None:
    predictions = [score("1", 2.0, 1, 0), score("2", 4.0, 7, 7)]
    assert perplexity(predictions) == pytest.approx(math.exp(6 / 8))
    numbers = TASK.metrics(predictions)
    assert numbers["perplexity"] == pytest.approx(math.exp(6 / 8))
    assert numbers["accuracy"] == 0.5, "the second answer is what greedy decoding would have written"
    assert numbers["token_accuracy"] == 0.5
    [note] = [note for note in TASK.summarise(predictions).notes if note.startswith("perplexity")]
    assert "2.117" in note and "8 tokens" in note


def test_unreadable_media_are_wrong_and_left_out_of_perplexity() -> None:
    sample = Sample("3", (Message("user", ("?",)), Message("assistant", ("a",))), answer="a")
    bad = TASK.bad_media(sample, "no frames")
    assert perplexity([bad]) is None
    assert perplexity([bad, score("1", 2.0, 1, 0)]) == pytest.approx(math.exp(2))
    assert TASK.metrics([bad, score("1", 0.1, 1, 1)])["accuracy"] == 0.5
