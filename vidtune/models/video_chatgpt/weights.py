"""LLaVA-Lightning and CLIP checkpoints into the network, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from vidtune.contracts import UserError
from vidtune.models.attention import PACKED_SDPA
from vidtune.models.loading import LoadReport, load_tensors, resolve_folder, stream_folder
from vidtune.models.video_chatgpt.key_tables import clip_table, llava_table
from vidtune.models.video_chatgpt.network import NUM_VIDEO_TOKENS, VideoChatGPT
from vidtune.models.video_chatgpt.projector_file import export_projector, load_projector

CLIP_HUB_ID = "openai/clip-vit-large-patch14"
LLAVA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "vocab_size": 32003,
}
"""config.json of liuhaotian/LLaVA-Lightning-7B-delta-v1-1, as far as it describes the network."""
CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""vision_config of openai/clip-vit-large-patch14."""
_SELECT_LAYER = "mm_vision_select_layer"
_HAS_VIDEO_TOKENS = "mm_use_vid_start_end"


def build_network(
    path: str, vision_path: str = CLIP_HUB_ID, dtype: str = "float32", attention: str = PACKED_SDPA
) -> VideoChatGPT:
    """The network that the configs of two checkpoint folders describe, with random weights.

    Args:
        path: folder or hub id of LLaVA-Lightning (delta applied), or of an export.
        vision_path: folder or hub id of the CLIP tower.
        dtype: of tower and language model. Connector and marker rows are float32 whatever it says: in bfloat16 two
            thirds of the projector never change at the recipe's learning rate.
        attention: how the decoder executes attention.
    """
    llava = _read_config(resolve_folder(path))
    return build_from_configs(llava, _vision_config(resolve_folder(vision_path), llava), dtype, attention)


def build_from_configs(
    llava: Mapping[str, Any] = LLAVA_7B,
    vision: Mapping[str, Any] = CLIP_LARGE,
    dtype: str = "float32",
    attention: str = PACKED_SDPA,
) -> VideoChatGPT:
    """The network without any folder; the defaults are the released sizes."""
    # Layers after the one whose output is used are not built: -2 leaves out the last.
    select = vision.get(_SELECT_LAYER, llava.get(_SELECT_LAYER, -2))
    fields = {key: vision[key] for key in CLIP_LARGE if key in vision}
    vision_config = CLIPVisionConfig(**{**fields, "num_hidden_layers": vision["num_hidden_layers"] + 1 + select})
    # The released configs hold bos 0, eos 1, pad -1. The last would be row V-1, <vid_end>, and freeze it.
    language_config = LlamaConfig(
        **{key: llava[key] for key in LLAVA_7B if key in llava and key != "vocab_size"},
        vocab_size=llava["vocab_size"] + (0 if llava.get(_HAS_VIDEO_TOKENS) else NUM_VIDEO_TOKENS),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    network = VideoChatGPT(vision_config, language_config)
    network.vision.to(getattr(torch, dtype))
    network.language.to(getattr(torch, dtype))
    # The rows of added tokens are untrained in the head, and an answer has no use for any of them.
    vocab_size = language_config.vocab_size
    network.language.generation_config.update(
        pad_token_id=0, bos_token_id=1, eos_token_id=2, suppress_tokens=list(range(vocab_size - 6, vocab_size))
    )
    return network


def load_weights(
    network: VideoChatGPT, path: str, vision_path: str = CLIP_HUB_ID, projector: str | None = None
) -> LoadReport:
    """Fill the network from the folders that ``build_network`` read.

    Args:
        path, vision_path: as for ``build_network``.
        projector: the original's file of projector and marker rows (``video_chatgpt-7B.bin``, or one of
            ``export_projector``) to use instead of LLaVA's projector and averaged marker rows.

    Raises:
        UserError: missing, unexpected or mis-shaped tensors, or a projector file made on another base.
    """
    tables = llava_table(network.language.config.vocab_size), clip_table(len(network.vision.vit.encoder.layers))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from tables[0].to_ours(stream_folder(resolve_folder(path)))
        yield from tables[1].to_ours(stream_folder(resolve_folder(vision_path)))

    gaps = () if projector is None else ("connector.projection.*",)
    report = load_tensors(network, tensors(), path, expected_missing=gaps)
    if projector is not None:
        load_projector(network, Path(projector))
    return report


def export_weights(network: VideoChatGPT, folder: Path) -> None:
    """Write the LLaVA folder with its video rows, ``clip/`` with the layers that are run, and the projector file.

    ``build_network`` and ``load_weights`` read it back exactly, with ``vision_path`` set to its ``clip`` folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    tower = {name: tensor for name, tensor in state.items() if name.startswith("vision.")}
    rest = {name: tensor for name, tensor in state.items() if name not in tower}
    config = network.language.config
    llava = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        **{key: getattr(config, key) for key in LLAVA_7B},
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": False,
        "mm_hidden_size": network.connector.projection.in_features,
        "mm_vision_tower": CLIP_HUB_ID,
        _SELECT_LAYER: -2,
        _HAS_VIDEO_TOKENS: True,
    }
    _write_checkpoint(folder, llava, dict(llava_table(config.vocab_size).to_theirs(rest.items())))
    vision_config = network.vision.vit.config
    clip = {
        "model_type": "clip_vision_model",
        **{key: getattr(vision_config, key) for key in CLIP_LARGE},
        _SELECT_LAYER: -1,
    }
    table = clip_table(vision_config.num_hidden_layers)
    _write_checkpoint(folder / "clip", clip, dict(table.to_theirs(tower.items())))
    export_projector(network, folder / "mm_projector.bin")


def _write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'}: cannot be read ({error}). Download the checkpoint again."
        ) from error
    wanted = config.get("vision_config", config)
    lacking = [key for key in ("hidden_size", "intermediate_size", "num_hidden_layers") if key not in wanted]
    if lacking:
        raise UserError(f"{folder / 'config.json'}: lacks {', '.join(lacking)}; set model.path to LLaVA-Lightning.")
    return config


def _vision_config(folder: Path, llava: Mapping[str, Any]) -> dict[str, Any]:
    config = _read_config(folder)
    vision = {**CLIP_LARGE, **config.get("vision_config", config)}
    if vision["hidden_size"] != llava.get("mm_hidden_size", vision["hidden_size"]):
        raise UserError(
            f"{folder}: a tower of width {vision['hidden_size']}, but the projector takes {llava['mm_hidden_size']}. "
            f"Set model.network.vision_path to the tower that model.path was trained with."
        )
    return vision
