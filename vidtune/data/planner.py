"""Which samples make up each optimizer step, and how they fill its rows.

Everything is decided from token counts, before a frame is decoded. The plan of a step depends on the seed and the
step's number alone: any number of workers, and a resumed run, see the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Literal

import numpy as np

from vidtune.contracts import UserError

Reduction = Literal["token", "sample"]


@dataclass(frozen=True)
class SampleSize:
    """What the planner knows of a sample.

    Args:
        num_tokens: length of the row it would need alone.
        num_targets: supervised tokens after truncation.
        prefix_length: leading tokens it can share.
        prefix_key: equal for samples whose ids and media up to there are equal; empty where nothing can be shared.
        weight: factor on its loss; 0 for a sample whose medium is known to be bad.
    """

    num_tokens: int
    num_targets: int
    prefix_length: int = 0
    prefix_key: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class RowPlan:
    """One row of one step.

    Args:
        segments: samples by segment; those of one segment share their visual prefix.
        normalizer: denominator of the loss of the whole step.
        epoch: keys the visual draws.
        step: number of the optimizer step it belongs to.
        filler: the row only keeps a process in step; its samples carry weight 0.
    """

    segments: tuple[tuple[int, ...], ...]
    normalizer: float
    epoch: int
    step: int
    filler: bool = False


class Planner:
    """Cuts each optimizer step of exactly ``global_batch_size`` samples into rows.

    Args:
        sizes: one per sample.
        global_batch_size: samples per optimizer step; the last step of an epoch may hold fewer.
        rows_per_step: accumulation x number of processes.
        max_tokens: token budget of a row.
        questions_per_video: most samples that may share one visual prefix in a step; 1 switches sharing off.
        seed: of the shuffle.
        reduction: ``token`` divides by the supervised tokens of the step, ``sample`` averages each sample first.
        shuffle: False keeps the order of ``sizes`` (validation).
        longest_first: begin the first epoch with the step that holds the longest row, so that a run which does not
            fit into memory fails at once.
    """

    def __init__(
        self,
        sizes: Sequence[SampleSize],
        *,
        global_batch_size: int,
        rows_per_step: int,
        max_tokens: int,
        questions_per_video: int = 1,
        seed: int = 0,
        reduction: Reduction = "token",
        shuffle: bool = True,
        longest_first: bool = True,
    ) -> None:
        self.sizes, self.global_batch_size, self.rows_per_step = sizes, global_batch_size, rows_per_step
        self.max_tokens, self.questions_per_video, self.seed = max_tokens, questions_per_video, seed
        self.reduction, self.shuffle = reduction, shuffle
        self.longest_first = longest_first and shuffle
        self.steps_per_epoch = ceil(len(sizes) / global_batch_size)
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)
        too_long = [index for index, size in enumerate(sizes) if size.num_tokens > max_tokens]
        if too_long:
            raise UserError(
                f"{len(too_long)} samples need more tokens than a row may hold: the longest "
                f"{max(sizes[i].num_tokens for i in too_long)} > batch.max_tokens={max_tokens}. "
                f"Raise batch.max_tokens, or lower data.num_frames or model.max_length."
            )

    def step(self, number: int) -> list[RowPlan]:
        """Rows of an optimizer step, ``rows_per_step`` of them, the longest first.

        Row ``i`` is the micro-step ``i // processes`` of process ``i % processes``, so that processes which wait for
        each other have rows of similar length.
        """
        epoch, index = divmod(number, self.steps_per_epoch)
        units = self._epoch(epoch)[index]
        samples = [index for unit in units for index in unit]
        normalizer = sum(self._weight(index) for index in samples) or 1.0
        rows = self._fill(units, number)
        plans = [RowPlan(tuple(map(tuple, row)), normalizer, epoch, number) for row in rows if row]
        shortest = min(samples, key=lambda i: self.sizes[i].num_tokens)
        filler = RowPlan(((shortest,),), normalizer, epoch, number, filler=True)
        return plans + [filler] * (self.rows_per_step - len(plans))

    def rows(self, first_step: int, last_step: int, rank: int = 0, world_size: int = 1) -> Iterator[RowPlan]:
        """Rows of one process from ``first_step`` up to, without, ``last_step``."""
        for number in range(first_step, last_step):
            yield from self.step(number)[rank::world_size]

    def row_tokens(self, row: RowPlan) -> int:
        """Tokens the row holds when it is packed."""
        return sum(self._unit_tokens(segment) for segment in row.segments)

    def savings(self) -> str:
        """What sharing and packing save in the first epoch: tokens that run against tokens of separate samples, and the
        share of padding if the samples of a row were padded to the longest instead."""
        packed = separate = padded = 0
        for number, units in enumerate(self._epoch(0)):
            for row in self._fill(units, number):
                lengths = [self.sizes[index].num_tokens for unit in row for index in unit]
                packed += sum(map(self._unit_tokens, row))
                separate += sum(lengths)
                padded += len(lengths) * max(lengths, default=0)
        return (
            f"{packed:,} tokens per epoch, {separate:,} without sharing ({separate / packed:.2f} x); "
            f"rows hold no padding, padded batches would hold {100 * (1 - separate / padded):.0f} %"
        )

    def _weight(self, index: int) -> float:
        """What a sample adds to the denominator."""
        size = self.sizes[index]
        if not size.num_targets:
            return 0.0
        return size.weight * (size.num_targets if self.reduction == "token" else 1)

    def _unit_tokens(self, unit: Sequence[int]) -> int:
        prefix = self.sizes[unit[0]].prefix_length if len(unit) > 1 else 0
        return prefix + sum(self.sizes[index].num_tokens - prefix for index in unit)

    def _plan_epoch(self, epoch: int) -> list[list[list[int]]]:
        """Units (samples that share a prefix) of every step of an epoch."""
        units = self._units(epoch)
        steps: list[list[list[int]]] = [[]]
        room = self.global_batch_size
        for unit in units:
            while unit:
                if room == 0:
                    steps.append([])
                    room = self.global_batch_size
                part, unit = unit[:room], unit[room:]
                steps[-1].append(part)
                room -= len(part)
        if self.longest_first and epoch == 0 and len(steps) > 1:
            # The last step may be short: it keeps its place.
            longest = max(range(len(steps) - 1), key=lambda i: max(map(self._unit_tokens, steps[i])))
            steps[0], steps[longest] = steps[longest], steps[0]
        return steps

    def _units(self, epoch: int) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for index, size in enumerate(self.sizes):
            shared = self.questions_per_video > 1 and size.prefix_key
            groups.setdefault(size.prefix_key if shared else f"#{index}", []).append(index)
        units: list[list[int]] = []
        digest = hashlib.sha256(f"{self.seed}/{epoch}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        for members in groups.values():
            if self.shuffle:
                members = [members[i] for i in rng.permutation(len(members))]
            units += self._cut(members)
        return [units[i] for i in rng.permutation(len(units))] if self.shuffle else units

    def _cut(self, members: list[int]) -> Iterator[list[int]]:
        """Pieces of a group that respect the number of questions and the token budget."""
        piece: list[int] = []
        for index in members:
            if piece and (
                len(piece) == self.questions_per_video or self._unit_tokens([*piece, index]) > self.max_tokens
            ):
                yield piece
                piece = []
            piece.append(index)
        yield piece

    def _fill(self, units: Sequence[Sequence[int]], number: int) -> list[list[list[int]]]:
        """Units into rows: the longest unit first, each into the row with the fewest tokens.

        Raises:
            UserError: the samples of the step do not fit into its rows.
        """
        pieces = [list(unit) for unit in units]
        while len(pieces) < self.rows_per_step and max(map(len, pieces)) > 1:
            # Fewer videos than rows: a video's questions go to several rows, each with its own copy of the prefix.
            largest = max(pieces, key=len)
            pieces.remove(largest)
            half = len(largest) // 2
            pieces += [largest[:half], largest[half:]]
        rows: list[list[list[int]]] = [[] for _ in range(self.rows_per_step)]
        tokens = [0] * self.rows_per_step
        for piece in sorted(pieces, key=lambda piece: (-self._unit_tokens(piece), piece[0])):
            target = min(range(self.rows_per_step), key=tokens.__getitem__)
            rows[target].append(piece)
            tokens[target] += self._unit_tokens(piece)
        if max(tokens) > self.max_tokens:
            raise UserError(
                f"step {number}: its {sum(map(len, units))} samples need rows of up to {max(tokens)} tokens, but "
                f"batch.max_tokens={self.max_tokens} with {self.rows_per_step} rows per step (accumulation x "
                f"devices). Raise accumulation or batch.max_tokens, or lower global_batch_size."
            )
        return sorted(rows, key=lambda row: -sum(map(self._unit_tokens, row)))
