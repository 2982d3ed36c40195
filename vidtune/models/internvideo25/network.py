"""InternVideo2.5: InternViT, HiCo token merging, MLP projector, InternLM2 (as a Llama)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, InternVLConfig
from transformers.initialization import no_init_weights
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

from vidtune.contracts import MediaItem, UserError
from vidtune.models.attention import PACKED_SDPA
from vidtune.models.base import VideoLLM
from vidtune.models.internvideo25.hico import merge_tokens, space_to_depth


class HiCoVision(nn.Module):
    """Role ``vision``: the tower and the token merging behind it; part ``vit`` holds all parameters.

    Args:
        vit: native InternVL tower.
        num_heads: slices of the merge's similarity: heads of the language model.
        clip_frames: consecutive frames whose tokens are merged together.
        clip_tokens: tokens that a clip becomes.
    """

    def __init__(self, vit: nn.Module, num_heads: int, clip_frames: int, clip_tokens: int) -> None:
        super().__init__()
        self.vit = vit
        self.num_heads, self.clip_frames, self.clip_tokens = num_heads, clip_frames, clip_tokens

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(T, 3, S, S) normalised frames, T a multiple of ``clip_frames``, to (T, tokens per frame, 4 x width)."""
        patches = self.vit(pixel_values=pixel_values).last_hidden_state[:, 1:]
        frames, count, width = patches.shape
        side = round(count**0.5)
        tokens = space_to_depth(patches.reshape(frames, side, side, width))
        clips = tokens.reshape(frames // self.clip_frames, -1, tokens.shape[-1])
        merged = merge_tokens(clips, self.clip_tokens, self.num_heads)
        return merged.reshape(frames, -1, merged.shape[-1])


class InternVideo25(VideoLLM):
    """The network, with uninitialised weights: a checkpoint is always loaded into it.

    Args:
        config: native sizes of tower and language model.
        source_config: the checkpoint's own ``config.json``, written back on export.
        clip_frames, clip_tokens: of the token merging; InternVideo2.5 and HiCo_R16 were trained with 4 and 64.
        dtype: of all parameters.
        attention: how the decoder executes attention.
        vision_attention: how the tower does: ``sdpa``, ``eager`` or ``flash_attention_2``.

    Raises:
        UserError: sizes that cannot be merged as asked.
    """

    def __init__(
        self,
        config: InternVLConfig,
        source_config: Mapping[str, Any],
        *,
        clip_frames: int = 4,
        clip_tokens: int = 64,
        dtype: torch.dtype = torch.float32,
        attention: str = PACKED_SDPA,
        vision_attention: str = "sdpa",
    ) -> None:
        super().__init__()
        _check_merging(config, clip_frames, clip_tokens)
        self.source_config = dict(source_config)
        with no_init_weights():  # Minutes of random numbers for 8 billion weights that are overwritten next.
            vit = AutoModel.from_config(config.vision_config, dtype=dtype, attn_implementation=vision_attention)
            self.language = AutoModelForCausalLM.from_config(config.text_config, dtype=dtype)
            self.connector = InternVLMultiModalProjector(config).to(dtype)
        self.vision = HiCoVision(vit, config.text_config.num_attention_heads, clip_frames, clip_tokens)
        self.set_attention(attention)

    def features(self, items: Sequence[MediaItem]) -> list[dict[str, Tensor]]:
        """Per video ``values`` (T, tokens per frame, 4 x vision width), merged.

        Raises:
            ValueError: a video whose number of frames is no multiple of the clip length; its frames would be merged
                with those of the next video.
        """
        counts = [len(item.tensors["pixel_values"]) for item in items]
        for item, count in zip(items, counts):
            if count % self.vision.clip_frames:
                raise ValueError(f"{item.name}: {count} frames, but clips of {self.vision.clip_frames} are merged.")
        values = self.vision(torch.cat([item.tensors["pixel_values"] for item in items]))
        return [{"values": part} for part in values.split(counts)]

    def connect(self, items: Sequence[MediaItem]) -> Tensor:
        """(N, D), frame by frame."""
        values = torch.cat([item.tensors["values"] for item in items])
        return self.connector(values.to(self.connector.layer_norm.weight.dtype)).flatten(0, 1)


def _check_merging(config: InternVLConfig, clip_frames: int, clip_tokens: int) -> None:
    vision, num_heads = config.vision_config, config.text_config.num_attention_heads
    side = vision.image_size[0] // vision.patch_size[0]
    available = clip_frames * (side // 2) ** 2
    faults = []
    if side % 2:
        faults.append(f"a frame has {side} x {side} patches, which cannot be halved")
    if clip_frames < 1 or clip_tokens % clip_frames:
        faults.append(f"clip_tokens={clip_tokens} is no multiple of clip_frames={clip_frames}")
    if clip_tokens > available:
        faults.append(f"clip_tokens={clip_tokens}, but {clip_frames} frames have only {available} tokens")
    if 4 * vision.hidden_size % num_heads:
        faults.append(f"{4 * vision.hidden_size} channels do not divide into the language model's {num_heads} heads")
    if faults:
        raise UserError(f"{'; '.join(faults)}. Change model.processor.clip_frames or clip_tokens.")
