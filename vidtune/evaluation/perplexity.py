"""Perplexity of the reference answers: how surprised a model is by them, whatever it would have said itself."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidtune.contracts import Sample
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.tables import Table
from vidtune.evaluation.task_base import TaskBase

RESAMPLES = 2_000
_TEXT = re.compile(r"nll=(\S+) tokens=(\d+) right=(\d+)")


def likelihood_text(nll: float, tokens: int, right: int) -> str:
    """What stands in a prediction in place of an answer.

    Args:
        nll: negative log-likelihood of the whole answer, in nats.
        tokens: of the answer, its end included.
        right: how many of them are the most likely ones, given those before.
    """
    return f"nll={nll:.6f} tokens={tokens} right={right}"


@dataclass(frozen=True)
class Perplexity(TaskBase):
    """exp(nats per token) over all tokens of all answers. An answer counts as right where each of its tokens is the
    most likely one: greedy decoding would have written exactly it."""

    def options(self, sample: Sample) -> tuple[str, ...]:
        return ()

    def parse(self, sample: Sample, text: str) -> str | None:
        return text if _TEXT.fullmatch(text) else None

    def correct(self, sample: Sample, parsed: str) -> bool:
        _, tokens, right = _read(parsed)
        return tokens == right

    def scores(self, sample: Sample, text: str) -> dict[str, float]:
        _, tokens, right = _read(text)
        return {"token_accuracy": right / tokens if tokens else 0.0}

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        value = perplexity(predictions)
        return super().metrics(predictions) | ({} if value is None else {"perplexity": value})

    def summarise(self, predictions: Sequence[Prediction]) -> Table:
        table = super().summarise(predictions)
        if (value := perplexity(predictions)) is not None:
            low, high = _interval(predictions)
            tokens = sum(_read(p.prediction)[1] for p in _measured(predictions))
            table.notes.append(f"perplexity: {value:.4g} (95 % interval {low:.4g} to {high:.4g}, {tokens:,} tokens)")
        table.notes.append("An answer is right where greedy decoding would have written exactly it.")
        return table


def perplexity(predictions: Sequence[Prediction]) -> float | None:
    """Over the tokens of all answers; unreadable media are left out, None where nothing is left."""
    read = [_read(prediction.prediction) for prediction in _measured(predictions)]
    tokens = sum(count for _, count, _ in read)
    return math.exp(sum(nll for nll, _, _ in read) / tokens) if tokens else None


def _interval(predictions: Sequence[Prediction], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap over questions; their tokens stay together."""
    read = np.array([_read(prediction.prediction)[:2] for prediction in _measured(predictions)])
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        nll, tokens = read[rng.integers(len(read), size=len(read))].sum(axis=0)
        values.append(math.exp(nll / tokens))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _measured(predictions: Sequence[Prediction]) -> list[Prediction]:
    return [prediction for prediction in predictions if _TEXT.fullmatch(prediction.prediction)]


def _read(text: str) -> tuple[float, int, int]:
    found = _TEXT.fullmatch(text)
    return (float(found[1]), int(found[2]), int(found[3])) if found else (0.0, 0, 0)
