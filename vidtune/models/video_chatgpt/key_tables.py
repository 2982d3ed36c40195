"""Names of the released checkpoints, and the rows that Video-ChatGPT adds to their vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from vidtune.models.key_table import Drop, KeyTable, Merge, Rename, Split
from vidtune.models.video_chatgpt.network import NUM_VIDEO_TOKENS

_PATCH_ROW_STD = 0.02


def append_rows(weight: Tensor, patch: Tensor) -> Tensor:
    """Add rows for ``<vid_patch> <vid_start> <vid_end>`` to an embedding or a head.

    Args:
        weight: (V, D).
        patch: (D,) the row of ``<vid_patch>``, whose position is always overwritten.

    Returns:
        (V + 3, D) float32; both markers are the mean of all rows before them. Source: Video-ChatGPT's
        ``initialize_vision_tokenizer``, which adds the patch token first, so that the mean includes it.
    """
    known = torch.cat([weight.float(), patch.float()[None]])
    mean = known.mean(dim=0, keepdim=True)
    return torch.cat([known, mean, mean])


def llava_table(vocab_size: int) -> KeyTable:
    """LLaVA-Lightning's names; a smaller vocabulary than ``vocab_size`` gets its video rows on the way."""

    def complete(weight: Tensor, seed: int) -> Tensor:
        if len(weight) != vocab_size - NUM_VIDEO_TOKENS:
            return weight
        generator = torch.Generator().manual_seed(seed)
        return append_rows(weight, torch.randn(weight.shape[1], generator=generator) * _PATCH_ROW_STD)

    def split_markers(weight: Tensor) -> tuple[Tensor, Tensor]:
        weight = complete(weight, seed=0)
        return weight, weight[-2:]

    def merge_markers(table: Tensor, markers: Tensor) -> Tensor:
        # The wider dtype of the two, so that fp32 markers survive beside a bf16 table.
        return torch.cat([table[:-2].to(torch.promote_types(table.dtype, markers.dtype)), markers])

    return KeyTable(
        [
            Split(
                "model.embed_tokens.weight",
                ("language.model.embed_tokens.weight", "new_tokens.weight"),
                split_markers,
                merge_markers,
            ),
            Merge(
                ("lm_head.weight",),
                "language.lm_head.weight",
                merge=lambda weight: complete(weight, seed=1),
                split=lambda weight: (weight,),
            ),
            Drop("model.layers.{i}.self_attn.rotary_emb.inv_freq", "a constant; rounded through fp16 in the release"),
            Rename("model.mm_projector.{x}", "connector.projection.{x}"),
            Rename("model.{x*}", "language.model.{x*}"),
        ]
    )


def clip_table(num_layers: int) -> KeyTable:
    """CLIP's names, of which the tower holds the first ``num_layers`` layers and no text side."""
    used = [
        rule
        for index in range(num_layers)
        for rule in [
            Rename(f"vision_model.encoder.layers.{index}.{{x*}}", f"vision.vit.encoder.layers.{index}.{{x*}}"),
            Rename(f"encoder.layers.{index}.{{x*}}", f"vision.vit.encoder.layers.{index}.{{x*}}"),
        ]
    ]
    unused = [
        Drop(name, "not needed for the patches of the selected layer")
        for prefix in ("vision_model.", "")
        for name in (
            prefix + "encoder.layers.{x*}",
            prefix + "post_layernorm.{x}",
            prefix + "embeddings.position_ids",
        )
    ]
    text = ("text_model.{x*}", "text_projection.{x}", "visual_projection.{x}", "logit_scale")
    return KeyTable(
        [
            *used,
            *unused,
            *(Drop(name, "CLIP's text side") for name in text),
            Rename("vision_model.{x*}", "vision.vit.{x*}"),
            Rename("embeddings.{x*}", "vision.vit.embeddings.{x*}"),
            Rename("pre_layrnorm.{x}", "vision.vit.pre_layrnorm.{x}"),
        ]
    )
