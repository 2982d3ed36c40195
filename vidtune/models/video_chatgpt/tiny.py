"""A seeded random Video-ChatGPT small enough for a CPU, in the layout of the released folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from vidtune.models.piece_training import train_pieces
from vidtune.models.video_chatgpt.tokenizer import ADDED_TOKENS, VIDEO_TOKENS

WIDTH = 64
VISION_WIDTH = 32
IMAGE_SIZE, PATCH_SIZE = 112, 14
_STD = 0.1
"""Standard deviation of the weights: with the 0.02 of wide models, signals vanish in narrow ones."""
_NUM_PIECES = 450
_TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions.",
    "You are Video-ChatGPT, a large vision-language assistant. You are able to understand the video content that the "
    "user provides, and assist the user with a variety of tasks using natural language.",
    "Follow the instructions carefully and explain your answers in detail based on the provided video.",
    "USER: What happens in the video? ASSISTANT: A man walks along the beach and then waves at the camera.",
    "Which shape is shown? How many circles, squares and triangles are there? Which colour came first, red or blue?",
    "In which direction does it move: left, right, up or down? Answer with the letter of the option. A. B. C. D.",
    "The woman opens the oven, takes out a tray of bread and places it on the counter. Why does the dog run? Yes. No.",
    "0 1 2 3 4 5 6 7 8 9 ( ) [ ] ! ? ; : ' \" - / J K Q X Z j k q x z",
)


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> None:
    """LLaVA folder with its tokenizer, and the tower under ``clip/``.

    Args:
        folder: created where it does not exist.
        seed: of all weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train_pieces(_TEXT, _NUM_PIECES))
    names = [token for token in ADDED_TOKENS if token not in VIDEO_TOKENS]
    (folder / "added_tokens.json").write_text(json.dumps({name: _NUM_PIECES + i for i, name in enumerate(names)}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _write_llava(folder, _NUM_PIECES + len(names))
        _write_clip(folder / "clip")


def _write_llava(folder: Path, vocab_size: int) -> None:
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "vocab_size": vocab_size,
        "initializer_range": _STD,
    }
    state = dict(LlamaForCausalLM(LlamaConfig(**sizes)).state_dict())
    projector = torch.nn.Linear(VISION_WIDTH, WIDTH)
    state |= {f"model.mm_projector.{name}": tensor.detach() for name, tensor in projector.named_parameters()}
    # The ids and the type are those of the release, wrong as they are.
    config = {
        **sizes,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": -1,
        "mm_hidden_size": VISION_WIDTH,
        "mm_vision_select_layer": -2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _write_clip(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    config = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=2 * VISION_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        # CLIP scales its draws by width and depth on top of this factor.
        initializer_factor=1.0,
    )
    model = CLIPVisionModel(config)
    state = {f"vision_model.{name}": tensor for name, tensor in model.state_dict().items()}
    (folder / "config.json").write_text(json.dumps({"vision_config": config.to_dict()}, indent=1) + "\n")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
