"""The seeded checkpoint that ``model=nvila_tiny`` starts from: NVILA-Lite with half a million weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, SiglipVisionConfig, SiglipVisionModel

from vidtune.models.nvila.config import CONNECTOR, LANGUAGE, VISION
from vidtune.models.nvila.connector import Projector

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[BOS]", "[PAD]")
"""Added tokens in the order of the released 8B checkpoints."""

_PROJECTOR = "mlp_downsample_3x3_fix"
_STD = 0.1
"""Of all matrices: at these widths the usual 0.02 leaves the tower's signal too small to learn from."""


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> None:
    """Write a randomly initialised checkpoint: root config, ``llm/``, ``vision_tower/``, ``mm_projector/``.

    The grid of 8 x 8 patches does not divide by three, as the 32 x 32 of the real tower does not.

    Args:
        folder: created; a checkpoint in it is overwritten.
        seed: of the weights.
    """
    folder = Path(folder)
    tokenizer = build_tokenizer()
    language = Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = SiglipVisionConfig(
        architectures=["SiglipVisionModel"],
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        vision_use_head=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, nn.Module] = {
            LANGUAGE: Qwen2ForCausalLM(language),
            VISION: SiglipVisionModel(vision),
            CONNECTOR: Projector(_PROJECTOR, vision.hidden_size, language.hidden_size),
        }
        for name, part in parts.items():
            part.apply(_draw)
            (folder / name).mkdir(parents=True, exist_ok=True)
            # The hub's files have this prefix; transformers writes it only for a tower that it has read.
            prefix = "vision_model." if name == VISION else ""
            tensors = {prefix + key: tensor for key, tensor in part.state_dict().items()}
            save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    language.save_pretrained(folder / LANGUAGE)
    tokenizer.save_pretrained(folder / LANGUAGE)
    vision.save_pretrained(folder / VISION)
    connector = {"mm_projector_type": _PROJECTOR, "model_type": "v2l_projector"}
    _write(folder / CONNECTOR / "config.json", connector)
    _write(
        folder / "config.json",
        {
            "architectures": ["LlavaLlamaModel"],
            "model_type": "llava_llama",
            "llm_cfg": language.to_dict(),
            "vision_tower_cfg": vision.to_dict(),
            "mm_projector_cfg": connector,
            "hidden_size": language.hidden_size,
            "mm_hidden_size": vision.hidden_size,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "cls_patch",
            "image_aspect_ratio": "dynamic",
            "resume_path": "",
        },
    )


def build_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of Qwen2's kind with one id per byte, so that it reads any text."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={character: index for index, character in enumerate(characters)}, merges=[])
    tokenizer.add_tokens(list(_SPECIAL), special_tokens=True)
    tokenizer.add_special_tokens({"bos_token": "[BOS]", "eos_token": "<|im_end|>", "pad_token": "[PAD]"})
    return tokenizer


def _draw(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
        nn.init.normal_(module.weight, std=_STD)
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _write(file: Path, config: dict[str, Any]) -> None:
    file.write_text(json.dumps(config, indent=2) + "\n")
