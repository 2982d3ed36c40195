"""The task protocol, and what all tasks share: records, the accuracy table and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from vidtune.contracts import Sample, UserError
from vidtune.evaluation import summaries
from vidtune.evaluation.classification import Classes
from vidtune.evaluation.metrics import TOTAL, LabelOf, accuracies, reference_answer
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.tables import Table

Groups = Mapping[str, Sequence[str]]


class Task(Protocol):
    """What evaluation asks of a task."""

    def check(self, sample: Sample) -> None:
        """Refuse a sample that does not fit, before any model runs.

        Raises:
            UserError: says which sample, what it lacks, and what the task expects.
        """
        ...

    def parse(self, sample: Sample, text: str) -> str | None:
        """The answer in a generated text, or None."""
        ...

    def score(self, sample: Sample, text: str) -> Prediction: ...

    def candidates(self, sample: Sample) -> tuple[str, ...]:
        """The answers whose likelihoods are compared, worded as the model was trained to answer; none for free text."""
        ...

    def bad_media(self, sample: Sample, reason: str) -> Prediction:
        """The (wrong) prediction for a sample whose media could not be read."""
        ...

    def summarise(self, predictions: Sequence[Prediction]) -> Table: ...

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Flat numbers for loggers and early stopping: ``accuracy``, ``accuracy/<type>``, ``unparsed``, ..."""
        ...

    def by_class(self, predictions: Sequence[Prediction]) -> Classes | None:
        """Results of every class, where all questions have one list of possible answers."""
        ...

    def files(self, predictions: Sequence[Prediction]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Name -> rows of further JSON files for other programs; most tasks have none."""
        ...


@dataclass(frozen=True)
class TaskBase:
    """What all tasks share: records, the accuracy table and its numbers.

    Args:
        groups: further rows of the table, name -> question types; they may overlap. NExT-QA's own script reports
            ``{C: [CW, CH], T: [TN, TC, TP], D: [DC, DL, DO], TN+TP: [TN, TP]}``.
    """

    groups: Groups = field(default_factory=dict)

    def check(self, sample: Sample) -> None:
        if not sample.answer:
            raise UserError(
                f"{sample.source} sample {sample.sample_id!r} has no reference answer. Evaluation needs one; use "
                "`vidtune predict` for videos without answers."
            )

    def parse(self, sample: Sample, text: str) -> str | None:
        raise NotImplementedError

    def correct(self, sample: Sample, parsed: str) -> bool:
        return parsed == sample.answer

    def scores(self, sample: Sample, text: str) -> dict[str, float]:
        return {}

    def options(self, sample: Sample) -> tuple[str, ...]:
        return sample.options

    def candidates(self, sample: Sample) -> tuple[str, ...]:
        return self.options(sample)

    def label_of(self) -> LabelOf:
        return reference_answer

    def score(self, sample: Sample, text: str) -> Prediction:
        self.check(sample)
        parsed = self.parse(sample, text)
        return replace(
            self._record(sample),
            prediction=text,
            parsed=parsed,
            correct=parsed is not None and self.correct(sample, parsed),
            score=self.scores(sample, text),
            status="ok" if parsed is not None else "unparsed",
        )

    def bad_media(self, sample: Sample, reason: str) -> Prediction:
        record = self._record(sample)
        scores = dict.fromkeys(self.scores(sample, ""), 0.0)
        extra = {**record.extra, "bad_media": reason}
        return replace(record, correct=False, score=scores, status="bad_media", extra=extra)

    def summarise(self, predictions: Sequence[Prediction]) -> Table:
        rows = accuracies(predictions, self.groups, self.label_of())
        return summaries.accuracy_table(rows, num_groups=len(self.groups))

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for name, row in accuracies(predictions, self.groups, self.label_of()).items():
            if row.value is not None:
                numbers["accuracy" if name == TOTAL else f"accuracy/{name}"] = row.value
        numbers["unparsed"] = sum(prediction.status == "unparsed" for prediction in predictions) / len(predictions)
        return numbers | summaries.mean_scores(predictions)

    def by_class(self, predictions: Sequence[Prediction]) -> Classes | None:
        return None

    def files(self, predictions: Sequence[Prediction]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        return {}

    def _record(self, sample: Sample) -> Prediction:
        questions = [message.text.strip() for message in sample.messages if message.role == "user"]
        return Prediction(
            sample_id=sample.sample_id,
            source=sample.source,
            question=questions[-1] if questions else "",
            answer=sample.answer,
            options=self.options(sample),
            question_type=sample.question_type,
            extra=dict(sample.extra),
        )
