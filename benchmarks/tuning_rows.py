"""NVILA's ten tuning rows as networks, tiny or of a published size, and what each trains and keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn
from transformers import Qwen2Config

from vidtune.config import resolvers, schema
from vidtune.evaluation.tables import Column, Table
from vidtune.models.nvila.config import NVILAConfig
from vidtune.models.nvila.network import NVILA
from vidtune.models.nvila.sizes import PUBLISHED, published_config
from vidtune.run.build import build_tuned_network
from vidtune.tuning.policy import apply_tuning
from vidtune.tuning.unrun import unrun_weights

ROLES = ("vision", "connector", "language")
ROWS = {
    "FT / FT": ("vision_full_language_full", 63.5),
    "LoRA / LoRA": ("vision_lora_language_lora", 20.1),
    "LoRA / QLoRA": ("vision_lora_language_qlora", 11.1),
    "LN / LoRA": ("vision_layernorm_language_lora", 19.2),
    "LN / QLoRA": ("vision_layernorm_language_qlora", 10.2),
    "FT / LoRA": ("vision_full_language_lora", 21.9),
    "F / LoRA": ("vision_frozen_language_lora", None),
    "F / QLoRA": ("vision_frozen_language_qlora", None),
    "FT / F": ("vision_full_language_frozen", None),
    "LN / F": ("vision_layernorm_language_frozen", None),
}
"""Tower / language model: our setting, and the GB that the NVILA paper measured at batch 1 on eight billion."""
NF4_BYTES = 4.127 / 8
"""A weight in NF4 with doubly quantised scales: 4 bits, 8 bits per block of 64, and 32 per 256 blocks."""
TRAINED_BYTES = 16
"""Weight, gradient and AdamW's two moments of a weight that trains, all float32."""


REAL_TOWER = "real_tower"
"""A size of our own: the published tower and projector before a decoder that a CPU can train."""


def network_config(size: str) -> NVILAConfig:
    """Geometry of a published size, or of ``REAL_TOWER``."""
    if size != REAL_TOWER:
        return published_config(size)
    small = Qwen2Config(
        vocab_size=400,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return replace(published_config("lite_8b"), language=small)


def row_config(row: str, cache: Path) -> DictConfig:
    """The recipe of a row on the tiny variant; adapters are as at any size."""
    schema.register()
    resolvers.register()
    words = ["experiment=nvila_mixture_full", "model=nvila_tiny", "model.dtype=bfloat16", "hardware=cpu"]
    words += ["data.registry=none", "data.sets=none", "hardware.activation_checkpointing=false"]
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        return compose("train", [*words, f"paths.cache_dir={cache}", f"tuning={ROWS[row][0]}"])


def build_row(cfg: DictConfig, size: str, device: str) -> NVILA:
    """The network of a row as it trains, on a device; that of a published size has random weights."""
    if size == "tiny":
        network: Any = build_tuned_network(cfg)[0]
        return network.to(device).train()
    with torch.device(device):
        network = NVILA(network_config(size), torch.bfloat16)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(std=0.02)
        apply_tuning(network, cfg.tuning, cfg.model.lora_targets)
    return network.train() if device == "meta" else network.to(device).train()


def trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def state_bytes(network: nn.Module, four_bit: str | None = None) -> float:
    """Weights as they are stored, gradients and moments.

    Args:
        four_bit: role whose adapted layers are to count as if they were stored in NF4.
    """
    total = 0.0
    for name, parameter in network.named_parameters():
        as_nf4 = four_bit is not None and name.startswith(f"{four_bit}.") and name.endswith(".base_layer.weight")
        each = TRAINED_BYTES if parameter.requires_grad else NF4_BYTES if as_nf4 else parameter.element_size()
        total += parameter.numel() * each
    return total


def count_parts() -> Table:
    """Weights of the published sizes by part, on the meta device."""
    names = ("tower", "tower, not run", "projector", "Qwen2", "all that runs")
    columns = [Column("model, full size"), *(Column(name, "count") for name in names)]
    cells: list[tuple[Any, ...]] = []
    for size in PUBLISHED:
        with torch.device("meta"):
            network = NVILA(published_config(size), torch.bfloat16)
        tower, projector, language = (sum(p.numel() for p in getattr(network, role).parameters()) for role in ROLES)
        unrun = sum(parameter.numel() for parameter in network.unrun_parts().parameters())
        cells.append((size, tower, unrun, projector, language, tower + projector + language))
    return Table(columns, cells, title="Weights by part")


def count_rows(size: str, cache: Path) -> Table:
    """What each row of the grid trains at a published size, on the meta device."""
    columns = [Column(f"tower / language model, {size}"), *(Column(role, "count") for role in ROLES)]
    columns += [Column("trained here", "count"), Column("in the original", "count")]
    columns += [Column("GB without activations", "number"), Column("published GB", "number")]
    cells = []
    networks: dict[tuple[str, str], NVILA] = {}
    for row, (_, published) in ROWS.items():
        cfg = row_config(row, cache)
        quantised = cfg.tuning.language.mode == "qlora"
        if quantised:  # nothing can be rounded on the meta device; the adapters are those of LoRA
            cfg.tuning.language.mode = "lora"
        modes = (cfg.tuning.vision.mode, cfg.tuning.language.mode)
        if modes not in networks:
            networks[modes] = build_row(cfg, size, "meta")
        network = networks[modes]
        memory = state_bytes(network, "language" if quantised else None) / 1e9
        counts = [sum(p.numel() for p in trained(getattr(network, role))) for role in ROLES]
        unrun = sum(unrun_weights(network, cfg.tuning, cfg.model.lora_targets).values())
        cells.append((row, *counts, sum(counts), sum(counts) + unrun, memory, published))
    return Table(columns, cells, title=f"Trained weights: {size}")
