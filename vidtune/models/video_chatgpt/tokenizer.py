"""The LLaMA tokenizer of early 2023, rebuilt.

transformers' own constructions are silently wrong for the released folder: its ``model_type`` now names another
architecture, and merges taken from ``tokenizer.model`` are ranked by id where SentencePiece ranks them by score, which
changes the ids of repeated spaces.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken
from transformers import LlamaTokenizer

from vidtune.contracts import UserError

VIDEO_PATCH, VIDEO_START, VIDEO_END = "<vid_patch>", "<vid_start>", "<vid_end>"
VIDEO_TOKENS = (VIDEO_PATCH, VIDEO_START, VIDEO_END)
ADDED_TOKENS = ("<im_patch>", "<im_start>", "<im_end>", *VIDEO_TOKENS)
"""After the SentencePiece vocabulary, in id order: three of LLaVA's, three of Video-ChatGPT's."""


def load_tokenizer(folder: Path, max_length: int) -> Any:
    """The tokenizer of a checkpoint folder, or of a folder that an earlier run saved.

    Args:
        folder: holds ``tokenizer.model`` (the release) or a ``tokenizer.json`` written from here.
        max_length: tokens a row may have; kept with the tokenizer.

    Raises:
        UserError: neither file is there, or added tokens have other ids than the recipe gives them.
    """
    if (folder / "tokenizer.model").is_file():
        tokenizer = _build(SentencePieceProcessor(model_file=str(folder / "tokenizer.model")), max_length)
    elif (folder / "tokenizer.json").is_file():
        tokenizer = LlamaTokenizer.from_pretrained(folder)
    else:
        raise UserError(
            f"{folder}: neither tokenizer.model nor a tokenizer.json saved by vidtune. Set model.tokenizer_path to the "
            f"LLaVA-Lightning folder (with tokenizer.model) or to a run folder."
        )
    _check_added_tokens(folder, tokenizer)
    return tokenizer


def _build(pieces: SentencePieceProcessor, max_length: int) -> LlamaTokenizer:
    vocabulary = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    scores = [pieces.get_score(index) for index in range(pieces.get_piece_size())]
    tokenizer = LlamaTokenizer(
        vocab=vocabulary,
        merges=merges_by_score(vocabulary, scores),
        legacy=True,  # every stretch between special tokens starts with a dummy space, as the slow tokenizer's did
        add_bos_token=True,
        add_eos_token=False,
        pad_token="<unk>",
        padding_side="right",
        model_max_length=max_length,
    )
    tokenizer.add_tokens(
        [AddedToken(token, lstrip=True, rstrip=True, normalized=False, special=True) for token in ADDED_TOKENS]
    )
    return tokenizer


def merges_by_score(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Merge rules in the order in which SentencePiece's BPE would apply them.

    SentencePiece joins the neighbours whose union has the highest score. Runs of spaces score -1e9 and so merge last,
    although their ids come first.

    Args:
        vocabulary: piece to id.
        scores: of every id.

    Returns:
        (left, right) pairs: by descending score of the union, then by length of left and of right.
    """
    merges = []
    for piece, index in vocabulary.items():
        splits = [
            (piece[:end], piece[end:])
            for end in range(1, len(piece))
            if piece[:end] in vocabulary and piece[end:] in vocabulary
        ]
        splits.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(scores[index], left, right) for left, right in splits]
    merges.sort(key=lambda merge: (-merge[0], len(merge[1]), len(merge[2])))
    return [(left, right) for _, left, right in merges]


def _check_added_tokens(folder: Path, tokenizer: Any) -> None:
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in ADDED_TOKENS}
    listing = folder / "added_tokens.json"
    stated = json.loads(listing.read_text()) if listing.is_file() else {}
    first = found[ADDED_TOKENS[0]]
    wrong = [
        f"{token} is {found[token]}, expected {stated.get(token, first + offset)}"
        for offset, token in enumerate(ADDED_TOKENS)
        if found[token] != stated.get(token, first + offset)
    ]
    if wrong or tokenizer.pad_token_id != 0:
        raise UserError(
            f"{folder}: not the tokenizer of LLaVA-Lightning-7B-v1-1 ({'; '.join(wrong) or '<pad> is not id 0'}). "
            f"Set model.tokenizer_path to its folder."
        )
