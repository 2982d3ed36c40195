"""Is one run better than another? Paired tests on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap

from vidtune.contracts import UserError
from vidtune.evaluation.records import Prediction

RESAMPLES = 10_000


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test: ``only_first`` and ``only_second`` count the questions that one run alone got right."""

    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class Difference:
    """Mean of second minus first over the questions, with its 95 % interval (None for fewer than two questions)."""

    mean: float
    interval: tuple[float, float] | None

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def pair(
    first: Sequence[Prediction], second: Sequence[Prediction], names: tuple[str, str] = ("first", "second")
) -> list[tuple[Prediction, Prediction]]:
    """Predictions of two runs for the same samples, in the order of the first.

    Raises:
        UserError: the runs answered different samples, or the same ids stand for other questions.
    """
    by_id = {prediction.sample_id: prediction for prediction in second}
    ids = {prediction.sample_id for prediction in first}
    if ids != set(by_id):
        only = [sorted(ids - set(by_id)), sorted(set(by_id) - ids)]
        shown = "; ".join(
            f"{len(missing)} only in {name} (e.g. {missing[0]!r})" for name, missing in zip(names, only) if missing
        )
        raise UserError(
            f"{names[0]} and {names[1]} answered different samples: {shown}. A paired comparison needs the same ones: "
            "evaluate both with the same data, split and data.limit."
        )
    pairs = [(prediction, by_id[prediction.sample_id]) for prediction in first]
    for one, other in pairs:
        if (one.question, one.answer, one.options) != (other.question, other.answer, other.options):
            raise UserError(
                f"{names[0]} and {names[1]}: sample {one.sample_id!r} is not the same question in both "
                f"({one.question!r} -> {one.answer!r} and {other.question!r} -> {other.answer!r}). Evaluate both on "
                "the same annotation file."
            )
    return pairs


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Exact (binomial) two-sided McNemar test on paired right/wrong answers."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, discordant).pvalue) if discordant else 1.0)


def paired_bootstrap(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """Mean difference with its 95 % percentile bootstrap interval; resamples questions, never answers alone.

    Args:
        first, second: a metric per question, in the same order.
        seed: of the resampling; the same seed gives the same interval.
    """
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    return Difference(float(differences.mean()), mean_interval(differences, seed))


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of a mean, for metrics that are no shares; None below two values."""
    if len(values) < 2:
        return None
    # batch bounds the memory: 100 x n indices at a time instead of 10,000 x n.
    interval = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
