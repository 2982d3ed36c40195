"""A data set under a model's eyes: everything that would harm a run, found before it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from vidtune.contracts import MediaRef, Sample, UserError
from vidtune.data.check_media import MediumCheck, check_media
from vidtune.data.check_rows import RowsCheck, check_rows, first, shares
from vidtune.data.rows import Encoder
from vidtune.run.build import build_processor, build_source, prepare
from vidtune.run.checks import check_config


@dataclass
class Report:
    """What ``vidtune check`` found.

    Args:
        harm: one sentence per finding that would stop a run or falsify its numbers.
        notes: findings that a run copes with.
        data: all findings, as written to the JSON report; its ``bad_media`` list is what ``media.known_bad`` reads.
    """

    harm: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


def check(cfg: DictConfig, fast: bool = False, workers: int | None = None) -> Report:
    """Check every split that training and evaluation would read.

    Args:
        cfg: composed from ``conf/train.yaml``.
        fast: read headers only.
        workers: threads that decode; None for one per core.

    Raises:
        UserError: a wrong configuration, or the training split cannot be read.
    """
    check_config(cfg)
    prepare(cfg)
    processor = build_processor(cfg)
    source = build_source(cfg, processor)
    report = Report()
    splits = _read_splits(cfg, report)
    refs = list({ref.stretch: ref for samples in splits.values() for s in samples for ref in s.media}.values())
    found = check_media(refs, source, fast, workers or os.cpu_count() or 1)
    label = "headers" if fast else "decoding"
    media = {one.ref.stretch: one for one in track(found, label, len(refs), console=Console(stderr=True))}
    limit = min(cfg.model.max_length, cfg.batch.max_tokens)
    encoder = Encoder(processor, source, "train")
    rows = {split: check_rows(samples, encoder, limit) for split, samples in splits.items()}

    report.data["splits"] = {split: _split_facts(rows[split], samples) for split, samples in splits.items()}
    _judge_media(cfg, splits, media, report)
    _judge_contents(splits, media, report)
    for split, one in rows.items():
        _judge_rows(cfg, split, one, limit, split == cfg.data.train_split, report)
    report.data |= {"fast": fast, "harm": report.harm, "notes": report.notes}
    return report


def _read_splits(cfg: DictConfig, report: Report) -> dict[str, list[Sample]]:
    reader = instantiate(cfg.data.reader)
    splits = {cfg.data.train_split: reader(cfg.data.train_split)}
    for split in (cfg.data.val_split, cfg.data.test_split):
        if split and split not in splits:
            try:
                splits[split] = reader(split)
            except UserError as error:
                report.notes.append(f"split {split!r} cannot be read: {error}")
    if not splits[cfg.data.train_split]:
        raise UserError(f"split {cfg.data.train_split!r} holds no samples.")
    return {split: samples for split, samples in splits.items() if samples}


def _split_facts(rows: RowsCheck, samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "rows": rows.num_rows,
        "media": len({ref.stretch for sample in samples for ref in sample.media}),
        "tokens": rows.lengths(),
        "question_types": shares(rows.question_types),
        "answers": shares(rows.answers),
        "empty_answers": rows.empty_answers,
        "without_target": rows.without_target,
        "too_long": rows.too_long,
        "refused": rows.refused,
    }


def _judge_media(
    cfg: DictConfig, splits: dict[str, list[Sample]], media: dict[str, MediumCheck], report: Report
) -> None:
    hits: dict[str, int] = defaultdict(int)
    for samples in splits.values():
        for sample in samples:
            for name in {ref.stretch for ref in sample.media}:
                hits[name] += 1
    bad = [one for one in media.values() if one.reason]
    report.data["media"] = len(media)
    report.data["bad_media"] = [
        {"file": one.ref.stretch, "reason": one.reason, "rows_hit": hits[one.ref.stretch]} for one in bad
    ]
    if bad:
        sentence = (
            f"{len(bad)} of {len(media)} media cannot be read, on {sum(hits[one.ref.stretch] for one in bad)} rows; "
            f"first {bad[0].ref.stretch} ({bad[0].reason})"
        )
        above = len(bad) > cfg.media.max_bad_fraction * len(media)
        (report.harm if above else report.notes).append(sentence)
    short = [
        one.ref.stretch
        for one in media.values()
        if one.info is not None and not one.reason and _is_short(one.ref, one.info.num_frames, cfg.data.num_frames)
    ]
    report.data["too_short"] = short
    if short:
        report.notes.append(
            f"{len(short)} videos have fewer frames than data.num_frames={cfg.data.num_frames} (media.short says what "
            f"they get): {first(short)}"
        )


def _is_short(ref: MediaRef, num_frames: int, wanted: int) -> bool:
    return ref.kind == "video" and num_frames < (ref.num_frames or wanted)


def _judge_contents(splits: dict[str, list[Sample]], media: dict[str, MediumCheck], report: Report) -> None:
    """Media that show the same: across splits they leak, within one they are only noted."""
    where: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for split, samples in splits.items():
        for sample in samples:
            for ref in sample.media:
                if content := media[ref.stretch].content:
                    where[content][split].add(ref.stretch)
    leaks = [{split: sorted(names) for split, names in found.items()} for found in where.values() if len(found) > 1]
    copies = [sorted(names) for found in where.values() for names in found.values() if len(names) > 1]
    report.data |= {"leaks": leaks, "copies": copies}
    if leaks:
        example = " = ".join(f"{names[0]} ({split})" for split, names in leaks[0].items())
        report.harm.append(f"{len(leaks)} media are in several splits, so that scores would be too good: {example}")
    if copies:
        report.notes.append(
            f"{len(copies)} media occur under several names within a split: {' = '.join(copies[0][:2])}"
        )


def _judge_rows(cfg: DictConfig, split: str, rows: RowsCheck, limit: int, trains: bool, report: Report) -> None:
    if rows.refused:
        name, message = next(iter(rows.refused.items()))
        report.harm.append(f"{split}: the model refuses {len(rows.refused)} rows; first {name}: {message}")
    if rows.too_long:
        report.harm.append(
            f"{split}: {len(rows.too_long)} rows are longer than {limit} tokens, the smaller of model.max_length and "
            f"batch.max_tokens; the longest has {max(rows.too_long.values())}: {first(list(rows.too_long))}"
        )
    lost = {"an empty answer or none": rows.empty_answers, "no supervised token": rows.without_target}
    for what, names in lost.items():
        if names:
            above = trains and len(names) > cfg.media.max_bad_fraction * rows.num_rows
            sentence = f"{split}: {len(names)} of {rows.num_rows} rows have {what}: {first(names)}"
            (report.harm if above else report.notes).append(sentence)
