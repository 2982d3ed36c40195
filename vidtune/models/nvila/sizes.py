"""Geometry of the published models, for counting and measuring without their weights."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Qwen2Config, SiglipVisionConfig

from vidtune.contracts import UserError
from vidtune.models.nvila.config import NVILAConfig


@dataclass(frozen=True)
class Published:
    """The decoder of a published model, and what stands before it.

    Args:
        vocabulary: ids of the tokenizer with the media tokens that the original adds on loading.
        scales: of dynamic-S2, in pixels; empty for NVILA-Lite.
    """

    hidden: int
    layers: int
    heads: int
    groups: int
    inner: int
    vocabulary: int
    tied: bool = False
    projector: str = "mlp_downsample_3x3_fix"
    scales: tuple[int, ...] = ()


_QWEN2_7B = (3584, 28, 28, 4, 18944)
PUBLISHED = {
    "lite_2b": Published(1536, 28, 12, 2, 8960, 151_670, tied=True),
    "lite_8b": Published(*_QWEN2_7B, 151_651),
    "lite_15b": Published(5120, 48, 40, 8, 13824, 151_670),
    "base_8b": Published(*_QWEN2_7B, 151_651, projector="mlp_downsample", scales=(448, 896, 1344)),
}
"""Source: model cards, file sizes and base models of the releases; the tower is the same in all of them."""


def published_config(name: str) -> NVILAConfig:
    """Geometry of ``lite_2b``, ``lite_8b``, ``lite_15b`` or ``base_8b``.

    Raises:
        UserError: another name.
    """
    if name not in PUBLISHED:
        raise UserError(f"{name!r} is no published size of NVILA; expected one of {', '.join(PUBLISHED)}.")
    size = PUBLISHED[name]
    language = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.groups,
        tie_word_embeddings=size.tied,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=448,
        patch_size=14,
        vision_use_head=False,
    )
    return NVILAConfig(language, vision, size.projector, scales=size.scales)
