"""Feedback on exercises: an open answer that also names the exercise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vidtune.contracts import Sample
from vidtune.evaluation.comparison import mean_interval
from vidtune.evaluation.open_answers import OpenAnswer
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.sentence_cosine import sentence_cosines, why_no_sentence_cosine
from vidtune.evaluation.tables import Table


def named_exercise(text: str, separator: str) -> str | None:
    """What stands before the separator in the first line, lower-cased; None where there is none."""
    before, found, _ = text.strip().partition("\n")[0].partition(separator)
    return before.strip().lower() if found else None


@dataclass(frozen=True)
class ExerciseFeedback(OpenAnswer):
    """``<exercise> - <feedback>`` against a reference of that form.

    Beside the measures of an open answer, ``exercise_match``: the answer names the reference's exercise; only questions
    whose reference names one count. The table is by exercise, where the rows have it as ``question_type``, and its
    majority column says what the exercise's most frequent feedback would reach.

    Args:
        separator: between exercise and feedback. With spaces, so that hyphens inside names stay whole; the guide's own
            script cuts at the first hyphen.
        sentence_model: folder of a sentence encoder (all-MiniLM-L6-v2 in the guide, which calls this cosine "BERT
            similarity"), or its name in the Hugging Face cache; empty: it is not computed.
    """

    separator: str = " - "
    sentence_model: str = ""

    def scores(self, sample: Sample, text: str) -> dict[str, float]:
        scores = super().scores(sample, text)
        if (expected := named_exercise(sample.answer, self.separator)) is not None:
            scores["exercise_match"] = float(named_exercise(text, self.separator) == expected)
        return scores

    def summarise(self, predictions: Sequence[Prediction]) -> Table:
        table = super().summarise(predictions)
        if reason := why_no_sentence_cosine(self.sentence_model):
            table.notes.append(f"sentence_cosine: not computed: {reason}")
            return table
        values = self._cosines(predictions)
        low, high = mean_interval(values) or (values[0], values[0])
        table.notes.append(
            f"sentence_cosine: {sum(values) / len(values):.3f} (95 % interval {low:.3f} to {high:.3f}; cosine of mean "
            f"embeddings of {self.sentence_model}, no BERTScore)"
        )
        return table

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        numbers = super().metrics(predictions)
        if why_no_sentence_cosine(self.sentence_model) is None:
            values = self._cosines(predictions)
            numbers["sentence_cosine"] = sum(values) / len(values)
        return numbers

    def _cosines(self, predictions: Sequence[Prediction]) -> tuple[float, ...]:
        pairs = tuple((p.prediction, p.answer) for p in predictions)
        return sentence_cosines(pairs, self.sentence_model)
