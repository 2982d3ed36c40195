"""What counts as an answer, when it is right, and which table the answers make.

A task is data plus three pure functions; it never sees a model. Tasks are named in the configuration by the exact
keys of ``TASKS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from vidtune.contracts import Message, Sample, UserError
from vidtune.evaluation.classification import Classes, classes
from vidtune.evaluation.exercise_feedback import ExerciseFeedback
from vidtune.evaluation.metrics import LabelOf
from vidtune.evaluation.open_answers import JudgedAnswer, OpenAnswer
from vidtune.evaluation.perplexity import Perplexity
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.tables import Table
from vidtune.evaluation.task_base import Task, TaskBase
from vidtune.text.answers import LETTERS, match_option, named_option, parse_choice_letter


@dataclass(frozen=True)
class MultipleChoice(TaskBase):
    """Options with letters; the model answers with a letter.

    Args:
        accept_option_text: an answer without a letter also counts when it names one option by its text. Published
            numbers do not do that.
    """

    accept_option_text: bool = False

    def check(self, sample: Sample) -> None:
        super().check(sample)
        if not 2 <= len(sample.options) <= len(LETTERS) or self._option(sample) not in sample.options:
            raise UserError(
                f"{sample.source} sample {sample.sample_id!r}: task multiple_choice expects 2 to {len(LETTERS)} "
                f"options with the answer's text among them, or its letter as answer; found options "
                f"{list(sample.options)} and answer {sample.answer!r}. Choose data.task.name=open_answer, "
                f"or correct the annotation."
            )

    def candidates(self, sample: Sample) -> tuple[str, ...]:
        """The data set's own wording of the right answer (``B``, ``B. a dog``), carried over to every option."""
        reply = sample.messages[-1].text if sample.messages[-1].role == "assistant" else ""
        answer = self._option(sample)
        if reply == answer:
            return sample.options
        right = LETTERS[sample.options.index(answer)]
        before, named, after = reply.partition(right)
        if not named or before.strip("( "):
            return tuple(LETTERS[: len(sample.options)])
        return tuple(
            before + letter + after.replace(answer, option)
            for letter, option in zip(LETTERS, sample.options, strict=False)
        )

    def parse(self, sample: Sample, text: str) -> str | None:
        letter = parse_choice_letter(text, sample.options)
        if letter is None and self.accept_option_text:
            option = match_option(text, sample.options)
            letter = None if option is None else LETTERS[sample.options.index(option)]
        return letter

    def correct(self, sample: Sample, parsed: str) -> bool:
        # Texts are compared, so that of two options with the same text either letter is right.
        return sample.options[LETTERS.index(parsed)] == self._option(sample)

    def label_of(self) -> LabelOf:
        return lambda prediction: LETTERS[prediction.options.index(self._option(prediction))]

    def _option(self, row: Sample | Prediction) -> str:
        return named_option(row.answer, row.options)


@dataclass(frozen=True)
class ClosedSet(TaskBase):
    """The model answers in words; the answer must name one of a closed list.

    Args:
        labels: the list for all samples (classification); empty: each sample's own options.
        text_before: only the text before the first occurrence of this counts, in answer and reference. QEVD writes
            ``<exercise> - <feedback>``: the spaces keep hyphens inside names whole.
    """

    labels: tuple[str, ...] = ()
    text_before: str = ""

    def check(self, sample: Sample) -> None:
        super().check(sample)
        options = self.options(sample)
        if self._cut(sample.answer) not in options:
            raise UserError(
                f"{sample.source} sample {sample.sample_id!r}: answer {self._cut(sample.answer)!r} is none of the "
                f"{len(options)} possible ones {list(options)[:20]}. Task closed_set takes data.task.labels, or each "
                "sample's options where that is empty."
            )

    def options(self, sample: Sample) -> tuple[str, ...]:
        return tuple(self.labels) or sample.options

    def parse(self, sample: Sample, text: str) -> str | None:
        return match_option(self._cut(text), self.options(sample))

    def correct(self, sample: Sample, parsed: str) -> bool:
        return parsed == self._cut(sample.answer)

    def label_of(self) -> LabelOf:
        return lambda prediction: self._cut(prediction.answer)

    def summarise(self, predictions: Sequence[Prediction]) -> Table:
        table = super().summarise(predictions)
        if (results := self.by_class(predictions)) is not None:
            table.notes.append(f"Macro F1 over the labels {100 * results.macro_f1:.1f} %.")
        return table

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        results = self.by_class(predictions)
        return super().metrics(predictions) | ({} if results is None else {"macro_f1": results.macro_f1})

    def by_class(self, predictions: Sequence[Prediction]) -> Classes | None:
        labels = tuple(self.labels)
        if not labels:
            shared = {prediction.options for prediction in predictions}
            labels = shared.pop() if len(shared) == 1 else ()
        if not labels:
            return None
        return classes([replace(p, answer=self._cut(p.answer)) for p in predictions], labels)

    def _cut(self, text: str) -> str:
        return text.split(self.text_before)[0].strip() if self.text_before else text


TASKS: dict[str, type[TaskBase]] = {
    "multiple_choice": MultipleChoice,
    "closed_set": ClosedSet,
    "open_answer": OpenAnswer,
    "judged_answer": JudgedAnswer,
    "exercise_feedback": ExerciseFeedback,
    "perplexity": Perplexity,
}


def build_task(name: str, **options: Any) -> Task:
    """The task of this exact name.

    Raises:
        UserError: no such task, or it has no such option.
    """
    if name not in TASKS:
        raise UserError(f"data.task.name: no task {name!r}; there are {sorted(TASKS)}.")
    known = [item.name for item in fields(TASKS[name])]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"data.task: task {name!r} has no option {unknown[0]!r}; it has {known}.")
    return TASKS[name](**options)


def rescore(task: Task, predictions: Sequence[Prediction]) -> list[Prediction]:
    """Score stored predictions again, e.g. by another task or rule; runs no model.

    Predictions of unreadable media stay what they are.
    """
    rescored = []
    for old in predictions:
        sample = Sample(
            sample_id=old.sample_id,
            messages=(Message("user", (old.question,)),),
            source=old.source,
            question_type=old.question_type,
            options=old.options,
            answer=old.answer,
            extra=old.extra,
        )
        rescored.append(old if old.status == "bad_media" else task.score(sample, old.prediction))
    return rescored
