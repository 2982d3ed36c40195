"""How long answers took: one line per answer beside the predictions, which stay the same from run to run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vidtune.contracts import Sample
from vidtune.evaluation.tables import Column, Table

FILE = "timing.jsonl"


@dataclass(frozen=True)
class Timing:
    """One answer.

    Args:
        tokens: generated, without the stop token.
        seconds: of its batch (tower, prompt and generation), divided by the answers in it.
    """

    tokens: int
    seconds: float


class TimingLog:
    """Appends the timings of answers to a file; of an answer that is given again the last line counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, samples: Sequence[Sample], tokens: Sequence[int], seconds: float) -> None:
        """Note one batch of answers.

        Args:
            tokens: per sample.
            seconds: of the whole batch.
        """
        share = seconds / len(samples)
        with self.path.open("a", encoding="utf-8") as file:
            for sample, count in zip(samples, tokens, strict=True):
                file.write(_line(sample.sample_id, Timing(count, share)))


def read_timings(folder: Path) -> dict[str, Timing]:
    """Timings by sample id that the processes of an evaluation left in its folder; a half-written line is left out."""
    timings = {}
    for file in sorted(folder.glob("timing*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            timings[row["sample_id"]] = Timing(row["tokens"], row["seconds"])
    return timings


def join_timings(folder: Path) -> None:
    """Move what the other processes of an evaluation wrote into the file of the first."""
    parts = list(folder.glob(f"{Path(FILE).stem}.part*.jsonl"))
    if parts:
        timings = read_timings(folder)
        partial = folder / f"{FILE}.partial"
        partial.write_text("".join(map(_line, timings, timings.values())), encoding="utf-8")
        partial.replace(folder / FILE)
        for part in parts:
            part.unlink()


def _line(sample_id: str, timing: Timing) -> str:
    return json.dumps({"sample_id": sample_id, **asdict(timing)}) + "\n"


def speed_table(timings: Mapping[str, Mapping[str, Timing]]) -> Table:
    """Tokens a second of each row of an evaluation that generated answers."""
    columns = [Column("run"), Column("answers", "count"), Column("tokens", "count"), Column("seconds", "number")]
    columns += [Column("tokens per answer", "number"), Column("tokens per second", "number")]
    rows = []
    for name, answers in timings.items():
        if not answers:
            continue
        tokens, seconds = sum(one.tokens for one in answers.values()), sum(one.seconds for one in answers.values())
        rows.append((name, len(answers), tokens, seconds, tokens / len(answers), tokens / seconds))
    return Table(columns, rows, notes=["Seconds of tower, prompt and generation, summed over all processes."])
