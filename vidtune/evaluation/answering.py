"""Answers of a network: greedy generation, or the likelihood of each option."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch.utils.data import DataLoader, Dataset

from vidtune.contracts import Batch, Message, Processor, Sample, UserError
from vidtune.data.media_source import MediaSource
from vidtune.data.rows import Encoder, PackedRow, pad_prompts, prefix_key
from vidtune.evaluation.perplexity import likelihood_text
from vidtune.models.base import VideoLLM

Answer = tuple[Sample, str, str]
"""Sample, text of the answer, and why its media could not be read (empty where they could)."""


class _Prompts(Dataset):
    """Batches of prompts, left-padded."""

    def __init__(self, batches: Sequence[Sequence[Sample]], encoder: Encoder, source: MediaSource) -> None:
        self.batches, self.encoder, self.source = batches, encoder, source

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[int, Batch, list[str]]:
        samples = self.batches[index]
        encoded = [self.encoder(sample, generation=True) for sample in samples]
        media = [self.source.load(plan) for prompt in encoded for plan in prompt.plans]
        names = [sample.sample_id for sample in samples]
        batch = pad_prompts(encoded, media, self.source.processor.pad_id, names)
        return index, batch, [self.source.why_bad(sample.media) for sample in samples]


class _Options(Dataset):
    """One row per question: its prompt once, every candidate answer as a branch."""

    def __init__(
        self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], encoder: Encoder, source: MediaSource
    ) -> None:
        self.samples, self.candidates, self.encoder, self.source = samples, candidates, encoder, source

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, Batch, list[str]]:
        sample, answers = self.samples[index], self.candidates[index]
        encoded = [self.encoder(_answered(sample, answer)) for answer in answers]
        row = PackedRow()
        shared = bool(prefix_key(encoded[0])) and len({prefix_key(variant) for variant in encoded}) == 1
        ones = [1.0] * len(encoded)
        if shared:
            row.media += [self.source.load(plan) for plan in encoded[0].plans]
            row.add_segment(0, encoded, ones, answers, "token")
        else:
            for number, variant in enumerate(encoded):
                row.media += [self.source.load(plan) for plan in variant.plans]
                row.add_segment(number, [variant], [1.0], [answers[number]], "token")
        return index, row.batch(1.0, self.source), [self.source.why_bad(sample.media)]


def _answered(sample: Sample, answer: str) -> Sample:
    """The sample with another last answer."""
    messages = [message for message in sample.messages]
    if messages and messages[-1].role == "assistant":
        messages.pop()
    return replace(sample, messages=(*messages, Message("assistant", (answer,))))


def generate_answers(
    network: VideoLLM,
    processor: Processor,
    source: MediaSource,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    max_new_tokens: int,
    num_workers: int,
    device: torch.device | str,
) -> Iterator[Answer]:
    """Greedy answers under the ``infer`` preset.

    Args:
        batch_size: prompts at once.
        max_new_tokens: longest answer; generation also ends at the processor's stop ids and strings.
        num_workers: processes that decode ahead.
    """
    encoder = Encoder(processor, source, "infer")
    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    stops: dict = {"eos_token_id": processor.stop_ids, "pad_token_id": processor.pad_id}
    if processor.stop_strings:
        stops |= {"stop_strings": processor.stop_strings, "tokenizer": processor.tokenizer}
    network.eval()
    for index, batch, bad in _loader(_Prompts(batches, encoder, source), num_workers):
        ids = network.generate(batch.to(device), max_new_tokens=max_new_tokens, do_sample=False, **stops)
        for sample, row, reason in zip(batches[index], ids.tolist(), bad, strict=True):
            yield sample, processor.decode(_until_stop(row, processor.stop_ids)), reason


def most_likely_options(
    network: VideoLLM,
    processor: Processor,
    source: MediaSource,
    samples: Sequence[Sample],
    candidates: Callable[[Sample], Sequence[str]],
    *,
    num_workers: int,
    device: torch.device | str,
) -> Iterator[Answer]:
    """The candidate whose whole answer has the highest log-probability under the ``infer`` preset.

    Args:
        candidates: the possible answers to a sample.

    Raises:
        UserError: a sample without candidates.
    """
    answers = [list(candidates(sample)) for sample in samples]
    without = next((sample for sample, options in zip(samples, answers) if not options), None)
    if without is not None:
        raise UserError(
            f"{without.source} sample {without.sample_id}: eval.scoring=likelihood compares options, and it has none. "
            f"Use eval.scoring=generate."
        )
    network.eval()
    dataset = _Options(samples, answers, Encoder(processor, source, "infer"), source)
    for index, batch, bad in _loader(dataset, num_workers):
        batch = batch.to(device)
        with torch.no_grad():
            output = network(batch)
        totals = torch.zeros(len(answers[index]), device=output.nll.device)
        totals.index_add_(0, batch.target_samples, output.nll)
        yield samples[index], answers[index][int(totals.argmin())], bad[0]


def reference_likelihoods(
    network: VideoLLM,
    processor: Processor,
    source: MediaSource,
    samples: Sequence[Sample],
    *,
    num_workers: int,
    device: torch.device | str,
) -> Iterator[Answer]:
    """How likely the reference answer is under the ``infer`` preset, as ``likelihood_text``.

    Raises:
        UserError: a sample whose last turn is no answer.
    """
    without = next((sample for sample in samples if sample.messages[-1].role != "assistant"), None)
    if without is not None:
        raise UserError(f"{without.source} sample {without.sample_id}: it has no answer to measure the likelihood of.")
    network.eval()
    references = [[sample.messages[-1].text] for sample in samples]
    dataset = _Options(samples, references, Encoder(processor, source, "infer"), source)
    for index, batch, bad in _loader(dataset, num_workers):
        with torch.no_grad():
            output = network(batch.to(device))
        text = likelihood_text(float(output.nll.sum()), output.nll.numel(), int(output.correct.sum()))
        yield samples[index], text, bad[0]


def _loader(dataset: Dataset, num_workers: int) -> DataLoader:
    return DataLoader(dataset, batch_size=None, num_workers=num_workers)


def _until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Ids before the first stop; rows that end early are padded by generation."""
    for position, token in enumerate(ids):
        if token in stop_ids:
            return list(ids[:position])
    return list(ids)
