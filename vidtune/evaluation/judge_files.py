"""Predictions in the form in which the official judge of the Video-ChatGPT benchmark reads them.

A benchmark's reader keeps each row in ``Prediction.extra["row"]``. Rows come back unchanged, in their order, with
``pred`` or, for two questions in one row, ``pred1`` and ``pred2``. Media that could not be read leave an empty answer.

Source: mbzuai-oryx/Video-ChatGPT, ``quantitative_evaluation`` and ``video_chatgpt/eval``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from vidtune.evaluation.records import Prediction


def judge_files(predictions: Sequence[Prediction]) -> dict[str, list[dict[str, Any]]]:
    """File name without suffix -> its rows.

    The generative benchmark makes one file per question type. Zero-shot QA makes two: its scoring script reads other
    keys than its inference script writes, so the second one is for tools that read the latter.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    for prediction in predictions:
        row, key = prediction.extra.get("row"), prediction.extra.get("answer_key")
        if row is None:
            continue
        if key is None:
            files.setdefault(prediction.source, []).append(_for_scoring(prediction))
            files.setdefault(f"{prediction.source}_inference", []).append(_as_inferred(prediction))
        else:
            rows = files.setdefault(f"{prediction.question_type}_qa", [])
            if key in ("pred", "pred1"):
                rows.append(dict(row))
            rows[-1][key] = prediction.prediction
    return files


def answer_pairs(predictions: Sequence[Prediction]) -> list[tuple[Prediction, Prediction]]:
    """The two answers of each row that asks the same in two ways."""
    paired = [p for p in predictions if p.extra.get("answer_key") in ("pred1", "pred2")]
    rows = groupby(paired, key=lambda p: (p.question_type, p.extra["number"]))
    return [(one, other) for one, other in (tuple(row) for _, row in rows)]


def _for_scoring(prediction: Prediction) -> dict[str, Any]:
    row = prediction.extra["row"]
    return {
        "video_name": row["video_name"],
        "Q": row["question"],
        "A": prediction.answer,
        "pred": prediction.prediction,
    }


def _as_inferred(prediction: Prediction) -> dict[str, Any]:
    row = prediction.extra["row"]
    return {
        "id": row["question_id"],
        "question": row["question"],
        "answer": prediction.answer,
        "pred": prediction.prediction,
    }
