"""InternLM2's SentencePiece model as a fast tokenizer.

The hub tokenizer is remote code around SentencePiece. The same pieces as byte-pair merges give the same ids: scores
fall in the order of the merges, unknown characters fall back to bytes, nothing is normalised but the space.
transformers' own converter does not fit: it inserts a space at the start and gives the added tokens other ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vidtune.contracts import UserError

MODEL_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"
FAST_FILE = "tokenizer.json"
_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a checkpoint or run folder: ``tokenizer.json``, else converted from ``tokenizer.model``.

    Raises:
        UserError: neither file is there, or the SentencePiece model is of another kind.
    """
    if (folder / FAST_FILE).is_file():
        return _wrap(Tokenizer.from_file(str(folder / FAST_FILE)), folder)
    if not (folder / MODEL_FILE).is_file():
        raise UserError(
            f"{folder}: neither {FAST_FILE} nor {MODEL_FILE} is here. Set model.tokenizer_path to the checkpoint."
        )
    return _wrap(convert_sentencepiece(folder), folder)


def decode_text(tokenizer: PreTrainedTokenizerFast, ids: Iterable[int]) -> str:
    """Text of ids as the original tokenizer prints it, special tokens left out.

    Fast tokenizers turn a run of bytes that is no UTF-8 into replacement characters altogether, SentencePiece only its
    invalid bytes; and the original puts added tokens that are plain text (``<box_begin>``) between spaces.
    """
    first_added = tokenizer.convert_tokens_to_ids("<img>")
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    parts = [b""]
    for index in ids:
        piece = tokenizer.convert_ids_to_tokens(int(index))
        if index in special or piece is None:  # None: a row of the embedding that no token uses.
            continue
        if index > first_added:
            parts += [piece.encode(), b""]
        elif byte := _BYTE.fullmatch(piece):
            parts[-1] += bytes.fromhex(byte[1])
        else:
            parts[-1] += piece.replace(_SPACE, " ").encode()
    return " ".join("".join(_utf8(part)) for part in parts if part)


def _utf8(data: bytes) -> Iterator[str]:
    """Valid stretches of UTF-8, and one replacement character for every other byte."""
    while data:
        try:
            yield data.decode()
            return
        except UnicodeDecodeError as error:
            yield data[: error.start].decode() + "\N{REPLACEMENT CHARACTER}"
            data = data[error.start + 1 :]


def convert_sentencepiece(folder: Path) -> Tokenizer:
    """``tokenizer.model`` and the added tokens of ``tokenizer_config.json`` as one fast tokenizer.

    Raises:
        UserError: no byte-pair model with byte fallback and without a dummy prefix.
    """
    model = sentencepiece.ModelProto()
    model.ParseFromString((folder / MODEL_FILE).read_bytes())
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != sentencepiece.TrainerSpec.BPE or not trainer.byte_fallback:
        raise UserError(f"{folder / MODEL_FILE}: expected a BPE model with byte fallback, as InternLM2's is.")
    if normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces or normalizer.precompiled_charsmap:
        raise UserError(f"{folder / MODEL_FILE}: this model normalises its input; InternLM2's does not.")

    added = _added_tokens(folder)
    renamed = {index: token.content for index, token in added.items() if index < len(model.pieces)}
    vocab = {renamed.get(index, piece.piece): index for index, piece in enumerate(model.pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(model), unk_token="<unk>", byte_fallback=True, fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    # Pieces that SentencePiece never splits; they are matched in the normalised text, where a space is "▁".
    whole = [
        AddedToken(piece.piece, normalized=True, special=False)
        for index, piece in enumerate(model.pieces)
        if piece.type == sentencepiece.ModelProto.SentencePiece.USER_DEFINED and index not in renamed
    ]
    tokenizer.add_tokens(whole)
    for index, token in sorted(added.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != index:
            raise UserError(
                f"{folder / CONFIG_FILE}: added token {token.content!r} should have id {index} but would get "
                f"{tokenizer.token_to_id(token.content)}; the file does not belong to this {MODEL_FILE}."
            )
    bos_id: Any = tokenizer.token_to_id("<s>")
    bos = added[bos_id].content
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _merges(model: Any) -> list[tuple[str, str]]:
    """Pairs of pieces that form a piece, in the order in which SentencePiece merges them: best score first."""
    normal = sentencepiece.ModelProto.SentencePiece.NORMAL
    known = {piece.piece for piece in model.pieces if piece.type == normal}
    ranked = sorted((piece for piece in model.pieces if piece.type == normal), key=lambda piece: -piece.score)
    return [
        (piece.piece[:cut], piece.piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece.piece))
        if piece.piece[:cut] in known and piece.piece[cut:] in known
    ]


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{file}: this file is missing; it names the added tokens. Download the checkpoint again.")
    return json.loads(file.read_text(encoding="utf-8"))


def _added_tokens(folder: Path) -> dict[int, AddedToken]:
    table = _config(folder).get("added_tokens_decoder")
    if not table:
        raise UserError(f"{folder / CONFIG_FILE}: no added_tokens_decoder; expected that of the hub checkpoint.")
    return {int(index): AddedToken(**fields) for index, fields in table.items()}


def _wrap(tokenizer: Tokenizer, folder: Path) -> PreTrainedTokenizerFast:
    config = _config(folder)
    names = {name: config[name] for name in _NAMED if config.get(name)}
    names = {name: token["content"] if isinstance(token, dict) else token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
