"""``config.json`` of the hub checkpoint, read into the configs of transformers' native modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import InternVLConfig, InternVLVisionConfig, LlamaConfig

from vidtune.contracts import UserError

CONFIG_FILE = "config.json"

FULL_SIZE: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "force_image_size": 448,
    "downsample_ratio": 0.5,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internvl2_5",
    "vision_config": {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 448,
        "patch_size": 14,
        "num_channels": 3,
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "qk_normalization": False,
    },
    "llm_config": {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "vocab_size": 92560,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "bias": False,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    },
}
"""OpenGVLab/InternVideo2_5_Chat_8B as far as it describes the network; also the value of fields that a file omits."""

_FIXED: tuple[tuple[str, str, Any], ...] = (
    ("", "downsample_ratio", 0.5),
    ("", "ps_version", "v2"),
    ("", "select_layer", -1),
    ("vision_config", "norm_type", "layer_norm"),
    ("vision_config", "qkv_bias", True),
    ("vision_config", "qk_normalization", False),
    ("llm_config", "architectures", ["InternLM2ForCausalLM"]),
    ("llm_config", "hidden_act", "silu"),
    ("llm_config", "bias", False),
    ("llm_config", "tie_word_embeddings", False),
)
"""What the network builds in; InternVL checkpoints that differ here are other models."""


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's ``config.json``.

    Raises:
        UserError: no such file, or a checkpoint of another model.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{file}: this file is missing. Set model.path to an InternVideo2.5 checkpoint folder.")
    config = json.loads(file.read_text(encoding="utf-8"))
    if not {"vision_config", "llm_config"} <= config.keys():
        found = config.get("architectures") or config.get("model_type")
        raise UserError(
            f"{file}: no vision_config and llm_config (it describes {found}); expected the config of an "
            f"InternVLChatModel such as OpenGVLab/InternVideo2_5_Chat_8B. Set model.path to that."
        )
    return config


def native_config(config: Mapping[str, Any]) -> InternVLConfig:
    """Both halves in one native config: ``vision_config`` (InternVLVisionConfig), ``text_config`` (LlamaConfig).

    Raises:
        UserError: fields that make it another network than InternVideo2.5; all of them in one message.
    """
    vision = {**FULL_SIZE["vision_config"], **config["vision_config"]}
    llm = {**FULL_SIZE["llm_config"], **config["llm_config"]}
    sections = {"": {**FULL_SIZE, **config}, "vision_config": vision, "llm_config": llm}
    wrong = [
        f"{f'{section}.' if section else ''}{field}={sections[section][field]!r} (expected {expected!r})"
        for section, field, expected in _FIXED
        if sections[section][field] != expected
    ]
    if wrong:
        raise UserError(
            f"this checkpoint is no InternVideo2.5: {'; '.join(wrong)}. Set model.path to "
            f"OpenGVLab/InternVideo2_5_Chat_8B, InternVL_2_5_HiCo_R16 or a fine-tuned copy of one."
        )
    return InternVLConfig(
        vision_config=_vision_config(vision),
        text_config=_language_config(llm),
        downsample_ratio=sections[""]["downsample_ratio"],
        tie_word_embeddings=False,
    )


def _vision_config(vision: Mapping[str, Any]) -> InternVLVisionConfig:
    same = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
        "num_channels",
        "hidden_act",
        "norm_type",
        "layer_norm_eps",
    )
    return InternVLVisionConfig(
        **{field: vision[field] for field in same},
        attention_bias=vision["qkv_bias"],
        use_qk_norm=vision["qk_normalization"],
        use_mean_pooling=True,  # Makes the native final norm an identity: this tower has none.
    )


def _language_config(llm: Mapping[str, Any]) -> LlamaConfig:
    """InternLM2 is Llama with q, k and v in one matrix; see ``weights.key_table``."""
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    scaling = dict(llm["rope_scaling"] or {})
    rope = {"rope_type": scaling.pop("type", scaling.pop("rope_type", "default")), **scaling}
    return LlamaConfig(
        **{field: llm[field] for field in same},
        rope_parameters={**rope, "rope_theta": float(llm["rope_theta"])},
        attention_bias=False,
        mlp_bias=False,
    )
