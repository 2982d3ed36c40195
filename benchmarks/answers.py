"""CPU time per question of an evaluation: questions of one video asked together, against each by itself.

    python benchmarks/answers.py                # 8 questions of 30 tokens on 1,024 video tokens, 3 paired turns
    python benchmarks/answers.py --repeats 7

The network is that of ``step.py``. Both ways are ``vidtune``'s own, as ``eval.batch_size`` 8 and 1 run them: greedy
generation of ten tokens, and the likelihood of five options of ten tokens each. They decode, tokenise and encode inside
the clock, take turns in this one process with one thread, and give the same answers, which is checked. CPU time of the
process counts; a ratio is the median of paired turns with the range that holds it with 95 % (all values of few).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.step import median_range
from benchmarks.step_model import (
    FRAMES,
    SIDE,
    WORDS,
    StepProcessor,
    add_size_arguments,
    build_network,
    questions_about,
    write_clips,
)
from vidtune.contracts import Sample
from vidtune.data.media_source import MediaSource
from vidtune.evaluation.answering import generate_answers, most_likely_options
from vidtune.models.attention import PACKED_SDPA
from vidtune.models.tiny.tiny import build_tokenizer

TOKENS, OPTIONS = 10, 5


class IdProcessor(StepProcessor):
    """Answers are ids: the decoder knows many more than the tokenizer has words."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def options_of(sample: Sample) -> list[str]:
    rng = np.random.default_rng(list(sample.sample_id.encode()))
    return [" ".join(rng.choice(WORDS, TOKENS - 1)) for _ in range(OPTIONS)]


def timed(ask: Callable, samples: list[Sample], batch_size: int) -> tuple[dict[str, str], float]:
    """Answers, and CPU seconds per question."""
    start = time.process_time()
    answers = {sample.sample_id: text for sample, text, _ in ask(samples=samples, batch_size=batch_size)}
    return answers, (time.process_time() - start) / len(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    add_size_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    network = build_network(arguments)
    network.set_attention(PACKED_SDPA)
    console = Console(width=120)
    table = Table("8 questions per video", "one by one, s", "together, s", "times less", "turns")
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer().save_pretrained(folder)
        processor = IdProcessor(folder, FRAMES, "uniform", 4096, image_size=SIDE)
        samples = questions_about(write_clips(Path(folder), 1), 8, TOKENS - 1)
        common = partial(partial, network=network, processor=processor, source=MediaSource(processor))
        ways = {
            f"{TOKENS} tokens generated": common(generate_answers, max_new_tokens=TOKENS),
            f"likelihood of {OPTIONS} options": common(most_likely_options, candidates=options_of),
        }
        for name, ask in ways.items():
            ask = partial(ask, num_workers=0, device="cpu")
            seconds: dict[int, list[float]] = {1: [], 8: []}
            for repeat in range(arguments.repeats + 1):
                given = {}
                for size in (1, 8) if repeat % 2 else (8, 1):
                    given[size], spent = timed(ask, samples, size)
                    seconds[size].append(spent)
                assert given[1] == given[8], "questions asked together got other answers"
            alone, together = seconds[1][1:], seconds[8][1:]  # the first turn warms caches and allocator
            ratios = [one / other for one, other in zip(alone, together)]
            low, high = median_range(ratios)
            ratio = f"{median(ratios):.2f} ({low:.2f} to {high:.2f})"
            table.add_row(name, f"{median(alone):.3f}", f"{median(together):.3f}", ratio, str(len(ratios)))
    console.print(table)
    console.print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
