"""Answers of a network: greedy generation, or the likelihood of each option.

Questions about one video are asked together (``vidtune.evaluation.by_video``), so answers do not come in the order of
the questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidtune.contracts import Processor, Sample, UserError
from vidtune.data.media_source import MediaSource
from vidtune.data.rows import Encoder
from vidtune.evaluation.by_video import AnswerRow, AnswerRows, Prompts, group_by_video, of_one_video
from vidtune.evaluation.perplexity import likelihood_text
from vidtune.models.base import VideoLLM

Answer = tuple[Sample, str, str]
"""Sample, text of the answer, and why its media could not be read (empty where they could)."""

Meter = Callable[[Sequence[Sample], Sequence[int], float], None]


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
    meter: Meter | None = None,
) -> Iterator[Answer]:
    """Greedy answers under the ``infer`` preset. Questions in a batch that begin with the same video share its keys
    and values.

    Args:
        batch_size: prompts at once.
        max_new_tokens: longest answer; generation also ends at the processor's stop ids and strings.
        num_workers: processes that decode ahead.
        meter: is told the samples of each batch, how many tokens each answer has, and the seconds of the batch.
    """
    groups = group_by_video(samples, batch_size)
    options: dict = {"max_new_tokens": max_new_tokens, "do_sample": False}
    options |= {"eos_token_id": processor.stop_ids, "pad_token_id": processor.pad_id}
    if processor.stop_strings:
        options |= {"stop_strings": processor.stop_strings, "tokenizer": processor.tokenizer}
    network.eval()
    dataset = Prompts(samples, groups, Encoder(processor, source, "infer"), source)
    for number, batch, bad in _loader(dataset, num_workers):
        batch = batch.to(device)
        start = time.perf_counter()
        # By the network's own method: where it is sharded, that is what gathers the weights outside of layers.
        ids = network.generate(batch.prompts, prefixes=batch.prefixes, prefix_of=batch.prefix_of, **options)
        rows = [_until_stop(row, processor.stop_ids) for row in ids.tolist()]
        if meter is not None:
            meter([samples[index] for index in groups[number]], list(map(len, rows)), time.perf_counter() - start)
        for index, row, reason in zip(groups[number], rows, bad, strict=True):
            yield samples[index], processor.decode(row), reason


def most_likely_options(
    network: VideoLLM,
    processor: Processor,
    source: MediaSource,
    samples: Sequence[Sample],
    candidates: Callable[[Sample], Sequence[str]],
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device | str,
) -> Iterator[Answer]:
    """The candidate whose whole answer has the highest log-probability under the ``infer`` preset.

    Args:
        candidates: the possible answers to a sample.
        batch_size: most questions about one video in a row.

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
    dataset = _answer_rows(processor, source, samples, answers, batch_size)
    for group, row, nll, _ in _likelihoods(network, dataset, num_workers, device):
        totals = torch.zeros(len(row.owners)).index_add_(0, row.batch.target_samples, nll).tolist()
        for place, index in enumerate(group):
            own = {option: total for (owner, option), total in zip(row.owners, totals) if owner == place}
            yield samples[index], answers[index][min(own, key=own.__getitem__)], row.bad[place]


def reference_likelihoods(
    network: VideoLLM,
    processor: Processor,
    source: MediaSource,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device | str,
) -> Iterator[Answer]:
    """How likely the reference answer is under the ``infer`` preset, as ``likelihood_text``.

    Args:
        batch_size: most questions about one video in a row.

    Raises:
        UserError: a sample whose last turn is no answer.
    """
    without = next((sample for sample in samples if sample.messages[-1].role != "assistant"), None)
    if without is not None:
        raise UserError(f"{without.source} sample {without.sample_id}: it has no answer to measure the likelihood of.")
    references = [[sample.messages[-1].text] for sample in samples]
    dataset = _answer_rows(processor, source, samples, references, batch_size)
    for group, row, nll, correct in _likelihoods(network, dataset, num_workers, device):
        for entry, (place, _) in enumerate(row.owners):
            assert row.batch.target_samples is not None
            own = row.batch.target_samples.eq(entry)
            text = likelihood_text(float(nll[own].sum()), int(own.sum()), int(correct[own].sum()))
            yield samples[group[place]], text, row.bad[place]


def _answer_rows(
    processor: Processor, source: MediaSource, samples: Sequence[Sample], answers: Sequence[Sequence[str]], size: int
) -> AnswerRows:
    groups = of_one_video(samples, size)
    return AnswerRows(samples, answers, groups, Encoder(processor, source, "infer"), source)


def _likelihoods(
    network: VideoLLM, dataset: AnswerRows, num_workers: int, device: torch.device | str
) -> Iterator[tuple[Sequence[int], AnswerRow, Tensor, Tensor]]:
    """Per row the indices of its samples, itself, and on the host what ``NetworkOutput`` says of its targets."""
    network.eval()
    for number, row in _loader(dataset, num_workers):
        with torch.no_grad():
            output = network(row.batch.to(device))
        yield dataset.groups[number], row, output.nll.cpu(), output.correct.cpu()


def _loader(dataset: Dataset, num_workers: int) -> DataLoader:
    return DataLoader(dataset, batch_size=None, num_workers=num_workers)


def _until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Ids before the first stop; rows that end early are padded by generation."""
    for position, token in enumerate(ids):
        if token in stop_ids:
            return list(ids[:position])
    return list(ids)
