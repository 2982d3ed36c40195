"""The seeded checkpoint that ``model=internvideo25_tiny`` starts from, in the original's layout."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from vidtune.models.internvideo25.config import FULL_SIZE
from vidtune.models.internvideo25.tiny_tokenizer import write_tiny_tokenizer
from vidtune.models.internvideo25.weights import build_from_config, export_weights

IMAGE_SIZE = 64
"""Pixels; with patches of 4 a frame has 64 tokens before merging, so that four frames merge 256 into 64."""
_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": 4,
}
_LANGUAGE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
_STD = 0.1
"""Of weight matrices: at these widths 0.02 leaves every layer's output near zero, and nothing is learned in a
demonstration's time."""
_HEAD_STD = 0.02
"""Of the output matrix: the first loss is then that of a uniform guess."""


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> None:
    """Write a randomly initialised checkpoint with its tokenizer files.

    Args:
        folder: created; an existing checkpoint in it is overwritten.
        seed: of the weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(FULL_SIZE)
    config["force_image_size"] = IMAGE_SIZE
    config["vision_config"] |= _VISION
    config["llm_config"] |= {**_LANGUAGE, "vocab_size": max(write_tiny_tokenizer(folder).values()) + 1}
    network = build_from_config(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        scale = _HEAD_STD if name.startswith("language.lm_head.") else _STD
        _initialise(name, parameter, scale, generator)
    export_weights(network, folder)


@torch.no_grad()
def _initialise(name: str, parameter: nn.Parameter, std: float, generator: torch.Generator) -> None:
    """Matrices, tokens and positions normal; gains and layer scales one; biases zero."""
    if parameter.dim() > 1:
        parameter.normal_(0.0, std, generator=generator)
    else:
        parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
