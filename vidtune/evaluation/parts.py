"""Prediction files of several processes: each writes a part, and the first one joins them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vidtune.evaluation.records import Prediction, PredictionWriter, meta_path


def part_path(path: Path, rank: int) -> Path:
    """Where a process writes: the file itself for the first."""
    return path if rank == 0 else path.with_name(f"{path.stem}.part{rank}.jsonl")


def join_parts(path: Path, made_by: Mapping[str, Any], num_samples: int, recorded: Mapping[str, Any]) -> set[str]:
    """Move what all parts hold into the file, also after a kill; returns the ids that it then holds.

    Raises:
        UserError: a part was made with other settings.
    """
    with PredictionWriter(path, made_by, num_samples, recorded) as writer:
        for part in sorted(path.parent.glob(f"{path.stem}.part*.jsonl")):
            with PredictionWriter(part, made_by, num_samples):
                pass  # refuses other settings and cuts off a half-written line
            for line in part.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                if row["sample_id"] not in writer.done:
                    writer.write(Prediction(**row | {"options": tuple(row["options"])}))
            part.unlink()
            meta_path(part).unlink()
        return set(writer.done)


def rewrite(path: Path, predictions: Sequence[Prediction]) -> None:
    """Replace the lines of a finished file: in the order of the data set, with their present scores."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json.dumps(asdict(prediction), ensure_ascii=False, allow_nan=False) + "\n")
    partial.replace(path)
