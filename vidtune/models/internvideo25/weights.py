"""The hub checkpoint (573 tensors at full size) into the network (733) and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from vidtune.models.attention import PACKED_SDPA
from vidtune.models.internvideo25.config import CONFIG_FILE, FULL_SIZE, native_config, read_config
from vidtune.models.internvideo25.network import InternVideo25
from vidtune.models.key_table import KeyTable, Rename, Split
from vidtune.models.loading import LoadReport, load_tensors, resolve_folder, stream_folder
from vidtune.models.saving import write_folder

_TOWER = "vision_model.encoder.layers.{n}"
_OUR_TOWER = "vision.vit.encoder.layer.{n}"
_LAYER = "language_model.model.layers.{n}"
_OUR_LAYER = "language.model.layers.{n}"


def build_network(
    path: str,
    dtype: str = "float32",
    attention: str = PACKED_SDPA,
    vision_attention: str = "sdpa",
    clip_frames: int = 4,
    clip_tokens: int = 64,
) -> InternVideo25:
    """The network that a checkpoint folder (or hub id) describes; its weights are not loaded yet.

    Args:
        path: folder or hub id.
        dtype: of all parameters, a name in torch.
        attention, vision_attention, clip_frames, clip_tokens: see ``InternVideo25``.
    """
    return build_from_config(
        read_config(resolve_folder(path)), dtype, attention, vision_attention, clip_frames, clip_tokens
    )


def build_from_config(
    config: Mapping[str, Any] = FULL_SIZE,
    dtype: str = "float32",
    attention: str = PACKED_SDPA,
    vision_attention: str = "sdpa",
    clip_frames: int = 4,
    clip_tokens: int = 64,
) -> InternVideo25:
    """The network without any folder, from the fields of a ``config.json``; by default the released size."""
    return InternVideo25(
        native_config(config),
        config,
        clip_frames=clip_frames,
        clip_tokens=clip_tokens,
        dtype=getattr(torch, dtype),
        attention=attention,
        vision_attention=vision_attention,
    )


def load_weights(network: InternVideo25, path: str) -> LoadReport:
    """Stream a checkpoint into the network, strictly.

    Raises:
        UserError: missing, unexpected or mis-shaped tensors, all in one message.
    """
    folder = resolve_folder(path)
    return load_tensors(network, key_table(network.language.config).to_ours(stream_folder(folder)), str(folder))


def export_weights(network: InternVideo25, folder: Path) -> None:
    """Write the checkpoint in the hub's layout: sharded safetensors under the original names, and ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(folder, key_table(network.language.config).to_theirs(network.state_dict().items()))
    (folder / CONFIG_FILE).write_text(json.dumps(network.source_config, indent=2) + "\n", encoding="utf-8")


def split_wqkv(packed: Tensor, config: LlamaConfig) -> tuple[Tensor, Tensor, Tensor]:
    """InternLM2's packed projection into q, k and v.

    Args:
        packed: ((heads + 2 x kv heads) x head_dim, D). Rows come in one group per key-value head: the query heads that
            share it, then its key, then its value. Query heads come out in Llama's order, head = group x size + i.
        config: head counts.

    Returns:
        (heads x head_dim, D) and twice (kv heads x head_dim, D).
    """
    group = config.num_attention_heads // config.num_key_value_heads
    blocks = packed.unflatten(0, (config.num_key_value_heads, group + 2, -1))
    return blocks[:, :group].flatten(0, 2), blocks[:, group].flatten(0, 1), blocks[:, group + 1].flatten(0, 1)


def merge_wqkv(query: Tensor, key: Tensor, value: Tensor, config: LlamaConfig) -> Tensor:
    """Inverse of ``split_wqkv``, exactly."""
    group = config.num_attention_heads // config.num_key_value_heads
    query, key, value = (
        part.unflatten(0, (config.num_key_value_heads, size, -1))
        for part, size in ((query, group), (key, 1), (value, 1))
    )
    return torch.cat([query, key, value], dim=1).flatten(0, 2)


def key_table(config: LlamaConfig) -> KeyTable:
    """Names of the hub checkpoint, theirs on the left.

    Args:
        config: head counts of the language model, which the packed projection depends on.
    """
    return KeyTable(
        [
            Rename("vision_model.embeddings.class_embedding", "vision.vit.embeddings.cls_token"),
            Rename("vision_model.embeddings.position_embedding", "vision.vit.embeddings.position_embeddings"),
            Rename(
                "vision_model.embeddings.patch_embedding.{w}", "vision.vit.embeddings.patch_embeddings.projection.{w}"
            ),
            Split(
                f"{_TOWER}.attn.qkv.{{w}}",
                tuple(f"{_OUR_TOWER}.attention.{part}_proj.{{w}}" for part in "qkv"),
                split=lambda packed: packed.chunk(3),
                merge=lambda *parts: torch.cat(parts),
            ),
            Rename(f"{_TOWER}.attn.proj.{{w}}", f"{_OUR_TOWER}.attention.projection_layer.{{w}}"),
            Rename(f"{_TOWER}.norm1.{{w}}", f"{_OUR_TOWER}.layernorm_before.{{w}}"),
            Rename(f"{_TOWER}.norm2.{{w}}", f"{_OUR_TOWER}.layernorm_after.{{w}}"),
            Rename(f"{_TOWER}.ls1", f"{_OUR_TOWER}.lambda_1"),
            Rename(f"{_TOWER}.ls2", f"{_OUR_TOWER}.lambda_2"),
            Rename(f"{_TOWER}.mlp.{{part}}.{{w}}", f"{_OUR_TOWER}.mlp.{{part}}.{{w}}"),
            Rename("mlp1.0.{w}", "connector.layer_norm.{w}"),
            Rename("mlp1.1.{w}", "connector.linear_1.{w}"),
            Rename("mlp1.3.{w}", "connector.linear_2.{w}"),
            Rename("language_model.model.tok_embeddings.weight", "language.model.embed_tokens.weight"),
            Rename("language_model.output.weight", "language.lm_head.weight"),
            Rename("language_model.model.norm.weight", "language.model.norm.weight"),
            Rename(f"{_LAYER}.attention_norm.weight", f"{_OUR_LAYER}.input_layernorm.weight"),
            Rename(f"{_LAYER}.ffn_norm.weight", f"{_OUR_LAYER}.post_attention_layernorm.weight"),
            Split(
                f"{_LAYER}.attention.wqkv.weight",
                tuple(f"{_OUR_LAYER}.self_attn.{part}_proj.weight" for part in "qkv"),
                split=lambda packed: split_wqkv(packed, config),
                merge=lambda query, key, value: merge_wqkv(query, key, value, config),
            ),
            Rename(f"{_LAYER}.attention.wo.weight", f"{_OUR_LAYER}.self_attn.o_proj.weight"),
            Rename(f"{_LAYER}.feed_forward.w1.weight", f"{_OUR_LAYER}.mlp.gate_proj.weight"),
            Rename(f"{_LAYER}.feed_forward.w3.weight", f"{_OUR_LAYER}.mlp.up_proj.weight"),
            Rename(f"{_LAYER}.feed_forward.w2.weight", f"{_OUR_LAYER}.mlp.down_proj.weight"),
        ]
    )
