"""Video-ChatGPT: pooled features of a CLIP tower, one linear projection, LLaMA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from vidtune.contracts import MediaItem
from vidtune.models.base import VideoLLM

NUM_VIDEO_TOKENS = 3
"""``<vid_patch> <vid_start> <vid_end>`` are the last rows of the vocabulary, in this order."""


class VisionTower(nn.Module):
    """CLIP up to the layer whose patches are used.

    Args:
        config: of the tower; it has only the layers that are run.
    """

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.vit = CLIPVisionModel(config)
        self.vit.post_layernorm = nn.Identity()  # it normalises the class token alone, which is not used

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(T, 3, H, W) to the patches (T, P, C), row-major; the class token is dropped."""
        return self.vit(pixel_values.to(self.vit.dtype)).last_hidden_state[:, 1:]


class Projector(nn.Module):
    """One linear layer from the width of the tower to that of the language model."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(vision_width, language_width)

    def forward(self, values: Tensor) -> Tensor:
        """(N, C) of any float dtype to (N, D)."""
        return self.projection(values.to(self.projection.weight.dtype))


class MarkerRows(nn.Module):
    """Embeddings of ``<vid_start>`` and ``<vid_end>``, apart from the table whose other rows stay as they are.

    Args:
        first_id: id of ``<vid_start>``; ``<vid_end>`` is the next.
        width: of the language model.
    """

    def __init__(self, first_id: int, width: int) -> None:
        super().__init__()
        self.first_id = first_id
        self.weight = nn.Parameter(torch.empty(2, width))

    def forward(self, input_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Put the rows at their positions: (B, L) ids and (B, L, D) embeddings to (B, L, D)."""
        for index, row in enumerate(self.weight.to(embeddings.dtype)):
            here = (input_ids == self.first_id + index)[..., None]
            embeddings = torch.where(here, row, embeddings)
        return embeddings


class VideoChatGPT(VideoLLM):
    """Video-ChatGPT 7B and its tiny variants.

    Args:
        vision_config: CLIP with as many layers as are run.
        language_config: LLaMA; its vocabulary includes the three video tokens.
    """

    def __init__(self, vision_config: CLIPVisionConfig, language_config: LlamaConfig) -> None:
        super().__init__()
        self.vision = VisionTower(vision_config)
        self.connector = Projector(vision_config.hidden_size, language_config.hidden_size)
        self.language = LlamaForCausalLM(language_config)
        first_marker = language_config.vocab_size - NUM_VIDEO_TOKENS + 1
        self.new_tokens = MarkerRows(first_marker, language_config.hidden_size)

    def features(self, items: Sequence[MediaItem]) -> list[dict[str, Tensor]]:
        """Per item ``values`` (N, C): what the original's feature files hold.

        They are float16 as in those files, so that cached and computed features agree; only where the tower trains do
        they keep its precision, since gradients of pooled means underflow in half precision.
        """
        patches = self.vision(torch.cat([item.tensors["pixel_values"] for item in items]))
        patches = patches if patches.requires_grad else patches.half()
        counts = [len(item.tensors["pixel_values"]) for item in items]
        return [
            {"values": pool_patches(part, item.num_placeholders - part.shape[1])}
            for part, item in zip(patches.split(counts), items)
        ]

    def connect(self, items: Sequence[MediaItem]) -> Tensor:
        """(N, D): temporal, then spatial positions of each item.

        Raises:
            ValueError: features of another width or length, as another model's would be.
        """
        width = self.connector.projection.in_features
        for item in items:
            if item.tensors["values"].shape != (item.num_placeholders, width):
                raise ValueError(
                    f"{item.name}: features {tuple(item.tensors['values'].shape)}, expected "
                    f"({item.num_placeholders}, {width}); they were made by another model or with other settings."
                )
        return self.connector(torch.cat([item.tensors["values"] for item in items]))

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.new_tokens(input_ids, super().embed(input_ids))


def pool_patches(patches: Tensor, num_temporal: int) -> Tensor:
    """Mean over space per frame, then mean over time per patch.

    Args:
        patches: (T, P, C) of any float dtype; means are taken in float32, as numpy does for half precision.
        num_temporal: rows for the frames; zeros follow where there are fewer, and nothing is cut where there are more.

    Returns:
        (max(T, num_temporal) + P, C) in the dtype of ``patches``. Source: ``get_spatio_temporal_features``.
    """
    values = patches.float()
    temporal, spatial = values.mean(1), values.mean(0)
    padding = temporal.new_zeros(max(num_temporal - len(temporal), 0), temporal.shape[1])
    return torch.cat([temporal, padding, spatial]).to(patches.dtype)
