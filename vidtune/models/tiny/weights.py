"""The tiny network's checkpoint folder: config.json, model.safetensors, tokenizer files; names are the network's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, SiglipVisionConfig

from vidtune.contracts import UserError
from vidtune.models.loading import LoadReport, load_tensors, resolve_folder, stream_folder
from vidtune.models.tiny.network import Tiny


def build_network(path: str, dtype: str = "float32") -> Tiny:
    """The network of a checkpoint folder, without its weights.

    Raises:
        UserError: the folder's config.json is missing or of another family.
    """
    file = resolve_folder(path) / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    if config.get("model_type") != "vidtune_tiny":
        raise UserError(
            f"{file}: expected model_type 'vidtune_tiny', found {config.get('model_type')!r}. Set model.path."
        )
    network = Tiny(SiglipVisionConfig(**config["vision"]), LlamaConfig(**config["language"]), config["patch_width"])
    return network.to(getattr(torch, dtype))


def load_weights(network: Tiny, path: str) -> LoadReport:
    """Fill the network from the folder; strict."""
    return load_tensors(network, stream_folder(resolve_folder(path)), path)


def export_weights(network: Tiny, folder: Path) -> None:
    """Write the folder that ``build_network`` and ``load_weights`` read (the tokenizer is saved by the processor)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "vidtune_tiny",
        "vision": network.vision.vit.config.to_diff_dict(),
        "language": network.language.config.to_diff_dict(),
        "patch_width": network.vision.narrow.out_features,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
