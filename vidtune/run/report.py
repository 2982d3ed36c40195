"""The HTML report of an evaluation: what the models were shown and what they answered."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vidtune.contracts import Encoded, MediaPlan, Processor, Sample
from vidtune.data.media_source import MediaSource
from vidtune.data.rows import Encoder
from vidtune.evaluation.html_report import ReportSample, write_report
from vidtune.evaluation.metrics import accuracies
from vidtune.evaluation.plots import plot_accuracy
from vidtune.evaluation.run_table import RunPredictions
from vidtune.evaluation.tables import Table
from vidtune.media import MediaError, read_frames
from vidtune.run.answer_set import AnswerSet
from vidtune.run.build import build_processor, build_source

STRIP_FRAMES = 8
STRIP_HEIGHT = 72
"""Pixels."""


def save_report(
    folder: Path, sets: Sequence[AnswerSet], results: Sequence[RunPredictions], tables: Sequence[Table], limit: int
) -> Path:
    """Write ``report.html``.

    Args:
        limit: samples to show; wrong answers come first, so that a limit leaves out what is least worth a look.
    """
    cfg = sets[0].row.cfg
    processor = build_processor(cfg)
    source = build_source(cfg, processor)
    by_id = [{prediction.sample_id: prediction for prediction in result.predictions} for result in results]
    shown = [
        (sample, {result.name: rows[sample.sample_id] for result, rows in zip(results, by_id, strict=True)})
        for sample in sets[0].samples
    ]
    shown.sort(key=lambda item: sum(bool(prediction.correct) for prediction in item[1].values()))
    samples = [
        ReportSample(answers, _prompt(sample, processor, source), frame_strip(sample, source))
        for sample, answers in shown[:limit]
    ]
    chart = plot_accuracy({result.name: accuracies(result.predictions) for result in results})
    title = f"{', '.join(result.name for result in results)} on {cfg.data.name} {sets[0].split}"
    note = f"{len(samples)} of {len(shown)} samples, wrong answers first (eval.report_samples)."
    return write_report(folder / "report.html", title, tables, [chart], samples, note)


def frame_strip(sample: Sample, source: MediaSource) -> bytes | None:
    """At most ``STRIP_FRAMES`` of the frames that the model sees, side by side, as JPEG; None where there are none."""
    pictures: list[Image.Image] = []
    for ref in sample.media:
        try:
            pictures += _pictures(source.plan(ref, 0, "infer"), source)
        except MediaError:
            return None
    if not pictures:
        return None
    strip = Image.new("RGB", (sum(picture.width + 2 for picture in pictures), STRIP_HEIGHT), "white")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width + 2
    out = io.BytesIO()
    strip.save(out, "JPEG", quality=80)
    return out.getvalue()


def _pictures(plan: MediaPlan, source: MediaSource) -> list[Image.Image]:
    chosen = np.linspace(0, len(plan.frame_indices) - 1, min(STRIP_FRAMES, len(plan.frame_indices))).round().astype(int)
    indices = [plan.frame_indices[i] for i in chosen]
    frames = read_frames(plan.info.ref, indices, backend=source.backend, deadline_s=source.deadline_s)
    # Feature files have rows in place of pictures.
    pictures = [Image.fromarray(frame) for frame in frames if frame.ndim == 3]
    return [p.resize((max(1, p.width * STRIP_HEIGHT // p.height), STRIP_HEIGHT)) for p in pictures]


def _prompt(sample: Sample, processor: Processor, source: MediaSource) -> str:
    return prompt_text(Encoder(processor, source, "infer")(sample, generation=True), processor)


def prompt_text(encoded: Encoded, processor: Processor) -> str:
    """The ids as text, each run of visual tokens as ``<visual×N>``."""
    visual, text, run = set(encoded.visual_positions), "", 0
    ids: list[int] = []
    for position in range(encoded.num_tokens + 1):
        if position in visual:
            text, ids, run = text + _decoded(ids, processor), [], run + 1
        else:
            text, run = text + (f"<visual×{run}>" if run else ""), 0
            ids += encoded.input_ids[position : position + 1]
    return text + _decoded(ids, processor)


def _decoded(ids: list[int], processor: Processor) -> str:
    return processor.tokenizer.decode(ids, skip_special_tokens=False) if ids else ""
