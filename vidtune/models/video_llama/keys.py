"""Names of tensors in Video-LLaMA's files, and ours.

Q-Former names differ from transformers' in ``self`` (theirs) for ``attention`` (ours) only below ``attention`` and
``crossattention``; the ViT keeps q and v biases apart, its keys having none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidtune.models.key_table import Drop, KeyTable, Merge, Rename, Rule

BUFFERS: tuple[Rule, ...] = (
    Drop("{x*}.position_ids", "a constant of BERT"),
    Drop("{x*}.rotary_emb.inv_freq", "computed from the configuration"),
    Drop("audio_encoder.{x*}", "constants of ImageBind, which is not part of the network"),
)
"""Training writes trainable parameters and all buffers."""

_NO_TEXT = "no text enters the Q-Former; the original removes its text half"


def _join_bias(query: Tensor, value: Tensor) -> Tensor:
    """The bias of the fused projection; that of the keys is a constant zero."""
    return torch.cat([query, torch.zeros_like(value), value])


def _cut_bias(bias: Tensor) -> tuple[Tensor, Tensor]:
    query, _, value = bias.chunk(3)
    return query, value


def vit_table(num_layers: int) -> KeyTable:
    """Of the EVA ViT file (flat names); block ``num_layers``, the last one, is not used."""
    ours = "vision.vit.encoder.layers.{i}"
    return KeyTable(
        [
            Drop(f"blocks.{num_layers}.{{x*}}", "the features before the last block are used"),
            Drop("norm.{x*}", "final norm of the classifier"),
            Drop("fc_norm.{x*}", "final norm of the classifier"),
            Drop("head.{x*}", "classifier"),
            Rename("cls_token", "vision.vit.embeddings.class_embedding"),
            Rename("pos_embed", "vision.vit.embeddings.position_embedding"),
            Rename("patch_embed.proj.{x}", "vision.vit.embeddings.patch_embedding.{x}"),
            Rename("blocks.{i}.norm1.{x}", f"{ours}.layer_norm1.{{x}}"),
            Rename("blocks.{i}.norm2.{x}", f"{ours}.layer_norm2.{{x}}"),
            Rename("blocks.{i}.attn.qkv.weight", f"{ours}.self_attn.qkv.weight"),
            Merge(
                ("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias"),
                f"{ours}.self_attn.qkv.bias",
                _join_bias,
                _cut_bias,
            ),
            Rename("blocks.{i}.attn.proj.{x}", f"{ours}.self_attn.projection.{{x}}"),
            Rename("blocks.{i}.mlp.{fc}.{x}", f"{ours}.mlp.{{fc}}.{{x}}"),
        ]
    )


def _qformer(theirs: str, ours: str) -> tuple[Rule, ...]:
    layer, target = f"{theirs}.bert.encoder.layer.{{i}}", f"{ours}.transformer.encoder.layer.{{i}}"
    return (
        Rename(f"{theirs}.bert.embeddings.LayerNorm.{{x}}", f"{ours}.transformer.layernorm.{{x}}"),
        Rename(f"{layer}.attention.self.{{x*}}", f"{target}.attention.attention.{{x*}}"),
        Rename(f"{layer}.crossattention.self.{{x*}}", f"{target}.crossattention.attention.{{x*}}"),
        Rename(f"{layer}.attention.output.{{x*}}", f"{target}.attention.output.{{x*}}"),
        Rename(f"{layer}.crossattention.output.{{x*}}", f"{target}.crossattention.output.{{x*}}"),
        Rename(f"{layer}.intermediate_query.{{x*}}", f"{target}.intermediate_query.{{x*}}"),
        Rename(f"{layer}.output_query.{{x*}}", f"{target}.output_query.{{x*}}"),
    )


BLIP2 = KeyTable(
    [
        *BUFFERS,
        Drop("t5_proj.{x*}", "projection of another language model"),
        Drop("opt_proj.{x*}", "projection of another language model"),
        Drop("Qformer.cls.{x*}", _NO_TEXT),
        Drop("Qformer.bert.embeddings.word_embeddings.{x*}", _NO_TEXT),
        Drop("Qformer.bert.embeddings.position_embeddings.{x*}", _NO_TEXT),
        Drop("Qformer.bert.encoder.layer.{i}.intermediate.{x*}", _NO_TEXT),
        Drop("Qformer.bert.encoder.layer.{i}.output.{x*}", _NO_TEXT),
        Rename("query_tokens", "vision.qformer.queries"),
        Rename("ln_vision.{x}", "vision.vit.post_layernorm.{x}"),
        *_qformer("Qformer", "vision.qformer"),
    ]
)
"""Of BLIP-2's file: image Q-Former, its queries, and the norm after the ViT."""

LANGUAGE = KeyTable([*BUFFERS, Rename("{x*}", "language.{x*}")])
"""Of the language model's folder."""

_VIDEO: tuple[Rule, ...] = (
    Rename("video_query_tokens", "connector.video_qformer.queries"),
    Rename("video_frame_position_embedding.weight", "connector.video_qformer.positions.weight"),
    Rename("llama_proj.{x}", "connector.projection.{x}"),
    *_qformer("video_Qformer", "connector.video_qformer"),
)
_AUDIO: tuple[Rule, ...] = (
    Rename("audio_query_tokens", "connector.audio_qformer.queries"),
    Rename("audio_position_embedding.weight", "connector.audio_qformer.positions.weight"),
    Rename("audio_llama_proj.{x}", "connector.audio_projection.{x}"),
    *_qformer("audio_Qformer", "connector.audio_qformer"),
)

TRAINED = KeyTable([*BUFFERS, *_VIDEO, *_AUDIO])
"""Of what training writes, for the vision (VL) or the audio branch (AL)."""

PROJECTION = KeyTable(
    [Rename("llama_proj.{x}", "connector.projection.{x}"), Drop("{x*}", "only the projection is taken")]
)
"""Of a file that starts the projection (MiniGPT-4)."""
