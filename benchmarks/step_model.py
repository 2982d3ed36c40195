"""What ``step.py`` trains: a frozen SigLIP-type tower, a linear connector and a Llama-type decoder."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from vidtune.contracts import MediaInfo, MediaItem, MediaPlan, MediaRef, Message, Preset, Sample, VisualSpan
from vidtune.models.base import VideoLLM
from vidtune.models.tiny.processor import TinyProcessor

VOCABULARY = 151_936
FRAMES, SIDE, PATCH = 16, 224, 14
TOKENS_PER_FRAME = (SIDE // PATCH // 2) ** 2
WORDS = "red green blue yellow circle square triangle star up down left right moves colour which count".split()


class StepNetwork(VideoLLM):
    """Tower and embeddings frozen, connector and decoder layers trained.

    Args:
        width: of the decoder.
        layers: of the decoder.
        tower_width, tower_layers: of the tower.
    """

    def __init__(self, width: int, layers: int, tower_width: int, tower_layers: int) -> None:
        super().__init__()
        tower = SiglipVisionConfig(
            hidden_size=tower_width,
            intermediate_size=4 * tower_width,
            num_hidden_layers=tower_layers,
            num_attention_heads=tower_width // 64,
            image_size=SIDE,
            patch_size=PATCH,
            vision_use_head=False,
        )
        decoder = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            max_position_embeddings=4096,
        )
        self.vision = SiglipVisionModel(tower)
        self.connector = nn.Linear(tower_width, width)
        self.language = LlamaForCausalLM(decoder)
        self.requires_grad_(False)
        for part in (self.connector, self.language.model.layers, self.language.model.norm):
            part.requires_grad_(True)

    def features(self, items: Sequence[MediaItem]) -> list[dict[str, Tensor]]:
        return [{"values": self.frames(item.tensors["pixel_values"])} for item in items]

    def frames(self, pixel_values: Tensor) -> Tensor:
        """(T, 3, S, S) to (T x tokens per frame, tower width): the mean of every 2 x 2 patches."""
        states = self.vision(pixel_values).last_hidden_state
        side = SIDE // PATCH
        grid = states.view(-1, side // 2, 2, side // 2, 2, states.shape[-1])
        return grid.mean((2, 4)).flatten(0, 2)

    def connect(self, items: Sequence[MediaItem]) -> Tensor:
        return self.connector(torch.cat([item.tensors["values"] for item in items]))


def add_size_arguments(parser: ArgumentParser) -> None:
    """The network's sizes, the same for every benchmark that runs it."""
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tower-width", type=int, default=256)
    parser.add_argument("--tower-layers", type=int, default=2)


def build_network(arguments: Namespace) -> StepNetwork:
    """The network of these sizes, with random weights."""
    return StepNetwork(arguments.width, arguments.layers, arguments.tower_width, arguments.tower_layers)


class StepProcessor(TinyProcessor):
    """The tiny processor with several tokens per frame."""

    def plan_media(self, info: MediaInfo, rng: np.random.Generator, preset: Preset) -> MediaPlan:
        plan = super().plan_media(info, rng, preset)
        span = VisualSpan(TOKENS_PER_FRAME * len(plan.frame_indices))
        return MediaPlan(info, plan.frame_indices, plan.times_s, (span,))


def write_clips(folder: Path, count: int) -> list[Path]:
    """H.264 clips of 64 frames, a texture that scrolls."""
    paths = []
    for number in range(count):
        path = folder / f"{number}.mp4"
        texture = np.random.default_rng(number).integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
        texture = texture.repeat(8, 0).repeat(8, 1)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=16, options={"preset": "veryfast"})
            stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
            for step in range(4 * FRAMES):
                frame = av.VideoFrame.from_ndarray(np.roll(texture, (step, 2 * step), axis=(0, 1)), "rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        paths.append(path)
    return paths


def questions_about(paths: Sequence[Path], per_clip: int, answer_words: int) -> list[Sample]:
    """Per clip its questions, 39 words each with the answer; a word is a token."""
    rng = np.random.default_rng(0)
    samples = []
    for path in paths:
        for number in range(per_clip):
            question, answer = (" ".join(rng.choice(WORDS, count)) for count in (39 - answer_words, answer_words))
            messages = (Message("user", (MediaRef(str(path)), question)), Message("assistant", (answer,)))
            samples.append(Sample(f"{path.stem}-{number}", messages))
    return samples
