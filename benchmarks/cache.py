"""CPU time of an epoch whose tower is frozen: encoded in every epoch, against read from the feature cache.

    python benchmarks/cache.py                   # a tower of 12 layers, 8 clips of 8 frames
    python benchmarks/cache.py --layers 4        # a smaller one

Both epochs run in this one process with one thread: rows are built (decoding included), forward, backward. CPU time
counts, least of ``--repeats``; on a shared machine wall time is no figure to trust. The goal is a factor of 3.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformers import LlamaConfig, SiglipVisionConfig

from vidtune.contracts import Sample
from vidtune.data.planner import RowPlan
from vidtune.data.questions import QuestionsReader
from vidtune.data.rows import Encoder, RowBuilder
from vidtune.data.shapes import prepare_shapes
from vidtune.models.base import VideoLLM
from vidtune.models.tiny.network import Tiny
from vidtune.models.tiny.tiny import build_tokenizer
from vidtune.models.tiny.weights import export_weights
from vidtune.run.build import build_processor, build_source, build_tuned_network
from vidtune.run.compose import compose_config
from vidtune.run.features import RunFeatures

GOAL = 3.0


def write_checkpoint(folder: Path, layers: int, width: int) -> None:
    """The tiny model with a larger tower: the tower is most of the work, as in every real model."""
    tokenizer = build_tokenizer()
    vision = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        image_size=64,
        patch_size=8,
        vision_use_head=False,
    )
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    export_weights(Tiny(vision, language, patch_width=16), folder)
    tokenizer.save_pretrained(str(folder))


def epoch(network: VideoLLM, builder: RowBuilder, rows: Sequence[RowPlan]) -> tuple[float, float]:
    """(CPU seconds, sum of the losses) of one pass."""
    start, total = time.process_time(), 0.0
    for row in rows:
        network.zero_grad()
        batch = builder[row]
        output = network(batch)
        loss = (output.nll * batch.target_weights).sum()
        loss.backward()
        total += float(loss.detach())
    return time.process_time() - start, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12, help="of the tower")
    parser.add_argument("--width", type=int, default=384, help="of the tower")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_shapes(folder / "shapes", num_train=arguments.clips, num_val=1, num_test=1, seed=0, progress=False)
        write_checkpoint(folder / "model", arguments.layers, arguments.width)
        samples = QuestionsReader(str(folder / "shapes"), "{split}.jsonl")("train")
        results = {mode: measure(folder, samples, mode, arguments.repeats) for mode in ("tower", "cache")}
    table = Table(
        title=f"CPU per epoch, {time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, 1 thread"
    )
    for column in ("epoch", "CPU s", "loss", "tower loaded"):
        table.add_column(column)
    for mode, (seconds, loss, loaded) in results.items():
        table.add_row(mode, f"{seconds:.3f}", f"{loss:.6f}", "yes" if loaded else "no")
    ratio = results["tower"][0] / results["cache"][0]
    console = Console()
    console.print(table)
    console.print(f"Ratio {ratio:.1f} (goal {GOAL:g}); command: python benchmarks/cache.py {' '.join(sys.argv[1:])}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"ratio": ratio, "results": results}, indent=2))


def measure(folder: Path, samples: list[Sample], mode: str, repeats: int) -> tuple[float, float, bool]:
    """(least CPU seconds of an epoch, its loss, whether the tower is there)."""
    words = ["model=tiny", f"model.path={folder / 'model'}", "model.prepare=null", "data.prepare=null", "hardware=cpu"]
    words += ["tuning=lora", "tuning.language.mode=full", f"paths.cache_dir={folder / 'cache'}"]
    cfg = compose_config([*words, f"media.feature_cache={folder / 'features'}"], "train")
    rows = [RowPlan((tuple(range(i, i + 4)),), 1.0, 0, 0) for i in range(0, len(samples), 4)]

    def prepared() -> tuple[VideoLLM, RowBuilder]:
        processor = build_processor(cfg)
        source = build_source(cfg, processor)
        builder = RowBuilder(samples, Encoder(processor, source, "train"), source, "token")
        if mode == "tower":
            return build_tuned_network(cfg)[0].train(), builder
        features = RunFeatures(cfg, source)
        features.plan([ref for sample in samples for ref in sample.media], "train", epochs=True)
        absent = features.absent
        network = build_tuned_network(cfg, absent)[0].train()
        features.attach(network, absent)
        return network, builder

    network, builder = prepared()
    epoch(network, builder, rows)  # first epoch: fills the cache where there is one
    network, builder = prepared()
    passes = [epoch(network, builder, rows) for _ in range(repeats)]
    return min(seconds for seconds, _ in passes), passes[0][1], any(True for _ in network.vision.parameters())


if __name__ == "__main__":
    main()
