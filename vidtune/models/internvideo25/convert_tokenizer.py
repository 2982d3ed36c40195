"""The SentencePiece tokenizer of a checkpoint as ``tokenizer.json`` beside it, converted once and checked.

    python -m vidtune.models.internvideo25.convert_tokenizer <checkpoint folder>

Without that file loading converts anew each time, with the same result and without these checks.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from vidtune.contracts import UserError
from vidtune.models.internvideo25.prompts import SYSTEM_INTERNLM2, SYSTEM_INTERNVL2_5
from vidtune.models.internvideo25.tokenizer import FAST_FILE, MODEL_FILE, convert_sentencepiece

TEXTS = (
    SYSTEM_INTERNLM2,
    SYSTEM_INTERNVL2_5,
    "The video lasts for 5.53 seconds, and 8 frames are uniformly sampled from it.\nFrame1: ",
    " mountain-climbers - User is  not raising the knees enough\n\n(rom=2)",
    "Naïve façade, 1,234.5 → 5 %\t你好 <a> 😀",
)
"""Compared with SentencePiece itself: prompts, spaces at ends and in rows, other scripts, single bytes."""
PUBLISHED_PIECES = 92_544
PUBLISHED_TEXT = (
    "Please evaluate the exercise form shown. What mistakes, if any, are present, and what corrections would you "
    "recommend?"
)
PUBLISHED_LENGTH, PUBLISHED_START = 24, [1, 5658, 15567, 410, 10297, 1498, 6990, 281]
"""Ids that the hub's own tokenizer gives the question of QEVD, ``<s>`` included."""


def convert(folder: Path) -> Path:
    """Write ``tokenizer.json``; the file that is returned.

    Raises:
        UserError: no ``tokenizer.model`` of this kind, or ids that differ from the original's.
    """
    if not (folder / MODEL_FILE).is_file():
        raise UserError(f"{folder}: no {MODEL_FILE} here. Name the folder of the checkpoint.")
    tokenizer = convert_sentencepiece(folder)
    original = SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    check(tokenizer, original)
    part = folder / f"{FAST_FILE}.part"
    tokenizer.save(str(part))
    os.replace(part, folder / FAST_FILE)
    return folder / FAST_FILE


def check(tokenizer: Tokenizer, original: SentencePieceProcessor) -> None:
    """Compare ids; those of the published vocabulary with known ones too.

    Raises:
        UserError: a text has other ids.
    """
    for text in TEXTS:
        if tokenizer.encode(text, add_special_tokens=False).ids != original.encode(text):
            raise UserError(
                f"the converted tokenizer has other ids than SentencePiece for {text!r}; nothing is written."
            )
    if original.vocab_size() == PUBLISHED_PIECES:
        ids = tokenizer.encode(PUBLISHED_TEXT).ids
        start = ids[: len(PUBLISHED_START)]
        if len(ids) != PUBLISHED_LENGTH or start != PUBLISHED_START:
            raise UserError(
                f"the converted tokenizer begins {PUBLISHED_TEXT!r} with {start}, {len(ids)} ids; "
                f"expected {PUBLISHED_START}, {PUBLISHED_LENGTH} ids. {MODEL_FILE} is not the published one."
            )


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(f"written: {convert(Path(arguments[0]))}")
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
