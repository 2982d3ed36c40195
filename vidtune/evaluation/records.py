"""Predictions on disk: one JSON object a line, beside a file that says what made them.

``predictions.jsonl`` grows by one flushed line per sample, so that an interrupted evaluation goes on where it
stopped. ``predictions.meta.json`` holds the settings that made the lines and how many there must be, so that other
settings never continue the file and an unfinished file never becomes a table.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Literal, get_args

from vidtune.contracts import UserError

log = logging.getLogger(__name__)

Status = Literal["ok", "unparsed", "bad_media"]


@dataclass(frozen=True)
class Prediction:
    """One answered question.

    Args:
        sample_id, source, question, answer, options, question_type: as in the ``Sample``; ``answer`` is the reference.
        prediction: what the model wrote, unchanged.
        parsed: the answer read out of it; None where there is none.
        correct: whether it is right; None only where there is no reference. Unparsed answers and media that could
            not be read are wrong: leaving them out would flatter a run.
        score: further metrics by name, higher is better.
        status: ``ok``; ``unparsed``: no answer in the text; ``bad_media``: the model was never asked.
        extra: further columns of the annotation, and measurements such as the generation time.
    """

    sample_id: str
    source: str = ""
    question: str = ""
    answer: str = ""
    options: tuple[str, ...] = ()
    prediction: str = ""
    parsed: str | None = None
    correct: bool | None = None
    score: Mapping[str, float] = field(default_factory=dict)
    question_type: str = ""
    status: Status = "ok"
    extra: Mapping[str, Any] = field(default_factory=dict)


def meta_path(path: Path | str) -> Path:
    """``predictions.jsonl`` -> ``predictions.meta.json``."""
    return Path(path).with_suffix(".meta.json")


class PredictionWriter:
    """Appends predictions; goes on with a file that the same settings began.

    Args:
        path: the JSONL file; its folder is made.
        made_by: what decides the predictions (checkpoint, hash of the configuration, split, ...), JSON values.
        num_samples: how many predictions the finished file holds.
        recorded: further facts for the tables (commit, ...); other ones do not keep a file from being continued.

    Attributes:
        done: ids of the samples that the file holds.
        dropped: the half-written last line that was cut off, or None.

    Raises:
        UserError: the file was made by other settings, lacks its meta file, is damaged before its last line, or is
            being written by another process.
    """

    def __init__(
        self,
        path: Path | str,
        made_by: Mapping[str, Any],
        num_samples: int,
        recorded: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.dropped: str | None = None
        self.done: set[str] = set()
        meta = _as_json({"made_by": made_by, "num_samples": num_samples, "recorded": recorded or {}})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _refuse_other_settings(self.path, read_meta(self.path), meta)
        else:
            _write_whole(meta_path(self.path), json.dumps(meta, indent=2, ensure_ascii=False) + "\n")
        self._file = self.path.open("a", encoding="utf-8")
        try:
            _lock(self._file, self.path)
            predictions, self.dropped, valid_bytes = _scan(self.path)
        except UserError:
            self._file.close()
            raise
        self.done = {prediction.sample_id for prediction in predictions}
        if self.dropped is not None:
            os.truncate(self.path, valid_bytes)
            log.warning("%s: cut off a half-written last line (%d characters)", self.path, len(self.dropped))

    def write(self, prediction: Prediction) -> None:
        """Append one prediction and hand it to the operating system.

        Raises:
            UserError: the file holds this sample already.
        """
        if prediction.sample_id in self.done:
            raise UserError(
                f"{self.path}: sample {prediction.sample_id!r} is predicted a second time; sample ids must be unique "
                "within a data set. Look for the id in the annotation file."
            )
        self._file.write(json.dumps(asdict(prediction), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        self.done.add(prediction.sample_id)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def done_ids(path: Path | str) -> set[str]:
    """Ids of the samples that a (possibly unfinished) file holds; none where there is no file."""
    return {prediction.sample_id for prediction in _scan(Path(path))[0]} if Path(path).exists() else set()


def read_meta(path: Path | str) -> dict[str, Any]:
    """What made the predictions at ``path``: ``{"made_by": {...}, "num_samples": N, "recorded": {...}}``.

    Raises:
        UserError: the meta file is missing or is no JSON.
    """
    meta = meta_path(path)
    try:
        return json.loads(meta.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: {meta.name} is missing, so nobody knows what made these predictions.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{meta}: not JSON ({error}). Delete it with its predictions and evaluate again.") from None


def read_predictions(path: Path | str) -> list[Prediction]:
    """A finished prediction file.

    Raises:
        UserError: no such file, a damaged line, or fewer predictions than the evaluation was to make.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such prediction file. Run evaluate.py for this run first.")
    predictions, dropped, _ = _scan(path)
    expected = read_meta(path)["num_samples"]
    if dropped is not None or len(predictions) != expected:
        half = " and a half-written last line" if dropped is not None else ""
        raise UserError(
            f"{path}: {len(predictions)} of {expected} predictions{half}: the evaluation was interrupted. Run the same "
            "evaluate.py command again; it goes on where it stopped."
        )
    return predictions


def _scan(path: Path) -> tuple[list[Prediction], str | None, int]:
    """Predictions, the half-written last line if there is one, and the length in bytes of what is whole.

    A kill can only leave the last line without its newline; anything else is damage and is refused.
    """
    content = path.read_bytes()
    whole, newline, tail = content.rpartition(b"\n")
    predictions: list[Prediction] = []
    lines_by_id: dict[str, int] = {}
    for number, line in enumerate(whole.split(b"\n") if newline else [], start=1):
        prediction = _parse(line, f"{path} line {number}")
        if prediction.sample_id in lines_by_id:
            raise UserError(
                f"{path} line {number}: sample {prediction.sample_id!r} stands in line "
                f"{lines_by_id[prediction.sample_id]} too. Delete the file and evaluate again."
            )
        lines_by_id[prediction.sample_id] = number
        predictions.append(prediction)
    return predictions, tail.decode(errors="replace") if tail else None, len(whole) + len(newline)


def _parse(line: bytes, where: str) -> Prediction:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not a JSON object ({error}). Delete the file and evaluate again.") from None
    names = {item.name for item in fields(Prediction)}
    if not isinstance(row, dict) or "sample_id" not in row or set(row) - names:
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{where}: not a prediction; found {found}, expected fields out of {sorted(names)}.")
    if row.get("status", "ok") not in get_args(Status):
        raise UserError(f"{where}: status {row['status']!r}, expected one of {list(get_args(Status))}.")
    return Prediction(**row | {"options": tuple(row.get("options", ()))})


def _refuse_other_settings(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    old = {**found.get("made_by", {}), "num_samples": found.get("num_samples")}
    new = {**wanted["made_by"], "num_samples": wanted["num_samples"]}
    differing = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if differing:
        changes = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing)
        raise UserError(
            f"{path}: begun with other settings ({changes}). Evaluate into another folder (output=), or delete the "
            f"file with its {meta_path(path).name}."
        )


def _lock(file: IO[str], path: Path) -> None:
    """Until the file is closed or the process ends, however it ends.

    Raises:
        UserError: another process has it: two evaluations at once, or one left over from a kill.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{path}: another process is writing these predictions. Wait for it or end it, then give the same command "
            f"again; or evaluate into another folder (output=)."
        ) from None
    except OSError as error:  # a file system without locks
        log.debug("%s: not locked (%s)", path, error)


def _as_json(value: Any) -> Any:
    """The value as it reads back from JSON, so that what is compared is what was stored."""
    return json.loads(json.dumps(value, default=str))


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
