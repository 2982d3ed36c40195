"""SentencePiece vocabularies for the tiny variants of families whose originals bring a ``tokenizer.model``."""

from __future__ import annotations

import io
from collections.abc import Iterable

from sentencepiece import SentencePieceTrainer


def train_pieces(text: Iterable[str], num_pieces: int, split_digits: bool = False) -> bytes:
    """A BPE model as LLaMA's: with byte fallback, so that it encodes any text, and white space kept as it is.

    Args:
        text: sentences that hold every character and word which is to be a piece.
        num_pieces: size of the vocabulary.
        split_digits: every digit is a piece of its own.

    Returns:
        What a file ``tokenizer.model`` holds; the same for the same arguments.
    """
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        model_type="bpe",
        vocab_size=num_pieces,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=split_digits,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
