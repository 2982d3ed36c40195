"""How several data sets become one list of rows: one pure function per rule.

Every rule returns (set, row) pairs over sets of the given sizes. Their order is that of the original where the original
has one; a training run shuffles by its own seed in any case, so that what matters is which rows occur how often.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vidtune.contracts import UserError

Picks = list[tuple[int, int]]


@dataclass(frozen=True)
class SetShare:
    """One set of a mixture.

    Args:
        name: as registered.
        size: number of its rows.
        weight: the number after ``*``.
        strategy: ``all``, ``first:N``, ``end:N`` or ``random:N`` with N a count or a percentage (``25%``).
    """

    name: str
    size: int
    weight: float = 1.0
    strategy: str = "all"


def by_weights(shares: Sequence[SetShare], seed: int, global_batch_size: int | None) -> Picks:
    """Each set ``weight`` times: whole copies, and for the rest a random subset of its rows.

    The subset depends on seed and name, so that adding a set to the mixture leaves the others alone.
    """
    picks: Picks = []
    for number, share in enumerate(shares):
        copies, rest = divmod(share.weight, 1)
        picks += [(number, row) for _ in range(int(copies)) for row in range(share.size)]
        drawn = random.Random(f"{seed}/{share.name}").sample(range(share.size), round(rest * share.size))
        picks += [(number, row) for row in sorted(drawn)]
    return picks


def by_aria(shares: Sequence[SetShare], seed: int, global_batch_size: int | None) -> Picks:
    """Weight up to 1: the first ``int(weight * size)`` rows. Above: all rows ``int(weight)`` times, 2.7 as 2. Then one
    shuffle with the seed 42, whatever the run's. Source: rhymes-ai/Aria, ``aria/data.py``, mix_datasets."""
    picks: Picks = []
    for number, share in enumerate(shares):
        if share.weight <= 1:
            picks += [(number, row) for row in range(int(share.weight * share.size))]
        else:
            picks += [(number, row) for _ in range(int(share.weight)) for row in range(share.size)]
    return [picks[index] for index in np.random.default_rng(42).permutation(len(picks))]


def by_nvila(shares: Sequence[SetShare], seed: int, global_batch_size: int | None) -> Picks:
    """Sets sorted by name, whole repeats only, each filled up to a multiple of the global batch: a set of at most half
    a batch is first repeated ``batch // size`` times, then random rows occur once more. The original draws these
    without a seed; here they depend on seed and name. Source: NVlabs/VILA, ``llava/data``, build_dataset and
    BaseDataset.

    Raises:
        UserError: a broken weight, or no global batch.
    """
    if not global_batch_size:
        raise UserError("data.mixing=nvila fills every set up to a multiple of the batch; set global_batch_size.")
    picks: Picks = []
    for number in sorted(range(len(shares)), key=lambda number: shares[number].name):
        share = shares[number]
        if share.weight != int(share.weight):
            raise UserError(
                f"data.sets: {share.name}*{share.weight:g}, but data.mixing=nvila repeats whole sets. Use a whole "
                f"number, or data.mixing=weights."
            )
        rows = list(range(share.size)) * int(share.weight)
        if rows and len(rows) * 2 <= global_batch_size:
            rows = rows * (global_batch_size // len(rows))
        missing = -len(rows) % global_batch_size
        draw = random.Random(f"{seed}/{share.name}")
        rows += draw.choices(rows, k=missing) if rows else []
        picks += [(number, row) for row in rows]
    return picks


def by_qevd(shares: Sequence[SetShare], seed: int, global_batch_size: int | None) -> Picks:
    """The sampling strategy picks rows; then a weight above 1 repeats the list ``int(weight)`` times and one below 1
    keeps its first part. Source: the ``diy_ft_data.json`` of OpenGVLab/VideoChat-Flash's fine-tuning.

    Raises:
        UserError: an unknown strategy.
    """
    picks: Picks = []
    for number, share in enumerate(shares):
        rows = strategy_rows(share, seed)
        rows = rows[: int(share.weight * len(rows))] if share.weight < 1 else rows * int(share.weight)
        picks += [(number, row) for row in rows]
    return picks


def strategy_rows(share: SetShare, seed: int) -> list[int]:
    """Rows that a ``sampling_strategy`` leaves.

    Raises:
        UserError: not of the form ``all``, ``first:N``, ``end:N`` or ``random:N``.
    """
    rows = list(range(share.size))
    kind, _, amount = share.strategy.partition(":")
    number = amount.removesuffix("%")
    if kind == "all" and not amount:
        return rows
    if kind not in ("first", "end", "random") or not number.isdecimal():
        raise UserError(
            f"set {share.name}: sampling_strategy={share.strategy!r}; expected all, first:N, end:N or random:N, N a "
            f"count or a percentage such as 25%."
        )
    count = -(-int(number) * share.size // 100) if amount.endswith("%") else min(int(number), share.size)
    if kind == "random":
        return sorted(random.Random(f"{seed}/{share.name}").sample(rows, count))
    return rows[:count] if kind == "first" else rows[share.size - count :]


MIXING: dict[str, Callable[[Sequence[SetShare], int, int | None], Picks]] = {
    "weights": by_weights,
    "aria": by_aria,
    "nvila": by_nvila,
    "qevd": by_qevd,
}


def parse_sets(text: str) -> list[tuple[str, float]]:
    """``A+B*2`` as (name, weight) pairs; a set may stand there several times.

    Raises:
        UserError: an empty name, or a weight that is no positive number.
    """
    pairs = []
    for item in text.split("+"):
        name, star, weight = (part.strip() for part in item.partition("*"))
        if not name or "@" in name or "@" in weight:
            hint = " Slices (@) of VILA's grammar are not supported: write the rows to a file." if "@" in item else ""
            raise UserError(f"data.sets={text!r}: expected names joined by +, each with a weight as A*2 or none.{hint}")
        try:
            factor = float(weight) if star else 1.0
        except ValueError:
            factor = -1.0
        if not 0 < factor < float("inf"):
            raise UserError(f"data.sets={text!r}: {weight!r} is no weight; expected a positive number, as in {name}*2.")
        pairs.append((name, factor))
    return pairs
