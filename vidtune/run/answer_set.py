"""All answers of one row of the table: asked where they are missing, stored, scored."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track

from vidtune.contracts import Sample, UserError
from vidtune.data.media_source import MediaSource
from vidtune.data.rows import Encoder
from vidtune.evaluation.answering import Answer, Meter
from vidtune.evaluation.by_video import share_by_video
from vidtune.evaluation.controls import CONTROLS, Control
from vidtune.evaluation.parts import join_parts, part_path, rewrite
from vidtune.evaluation.records import Prediction, PredictionWriter, done_ids, read_predictions
from vidtune.evaluation.result_file import save_results
from vidtune.evaluation.run_table import RunPredictions
from vidtune.evaluation.task_base import Task
from vidtune.evaluation.tasks import build_task
from vidtune.evaluation.timing import FILE as TIMING
from vidtune.evaluation.timing import TimingLog, join_timings, read_timings
from vidtune.run.answerer import Answerer, load_answerer
from vidtune.run.build import build_processor, build_source, prepare
from vidtune.run.features import open_features
from vidtune.run.processes import Processes
from vidtune.run.provenance import deciding_settings, table_facts
from vidtune.run.sharded import asks_together
from vidtune.run.table_rows import TableRow
from vidtune.training.callbacks.bad_media import Entries, write_ledger

log = logging.getLogger(__name__)

AS_IT_IS = Control("video")


@dataclass
class AnswerSet:
    """A row of the table with its questions; ``prepare_row`` makes it.

    Args:
        folder: of its predictions.
    """

    row: TableRow
    split: str
    samples: list[Sample]
    task: Task
    folder: Path
    made_by: dict[str, object] = field(default_factory=dict)

    def answer(self, processes: Processes) -> None:
        """Ask what is not answered yet; every process its videos. Then score and store all answers in order.

        Raises:
            UserError: ``rescore=true``, and answers are missing.
        """
        processor = build_processor(self.row.cfg)
        self.folder.mkdir(parents=True, exist_ok=True)
        source = build_source(self.row.cfg, processor, self.folder)
        self.made_by = table_facts(self.row, processor, source, self.samples)
        more_weights = [Path(self.row.adapter)] if self.row.adapter else []
        features = open_features(self.row.cfg, source, self.row.checkpoint is not None, *more_weights)
        if features is not None:
            features.plan([ref for sample in self.samples for ref in sample.media], "infer", epochs=False)
        # The network is built when the first question needs it, once for the evaluation and its controls.
        load = cache(lambda: load_answerer(self.row.cfg, processor, self.row.checkpoint, self.row.adapter, features))
        self._answer(load, source, processes, AS_IT_IS, self.folder)
        if processes.first:
            self._list_bad_media(source)
            predictions = read_predictions(self.folder / "predictions.jsonl")
            save_results(self.folder, self.samples, predictions, read_timings(self.folder))
        if self.row.cfg.eval.controls:
            for name, control in CONTROLS.items():
                self._answer(load, source, processes, control, self.folder / "controls" / name)
        if features is not None:
            features.close()

    def read(self) -> RunPredictions:
        """The stored predictions.

        Raises:
            UserError: they are not complete.
        """
        controls = CONTROLS if self.row.cfg.eval.controls else {}
        return RunPredictions(
            self.row.name,
            read_predictions(self.folder / "predictions.jsonl"),
            self.made_by,
            {name: read_predictions(self.folder / "controls" / name / "predictions.jsonl") for name in controls},
        )

    def _answer(
        self,
        load: Callable[[], Answerer],
        source: MediaSource,
        processes: Processes,
        control: Control,
        folder: Path,
    ) -> None:
        cfg, path = self.row.cfg, folder / "predictions.jsonl"
        made_by = {**deciding_settings(self.row, self.split), "shown": control.name}
        if processes.first:
            join_parts(path, made_by, len(self.samples), self.made_by)
        processes.wait()
        done = done_ids(path)
        processes.wait()
        todo = [sample for sample in control.samples(self.samples, cfg.seed) if sample.sample_id not in done]
        if todo and cfg.get("rescore"):
            raise UserError(
                f"{path}: {len(todo)} of {len(self.samples)} questions have no answer yet, and rescore=true asks no "
                f"model. Run evaluate.py without it first."
            )
        together = asks_together(cfg)
        mine = todo if together else share_by_video(todo, cfg.eval.batch_size, processes.rank, processes.world_size)
        _refuse_long(mine if control is AS_IT_IS else [], source, cfg.eval.scoring == "generate")
        if mine and together and not processes.first:
            deque(self._ask(load(), mine, control.source(source)), maxlen=0)  # takes part; the first process writes
        elif mine:
            with PredictionWriter(part_path(path, processes.rank), made_by, len(self.samples), self.made_by) as writer:
                answerer = load()
                # Controls are no use to anyone who asks how fast the model is.
                meter = TimingLog(part_path(folder / TIMING, processes.rank)) if control is AS_IT_IS else None
                answers = self._ask(answerer, mine, control.source(source), meter)
                label = f"{self.row.name}: {control.name}"
                console = Console(stderr=True, quiet=not processes.first)
                for sample, text, bad in track(answers, label, total=len(mine), console=console):
                    writer.write(self.task.bad_media(sample, bad) if bad else self.task.score(sample, text))
        processes.wait()
        if processes.first:
            join_parts(path, made_by, len(self.samples), self.made_by)
            join_timings(folder)
            self._score(path)
        processes.wait()

    def _ask(
        self, answerer: Answerer, samples: list[Sample], source: MediaSource, meter: Meter | None = None
    ) -> Iterator[Answer]:
        match self.row.cfg.eval.scoring:
            case "likelihood":
                return answerer.most_likely(samples, self.task.candidates, source)
            case "perplexity":
                return answerer.reference_likelihoods(samples, source)
            case _:
                return answerer.generate(samples, source, meter)

    def _score(self, path: Path) -> None:
        """Scores are those of the present task, whichever wrote the lines; the order is that of the data set."""
        stored = {prediction.sample_id: prediction for prediction in read_predictions(path)}
        rewrite(path, [self._scored(sample, stored[sample.sample_id]) for sample in self.samples])

    def _list_bad_media(self, source: MediaSource) -> None:
        """Write ``bad_media.csv``. Data workers have met these media; what they found is in the shared log."""
        unread = {p.sample_id for p in read_predictions(self.folder / "predictions.jsonl") if p.status == "bad_media"}
        entries: Entries = {}
        for sample in self.samples if unread else ():
            for ref in sample.media if sample.sample_id in unread else ():
                source.info(ref)
                if reason := source.bad.reason(ref):
                    entries[ref.stretch] = (reason, entries.get(ref.stretch, ("", 0))[1] + 1)
        if unread:
            write_ledger(self.folder / "bad_media.csv", entries)
            log.warning(
                "%d media cannot be read; their %d rows count as wrong: see bad_media.csv.", len(entries), len(unread)
            )

    def _scored(self, sample: Sample, stored: Prediction) -> Prediction:
        if stored.status == "bad_media":
            return self.task.bad_media(sample, str(stored.extra.get("bad_media", "")))
        return self.task.score(sample, stored.prediction)


def _refuse_long(samples: list[Sample], source: MediaSource, generation: bool) -> None:
    """Meet a question that the model cannot read whole before its weights are loaded; reads headers, no pixels.

    Raises:
        UserError: a question longer than ``model.max_length``.
    """
    source.read_headers(ref for sample in samples for ref in sample.media)
    encoder = Encoder(source.processor, source, "infer")
    for sample in samples:
        encoder(sample, generation=generation)


def prepare_row(row: TableRow, split: str | None, folder: Path | None, processes: Processes) -> AnswerSet:
    """Questions and task of a row, checked before any model is loaded.

    Args:
        split: None for the test split of the row's data.
        folder: of the predictions; None for one below the row's home.

    Raises:
        UserError: no such split, or a question that does not fit the task.
    """
    if processes.first:
        prepare(row.cfg)
    processes.wait()
    split = split or row.cfg.data.test_split
    assert split is not None
    samples = instantiate(row.cfg.data.reader)(split)[: row.cfg.eval.limit]
    if not samples:
        raise UserError(f"data={row.cfg.data.name}: split {split!r} holds no samples; nothing to evaluate. Set split=.")
    task = build_task(**OmegaConf.to_container(row.cfg.data.task, resolve=True))  # type: ignore[arg-type]
    for sample in samples:
        task.check(sample)
    weights = row.checkpoint.stem if row.checkpoint else "adapter" if row.adapter else "untuned"
    name = f"{weights}_{row.cfg.data.name}_{split}"
    return AnswerSet(row, split, samples, task, folder or row.home / "evaluation" / name)
