"""Every row of a data set, rendered and measured as training would: what is empty, too long or out of balance."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vidtune.contracts import Sample, UserError
from vidtune.data.rows import Encoder

_UNBOUNDED = 1 << 30
_BINS = 10


@dataclass
class RowsCheck:
    """What was found of the rows of one split. Rows are named by their ids.

    Args:
        num_rows: all of them.
        refused: row -> message, where the model cannot take it.
        too_long: row -> tokens, above ``limit``; training would cut or refuse it.
        empty_answers: rows with an empty assistant turn, or none.
        without_target: rows that would teach nothing as they are cut.
        tokens: lengths before any cut.
        question_types, answers: how often each occurs.
    """

    num_rows: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    too_long: dict[str, int] = field(default_factory=dict)
    empty_answers: list[str] = field(default_factory=list)
    without_target: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    question_types: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    def lengths(self) -> dict[str, Any]:
        """Median, 95 %, longest, and a histogram of token lengths."""
        if not self.tokens:
            return {}
        counts, edges = np.histogram(self.tokens, bins=_BINS)
        return {
            "median": float(np.median(self.tokens)),
            "percentile_95": float(np.percentile(self.tokens, 95)),
            "max": max(self.tokens),
            "histogram": {"counts": counts.tolist(), "edges": [round(float(edge), 1) for edge in edges]},
        }


def check_rows(samples: Iterable[Sample], encoder: Encoder, limit: int) -> RowsCheck:
    """Encode rows without decoding a frame.

    Args:
        encoder: of training.
        limit: tokens a row may have: the smaller of the model's and the batch's.
    """
    processor: Any = copy.copy(encoder.processor)
    cut_at = getattr(processor, "max_length", _UNBOUNDED)
    processor.max_length = _UNBOUNDED
    unbounded = Encoder(processor, encoder.source, encoder.preset)
    found = RowsCheck()
    for sample in samples:
        found.num_rows += 1
        found.question_types[sample.question_type] += 1
        found.answers[sample.answer] += 1
        replies = [message.text.strip() for message in sample.messages if message.role == "assistant"]
        if not replies or not all(replies):
            found.empty_answers.append(sample.sample_id)
        try:
            encoded = unbounded(sample)
        except UserError as error:
            found.refused[sample.sample_id] = str(error)
            continue
        found.tokens.append(encoded.num_tokens)
        if encoded.num_tokens > limit:
            found.too_long[sample.sample_id] = encoded.num_tokens
        if all(label < 0 for label in encoded.labels[1:cut_at]):
            found.without_target.append(sample.sample_id)
    return found


def shares(counts: Counter[str], most: int = 50) -> dict[str, int]:
    """The counts of a closed list, most frequent first; empty where there are too many to be one."""
    return dict(counts.most_common()) if 1 < len(counts) <= most else {}


def first(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
