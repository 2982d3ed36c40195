"""A SigLIP-type encoder, an MLP and a Llama-type decoder, each of a few hundred thousand weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from vidtune.contracts import MediaItem
from vidtune.models.base import VideoLLM


class FrameEncoder(nn.Module):
    """Frames (T, 3, H, W) to one vector each, (T, patches x patch_width).

    The patch vectors of a frame are concatenated, not averaged: with the mean, where things are is lost, and motion is
    never learned.
    """

    def __init__(self, config: SiglipVisionConfig, patch_width: int) -> None:
        super().__init__()
        self.vit = SiglipVisionModel(config)
        self.narrow = nn.Linear(config.hidden_size, patch_width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        states = self.vit(pixel_values).last_hidden_state
        return self.narrow(states).flatten(1)


class Tiny(VideoLLM):
    """The tiny network; see ``VideoLLM``.

    Args:
        vision: of the encoder; ``vision_use_head`` must be off.
        language: of the decoder.
        patch_width: width each patch keeps before concatenation.
    """

    def __init__(self, vision: SiglipVisionConfig, language: LlamaConfig, patch_width: int) -> None:
        super().__init__()
        num_patches = (vision.image_size // vision.patch_size) ** 2
        self.vision = FrameEncoder(vision, patch_width)
        self.connector = nn.Sequential(
            nn.Linear(num_patches * patch_width, language.hidden_size),
            nn.GELU(),
            nn.Linear(language.hidden_size, language.hidden_size),
        )
        self.language = LlamaForCausalLM(language)

    def features(self, items: Sequence[MediaItem]) -> list[dict[str, Tensor]]:
        pixels = torch.cat([item.tensors["pixel_values"] for item in items])
        values = self.vision(pixels.to(self.vision.narrow.weight.dtype))
        return [{"values": part} for part in values.split([len(item.tensors["pixel_values"]) for item in items])]

    def connect(self, items: Sequence[MediaItem]) -> Tensor:
        return self.connector(torch.cat([item.tensors["values"] for item in items]))
