"""Row plans to packed batches, prompts to padded ones. Runs in data workers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from vidtune.contracts import IGNORE, Batch, Encoded, MediaItem, Preset, Processor, Sample
from vidtune.data.media_source import MediaSource
from vidtune.data.planner import Reduction, RowPlan, SampleSize


class Encoder:
    """Samples to ids under one prompt preset.

    Args:
        processor: renders and tokenises.
        source: plans the media.
        preset: ``train`` or ``infer``.
    """

    def __init__(self, processor: Processor, source: MediaSource, preset: Preset) -> None:
        self.processor, self.source, self.preset = processor, source, preset

    def __call__(self, sample: Sample, epoch: int = 0, generation: bool = False) -> Encoded:
        plans = self.source.plan_all(sample.media, epoch, self.preset)
        return self.processor.encode(
            sample.messages,
            plans,
            preset=self.preset,
            generation=generation,
            name=f"{sample.source} sample {sample.sample_id}",
        )

    def size(self, sample: Sample) -> SampleSize:
        """What the planner needs to know; reads headers, no pixels."""
        encoded = self(sample)
        bad = any(ref.stretch in self.source.bad.headers for ref in sample.media)
        return SampleSize(
            encoded.num_tokens,
            encoded.num_targets,
            encoded.prefix_length,
            prefix_key(encoded),
            0.0 if bad else sample.weight,
        )


def prefix_key(encoded: Encoded) -> str:
    """Equal for rows that may share their visual prefix: same ids up to its end, same media. Empty without media, or
    where part of the prefix is supervised (an earlier answer before a later video)."""
    length = encoded.prefix_length
    if not length or any(label != IGNORE for label in encoded.labels[: length + 1]):
        return ""
    media = ";".join(plan.info.ref.key for plan in encoded.plans)
    return f"{hash(tuple(encoded.input_ids[:length]))}|{media}"


class RowBuilder(Dataset):
    """Packs the samples of a row plan.

    Args:
        samples: of the split, indexed by the plans.
        encoder: samples to ids.
        source: reads the media.
        reduction: how a sample's targets are weighted; must be that of the planner.
    """

    def __init__(self, samples: Sequence[Sample], encoder: Encoder, source: MediaSource, reduction: Reduction) -> None:
        self.samples, self.encoder, self.source, self.reduction = samples, encoder, source, reduction

    def __getitem__(self, plan: RowPlan) -> Batch:
        row = PackedRow()
        for number, segment in enumerate(plan.segments):
            encoded = [self.encoder(self.samples[index], plan.epoch) for index in segment]
            media_plans = encoded[0].plans
            row.media += [self.source.load(media_plan) for media_plan in media_plans]
            refs = [media_plan.info.ref for media_plan in media_plans]
            bad = [(ref.stretch, reason) for ref in refs if (reason := self.source.bad.reason(ref))]
            row.bad_media += [] if plan.filler else bad * len(segment)
            factors = [0.0 if bad or plan.filler else self.samples[index].weight for index in segment]
            row.add_segment(number, encoded, factors, [self.samples[i].sample_id for i in segment], self.reduction)
        return row.batch(plan.normalizer, self.source)


class PackedRow:
    """A row while it is being filled; ``batch`` makes the tensors."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[int] = []
        self.branches: list[int] = []
        self.uses: list[float] = []
        self.visual: list[int] = []
        self.targets: list[tuple[int, int, float, int]] = []
        self.media: list[MediaItem] = []
        self.sample_ids: list[str] = []
        self.bad_media: list[tuple[str, str]] = []
        self.tokens_separate = 0

    def add_segment(
        self, number: int, encoded: Sequence[Encoded], factors: Sequence[float], names: Sequence[str], reduction: str
    ) -> None:
        """Append one sample, or several that share their prefix."""
        start = len(self.ids)
        first = encoded[0]
        prefix = first.prefix_length if len(encoded) > 1 else 0
        self.visual += [start + position for position in first.visual_positions]
        self._extend(first.input_ids[:prefix], range(prefix), number, 0, float(len(encoded)))
        for branch, (row, factor, name) in enumerate(zip(encoded, factors, names), start=1 if prefix else 0):
            offset = len(self.ids)
            length = row.num_tokens
            self._extend(row.input_ids[prefix:], range(prefix, length), number, branch, 1.0)
            weight = factor / max(row.num_targets, 1) if reduction == "sample" else factor
            if row.input_ids[:prefix] != first.input_ids[:prefix]:
                raise ValueError(f"samples {names[0]} and {name} were planned to share a prefix but differ in its ids.")
            # The first token of a branch is never supervised (``prefix_key``): its predecessor belongs to all branches.
            for position in range(prefix + 1, length):
                if row.labels[position] != IGNORE:
                    source = offset + position - prefix - 1
                    self.targets.append((source, row.labels[position], weight, len(self.sample_ids)))
            self.sample_ids.append(name)
            self.tokens_separate += length

    def _extend(self, ids: Sequence[int], positions: range, segment: int, branch: int, uses: float) -> None:
        self.ids += ids
        self.positions += positions
        self.segments += [segment] * len(ids)
        self.branches += [branch] * len(ids)
        self.uses += [uses] * len(ids)

    def batch(self, normalizer: float, source: MediaSource | Processor) -> Batch:
        dummy = not self.media
        return Batch(
            input_ids=torch.tensor([self.ids]),
            position_ids=torch.tensor([self.positions]),
            visual_positions=torch.tensor(self.visual, dtype=torch.long),
            media=[source.dummy_media()] if dummy else self.media,
            segment_ids=torch.tensor([self.segments]),
            branch_ids=torch.tensor([self.branches]),
            target_positions=torch.tensor([target[0] for target in self.targets], dtype=torch.long),
            target_ids=torch.tensor([target[1] for target in self.targets], dtype=torch.long),
            target_weights=torch.tensor([target[2] for target in self.targets], dtype=torch.float32),
            target_samples=torch.tensor([target[3] for target in self.targets], dtype=torch.long),
            normalizer=normalizer,
            sample_ids=tuple(self.sample_ids),
            token_weights=torch.tensor([self.uses]),
            dummy_media=dummy,
            tokens_separate=self.tokens_separate,
            bad_media=tuple(self.bad_media),
        )


def pad_prompts(
    encoded: Sequence[Encoded], media: Sequence[MediaItem], pad_id: int, sample_ids: Sequence[str] = ()
) -> Batch:
    """Prompts of different lengths as a left-padded (B, L) batch for generation.

    Args:
        encoded: prompts that end where the answer begins.
        media: of all prompts, in order.
        pad_id: fills the left; hidden by the mask.
    """
    length = max(prompt.num_tokens for prompt in encoded)
    ids = torch.full((len(encoded), length), pad_id)
    mask = torch.zeros(len(encoded), length, dtype=torch.bool)
    positions = torch.zeros(len(encoded), length, dtype=torch.long)
    visual: list[int] = []
    for row, prompt in enumerate(encoded):
        left = length - prompt.num_tokens
        ids[row, left:] = torch.tensor(prompt.input_ids)
        mask[row, left:] = True
        positions[row, left:] = torch.arange(prompt.num_tokens)
        visual += [row * length + left + position for position in prompt.visual_positions]
    return Batch(
        input_ids=ids,
        position_ids=positions,
        visual_positions=torch.tensor(visual, dtype=torch.long),
        media=list(media),
        attention_mask=mask,
        sample_ids=tuple(sample_ids),
    )
