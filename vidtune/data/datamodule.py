"""The Lightning data module: samples, plan and loaders of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from vidtune.contracts import Batch, MediaRef, Processor, Sample, UserError
from vidtune.data.media_source import MediaSource
from vidtune.data.planner import Planner, Reduction, RowPlan
from vidtune.data.rows import Encoder, RowBuilder
from vidtune.data.sizes import measure

log = logging.getLogger(__name__)

Reader = Callable[[str], list[Sample]]


@dataclass(frozen=True)
class BatchArithmetic:
    """global = micro x accumulation x processes."""

    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    processes: int

    @staticmethod
    def derive(global_: int | None, micro: int | None, accumulation: int | None, processes: int) -> BatchArithmetic:
        """The third of the three numbers from the other two.

        Raises:
            UserError: fewer than two are set, or they do not divide.
        """
        names = "global_batch_size, micro_batch_size and accumulation"
        if sum(value is not None for value in (global_, micro, accumulation)) < 2:
            raise UserError(f"set two of {names}; found {global_}, {micro} and {accumulation}.")
        if accumulation is None:
            assert global_ is not None and micro is not None
            accumulation = _divide(global_, micro * processes, "micro_batch_size x processes")
        elif micro is None:
            assert global_ is not None
            micro = _divide(global_, accumulation * processes, "accumulation x processes")
        product = micro * accumulation * processes
        if global_ is not None and global_ != product:
            raise UserError(
                f"global_batch_size={global_} but micro_batch_size {micro} x accumulation {accumulation} x processes "
                f"{processes} = {product}. Leave one of {names} out (null)."
            )
        return BatchArithmetic(product, micro, accumulation, processes)

    def __str__(self) -> str:
        return (
            f"global batch {self.global_batch_size} = {self.micro_batch_size} per row x {self.accumulation} "
            f"accumulation x {self.processes} process{'es' if self.processes > 1 else ''}"
        )


def _divide(number: int, divisor: int, what: str) -> int:
    quotient, rest = divmod(number, divisor)
    if rest or not quotient:
        raise UserError(f"global_batch_size={number} is not a multiple of {what} = {divisor}. Change one of them.")
    return quotient


class _RowSampler(Sampler[RowPlan]):
    """Row plans of one process, from any optimizer step on."""

    def __init__(self, planner: Planner, first_step: int, last_step: int, rank: int, world_size: int) -> None:
        self.planner, self.first_step, self.last_step = planner, first_step, last_step
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[RowPlan]:
        return self.planner.rows(self.first_step, self.last_step, self.rank, self.world_size)

    def __len__(self) -> int:
        # Lightning counts the rows already done on top of what the loader yields, so this is the whole run.
        return self.last_step * (self.planner.rows_per_step // self.world_size)


class TimedLoader(DataLoader[Batch]):
    """Knows how long its user waited for batches: ``waited_s``, seconds since it was made."""

    waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        start = time.perf_counter()
        for batch in super().__iter__():
            self.waited_s += time.perf_counter() - start
            yield batch
            start = time.perf_counter()


class VideoDataModule(L.LightningDataModule):
    """Samples of a run as packed rows.

    The run is one Lightning epoch over the planner's steps, so that resuming means to start the plan at another step.

    Args:
        reader: split name -> samples.
        processor: of the model's family; the same object that the network's run uses.
        source: reads the media.
        train_split, val_split: names the reader knows.
        batch: derived batch arithmetic.
        steps: optimizer steps of the run; None for ``epochs`` times the samples.
        max_tokens: token budget of a row.
        questions_per_video: most samples that share one visual prefix.
        val_samples: size of the fixed validation subset; 0 for all.
        limit: first samples of the training split only; None for all.
        num_workers: data workers per process.
        seed: of the shuffle and the validation subset.
        max_bad_fraction: share of the training media whose headers may be unreadable.
        sizes_dir: folder of measured token lengths; None measures anew.
        processor_digest: of ``vidtune.data.sizes``, with ``sizes_dir``.
    """

    def __init__(
        self,
        reader: Reader,
        processor: Processor,
        source: MediaSource,
        *,
        train_split: str,
        val_split: str,
        batch: BatchArithmetic,
        epochs: float,
        steps: int | None = None,
        max_tokens: int,
        questions_per_video: int,
        reduction: Reduction = "token",
        val_samples: int = 0,
        limit: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        max_bad_fraction: float = 1.0,
        sizes_dir: Path | None = None,
        processor_digest: str = "",
    ) -> None:
        super().__init__()
        self.reader, self.processor, self.source = reader, processor, source
        self.train_split, self.val_split, self.batch = train_split, val_split, batch
        self.epochs, self.max_tokens, self.questions_per_video = epochs, max_tokens, questions_per_video
        self.reduction: Reduction = reduction
        self.val_samples, self.limit, self.num_workers, self.seed = val_samples, limit, num_workers, seed
        self.encoder = Encoder(processor, source, "train")
        self.max_bad_fraction, self.sizes_dir, self.processor_digest = max_bad_fraction, sizes_dir, processor_digest
        self._fixed_steps = steps
        self._planned = False

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations and plan; reads headers, no pixels. Called by ``run`` before any weight is loaded.

        Raises:
            UserError: an empty set, no row with a supervised token, or too many unreadable media.
        """
        if self._planned:
            return
        samples = self.reader(self.train_split)[: self.limit]
        if not samples:
            raise UserError(f"split {self.train_split!r} holds no samples (data.limit={self.limit}).")
        self.train_samples, sizes, self.without_target = self._measure(self._without_listed(samples))
        self._check_headers()
        self.train_planner = Planner(
            sizes,
            global_batch_size=self.batch.global_batch_size,
            rows_per_step=self.batch.accumulation * self.batch.processes,
            max_tokens=self.max_tokens,
            questions_per_video=self.questions_per_video,
            seed=self.seed,
            reduction=self.reduction,
        )
        self.steps = self._fixed_steps or max(1, round(self.epochs * self.train_planner.steps_per_epoch))
        self.val_planner = self._plan_validation()
        self._planned = True

    @property
    def num_media(self) -> int:
        """Distinct media of the training split."""
        return len({ref.stretch for sample in self.train_samples for ref in sample.media})

    @property
    def media(self) -> list[MediaRef]:
        """All media that the run reads, of training and validation, as often as samples show them."""
        samples = [*self.train_samples, *(self.val_samples_list if self.val_planner is not None else [])]
        return [ref for sample in samples for ref in sample.media]

    def describe(self) -> str:
        """Sizes of the run, and what sharing and packing save, in two lines."""
        validation = len(self.val_samples_list) if self.val_planner is not None else 0
        return (
            f"{len(self.train_samples)} training samples on {self.num_media} media, {validation} for validation, "
            f"{self.steps} optimizer steps ({self.steps / self.train_planner.steps_per_epoch:.2f} epochs)\n"
            f"{self.train_planner.savings()}"
        )

    def _measure(self, samples: Sequence[Sample]) -> tuple[list[Sample], list, int]:
        """Sizes of the samples; those without any supervised token are left out and counted."""
        sizes = measure(samples, self.encoder, self.sizes_dir, self.processor_digest)
        kept = [index for index, size in enumerate(sizes) if size.num_targets]
        if not kept:
            raise UserError(
                f"none of {len(samples)} samples has a supervised token: the answers are empty or cut off. "
                f"Check the annotation and model.max_length."
            )
        if len(kept) < len(samples):
            left_out = len(samples) - len(kept)
            log.warning("%d of %d samples have no supervised token and are left out.", left_out, len(samples))
        return [samples[i] for i in kept], [sizes[i] for i in kept], len(samples) - len(kept)

    def _without_listed(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples none of whose media the user listed as bad."""
        bad = self.source.bad
        kept = [sample for sample in samples if not any(bad.listed_reason(ref) for ref in sample.media)]
        if len(kept) < len(samples):
            log.warning(
                "%d of %d samples are left out: media.known_bad lists their media.",
                len(samples) - len(kept),
                len(samples),
            )
        if not kept:
            raise UserError("media.known_bad lists the media of every sample; nothing is left to train on.")
        return kept

    def _check_headers(self) -> None:
        stretches = {ref.stretch for sample in self.train_samples for ref in sample.media}
        bad = {name: reason for name, reason in self.source.bad.headers.items() if name in stretches}
        if len(bad) > self.max_bad_fraction * len(stretches):
            name, reason = next(iter(sorted(bad.items())))
            raise UserError(
                f"{len(bad)} of {len(stretches)} media cannot be opened, more than media.max_bad_fraction="
                f"{self.max_bad_fraction:g} allows. First: {name} ({reason}). `vidtune check` lists all; repair or "
                f"remove them, name its report in media.known_bad, or raise media.max_bad_fraction."
            )
        if bad and all(any(ref.stretch in bad for ref in sample.media) for sample in self.train_samples):
            name, reason = next(iter(sorted(bad.items())))
            raise UserError(
                f"no training sample has media that can be opened: nothing is left to train on. First: {name} "
                f"({reason}). Check the media folder of the data set."
            )

    def _plan_validation(self) -> Planner | None:
        samples = self.reader(self.val_split) if self.val_split else []
        if self.val_samples and len(samples) > self.val_samples:
            # At random over the file, in file order, and the same in every run.
            chosen = np.random.default_rng(0).choice(len(samples), self.val_samples, replace=False)
            samples = [samples[i] for i in sorted(chosen)]
        if not samples:
            return None
        self.val_samples_list, sizes, _ = self._measure(self._without_listed(samples))
        rows = self.batch.accumulation * self.batch.processes
        return Planner(
            sizes,
            global_batch_size=min(self.batch.global_batch_size, len(sizes)),
            rows_per_step=rows,
            max_tokens=self.max_tokens,
            questions_per_video=self.questions_per_video,
            reduction=self.reduction,
            shuffle=False,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        first = self.trainer.global_step if self.trainer is not None else 0
        return self._loader(self.train_samples, self.train_planner, first, self.steps)

    def val_dataloader(self) -> DataLoader[Batch] | list:
        if self.val_planner is None:
            return []
        return self._loader(self.val_samples_list, self.val_planner, 0, self.val_planner.steps_per_epoch)

    def _loader(self, samples: Sequence[Sample], planner: Planner, first: int, last: int) -> DataLoader[Batch]:
        rank = self.trainer.global_rank if self.trainer is not None else 0
        world = self.trainer.world_size if self.trainer is not None else 1
        builder: Any = RowBuilder(samples, self.encoder, self.source, self.reduction)
        return TimedLoader(
            builder,
            sampler=_RowSampler(planner, first, last, rank, world),
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=2 if self.num_workers else None,
            worker_init_fn=_one_thread,
            # Its own generator: the loader draws a seed when it starts, which would shift the dropout of a resumed run.
            generator=torch.Generator().manual_seed(self.seed),
        )


def _one_thread(worker: int) -> None:
    """Two processes with two threads each on two cores are ten times slower than with one."""
    torch.set_num_threads(1)
