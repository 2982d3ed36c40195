"""A seeded random Video-LLaMA small enough for a CPU, as the files that the original loads."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig

from vidtune.models.piece_training import train_pieces
from vidtune.models.video_llama.network import VideoLlama
from vidtune.models.video_llama.processor import load_tokenizer
from vidtune.models.video_llama.sizes import Sizes
from vidtune.models.video_llama.weights import LLM, VIT, build_from_config, export_weights

SIZES = Sizes(
    image_size=56,
    patch_size=14,
    vit_width=48,
    vit_layers=2,
    vit_heads=4,
    vit_mlp=96,
    qformer_width=48,
    qformer_layers=2,
    qformer_heads=4,
    qformer_mlp=96,
    num_queries=8,
    num_video_queries=16,
    audio_width=32,
    dropout=0.0,
)
WIDTH = 64
_NUM_PIECES = 560
"""Enough for whole words: an answer that differs only in its tenth letter is learnt late."""
_GAIN = 2.0
"""Weights before the decoder have the standard deviation gain / sqrt(inputs). Q-Formers normalise after every layer:
with the usual 0.02 they pass almost nothing of the frame on at this width, and two directions of motion stay at chance.
"""
_DECODER_STD = 0.15
_FLAT_STD = 0.02
"""Queries and keys of the decoder start so small that every token looks at all others alike, the frames included."""
_TEXT = (
    "What is the action shown in the displayed video. The video contains frames sampled at seconds.",
    "Describe what the person does. Fall down, Falling, Lying down, Sit down, Sitting, Stand up, Standing, Walking.",
    "Moves left, Moves right, Moves up, Moves down, Turns round, Opens a door, Closes a door, Waves, Jumps, Runs.",
    "Which shape is shown? How many circles, squares and triangles are there? Which colour came first, red or blue?",
    "In which direction does it move: left, right, up or down? ###Human: Is this it? ###Assistant: Yes. No.",
    "[INST] <<SYS>> <</SYS>> [/INST] <Video></Video> <Image></Image> 0.0, 1.1, 2.2, 3.3, 4.4, 5.5, 6.6, 7.7, 8.8, 9.9",
    "( ) ! ; ' \" - J K Q X Z j k q x z A B C D",
)


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> None:
    """All files, the audio branch's included, with a tokenizer that reads any text.

    Args:
        folder: created where it does not exist.
        seed: of all weights.
    """
    config = LlamaConfig(
        vocab_size=_NUM_PIECES,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_from_config(config, audio_branch=True, sizes=SIZES)
        _randomize(network)
        export_weights(network, folder)
        _add_last_block(folder / VIT)
    (folder / LLM / "tokenizer.model").write_bytes(train_pieces(_TEXT, _NUM_PIECES, split_digits=True))
    load_tokenizer(str(folder / LLM)).save_pretrained(str(folder / LLM))


def _randomize(network: VideoLlama) -> None:
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            nn.init.constant_(parameter, float("norm" in name.lower() and name.endswith("weight")))
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            nn.init.normal_(parameter, std=_FLAT_STD)
        elif name.startswith("language."):
            nn.init.normal_(parameter, std=_DECODER_STD)
        elif "position" in name or "queries" in name or "class_embedding" in name:
            nn.init.normal_(parameter)
        else:
            nn.init.normal_(parameter, std=_GAIN / math.sqrt(parameter[0].numel()))


def _add_last_block(file: Path) -> None:
    """The ViT file holds one block more than is used, as the published one."""
    state = torch.load(file, weights_only=True)
    last = {
        name.replace("blocks.0.", f"blocks.{SIZES.vit_layers}."): torch.randn_like(tensor)
        for name, tensor in state.items()
        if name.startswith("blocks.0.")
    }
    torch.save(state | last, file)
