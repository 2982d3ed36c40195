"""Confusion matrix and per-class precision, recall and F1 over a closed list of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidtune.contracts import UserError
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.tables import Column, Table

NO_ANSWER = "(no answer)"


@dataclass(frozen=True)
class Classes:
    """Results by class.

    Args:
        labels: C labels.
        confusion: (C, C + 1) int64; rows are references, columns what was answered, the last column no answer.
        precision, recall, f1: (C,) float64 in [0, 1]; 0 where the denominator is 0.
        support: (C,) int64, questions with this reference.
    """

    labels: tuple[str, ...]
    confusion: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur as reference or as answer; 0 where none does."""
        seen = (self.support > 0) | (self.confusion[:, :-1].sum(axis=0) > 0)
        return float(self.f1[seen].mean()) if seen.any() else 0.0

    def table(self, title: str = "") -> Table:
        columns = [
            Column("class"),
            Column("n", "count"),
            Column("precision", "percent"),
            Column("recall", "percent"),
            Column("F1", "percent"),
        ]
        rows = [
            (label, int(n), float(p), float(r), float(f))
            for label, n, p, r, f in zip(self.labels, self.support, self.precision, self.recall, self.f1, strict=True)
        ]
        return Table(columns, rows, title=title, notes=[f"Macro F1 {100 * self.macro_f1:.1f} %."])

    def confusion_table(self, title: str = "") -> Table:
        """The counts: a row per reference, a column per answer and one for no answer."""
        columns = [Column("reference"), *(Column(label, "count") for label in (*self.labels, NO_ANSWER))]
        rows = [(label, *map(int, counts)) for label, counts in zip(self.labels, self.confusion, strict=True)]
        return Table(columns, rows, title=title)


def classes(predictions: Sequence[Prediction], labels: Sequence[str]) -> Classes:
    """Compare ``parsed`` with ``answer`` over the labels.

    Raises:
        UserError: a reference or an answer is none of the labels.
    """
    index = {label: i for i, label in enumerate(labels)}
    confusion = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for prediction in predictions:
        for value in (prediction.answer, prediction.parsed):
            if value is not None and value not in index:
                raise UserError(
                    f"sample {prediction.sample_id!r}: {value!r} is none of the {len(labels)} labels, "
                    f"{list(labels)[:20]}."
                )
        column = len(labels) if prediction.parsed is None else index[prediction.parsed]
        confusion[index[prediction.answer], column] += 1
    hits = confusion.diagonal().astype(np.float64)
    support, answered = confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)
    return Classes(
        labels=tuple(labels),
        confusion=confusion,
        precision=_ratio(hits, answered),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, answered + support),
        support=support,
    )


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
