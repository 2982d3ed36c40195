"""What a model sees of one row: its frames and times, and its tokens with the supervised ones marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from vidtune.contracts import IGNORE, Encoded, Sample, UserError
from vidtune.data.rows import Encoder
from vidtune.media import MediaError, read_frames
from vidtune.run.build import build_processor, build_source, prepare
from vidtune.run.checks import check_config

Kind = Literal["context", "target", "visual"]


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one kind; of visual ones the text is a placeholder with their number."""

    kind: Kind
    text: str
    num_tokens: int


@dataclass(frozen=True)
class Strip:
    """The frames of one medium.

    Args:
        frames: (H, W, 3) uint8 RGB as the processor gets them, in reading order; empty where unreadable.
        times_s, indices: of these frames.
        problem: why the medium cannot be read; empty where it can.
    """

    path: str
    frames: tuple[np.ndarray, ...]
    times_s: tuple[float, ...]
    indices: tuple[int, ...]
    problem: str = ""


@dataclass(frozen=True)
class Preview:
    """One row as training sees it in its first epoch."""

    sample: Sample
    encoded: Encoded
    strips: tuple[Strip, ...]
    runs: tuple[Run, ...]


def preview(cfg: DictConfig, index: int, split: str | None = None) -> Preview:
    """Encode and read one row with the encoder and the processor of training.

    Args:
        cfg: composed from ``conf/train.yaml``.
        index: of the row in its split, from 0, in the order of the reader.
        split: the training split by default.

    Raises:
        UserError: a wrong configuration, no such row, or a row that the model refuses.
    """
    check_config(cfg)
    prepare(cfg)
    processor = build_processor(cfg)
    source = build_source(cfg, processor)
    split = split or cfg.data.train_split
    samples = instantiate(cfg.data.reader)(split)
    if not 0 <= index < len(samples):
        raise UserError(f"--index {index}: split {split!r} holds {len(samples)} rows, from 0 to {len(samples) - 1}.")
    encoded = Encoder(processor, source, "train")(samples[index])
    strips = []
    for plan in encoded.plans:
        ref = plan.info.ref
        frames: tuple[np.ndarray, ...] = ()
        problem = source.why_bad([ref])
        if not problem:
            try:
                frames = tuple(
                    read_frames(
                        ref,
                        plan.frame_indices,
                        backend=cfg.media.backend,
                        size=plan.frame_size,
                        frame_filter=plan.frame_filter,
                        deadline_s=cfg.media.deadline_s,
                    )
                )
            except MediaError as error:
                problem = error.reason
        strips.append(Strip(ref.stretch, frames, plan.times_s, plan.frame_indices, problem))
    return Preview(samples[index], encoded, tuple(strips), tuple(token_runs(encoded, processor.tokenizer)))


def token_runs(encoded: Encoded, tokenizer: Any) -> list[Run]:
    """The row as runs of context, supervised and visual tokens, in order; their token counts sum up to the row's."""
    visual = set(encoded.visual_positions)

    def kind(position: int) -> Kind:
        if position in visual:
            return "visual"
        # The first position has no predecessor that could predict it.
        return "target" if position and encoded.labels[position] != IGNORE else "context"

    runs = []
    for name, group in groupby(range(encoded.num_tokens), key=kind):
        positions: Sequence[int] = list(group)
        ids = [encoded.input_ids[position] for position in positions]
        text = f"<visual×{len(ids)}>" if name == "visual" else tokenizer.decode(ids, skip_special_tokens=False)
        runs.append(Run(name, text, len(ids)))
    return runs
