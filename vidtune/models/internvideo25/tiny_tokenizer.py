"""A small tokenizer in the original's files: the same kind of SentencePiece model, a few hundred pieces."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as sentencepiece

from vidtune.models.internvideo25.prompts import SYSTEM_INTERNLM2, SYSTEM_INTERNVL2_5

_WORDS = (
    "system user assistant Frame The video lasts for seconds, and frames are uniformly sampled from it. Please "
    "evaluate the exercise form shown. What mistakes, if any, present, what corrections would you recommend? "
    "which how many is no yes shape direction colour count first moves move circle square triangle star red green blue "
    "yellow left right up down one two three four"
)
_RENAMED = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
_HIDDEN = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
_SHOWN = ("<box_begin>", "<time_begin>", "<track_begin>", "<track_box>", "<boxes>", "<temp>", "<tracking>")


def write_tiny_tokenizer(folder: Path) -> dict[str, int]:
    """Write ``tokenizer.model``, ``tokenizer_config.json``, ``added_tokens.json`` and ``special_tokens_map.json``.

    Any text can be encoded (byte fallback); the words of the built-in questions are one or two tokens each.

    Returns:
        Ids of all tokens that are no SentencePiece text piece; the highest id is the vocabulary's last.
    """
    model = _model()
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    num_pieces = len(model.pieces)
    renamed = {token: num_pieces - len(_RENAMED) + index for index, token in enumerate(_RENAMED)}
    added = {token: num_pieces + index for index, token in enumerate(_HIDDEN + _SHOWN)}
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2, **renamed, **added}
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    extra = {"additional_special_tokens": [*_RENAMED, *_HIDDEN]}
    decoder = {str(index): _fields(token, special=token not in _SHOWN) for token, index in ids.items()}
    _write(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder, **extra, **named})
    _write(folder / "special_tokens_map.json", {**extra, **named})
    _write(folder / "added_tokens.json", added)
    return ids


def _model() -> Any:
    model = sentencepiece.ModelProto()
    model.trainer_spec.model_type = sentencepiece.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    kind = sentencepiece.ModelProto.SentencePiece

    def add(pieces: Any, type_: Any, scored: bool = False) -> None:
        for piece in pieces:
            score = -float(len(model.pieces)) if scored else 0.0
            model.pieces.append(kind(piece=piece, type=type_, score=score))

    add(["<unk>"], kind.UNKNOWN)
    add(["<s>", "</s>"], kind.CONTROL)
    add([f"<0x{byte:02X}>" for byte in range(256)], kind.BYTE)
    characters = sorted({*string.printable[:95], *SYSTEM_INTERNLM2, *SYSTEM_INTERNVL2_5, "▁"} - {" "})
    add(characters, kind.NORMAL, scored=True)
    # Every beginning of a word is a piece, the shorter the earlier merged, so that a word grows from its left.
    words = {f"▁{word}" for word in _WORDS.split()} | set(_WORDS.split()[:6])
    prefixes = {word[:end] for word in words for end in range(2, len(word) + 1)}
    add(sorted(prefixes, key=lambda piece: (len(piece), piece)), kind.NORMAL, scored=True)
    add([f"[UNUSED_TOKEN_{index}]" for index in range(141, 141 + len(_RENAMED))], kind.USER_DEFINED)
    return model


def _fields(token: str, special: bool) -> dict[str, Any]:
    same = {"lstrip": False, "rstrip": False, "single_word": False}
    return {"content": token, "normalized": not special, "special": special, **same}


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
