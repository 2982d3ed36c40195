"""The original's own checkpoint: projector and whole embedding under three names, in fp32."""

from __future__ import annotations

from pathlib import Path

import torch

from vidtune.contracts import UserError
from vidtune.models.loading import stream_file
from vidtune.models.shards import write_whole
from vidtune.models.video_chatgpt.network import NUM_VIDEO_TOKENS, VideoChatGPT

_ANOTHER_BASE = 0.02
"""Embedding rows of one base differ by rounding (bfloat16: 2^-9 of values below 1); those of another by far more."""


def load_projector(network: VideoChatGPT, file: Path) -> None:
    """Read projector and marker rows from the three tensors of the original's file.

    Raises:
        UserError: other tensors or sizes, or embedding rows that are not those of the loaded base.
    """
    tensors = dict(stream_file(file))
    own = {
        "model.embed_tokens.weight": network.language.model.embed_tokens.weight,
        "model.mm_projector.weight": network.connector.projection.weight,
        "model.mm_projector.bias": network.connector.projection.bias,
    }
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if found != expected:
        raise UserError(f"{file}: not a projector file for this model; found {found}, expected {expected}.")
    table = tensors["model.embed_tokens.weight"]
    with torch.no_grad():
        text = len(table) - NUM_VIDEO_TOKENS
        base = own["model.embed_tokens.weight"]
        # Where weights are sharded, no process has the table to compare.
        difference = 0.0 if base.is_meta else (table[:text].float() - base[:text].float()).abs().max().item()
        if difference > _ANOTHER_BASE:
            raise UserError(
                f"{file}: its embedding differs from that of model.path by up to {difference:.3g}; it was trained on "
                f"another base. Set model.path to LLaVA-Lightning-7B-v1-1 with the delta applied."
            )
        write_whole(network.new_tokens.weight, table[-2:])
        write_whole(network.connector.projection.weight, tensors["model.mm_projector.weight"])
        write_whole(network.connector.projection.bias, tensors["model.mm_projector.bias"])


def export_projector(network: VideoChatGPT, file: Path) -> None:
    """Write what the original saves: projector and whole embedding, in fp32, under its three names."""
    table = network.language.model.embed_tokens.weight.detach().float().cpu()
    markers = network.new_tokens.weight.detach().float().cpu()
    torch.save(
        {
            "model.embed_tokens.weight": torch.cat([table[:-2], markers]),
            "model.mm_projector.weight": network.connector.projection.weight.detach().float().cpu(),
            "model.mm_projector.bias": network.connector.projection.bias.detach().float().cpu(),
        },
        file,
    )
