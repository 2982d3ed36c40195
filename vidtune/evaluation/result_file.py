"""``results.json``: the answers as the InternVideo2.5 guide's evaluation writes them, for scripts that read that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidtune.contracts import Sample
from vidtune.evaluation.records import Prediction
from vidtune.evaluation.timing import Timing

FILE = "results.json"


def result_rows(
    samples: Sequence[Sample], predictions: Sequence[Prediction], timings: Mapping[str, Timing]
) -> list[dict[str, Any]]:
    """One row per question: ``video_path`` (a list where there are several media), ``prompt``, ``ground_truth``,
    ``prediction``, ``status`` (``ok``, ``unparsed``, ``bad_media``), and of timed answers ``generated_tokens``,
    ``generation_time`` (seconds) and ``tokens_per_second``."""
    rows = []
    for sample, prediction in zip(samples, predictions, strict=True):
        paths = [ref.path for ref in sample.media]
        row: dict[str, Any] = {
            "video_path": paths[0] if len(paths) == 1 else paths,
            "prompt": prediction.question,
            "ground_truth": prediction.answer,
            "prediction": prediction.prediction,
        }
        if (timing := timings.get(sample.sample_id)) is not None:
            row["generated_tokens"] = timing.tokens
            row["generation_time"] = timing.seconds
            row["tokens_per_second"] = timing.tokens / timing.seconds if timing.seconds else None
        rows.append(row | {"status": prediction.status})
    return rows


def save_results(
    folder: Path, samples: Sequence[Sample], predictions: Sequence[Prediction], timings: Mapping[str, Timing]
) -> Path:
    """Write ``results.json``; predictions stand in the order of the samples."""
    file = folder / FILE
    rows = result_rows(samples, predictions, timings)
    file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file
