"""The rebuilt tokenizer against SentencePiece itself."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from sentencepiece import SentencePieceProcessor

from vidtune.contracts import UserError
from vidtune.models.video_chatgpt.tokenizer import ADDED_TOKENS, load_tokenizer, merges_by_score

ALPHABET = "aetosn TASU.,?:\n\té海🐕" + " " * 6


def test_any_text_gets_the_ids_that_sentencepiece_gives_it(case):
    """Texts start with a visible character, as every stretch of a template does: before one that starts with a space
    SentencePiece puts its dummy space as well."""
    reference = SentencePieceProcessor(model_file=str(case.llava / "tokenizer.model"))
    tokenizer = case.processor.tokenizer
    generator = random.Random(0)
    texts = ["A" + "".join(generator.choices(ALPHABET, k=generator.randint(1, 60))) for _ in range(300)]
    for text in ["a  b", "a" + " " * 16 + "b", *texts]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.encode(text), repr(text)


def test_pieces_of_equal_reach_merge_by_score_and_runs_of_spaces_last():
    vocabulary = {"▁▁": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4, "ab": 5, "▁ab": 6}
    scores = [-1e9, 0.0, 0.0, 0.0, -2.0, -1.0, -3.0]
    assert merges_by_score(vocabulary, scores) == [("a", "b"), ("▁", "a"), ("▁", "ab"), ("▁a", "b"), ("▁", "▁")]


def test_added_tokens_follow_the_vocabulary_in_the_originals_order(case):
    tokenizer = case.processor.tokenizer
    ids = case.json("expected/summary.json")["ids"]
    for name in ("vid_patch", "vid_start", "vid_end"):
        assert tokenizer.convert_tokens_to_ids(f"<{name}>") == ids[name]
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [
        ids[k] for k in ("pad", "bos", "eos")
    ]
    assert tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)) == list(range(ids["vocab"] - 6, ids["vocab"]))


def test_a_folder_whose_added_tokens_have_other_ids_is_refused(case, tmp_path):
    shutil.copy(case.llava / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<im_patch>": 5}))
    with pytest.raises(UserError, match=r"<im_patch> is .* expected 5"):
        load_tokenizer(tmp_path, 2048)
