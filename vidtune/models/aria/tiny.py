"""The seeded checkpoint that ``model=aria_tiny`` starts from: Aria with 0.26 M weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import LlamaTokenizer

from vidtune.models.aria.config import convert_config
from vidtune.models.aria.network import Aria
from vidtune.models.aria.weights import export_weights

_SPECIAL = (
    *("<unk>", "<s>", "<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    *("<|reserved0|>", "<|reserved1|>", "<|reserved2|>", "<|img|>"),
)
"""Special pieces; ``<|img|>`` has id 9 as in the released vocabulary. The chat markers are not among them."""

_STD = 0.1
"""Of all matrices: at these widths the usual 0.02 leaves the tower's signal too small to learn from."""

_CONFIG = {
    "image_token_index": 9,
    "pad_token_id": 2,
    "projector_patch_to_query_dict": {"25": 8, "100": 16},
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
        "rope_theta": 5e6,
        "moe_num_experts": 8,
        "moe_topk": 2,
        "moe_num_shared_experts": 2,
        "pad_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 14,
        "image_size": 140,
    },
}


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> None:
    """Write a randomly initialised checkpoint in the layout of the released one, with its tokenizer.

    Images are 70 or 140 px wide with 8 or 16 visual tokens, where the released model takes 490 or 980 px with 128 or
    256; the ratios of patches to positions are the same.

    Args:
        folder: created; a checkpoint in it is overwritten.
        seed: of the weights.
    """
    folder = Path(folder)
    tokenizer = build_tokenizer()
    text = {**_CONFIG["text_config"], "vocab_size": len(tokenizer)}  # type: ignore[dict-item]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Aria(convert_config({**_CONFIG, "text_config": text}), 0.0, 0.0)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=_STD)
    export_weights(network, folder)
    tokenizer.save_pretrained(str(folder))


def build_tokenizer() -> LlamaTokenizer:
    """A Llama tokenizer without merges: one piece per printable ASCII character, one per byte for everything else."""
    pieces = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(ord("!"), 127))]
    tokenizer = LlamaTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[],
        eos_token="<|endoftext|>",
        add_prefix_space=False,
    )
    tokenizer.add_special_tokens({"extra_special_tokens": list(_SPECIAL[3:])})
    return tokenizer
