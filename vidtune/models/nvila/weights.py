"""NVILA checkpoints: build, load, write back.

On disk a checkpoint is three folders with a transformers model each; the projector is a plain state dict.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import AutoTokenizer

from vidtune.models.attention import PACKED_SDPA
from vidtune.models.key_table import Drop, KeyTable, Rename, Rule
from vidtune.models.loading import LoadReport, load_tensors, stream_folder
from vidtune.models.nvila.config import (
    CONNECTOR,
    LANGUAGE,
    VISION,
    NVILAConfig,
    read_config,
    read_json,
    resolve_checkpoint,
)
from vidtune.models.nvila.network import NVILA

MEDIA_TOKENS = ("<vila/sentinel>", "<image>", "<vila/video>")
"""Tokens that the original adds when it loads a checkpoint. Placeholders here have no ids, so that none is needed."""

_PREFIXES = {LANGUAGE: "language.", VISION: "vision.", CONNECTOR: "connector."}
_TABLES = ("language.model.embed_tokens.weight", "language.lm_head.weight")


def key_tables(config: NVILAConfig) -> dict[str, KeyTable]:
    """Per sub-folder the names in its files and ours."""
    unrun = range(config.num_run_layers, config.vision.num_hidden_layers)
    reason = "the feature is taken below it; export copies it from the checkpoint"
    drops: list[Rule] = [Drop(f"vision_model.encoder.layers.{index}.{{rest*}}", reason) for index in unrun]
    drops += [Drop(f"vision_model.{name}.{{rest*}}", reason) for name in ("post_layernorm", "head")]
    return {
        LANGUAGE: KeyTable([Rename("{name*}", "language.{name*}")]),
        VISION: KeyTable([*drops, Rename("vision_model.{name*}", "vision.{name*}")]),
        CONNECTOR: KeyTable([Rename("layers.{name*}", "connector.layers.{name*}")]),
    }


def build_network(
    path: str, dtype: str = "float32", attention: str = PACKED_SDPA, grow_vocabulary: bool = False
) -> NVILA:
    """The network of a checkpoint, without its weights.

    Args:
        path: folder with ``llm/``, ``vision_tower/``, ``mm_projector/`` and ``config.json``, or a hub id.
        dtype: name of a torch dtype.
        attention: implementation of the decoder.
        grow_vocabulary: add rows for the media tokens where the tokenizer lacks them, as the original does. They are
            never looked up, but each takes part in the softmax.
    """
    folder = resolve_checkpoint(path)
    config = read_config(folder)
    if grow_vocabulary:
        tokenizer = AutoTokenizer.from_pretrained(folder / LANGUAGE)
        tokenizer.add_tokens(list(MEDIA_TOKENS), special_tokens=True)
        config.language.vocab_size = max(config.language.vocab_size, len(tokenizer))
    return NVILA(config, getattr(torch, dtype), attention)


def load_weights(network: NVILA, path: str) -> LoadReport:
    """Read a checkpoint into the network, tensor by tensor.

    Rows that ``grow_vocabulary`` added take the mean of the stored rows; the original draws them at random.

    Raises:
        UserError: the tensors do not fit the network.
    """
    folder = resolve_checkpoint(path)
    tables = key_tables(network.config)
    streams = (table.to_ours(stream_folder(folder / part)) for part, table in tables.items())
    report = load_tensors(network, _grow(chain.from_iterable(streams), network), str(folder))
    network.source = folder
    return report


def export_weights(network: NVILA, folder: Path) -> None:
    """Write the network as a checkpoint of the original layout.

    The tensors of the tower that the network does not run, the tokenizer and the configs come from the checkpoint that
    was loaded.

    Raises:
        ValueError: nothing was loaded into the network.
    """
    if network.source is None:
        raise ValueError("export_weights() needs a network that load_weights() filled.")
    folder.mkdir(parents=True, exist_ok=True)
    _copy_settings(network.source, folder)
    for part, table in key_tables(network.config).items():
        own = ((name, tensor) for name, tensor in network.state_dict().items() if name.startswith(_PREFIXES[part]))
        tensors = dict(table.to_theirs(own))
        if part == LANGUAGE and network.config.language.tie_word_embeddings:
            del tensors["lm_head.weight"]
        if part == VISION:
            stored = stream_folder(network.source / part)
            tensors |= {name: tensor for name, tensor in stored if name not in tensors}
        _copy_settings(network.source / part, folder / part)
        save_torch_state_dict(tensors, folder / part, metadata={"format": "pt"})
    _write_vocabulary_size(folder, network.config.language.vocab_size)


def _grow(tensors: Iterable[tuple[str, Tensor]], network: NVILA) -> Iterator[tuple[str, Tensor]]:
    """The stream with the rows that ``grow_vocabulary`` added to both tables."""
    rows = network.config.language.vocab_size
    for name, tensor in tensors:
        if name in _TABLES and len(tensor) < rows:
            mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
            tensor = torch.cat([tensor, mean.expand(rows - len(tensor), -1)])
        yield name, tensor


def _copy_settings(source: Path, target: Path) -> None:
    """Everything of a folder that is not weights: configs, tokenizer files."""
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and "safetensors" not in file.name and ".bin" not in file.name:
            shutil.copyfile(file, target / file.name)


def _write_vocabulary_size(folder: Path, size: int) -> None:
    for file, *keys in ((folder / "config.json", "llm_cfg"), (folder / LANGUAGE / "config.json",)):
        config = read_json(file)
        section = config
        for key in keys:
            section = section[key]
        if section["vocab_size"] != size:
            section["vocab_size"] = size
            file.write_text(json.dumps(config, indent=2) + "\n")
