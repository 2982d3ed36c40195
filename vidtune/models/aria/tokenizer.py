"""Aria's tokenizer: a 100k sentencepiece vocabulary behind a fast Llama tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from vidtune.contracts import UserError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a checkpoint folder or hub id.

    Raises:
        UserError: no tokenizer there, or one that puts a space in front of every text: ids would differ from the
            original's everywhere.
    """
    try:
        # The sentencepiece file says "no dummy prefix", which transformers 5 overlooks without this argument.
        tokenizer = AutoTokenizer.from_pretrained(path, add_prefix_space=False, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.tokenizer_path={path!r}: no tokenizer can be read there ({error}). Set model.path to the folder or "
            f"hub id of an Aria checkpoint, or model.tokenizer_path to where its tokenizer files are."
        ) from error
    if tokenizer.tokenize("user")[:1] and tokenizer.tokenize("user")[0].startswith("▁"):
        raise UserError(
            f"model.tokenizer_path={path!r}: this tokenizer puts a space before every text, which Aria's does not. Use "
            f"the tokenizer of an Aria checkpoint."
        )
    return tokenizer


def check_ids(tokenizer: Any, num_embeddings: int, path: str) -> None:
    """Refuse a tokenizer whose text would reach beyond the embedding.

    Added tokens may: several hub snapshots carry a ``<pad>`` with id 100352, one behind the last row. It is never used
    for padding, and a row that holds it is refused.

    Raises:
        UserError: pieces of the vocabulary lie beyond.
    """
    added = set(tokenizer.added_tokens_encoder.values())
    beyond = [number for number in tokenizer.get_vocab().values() if number >= num_embeddings and number not in added]
    if beyond:
        raise UserError(
            f"model.tokenizer_path={path!r}: {len(beyond)} ids, up to {max(beyond)}, lie beyond the {num_embeddings} "
            f"embeddings of the model. Set model.tokenizer_path to the tokenizer of this checkpoint, or "
            f"model.processor.num_embeddings to the vocab_size in the checkpoint's config.json."
        )


def decode_pieces(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of ids without special tokens; every byte that is not UTF-8 becomes one U+FFFD, as sentencepiece does it.

    The fast tokenizer gives up a whole run of byte pieces where one of them is invalid, and loses legible characters.
    """
    special = set(tokenizer.all_special_ids)
    raw = bytearray()
    for piece in tokenizer.convert_ids_to_tokens([token for token in ids if token not in special]):
        match = _BYTE.fullmatch(piece)
        raw += bytes([int(match[1], 16)]) if match else piece.replace("▁", " ").encode()
    return re.sub("[\udc80-\udcff]", "�", raw.decode("utf-8", errors="surrogateescape"))
