"""Configurations of Aria checkpoints, the released and the legacy form, as one native ``AriaConfig``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AriaConfig

from vidtune.contracts import UserError

RELEASED: dict[str, Any] = {
    "model_type": "aria",
    "image_token_index": 9,
    "pad_token_id": 2,
    "projector_patch_to_query_dict": {"1225": 128, "4900": 256},
    "text_config": {
        "model_type": "aria_text",
        "hidden_size": 2560,
        "intermediate_size": 1664,
        "num_hidden_layers": 28,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "vocab_size": 100352,
        "max_position_embeddings": 65536,
        "rope_theta": 5e6,
        "rms_norm_eps": 1e-6,
        "moe_num_experts": 64,
        "moe_topk": 6,
        "moe_num_shared_experts": 2,
        "pad_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "vision_config": {
        "model_type": "idefics3_vision",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 980,
    },
}
"""``config.json`` of the released 25.3 B checkpoint, as far as it shapes the network."""

_LEGACY_TEXT = "aria_moe_lm"
_TOP = ("image_token_index", "pad_token_id", "projector_patch_to_query_dict", "vision_feature_layer")
# Training options that the legacy text config mixes with the architecture; ours are arguments of ``build_network``.
_NOT_ARCHITECTURE = ("moe_z_loss_coeff", "moe_aux_loss_coeff", "torch_dtype", "dtype", "_attn_implementation")


def read_config(folder: Path) -> AriaConfig:
    """The checkpoint's configuration; see ``convert_config``.

    Raises:
        UserError: no ``config.json`` in the folder, or one of another model.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{file} is missing. Set model.path to a folder that holds an Aria checkpoint.")
    raw = json.loads(file.read_text())
    if raw.get("model_type") != "aria" or "text_config" not in raw or "vision_config" not in raw:
        raise UserError(
            f"{file}: model_type is {raw.get('model_type')!r}, expected 'aria' with a text_config and a vision_config. "
            f"Set model.path to an Aria checkpoint, or model= to the family of this one."
        )
    return convert_config(raw)


def convert_config(raw: dict[str, Any]) -> AriaConfig:
    """A native configuration from either form.

    The legacy form (text ``aria_moe_lm``) keeps the width of an expert in ``moe_intermediate_size``, while its
    ``intermediate_size`` is unused; the native form calls the width of an expert ``intermediate_size``.
    """
    text = {name: value for name, value in raw["text_config"].items() if name not in _NOT_ARCHITECTURE}
    width = text.pop("moe_intermediate_size", None)
    if text.get("model_type") == _LEGACY_TEXT and width is not None:
        text["intermediate_size"] = width
    text["model_type"] = "aria_text"
    vision = {name: value for name, value in raw["vision_config"].items() if name not in _NOT_ARCHITECTURE}
    vision["model_type"] = "idefics3_vision"
    top = {name: raw[name] for name in _TOP if name in raw}
    return AriaConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **top)
