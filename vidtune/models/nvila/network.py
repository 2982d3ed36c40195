"""The NVILA network: SigLIP tower, projector, Qwen2."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM, SiglipVisionModel
from transformers.initialization import no_init_weights

from vidtune.contracts import MediaItem
from vidtune.models.attention import PACKED_SDPA
from vidtune.models.base import VideoLLM
from vidtune.models.nvila.config import NVILAConfig
from vidtune.models.nvila.connector import Projector, stack_scales, stitch


class NVILA(VideoLLM):
    """Tiles of pictures and frames, 121 (Lite) or 256 tokens each, before a Qwen2 decoder.

    The tower holds only the layers that its feature depends on: neither the last layer nor ``post_layernorm`` is
    built, trained or counted; ``weights.export_weights`` copies them from the checkpoint.

    Args:
        config: geometry.
        dtype: of all parameters.
        attention: implementation of the decoder; the tower always runs ``sdpa``.
    """

    def __init__(self, config: NVILAConfig, dtype: torch.dtype = torch.float32, attention: str = PACKED_SDPA) -> None:
        super().__init__()
        self.config = config
        self.source: Path | None = None
        """Checkpoint the weights came from; export takes the unrun tensors and the tokenizer from it."""
        vision = deepcopy(config.vision)
        vision.num_hidden_layers = config.num_run_layers
        vision.vision_use_head = False
        # Every tensor is loaded afterwards, strictly; drawing eight billion random numbers first takes minutes.
        with no_init_weights():
            self.vision = SiglipVisionModel._from_config(vision, dtype=dtype, attn_implementation="sdpa")
            self.language = Qwen2ForCausalLM._from_config(deepcopy(config.language), dtype=dtype)
        self.vision.post_layernorm = nn.Identity()
        self.language.tie_weights()
        self.connector = Projector(config.projector, config.feature_width, config.language.hidden_size).to(dtype)
        self.set_attention(attention)

    def features(self, items: Sequence[MediaItem]) -> list[dict[str, Tensor]]:
        """Patches of all tiles of all items in one pass.

        Args:
            items: ``pixel_values`` (tiles, 3, H, W); ``grid`` (2,) int64 (columns, rows) where dynamic-S2 cut them.

        Returns:
            Per item ``values`` (tiles, P, C), and ``grid`` as it came.
        """
        pixels = [item.tensors["pixel_values"] for item in items]
        patches = self.vision(torch.cat(pixels)).last_hidden_state
        return [
            {"values": values, **({"grid": item.tensors["grid"]} if "grid" in item.tensors else {})}
            for item, values in zip(items, patches.split([len(tiles) for tiles in pixels]), strict=True)
        ]

    def connect(self, items: Sequence[MediaItem]) -> Tensor:
        """(N, D) tokens of all items; tiles in order, or one map per dynamic-S2 picture."""
        patches = [self._projector_input(item) for item in items]
        tokens = self.connector(torch.cat(patches)).split([len(tiles) for tiles in patches])
        return torch.cat(
            [
                (stitch(tiles, _grid(item)) if "grid" in item.tensors else tiles).flatten(0, 1)
                for item, tiles in zip(items, tokens, strict=True)
            ]
        )

    def unrun_parts(self) -> nn.Module:
        """The tower's layers above its feature, and ``post_layernorm``."""
        with torch.device("meta"), no_init_weights():
            tower: Any = SiglipVisionModel._from_config(deepcopy(self.config.vision))
        layers = tower.encoder.layers
        unrun = nn.ModuleDict({str(k): layers[k] for k in range(self.config.num_run_layers, len(layers))})
        parts, vision, encoder = nn.Module(), nn.Module(), nn.Module()
        parts.vision, vision.encoder, encoder.layers = vision, encoder, unrun
        vision.post_layernorm = tower.post_layernorm
        return parts

    def _projector_input(self, item: MediaItem) -> Tensor:
        """(tiles, P, C or scales*C): what one item gives to the projector."""
        values, scales = item.tensors["values"], self.config.scales
        if not scales:
            return values
        # A tile that was not cut by dynamic-S2, such as a video frame, stands for itself at every scale.
        return stack_scales(values, scales, _grid(item)) if "grid" in item.tensors else values.repeat(1, 1, len(scales))


def _grid(item: MediaItem) -> tuple[int, int]:
    columns, rows = item.tensors["grid"].tolist()
    return columns, rows
