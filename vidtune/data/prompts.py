"""Prompts as batches for generation; prompts about one video hold its tokens once. Runs in data workers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidtune.contracts import Batch, Encoded
from vidtune.data.media_source import MediaSource
from vidtune.data.rows import pad_prompts


@dataclass
class PromptBatch:
    """Prompts that are answered together.

    Args:
        prompts: left-padded; whole prompts with their media, or, with ``prefixes``, what stands behind these.
        prefixes: left-padded, each beginning once, with all media; None where no two prompts begin with the same video.
        prefix_of: (B,) int64, the row of ``prefixes`` that a prompt goes on from.
    """

    prompts: Batch
    prefixes: Batch | None = None
    prefix_of: Tensor | None = None

    def to(self, device: torch.device | str) -> PromptBatch:
        if self.prefixes is None or self.prefix_of is None:
            return PromptBatch(self.prompts.to(device))
        return PromptBatch(self.prompts.to(device), self.prefixes.to(device), self.prefix_of.to(device))


def build_prompts(encoded: Sequence[Encoded], source: MediaSource, names: Sequence[str]) -> PromptBatch:
    """Read the media of some prompts and pad; a video that several begin with is read, and stands, once.

    Args:
        encoded: prompts that end where the answer begins.
        source: reads the media.
        names: of the samples, for messages.
    """
    pad_id = source.processor.pad_id
    first: dict[Hashable, int] = {}
    prefix_of = [first.setdefault(_beginning(prompt), len(first)) for prompt in encoded]
    shared = [prompt for prompt, row in zip(encoded, prefix_of) if prompt.plans and prefix_of.count(row) > 1]
    if not shared or any(prompt.num_tokens <= _cut(prompt) for prompt in encoded):
        media = [source.load(plan) for prompt in encoded for plan in prompt.plans]
        return PromptBatch(pad_prompts(encoded, media, pad_id, names))
    beginnings = [_part(encoded[prefix_of.index(row)], end=True) for row in range(len(first))]
    media = [source.load(plan) for beginning in beginnings for plan in beginning.plans]
    return PromptBatch(
        pad_prompts([_part(prompt, end=False) for prompt in encoded], [], pad_id, names),
        pad_prompts(beginnings, media, pad_id, names),
        torch.tensor(prefix_of),
    )


def _cut(prompt: Encoded) -> int:
    """Where a prompt is cut in two: behind its last visual span; a prompt of text alone behind its first token."""
    return prompt.prefix_length or 1


def _beginning(prompt: Encoded) -> Hashable:
    """Equal for prompts whose keys and values are equal up to the cut: same ids, same media."""
    return tuple(prompt.input_ids[: _cut(prompt)]), tuple(plan.info.ref for plan in prompt.plans)


def _part(prompt: Encoded, end: bool) -> Encoded:
    """A prompt up to its cut, with all its media, or from there on."""
    cut = _cut(prompt)
    if end:
        return Encoded(prompt.input_ids[:cut], prompt.labels[:cut], prompt.visual_positions, prompt.plans, cut)
    return Encoded(prompt.input_ids[cut:], prompt.labels[cut:], [], (), 0)
