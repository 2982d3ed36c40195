"""CPU time of an epoch of Video-ChatGPT's recipe: features computed in every step or stored, questions apart or shared.

    python benchmarks/video_chatgpt.py              # 2 videos of 8 questions, two epochs each: a minute of CPU time
    python benchmarks/video_chatgpt.py --clips 4    # more of them

A video has the recipe's 356 positions of 100 frames at 224 x 224. Tower and decoder are as narrow as a CPU needs, in
about the proportion of the published ones: there a video costs the tower 16.2 TFLOP, and a row of 490 tokens costs the
decoder 12.9 (forward, and backward to the projector). Rows come from the run's own planner, and decoding, tower,
forward and backward pass are timed, in one process with one thread. Rows stand for epochs 2 and 3 of a run: in the
first epoch the cache is filled, which is timed apart. CPU time counts; on a shared machine wall time means nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from vidtune.data.prepare import get_preparation
from vidtune.data.rows import RowBuilder
from vidtune.models.piece_training import train_pieces
from vidtune.models.video_chatgpt.weights import build_from_configs, export_weights
from vidtune.run.build import build_datamodule, build_processor, build_tuned_network
from vidtune.run.compose import compose_config
from vidtune.run.features import RunFeatures

QUESTIONS = 8
"""Per video; 7.5 in the published set."""
NUM_PIECES = 450
DECODER = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
TOWER = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
"""The last of its layers is not run."""
TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions.",
    "USER: What does the person on the left do first with the red bowl? ASSISTANT: The person takes it from the shelf, "
    "fills it with water, carries it to the table by the window and waits until the others have sat down.",
    "0 1 2 3 4 5 6 7 8 9 ( ) [ ] ! ? ; : ' \" - / J K Q X Z j k q x z A B C D",
)
ANSWER = (
    "The person takes it from the shelf, fills it with water, carries it to the table by the window and waits until "
    "the others have sat down."
)


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    llava = {**DECODER, "vocab_size": NUM_PIECES + 3, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
    vision = {**TOWER, "image_size": 224, "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    export_weights(build_from_configs(llava, vision), folder)
    (folder / "tokenizer.model").write_bytes(train_pieces(TEXT, NUM_PIECES))


def write_data(root: Path, clips: int) -> None:
    """Videos of 120 frames at 320 x 240, and questions of the released form."""
    (root / "videos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(clips):
        name = f"v_{number:011d}"
        picture = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        with av.open(str(root / f"videos/{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
            for step in range(120):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, 2 * step, 1), "rgb24")))
            container.mux(stream.encode(None))
        for question in range(QUESTIONS):
            asked = f"What does the person on the left do {question} seconds after the red bowl?"
            rows.append({"q": asked, "a": ANSWER, "video_id": name})
    (root / "VideoInstruct100K.json").write_text(json.dumps(rows))
    get_preparation("video_instruct_100k").prepare(root, {}, Console(quiet=True))


class Recipe:
    """The recipe on these files: rows of its planner, and its network.

    Args:
        placement: ``data.media_placement``.
        shared: most questions that share a video.
        cached: features come from the cache.
    """

    def __init__(self, folder: Path, clips: int, placement: str, shared: int, cached: bool) -> None:
        words = [
            "experiment=video_chatgpt_100k_connector",
            "hardware=cpu",
            "hardware.activation_checkpointing=false",
            f"model.path={folder / 'model'}",
            f"model.network.vision_path={folder / 'model/clip'}",
            "model.dtype=float32",
            f"model.processor.feature_width={TOWER['hidden_size']}",
            f"data.root={folder / 'data'}",
            f"data.media_placement={placement}",
            f"batch.questions_per_video={shared}",
            f"global_batch_size={clips * QUESTIONS}",
            "micro_batch_size=4",
            f"paths.cache_dir={folder / 'cache'}",
            *([f"media.feature_cache={folder / 'features'}"] if cached else []),
        ]
        cfg = compose_config(words, "train")
        self.data = build_datamodule(cfg, build_processor(cfg))
        self.data.setup()
        features = RunFeatures(cfg, self.data.source) if cached else None
        absent: tuple[str, ...] = ()
        if features is not None:
            features.plan(self.data.media, "train", epochs=True)
            absent = features.absent
        self.network = build_tuned_network(cfg, absent)[0].train()
        if features is not None:
            features.attach(self.network, absent)
        self.builder = RowBuilder(self.data.train_samples, self.data.encoder, self.data.source, "token")

    def tokens(self) -> int:
        planner = self.data.train_planner
        return sum(planner.row_tokens(row) for row in planner.rows(0, planner.steps_per_epoch) if not row.filler)

    def epoch(self, number: int) -> tuple[float, float]:
        """(CPU seconds, loss) of one pass without optimizer steps."""
        planner = self.data.train_planner
        start, total = time.process_time(), 0.0
        for row in planner.rows(number * planner.steps_per_epoch, (number + 1) * planner.steps_per_epoch):
            if not row.filler:
                batch = self.builder[row]
                loss = (self.network(batch).nll * batch.target_weights).sum() / batch.normalizer
                loss.backward()
                total += float(loss.detach())
        self.network.zero_grad()
        return time.process_time() - start, total


def measure(folder: Path, clips: int, epochs: Sequence[int]) -> list[dict[str, Any]]:
    start = Recipe(folder, clips, "original", 1, cached=True).epoch(0)[0]
    rows: list[dict[str, Any]] = [{"cached": True, "placement": "original", "shared": 1, "first": True, "cpu_s": start}]
    for cached in (False, True):
        for placement in ("original", "video_first"):
            for shared in (1, QUESTIONS):
                recipe = Recipe(folder, clips, placement, shared, cached)
                passes = [recipe.epoch(number) for number in epochs]
                rows.append(
                    {
                        "cached": cached,
                        "placement": placement,
                        "shared": shared,
                        "first": False,
                        "cpu_s": sum(seconds for seconds, _ in passes) / len(passes),
                        "spread": [seconds for seconds, _ in passes],
                        "loss": passes[0][1],
                        "tokens": recipe.tokens(),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2, help="timed per row of the table")
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        write_data(folder / "data", arguments.clips)
        rows = measure(folder, arguments.clips, range(1, 1 + arguments.epochs))
    base = next(row["cpu_s"] for row in rows if not row["cached"])
    table = Table(title=f"CPU per epoch, {time.strftime('%Y-%m-%d')}, load {os.getloadavg()[0]:.0f}, 1 thread")
    for column in ("features", "placement", "questions", "tokens", "CPU s", "times less", "loss"):
        table.add_column(column)
    for row in rows:
        features = ("cache, being filled" if row["first"] else "cache") if row["cached"] else "tower"
        asked = "apart" if row["shared"] == 1 else f"up to {row['shared']} share"
        seconds = f"{row['cpu_s']:.2f}" + (
            f" ({min(row['spread']):.2f} to {max(row['spread']):.2f})" if "spread" in row else ""
        )
        more = (str(row["tokens"]), f"{row['loss']:.6f}") if "loss" in row else ("", "")
        table.add_row(features, row["placement"], asked, more[0], seconds, f"{base / row['cpu_s']:.2f}", more[1])
    Console(width=120).print(table)
    print(f"command: python benchmarks/video_chatgpt.py {' '.join(sys.argv[1:])}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
