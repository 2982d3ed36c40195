"""The Aria network on the shared early-fusion path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AriaConfig, AriaTextConfig, AriaTextForCausalLM, Idefics3VisionConfig
from transformers.models.aria.modeling_aria import AriaProjector

from vidtune.contracts import Batch, MediaItem
from vidtune.models.aria.vision import AriaVision, valid_patches
from vidtune.models.base import VideoLLM
from vidtune.models.blocks.router_loss import router_losses


class Aria(VideoLLM):
    """Vision tower, projector with learned queries, mixture-of-experts decoder.

    Args:
        config: native configuration.
        moe_z_loss_coeff: factor of the router z-loss.
        moe_aux_loss_coeff: factor of the router's load-balancing loss.
    """

    vision: AriaVision
    connector: AriaProjector
    language: AriaTextForCausalLM

    def __init__(self, config: AriaConfig, moe_z_loss_coeff: float, moe_aux_loss_coeff: float) -> None:
        super().__init__()
        # Not called ``config``: PEFT would take the network for a transformers model and rename its adapter targets.
        self.native_config: Any = config
        self.expert_share = config.text_config.moe_topk / config.text_config.moe_num_experts
        self.moe_z_loss_coeff, self.moe_aux_loss_coeff = moe_z_loss_coeff, moe_aux_loss_coeff
        self.vision = AriaVision(cast(Idefics3VisionConfig, config.vision_config))
        self.connector = AriaProjector(config)
        self.language = AriaTextForCausalLM(cast(AriaTextConfig, config.text_config))

    def features(self, items: Sequence[MediaItem]) -> list[dict[str, Tensor]]:
        """``values`` (T, P, C) of each item's images and their ``patch_counts`` (T, 2)."""
        pixels = torch.cat([item.tensors["pixel_values"] for item in items]).to(_dtype(self.vision))
        counts = torch.cat([item.tensors["patch_counts"] for item in items])
        values = self.vision(pixels, counts).split([len(item.tensors["patch_counts"]) for item in items])
        return [{"values": part, "patch_counts": item.tensors["patch_counts"]} for part, item in zip(values, items)]

    def connect(self, items: Sequence[MediaItem]) -> Tensor:
        values = torch.cat([item.tensors["values"] for item in items]).to(_dtype(self.connector))
        counts = torch.cat([item.tensors["patch_counts"] for item in items])
        hidden = ~valid_patches(counts, int(values.shape[1] ** 0.5)).flatten(1)
        return self.connector(values, attn_mask=hidden).flatten(0, 1)

    def decode(self, embeddings: Tensor, batch: Batch, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The decoder, and in training mode its router losses summed over layers.

        Tokens count with ``batch.token_weights``. Without these every position counts, padding too: so it is in the
        original, whose batches are padded; packed rows have no padding.
        """
        wanted = self.training and (self.moe_z_loss_coeff != 0 or self.moe_aux_loss_coeff != 0)
        output = self.language.model(
            inputs_embeds=embeddings,
            position_ids=batch.position_ids,
            use_cache=False,
            output_router_logits=wanted,
            **kwargs,
        )
        return output.last_hidden_state, self._auxiliary(output.router_logits, batch) if wanted else {}

    def _auxiliary(self, router_logits: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        weights = None if batch.token_weights is None else batch.token_weights.flatten()
        experts = self.native_config.text_config.moe_num_experts
        layers = [
            router_losses(logits.reshape(-1, experts), self.native_config.text_config.moe_topk, weights)
            for logits in router_logits
        ]
        z_losses, balancing = zip(*layers, strict=True)
        return {
            "router_z_loss": self.moe_z_loss_coeff * torch.stack(z_losses).sum(),
            "load_balancing_loss": self.moe_aux_loss_coeff * torch.stack(balancing).sum(),
        }


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
