"""The seeded checkpoint that ``model=tiny`` starts from."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast, SiglipVisionConfig

from vidtune.models.tiny.network import Tiny
from vidtune.models.tiny.processor import END
from vidtune.models.tiny.weights import export_weights

_WORDS = (
    "shape ? direction ? count ? or first ? circle square triangle diamond cross star up down left right "
    "red green blue yellow purple cyan white orange magenta 0 1 2 3 4 yes no what which how many colour moves"
)


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> None:
    """Write a randomly initialised checkpoint with its tokenizer.

    Args:
        folder: created; an existing checkpoint in it is overwritten.
        seed: of the weights.
    """
    folder = Path(folder)
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Tiny(
            SiglipVisionConfig(
                hidden_size=64,
                intermediate_size=256,
                num_hidden_layers=1,
                num_attention_heads=4,
                image_size=64,
                patch_size=8,
                vision_use_head=False,
            ),
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=352,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=2048,
                # 1 / sqrt(width): with the 0.02 of wide models, which colour came first is not learned in 500 steps.
                initializer_range=0.08,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            ),
            patch_width=16,
        )
    export_weights(network, folder)
    tokenizer.save_pretrained(str(folder))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that reads any text and knows the words of the shapes questions as one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<|pad|>", END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    # Each word with and without the space before it, often enough that every merge is made.
    corpus = [text for word in _WORDS.split() for text in (word, f" {word}")] * 4
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token="<|pad|>")
