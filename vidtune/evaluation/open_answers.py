"""Free text against a reference: measures without a judge, and files for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vidtune.contracts import Sample
from vidtune.evaluation import summaries
from vidtune.evaluation.comparison import mean_interval
from vidtune.evaluation.judge_files import answer_pairs, judge_files
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.tables import Table
from vidtune.evaluation.task_base import TaskBase
from vidtune.evaluation.text_metrics import bert_scores, meteor, rouge_l, why_no_bert_score, why_no_meteor
from vidtune.text.answers import contains_answer, exact_match, parse_yes_no, token_f1


@dataclass(frozen=True)
class OpenAnswer(TaskBase):
    """Free text against a reference.

    Args:
        correct_by: ``exact_match`` (the official rule of ActivityNet-QA; unfair to models that write sentences) or
            ``contains_answer`` (the reference occurs in the answer as whole words).
        bert_model: folder of the model that BERTScore compares with, or its name in the Hugging Face cache; empty: it
            is not computed.
    """

    correct_by: Literal["exact_match", "contains_answer"] = "exact_match"
    bert_model: str = ""

    def options(self, sample: Sample) -> tuple[str, ...]:
        return ()

    def parse(self, sample: Sample, text: str) -> str | None:
        return text.strip() or None

    def correct(self, sample: Sample, parsed: str) -> bool:
        rule = {"exact_match": exact_match, "contains_answer": contains_answer}[self.correct_by]
        return rule(parsed, sample.answer)

    def scores(self, sample: Sample, text: str) -> dict[str, float]:
        reference = sample.answer
        scores = {
            "exact_match": float(exact_match(text, reference)),
            "contains_answer": float(contains_answer(text, reference)),
            "token_f1": token_f1(text, reference),
            "rouge_l": rouge_l(text, reference),
        }
        if why_no_meteor() is None:
            scores["meteor"] = meteor(text, reference)
        if exact_match(reference, "yes") or exact_match(reference, "no"):
            scores["yes_no"] = float(parse_yes_no(text) == parse_yes_no(reference))
        return scores

    def summarise(self, predictions: Sequence[Prediction]) -> Table:
        table = super().summarise(predictions)
        table.notes.append(f"An answer is right by {self.correct_by}.")
        table.notes += summaries.score_notes(predictions)
        if not any("meteor" in prediction.score for prediction in predictions):
            reason = why_no_meteor() or "these predictions were scored without it; score them again"
            table.notes.append(f"meteor: not computed: {reason}")
        if no_bert_score := why_no_bert_score(self.bert_model):
            table.notes.append(f"bert_score: not computed: {no_bert_score}")
        else:
            values = self._bert_scores(predictions)
            low, high = mean_interval(values) or (values[0], values[0])
            table.notes.append(
                f"bert_score: {100 * sum(values) / len(values):.1f} % (95 % interval {100 * low:.1f} to "
                f"{100 * high:.1f}, F1 of {self.bert_model}, last layer, not rescaled)"
            )
        return table

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        numbers = super().metrics(predictions)
        if why_no_bert_score(self.bert_model) is None:
            values = self._bert_scores(predictions)
            numbers["bert_score"] = sum(values) / len(values)
        return numbers

    def _bert_scores(self, predictions: Sequence[Prediction]) -> tuple[float, ...]:
        return bert_scores([p.prediction for p in predictions], [p.answer for p in predictions], self.bert_model)


@dataclass(frozen=True)
class JudgedAnswer(OpenAnswer):
    """Answers of the Video-ChatGPT benchmark, whose published scores come from a judge model behind an API.

    None is called here. The files that the official scripts read are written, and beside the measures of an open answer
    stands, for pairs of questions that mean the same, how much their two answers agree.
    """

    def files(self, predictions: Sequence[Prediction]) -> dict[str, list[dict[str, Any]]]:
        return judge_files(predictions)

    def summarise(self, predictions: Sequence[Prediction]) -> Table:
        table = super().summarise(predictions)
        by_type = summaries.by_type(predictions)
        if len(by_type) > 1:
            for kind, answers in by_type.items():
                means = summaries.mean_scores(answers)
                shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in means.items())
                table.notes.append(f"{kind} (n = {len(answers):,}): {shown}")
        for name, values in _agreement(predictions).items():
            low, high = mean_interval(values) or (values[0], values[0])
            table.notes.append(
                f"{name}, of the two answers of a pair: {100 * np.mean(values):.1f} % (95 % interval "
                f"{100 * low:.1f} to {100 * high:.1f}, n = {len(values):,} pairs)"
            )
        table.notes.append("No judge was asked; judge/ holds the files for the official one.")
        return table

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return super().metrics(predictions) | {
            name: float(np.mean(values)) for name, values in _agreement(predictions).items()
        }


def _agreement(predictions: Sequence[Prediction]) -> dict[str, list[float]]:
    """Per pair, how alike the two answers are; whether they are right is another question."""
    pairs = [(one.prediction, other.prediction) for one, other in answer_pairs(predictions)]
    if not pairs:
        return {}
    return {
        "consistency_rouge_l": [rouge_l(one, other) for one, other in pairs],
        "consistency_token_f1": [token_f1(one, other) for one, other in pairs],
    }
