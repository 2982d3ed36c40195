"""CPU time per question of a training step: vidtune against other trainers on the same weights and clips.

    python benchmarks/step.py                          # 24 clips, 8 questions of about 40 tokens on 1,024 video tokens
    python benchmarks/step.py --repeats 3 --clips 3    # a first look

Contestants take turns in this one process with one thread: ours (the Lightning run, rows by the planner); a bare
PyTorch loop of separate samples with logits at supervised positions only, and one with full logits; transformers'
Trainer and TRL's SFTTrainer with one collator, where ``accelerate``, ``datasets`` and ``trl`` can be imported. All
decode, tokenise, encode and train inside the clock, clip gradients to norm 1 and step AdamW. CPU time of the process
counts; on a shared machine wall time means nothing. A row is the median over repeats, a ratio the median of paired
repeats with the range that holds the median with 95 % or more (order statistics; all values where they are few).
Losses of ours and the bare loop are compared before anything is timed.

Proportions: a decoder on a CPU must be small, but the vocabulary is that of a large one, so that a head which meets ten
tokens of a sample can weigh more than all layers, which no real run has. Depth, width and tower come as near to real
shares as a bench of half an hour allows; the first lines print them. Shares in the FLOPs of a separate sample, and how
many times less the FLOPs of 8 questions in one row are:

                                                       tower  layers  attention   head   times less
    Qwen2.5-7B behind SigLIP-400M, all of it trained     8 %    91 %      1.5 %  0.1 %          6.6
    8 layers of width 512, tower of 2 x 256 (default)    8 %    78 %       13 %  1.5 %          6.4
    4 layers of width 256, tower of 2 x 128             15 %    60 %       21 %  4.6 %          5.9

The last are the former ones: ``--width 256 --layers 4 --tower-width 128 --clips-per-step 1``.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.step_model import (
    FRAMES,
    PATCH,
    SIDE,
    StepNetwork,
    StepProcessor,
    add_size_arguments,
    build_network,
    questions_about,
    write_clips,
)
from vidtune.config.schema import PartPolicy
from vidtune.contracts import IGNORE, Batch, Sample
from vidtune.data.datamodule import BatchArithmetic, VideoDataModule
from vidtune.data.media_source import MediaSource
from vidtune.data.planner import RowPlan
from vidtune.data.rows import Encoder, RowBuilder
from vidtune.models.attention import PACKED_SDPA
from vidtune.models.tiny.tiny import build_tokenizer
from vidtune.training.flops import StepFlops
from vidtune.training.module import VideoTuner

LR = 1e-4


@dataclass
class Bench:
    """What all contestants share: weights, processor, media."""

    network: StepNetwork
    processor: StepProcessor
    source: MediaSource

    def rows(self, samples: Sequence[Sample]) -> list[Callable[[], Batch]]:
        """Per sample a row of its own, made when called."""
        builder = RowBuilder(samples, Encoder(self.processor, self.source, "train"), self.source, "token")
        return [partial(builder.__getitem__, RowPlan(((i,),), 1.0, 0, 0)) for i in range(len(samples))]

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]


# --------------------------------------------------------------------------------------------------- ours


class StepClock(L.Callback):
    """CPU seconds from the first wait for data to the end of the last step."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.seconds = time.process_time() - self.start


def ours(bench: Bench, samples: Sequence[Sample], per_clip: int) -> float:
    bench.network.set_attention(PACKED_SDPA)
    micro = min(per_clip, len(samples))
    data = VideoDataModule(
        lambda split: list(samples),
        bench.processor,
        bench.source,
        train_split="train",
        val_split="",
        batch=BatchArithmetic.derive(len(samples), micro, None, 1),
        epochs=1,
        max_tokens=4096,
        questions_per_video=16,
    )
    data.setup()
    policies = {name: PartPolicy(mode="full") for name, p in bench.network.named_parameters() if p.requires_grad}
    module = VideoTuner(
        lambda: (bench.network, policies),
        partial(torch.optim.AdamW, lr=LR),
        lambda optimizer, steps: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        lr=LR,
        weight_decay=0.0,
        rows_per_step=data.batch.accumulation,
        num_steps=1,
    )
    clock = StepClock()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=data.batch.accumulation,
        gradient_clip_val=1.0,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return clock.seconds


# --------------------------------------------------------------------------------------------------- bare loop


def bare_states(bench: Bench, batch: Batch) -> Tensor:
    """(1, L, D) of one sample, as anyone would write it."""
    network = bench.network
    with torch.no_grad():
        frames = network.frames(batch.media[0].tensors["pixel_values"])
    embeddings = network.language.model.embed_tokens(batch.input_ids)
    embeddings = embeddings[0].index_put((batch.visual_positions,), network.connector(frames))[None]
    return network.language.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state


def bare_loss(bench: Bench, batch: Batch, full_logits: bool) -> Tensor:
    """Sum over the supervised tokens of one sample."""
    hidden, head = bare_states(bench, batch)[0], bench.network.language.lm_head
    if not full_logits:
        return F.cross_entropy(head(hidden[batch.target_positions]), batch.target_ids, reduction="sum")
    labels = torch.full((len(hidden),), IGNORE).index_put((batch.target_positions,), batch.target_ids)
    return F.cross_entropy(head(hidden), labels, ignore_index=IGNORE, reduction="sum")


def bare(bench: Bench, samples: Sequence[Sample], per_clip: int, full_logits: bool) -> float:
    bench.network.set_attention("sdpa")
    bench.network.train()
    optimizer = torch.optim.AdamW(bench.trained(), lr=LR, weight_decay=0.0)
    rows = bench.rows(samples)
    start = time.process_time()
    for row in rows:
        (bare_loss(bench, row(), full_logits) / len(samples) / 10).backward()
    nn.utils.clip_grad_norm_(bench.trained(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - start


# --------------------------------------------------------------------------------------------------- other trainers


class SeparateLlama(LlamaForCausalLM):
    """The bench's decoder with tower and connector, in the form that transformers' trainers take."""

    def share(self, network: StepNetwork) -> SeparateLlama:
        self.model, self.lm_head = network.language.model, network.language.lm_head
        self.connector = network.connector
        self.network = [network]  # in a list: its parameters are these already
        return self

    def forward(self, input_ids, pixel_values, visual_positions, labels, **kwargs):
        network = self.network[0]
        with torch.no_grad():
            frames = network.frames(pixel_values)
        embeddings = self.model.embed_tokens(input_ids)
        embeddings = embeddings[0].index_put((visual_positions,), network.connector(frames))[None]
        kwargs.update(attention_mask=None, use_cache=False)
        return super().forward(inputs_embeds=embeddings, labels=labels, **kwargs)


def collate(rows: Sequence[Callable[[], Batch]], chosen: Sequence[dict[str, int]]) -> dict[str, Tensor]:
    """The one sample of a micro-batch, read and tokenised here."""
    batch = rows[chosen[0]["index"]]()
    labels = torch.full_like(batch.input_ids, IGNORE)
    labels[0, batch.target_positions + 1] = batch.target_ids
    return {
        "input_ids": batch.input_ids,
        "labels": labels,
        "attention_mask": torch.ones_like(labels),
        "pixel_values": batch.media[0].tensors["pixel_values"],
        "visual_positions": batch.visual_positions,
    }


class TrainerClock(TrainerCallback):
    """As ``StepClock``."""

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.process_time() - self.start


def other_trainer(bench: Bench, samples: Sequence[Sample], per_clip: int, model: SeparateLlama, trl: bool) -> float:
    bench.network.set_attention("sdpa")
    options: dict[str, Any] = dict(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=len(samples),
        max_steps=1,
        learning_rate=LR,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        gradient_checkpointing=False,
    )
    clock, data = TrainerClock(), [{"index": index} for index in range(len(samples))]
    common = dict(
        model=model, train_dataset=data, data_collator=partial(collate, bench.rows(samples)), callbacks=[clock]
    )
    if trl:
        from datasets import Dataset
        from datasets.table import InMemoryTable
        from trl import SFTConfig, SFTTrainer

        # Named by hand: the fingerprint that datasets would compute pickles whatever is imported.
        common["train_dataset"] = Dataset(InMemoryTable.from_pylist(data), fingerprint="step")
        arguments = SFTConfig(**options, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = SFTTrainer(args=arguments, processing_class=bench.processor.tokenizer, **common)
    else:
        trainer = Trainer(args=TrainingArguments(**options), **common)
    trainer.train()
    bench.network.zero_grad()
    return clock.seconds


# --------------------------------------------------------------------------------------------------- the table


def work(bench: Bench, samples: Sequence[Sample], shared: bool) -> dict[str, float]:
    """FLOPs per question by part, of all samples in one row of ours or of the first alone in the bare loop."""
    builder = RowBuilder(samples, Encoder(bench.processor, bench.source, "train"), bench.source, "token")
    count = len(samples) if shared else 1
    batch = builder[RowPlan((tuple(range(count)),), 1.0, 0, 0)]
    flops = StepFlops.of(bench.network)
    if not shared:
        flops = replace(flops, per_late_token=0.0, per_late_pair=0.0)
    total, without_pairs = float(flops(batch)), float(replace(flops, per_pair=0.0, per_late_pair=0.0)(batch))
    head = flops.per_target * batch.target_ids.numel()
    parts = {"layers": without_pairs - head, "attention": total - without_pairs, "head": head}
    return {name: value / count for name, value in {"tower": tower_flops(bench.network), **parts}.items()}


def tower_flops(network: StepNetwork) -> float:
    """Forward FLOPs of the tower for a clip: its matrices meet every patch, patches of a frame meet one another."""
    patches, config = (SIDE // PATCH) ** 2, network.vision.config
    weights = sum(m.weight.numel() for m in network.vision.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    pairs = 4 * config.num_hidden_layers * config.hidden_size * patches**2
    return FRAMES * (2 * weights * patches + pairs)


def describe_work(bench: Bench, samples: Sequence[Sample]) -> str:
    alone, together = work(bench, samples, False), work(bench, samples, True)
    lines = []
    for name, parts in (("separate", alone), ("in a shared row", together)):
        shares = ", ".join(f"{part} {100 * value / sum(parts.values()):.1f} %" for part, value in parts.items())
        lines.append(f"{sum(parts.values()) / 1e9:.1f} GFLOPs per question {name}: {shares}")
    return "\n".join([*lines, f"FLOPs allow {sum(alone.values()) / sum(together.values()):.2f} times less"])


def same_loss(bench: Bench, samples: Sequence[Sample]) -> float:
    """Relative difference between the loss of one shared row and the sum over separate samples."""
    rows = bench.rows(samples)
    builder = rows[0].func.__self__  # type: ignore[attr-defined]
    with torch.no_grad():
        bench.network.set_attention(PACKED_SDPA)
        batch = builder[RowPlan((tuple(range(len(samples))),), 1.0, 0, 0)]
        shared = float(bench.network(batch).nll.sum())
        bench.network.set_attention("sdpa")
        separate = sum(float(bare_loss(bench, row(), False)) for row in rows)
    return abs(shared - separate) / separate


def median_range(values: Sequence[float]) -> tuple[float, float]:
    """Order statistics that hold the median with a probability of at least 95 %; all of few values."""
    ordered, count = sorted(values), len(values)
    low = 0
    while low + 1 < count / 2 and 2 * sum(comb(count, i) for i in range(low + 2)) / 2**count <= 0.05:
        low += 1
    return ordered[low], ordered[count - 1 - low]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=7, help="turns of ours and the loop without full logits")
    parser.add_argument("--slow-repeats", type=int, default=2, help="turns of the contestants with full logits")
    parser.add_argument("--slow-questions", type=int, default=2, help="questions per step of these")
    parser.add_argument("--clips-per-step", type=int, default=2, help="clips per step at 8 questions each")
    parser.add_argument("--single-clips", type=int, default=4, help="clips per step at one question per video")
    parser.add_argument("--answer-words", type=int, default=9, help="of the 39 of a question with its answer")
    add_size_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "transformers", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.manual_seed(0)
    network = build_network(arguments)
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer().save_pretrained(folder)
        processor = StepProcessor(folder, FRAMES, "uniform", 4096, image_size=SIDE)
        bench = Bench(network, processor, MediaSource(processor))
        samples = questions_about(write_clips(Path(folder), arguments.clips), 8, arguments.answer_words)
        run(bench, samples, arguments)


def run(bench: Bench, samples: Sequence[Sample], arguments: argparse.Namespace) -> None:
    fast = {"ours": ours, "bare loop, supervised logits": partial(bare, full_logits=False)}
    slow: dict[str, Callable[..., float]] = {"bare loop, full logits": partial(bare, full_logits=True)}
    if importlib.util.find_spec("accelerate"):
        model = SeparateLlama(bench.network.language.config).share(bench.network)
        slow["transformers Trainer"] = partial(other_trainer, model=model, trl=False)
        if importlib.util.find_spec("trl") and importlib.util.find_spec("datasets"):
            slow["TRL SFTTrainer"] = partial(other_trainer, model=model, trl=True)
    console = Console(width=120)
    lengths = bench.rows(samples[:1])[0]().num_tokens
    console.print(
        f"{lengths} tokens per separate sample; not installed: {_absent(slow)}; load {os.getloadavg()[0]:.1f}"
    )
    console.print(describe_work(bench, samples[:8]))
    console.print(
        f"loss of 8 questions in one row against 8 separate samples: {same_loss(bench, samples[:8]):.1e} relative"
    )
    for per_clip in (8, 1):
        seconds: dict[str, list[float]] = {name: [] for name in (*fast, *slow)}
        pool = samples if per_clip == 8 else samples[::8]
        step = 8 * arguments.clips_per_step if per_clip == 8 else arguments.single_clips
        for repeat in range(arguments.repeats + 1):
            start = repeat * step % len(pool)
            chosen = (list(pool) * 2)[start : start + step]
            turns = list(fast.items())[:: 1 if repeat % 2 else -1]
            for name, contestant in turns:
                seconds[name].append(contestant(bench, chosen, per_clip=per_clip) / len(chosen))
                console.print(f"{per_clip} per video, turn {repeat}, {name}: {seconds[name][-1]:.4f} s")
            if per_clip == 8 and repeat < arguments.slow_repeats:
                few = chosen[: arguments.slow_questions]
                for name, contestant in slow.items():
                    seconds[name].append(contestant(bench, few, per_clip=per_clip) / len(few))
                    console.print(f"{per_clip} per video, turn {repeat}, {name}: {seconds[name][-1]:.4f} s")
        for name in fast:
            seconds[name] = seconds[name][1:]  # the first turn warms caches and allocator
        _print(console, seconds, per_clip)
    console.print(f"load {os.getloadavg()[0]:.1f}")


def _absent(slow: dict[str, Any]) -> str:
    return ", ".join({"transformers Trainer", "TRL SFTTrainer"} - set(slow)) or "none"


def _print(console: Console, seconds: dict[str, list[float]], per_clip: int) -> None:
    table = Table("contestant", "CPU s per question", "turns", "against ours", title=f"{per_clip} questions per video")
    for name, values in seconds.items():
        if not values:
            continue
        if len(values) == len(seconds["ours"]):
            ratios = [value / own for value, own in zip(values, seconds["ours"])]
            low, high = median_range(ratios)
            ratio = f"{median(ratios):.3f} ({low:.3f} to {high:.3f})"
        else:
            ratio = f"{median(values) / median(seconds['ours']):.2f}"
        table.add_row(name, f"{median(values):.4f}", str(len(values)), ratio)
    console.print(table)


if __name__ == "__main__":
    main()
