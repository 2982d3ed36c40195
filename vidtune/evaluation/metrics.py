"""Accuracy and what it must be read against: its interval, chance, and the majority answer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from vidtune.contracts import UserError
from vidtune.evaluation.records import Prediction

LabelOf = Callable[[Prediction], str]

TOTAL = "total"
"""Name of the row over all questions."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over ``n`` questions; all shares in [0, 1], None where undefined.

    Args:
        correct: number of right answers; ``unparsed`` and ``bad_media`` count among the wrong ones.
        interval: 95 % Wilson interval; it takes the questions for independent, so several questions about one
            video make it somewhat too narrow.
        chance: expected accuracy of drawing an option uniformly; None where a question has no options.
        majority: accuracy of always giving the most frequent reference answer of a question's type.
    """

    n: int
    correct: int
    unparsed: int
    bad_media: int
    interval: tuple[float, float] | None
    chance: float | None
    majority: float | None

    @property
    def value(self) -> float | None:
        return self.correct / self.n if self.n else None


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Wilson score interval of a share; None for n = 0."""
    if n == 0:
        return None
    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def chance_level(predictions: Sequence[Prediction]) -> float | None:
    """Mean of 1 / number of options; None where a question has no options or there are no questions."""
    if not predictions or not all(prediction.options for prediction in predictions):
        return None
    return sum(1 / len(prediction.options) for prediction in predictions) / len(predictions)


def majority_hits(predictions: Sequence[Prediction], label_of: LabelOf) -> dict[str, bool]:
    """Per sample id: whether the most frequent label of its question type would have been right.

    The frequencies are those of the given predictions, so this is the best that any constant answer per type can do.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for prediction in predictions:
        counts[prediction.question_type][label_of(prediction)] += 1
    best = {question_type: counter.most_common(1)[0][0] for question_type, counter in counts.items()}
    return {prediction.sample_id: label_of(prediction) == best[prediction.question_type] for prediction in predictions}


def reference_answer(prediction: Prediction) -> str:
    return prediction.answer


def accuracies(
    predictions: Sequence[Prediction],
    groups: Mapping[str, Sequence[str]] | None = None,
    label_of: LabelOf = reference_answer,
) -> dict[str, Accuracy]:
    """Accuracy by question type, by group of types, and in total, in this order.

    Args:
        predictions: with ``correct`` set.
        groups: name -> question types; groups may overlap and leave types out. A group is a micro-average: every
            question counts once.
        label_of: what the majority baseline counts.

    Raises:
        UserError: there are no predictions; one has no reference answer; a group has the name of a type or the total.
    """
    if not predictions:
        raise UserError("There are no predictions to summarise. Check data, split and data.limit.")
    unscored = [prediction.sample_id for prediction in predictions if prediction.correct is None]
    if unscored:
        raise UserError(
            f"{len(unscored)} of {len(predictions)} predictions have no reference answer (first: {unscored[0]!r}), so "
            "there is no accuracy. Add the answers to the annotation file, or use `vidtune predict`."
        )
    members: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in sorted(predictions, key=lambda prediction: prediction.question_type):
        members[prediction.question_type or "(no type)"].append(prediction)
    rows = dict(members) if len(members) > 1 or groups else {}
    for name, types in (groups or {}).items():
        if name in members or name == TOTAL:
            raise UserError(f"groups: {name!r} is also a row of its own; give the group another name.")
        rows[name] = [prediction for question_type in types for prediction in members.get(question_type, ())]
    rows[TOTAL] = list(predictions)
    hits = majority_hits(predictions, label_of)
    return {name: _accuracy(row, hits) for name, row in rows.items()}


def _accuracy(predictions: Sequence[Prediction], majority: Mapping[str, bool]) -> Accuracy:
    n = len(predictions)
    correct = sum(bool(prediction.correct) for prediction in predictions)
    return Accuracy(
        n=n,
        correct=correct,
        unparsed=sum(prediction.status == "unparsed" for prediction in predictions),
        bad_media=sum(prediction.status == "bad_media" for prediction in predictions),
        interval=wilson_interval(correct, n),
        chance=chance_level(predictions),
        majority=sum(majority[prediction.sample_id] for prediction in predictions) / n if n else None,
    )
