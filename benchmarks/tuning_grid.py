"""NVILA's ten tuning rows side by side: what trains, a step's time, what it keeps in memory, the checkpoint's size.

    python benchmarks/tuning_grid.py                                # the tiny variant on this CPU, one thread
    python benchmarks/tuning_grid.py --size real_tower --rows "LN / LoRA" "LoRA / LoRA" --turns 3
    python benchmarks/tuning_grid.py --size lite_8b --device cuda   # NVILA-Lite-8B, random weights, and the GPU's peak
    python benchmarks/tuning_grid.py --size lite_8b --device meta   # its weights by part and row; nothing is run

A step is forward, backward, clipping and AdamW on one image of one tile and 300 tokens in bfloat16, as in the published
measurement, without activation checkpointing. On a CPU the rows take turns and CPU time of the process counts; on a GPU
each has the device to itself and wall time counts; both are medians over the turns. "Kept" is what lies in memory when
the forward pass ends: weights as they are stored, gradients and moments of what trains, and the tensors that autograd
saved, each storage once. Published numbers stand beside it; they are from an A100 and eight billion weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.tuning_rows import (
    PUBLISHED,
    REAL_TOWER,
    ROWS,
    build_row,
    count_parts,
    count_rows,
    row_config,
    state_bytes,
    trained,
)
from vidtune.contracts import Batch, MediaRef, Message, Sample
from vidtune.data.planner import RowPlan
from vidtune.data.rows import Encoder, RowBuilder
from vidtune.evaluation.tables import Column, Table
from vidtune.models.nvila.processor import NVILAProcessor
from vidtune.run.build import build_source, prepare
from vidtune.tuning.policy import trainable_state

TOKENS = 300
PUBLISHED_STEPS = {"LoRA / LoRA": 3.4, "LN / LoRA": 4.5}
"""Published steps a second: the "25 % less time" of LN against LoRA."""


@dataclass
class Row:
    """A network as a row of the grid trains it, and what was measured on it."""

    name: str
    network: nn.Module
    batch: Batch
    device: str
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(trained(self.network), lr=1e-5)

    def step(self) -> None:
        start = self._clock()
        with self._autocast():
            loss = self.network(self.batch).nll.sum() / self.batch.normalizer
        loss.backward()
        nn.utils.clip_grad_norm_(trained(self.network), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(self._clock() - start)

    def _clock(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def _autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16)

    def saved_bytes(self) -> int:
        """What autograd saves for the backward pass, weights not among it."""
        weights = [*self.network.parameters(), *self.network.buffers()]
        own = {tensor.untyped_storage().data_ptr() for tensor in weights}
        storages: dict[int, int] = {}
        kept: list[torch.Tensor] = []  # alive to the end, so that no address is given twice

        def note(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor)
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with self._autocast(), saved_tensors_hooks(note, lambda tensor: tensor):
            self.network(self.batch)
        return sum(storages.values())

    def facts(self, folder: Path) -> tuple[Any, ...]:
        """Cells of the table. A checkpoint holds what trains and the optimizer's states, as a run saves them."""
        file = folder / "row.ckpt"
        state = {"state_dict": trainable_state(self.network), "optimizer_states": [self.optimizer.state_dict()]}
        torch.save(state, file)
        weights = sum(parameter.numel() for parameter in trained(self.network))
        peak = (torch.cuda.max_memory_allocated() / 1e6,) if self.device == "cuda" else ()
        kept = (state_bytes(self.network) + self.saved_bytes()) / 1e6
        size = file.stat().st_size / 1e6
        file.unlink()
        return (self.name, weights, 1000 * median(self.seconds), kept, *peak, size, ROWS[self.name][1])


def one_image(folder: Path, size: str) -> Batch:
    """A row of one tile and the first number of tokens from ``TOKENS`` on that its text can have."""
    cfg = row_config("FT / FT", folder)
    prepare(cfg)
    Image.new("RGB", (64, 64), "red").save(folder / "one.png")
    # Ids of the tiny tokenizer are ids of any; tiles are those of the size.
    settings = {"image_size": 64, "patch_size": 8} if size == "tiny" else {"fold": 2 if "base" in size else 3}
    processor = NVILAProcessor(cfg.model.tokenizer_path, image_mode="resize", **settings)
    source = build_source(cfg, processor)
    encode = Encoder(processor, source, "train")
    image = MediaRef(str(folder / "one.png"), "image")
    answer = Message("assistant", ("a" * 20,))
    samples = [Sample("one", (Message("user", (image, "q" * length)), answer)) for length in range(1, TOKENS)]
    fitting = next(sample for sample in samples if encode(sample).num_tokens >= TOKENS)
    return RowBuilder([fitting], encode, source, "token")[RowPlan(((0,),), 20.0, 0, 0)]


def measure(size: str, device: str, turns: int, folder: Path, names: Sequence[str] = tuple(ROWS)) -> Table:
    """The grid; ``names`` are keys of ``ROWS``."""
    batch = one_image(folder, size).to(device)
    cells, seconds = [], {}
    # Turns on a CPU, whose speed others change; one after the other on a GPU, whose memory counts.
    for together in [names] if device == "cpu" else [[name] for name in names]:
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        rows = [Row(name, build_row(row_config(name, folder), size, device), batch, device) for name in together]
        for turn in range(turns + 1):
            for row in rows:
                row.step()
                if not turn:
                    row.seconds.clear()  # the first one builds the optimizer's state
        cells += [row.facts(folder) for row in rows]
        seconds |= {row.name: row.seconds for row in rows}
        del row, rows
    columns = [Column("tower / language model"), Column("trained weights", "count"), Column("ms per step", "number")]
    columns += [Column("kept MB", "number"), *([Column("GPU peak MB", "number")] if device == "cuda" else [])]
    columns += [Column("checkpoint MB", "number"), Column("published GB (8B)", "number")]
    notes = [_comparison(seconds)] if {"LN / LoRA", "LoRA / LoRA"} <= seconds.keys() else []
    title = f"{size}: {batch.input_ids.numel()} tokens, one tile, {turns} turns, {device}"
    return Table(columns, cells, title=title, notes=notes)


def _comparison(seconds: dict[str, list[float]]) -> str:
    """LN against LoRA, from paired turns."""
    ratios = [ln / lora for ln, lora in zip(seconds["LN / LoRA"], seconds["LoRA / LoRA"], strict=True)]
    published = PUBLISHED_STEPS["LoRA / LoRA"] / PUBLISHED_STEPS["LN / LoRA"]
    return (
        f"LN takes {100 * median(ratios):.0f} % of LoRA's time here (paired turns, {100 * min(ratios):.0f} to "
        f'{100 * max(ratios):.0f}); published: {100 * published:.0f} %, "25 % faster".'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=("tiny", REAL_TOWER, *PUBLISHED), help="default: tiny")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "meta"))
    parser.add_argument("--turns", type=int, default=15, help="steps of each row (default: 15)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW", help="default: all")
    arguments = parser.parse_args()
    if arguments.device == "meta" and arguments.size not in PUBLISHED:
        parser.error("--device meta counts a published size; name it with --size.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if arguments.device == "meta":
            tables = [count_parts(), count_rows(arguments.size, folder)]
        else:
            tables = [measure(arguments.size, arguments.device, arguments.turns, folder, arguments.rows)]
        for table in tables:
            Console().print(table.markdown(), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
