"""Questions brought together by video, so that a video is read, encoded and run through the decoder once.

The data sets here run in data workers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from vidtune.contracts import Batch, Encoded, Message, Sample
from vidtune.data.media_source import MediaSource
from vidtune.data.prompts import PromptBatch, build_prompts
from vidtune.data.rows import Encoder, PackedRow, prefix_key


def of_one_video(samples: Sequence[Sample], size: int) -> list[list[int]]:
    """Indices of up to ``size`` samples each, all about the same media; text alone stands by itself."""
    videos: dict[tuple, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        videos[sample.media or (index,)].append(index)
    return [members[start : start + size] for members in videos.values() for start in range(0, len(members), size)]


def group_by_video(samples: Sequence[Sample], size: int) -> list[list[int]]:
    """Indices of up to ``size`` samples each; a video's samples stay together unless they are more than that.

    Groups are filled best-fit: of the open ones the fullest that still has room takes a video's samples. Samples
    without a common video stay in their order.
    """
    groups: list[list[int]] = []
    with_room: dict[int, list[list[int]]] = defaultdict(list)
    for part in of_one_video(samples, size):
        room = next((room for room in range(len(part), size) if with_room[room]), None)
        if room is None:
            groups.append(part)
            group = part
        else:
            group = with_room[room].pop(0)
            group += part
        with_room[size - len(group)].append(group)
    return groups


def share_by_video(samples: Sequence[Sample], size: int, rank: int, world_size: int) -> list[Sample]:
    """The samples of one of several processes, in their order, of about as many for each.

    A video goes to one process with up to ``size`` of its samples, as many as are asked at once: cut further, it would
    be read, encoded and run again for the same questions.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for members in sorted(of_one_video(samples, size), key=len, reverse=True):
        min(shares, key=len).extend(members)
    return [samples[index] for index in sorted(shares[rank])]


class Prompts(Dataset):
    """Per group of samples its number, the prompts, and per sample why its media could not be read."""

    def __init__(
        self, samples: Sequence[Sample], groups: Sequence[Sequence[int]], encoder: Encoder, source: MediaSource
    ) -> None:
        self.samples, self.groups, self.encoder, self.source = samples, groups, encoder, source

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> tuple[int, PromptBatch, list[str]]:
        samples = [self.samples[index] for index in self.groups[number]]
        encoded = [self.encoder(sample, generation=True) for sample in samples]
        batch = build_prompts(encoded, self.source, [sample.sample_id for sample in samples])
        return number, batch, [self.source.why_bad(sample.media) for sample in samples]


@dataclass
class AnswerRow:
    """Candidate answers of some samples in one row.

    Args:
        batch: packed.
        owners: per entry of ``batch.sample_ids`` its sample, by place in the group, and the candidate.
        bad: per sample why its media could not be read; empty where they could.
    """

    batch: Batch
    owners: list[tuple[int, int]]
    bad: list[str]


class AnswerRows(Dataset):
    """Per group of samples its number and a row: each video once, every candidate answer to a question as a branch."""

    def __init__(
        self,
        samples: Sequence[Sample],
        candidates: Sequence[Sequence[str]],
        groups: Sequence[Sequence[int]],
        encoder: Encoder,
        source: MediaSource,
    ) -> None:
        self.samples, self.candidates, self.groups = samples, candidates, groups
        self.encoder, self.source = encoder, source

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> tuple[int, AnswerRow]:
        segments: dict[str, list[tuple[Encoded, int, int]]] = {}
        for place, index in enumerate(self.groups[number]):
            for option, answer in enumerate(self.candidates[index]):
                encoded = self.encoder(_answered(self.samples[index], answer))
                # What cannot share is a segment of its own.
                key = prefix_key(encoded) or f"#{place} {option}"
                segments.setdefault(key, []).append((encoded, place, option))
        row, owners = PackedRow(), []
        for segment, variants in enumerate(segments.values()):
            row.media += [self.source.load(plan) for plan in variants[0][0].plans]
            names = [self.samples[self.groups[number][place]].sample_id for _, place, _ in variants]
            row.add_segment(segment, [variant[0] for variant in variants], [1.0] * len(variants), names, "token")
            owners += [(place, option) for _, place, option in variants]
        bad = [self.source.why_bad(self.samples[index].media) for index in self.groups[number]]
        return number, AnswerRow(row.batch(1.0, self.source), owners, bad)


def _answered(sample: Sample, answer: str) -> Sample:
    """The sample with another last answer."""
    messages = list(sample.messages)
    if messages and messages[-1].role == "assistant":
        messages.pop()
    return replace(sample, messages=(*messages, Message("assistant", (answer,))))
