"""The converted tokenizer gives the original's ids and text."""

from __future__ import annotations

import pickle
import shutil

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import normalizers

from tests.families.internvideo25.support import each_case, golden
from vidtune.contracts import UserError
from vidtune.models.internvideo25 import convert_tokenizer
from vidtune.models.internvideo25.convert_tokenizer import main
from vidtune.models.internvideo25.tokenizer import convert_sentencepiece, load_tokenizer


@each_case
def test_ids_are_those_of_the_sentencepiece_tokenizer(case):
    tokenizer = load_tokenizer(case)
    strings = golden(case).json("tokenizer_strings.json")
    expected = golden(case).json("expected_tokenizer.json")
    assert strings == [entry["text"] for entry in expected]
    for entry in expected:
        assert tokenizer(entry["text"])["input_ids"] == entry["ids"], entry["text"]
        assert tokenizer(entry["text"], add_special_tokens=False)["input_ids"] == entry["ids_without_special"]


@each_case
def test_answers_read_as_the_original_prints_them(case):
    processor = golden(case).processor()
    for entry in golden(case).json("expected_tokenizer.json"):
        assert processor.decode(entry["ids"]) == entry["decoded_skip_special"].strip(), entry["text"]


@each_case
def test_added_tokens_have_the_ids_of_the_original_files(case):
    tokenizer, files = load_tokenizer(case), golden(case)
    for token, index in files.json("added_tokens.json").items():
        assert tokenizer.convert_tokens_to_ids(token) == index
    specials = files.json("special_tokens_map.json")
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(tokenizer, name) == specials[name]["content"]
    special_ids = {tokenizer.convert_tokens_to_ids(token) for token in specials["additional_special_tokens"]}
    hidden = {index for index in special_ids if not tokenizer.decode([index], skip_special_tokens=True)}
    assert hidden == special_ids


@each_case
def test_a_run_folder_holds_the_same_tokenizer(case, tmp_path):
    processor = golden(case).processor()
    processor.save_tokenizer(tmp_path)
    again = golden(case).processor(tokenizer_path=str(tmp_path))
    for text in golden(case).json("tokenizer_strings.json"):
        assert again.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert (again.stop_ids, again.pad_id) == (processor.stop_ids, processor.pad_id)
    assert pickle.loads(pickle.dumps(processor)).stop_ids == processor.stop_ids


@each_case
def test_a_folder_without_tokenizer_says_which_setting_to_change(case, tmp_path):
    with pytest.raises(UserError, match=r"model\.tokenizer_path"):
        load_tokenizer(tmp_path)


@each_case
def test_the_script_writes_one_file_that_loads_with_the_same_ids(case, tmp_path, capsys):
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(case / name, tmp_path / name)
    expected = load_tokenizer(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "tokenizer.json").is_file() and "tokenizer.json" in capsys.readouterr().out
    (tmp_path / "tokenizer.model").unlink()
    found = load_tokenizer(tmp_path)
    for text in golden(case).json("tokenizer_strings.json"):
        assert found(text)["input_ids"] == expected(text)["input_ids"], text


@each_case
def test_the_script_writes_nothing_where_ids_would_differ(case, tmp_path, capsys, monkeypatch):
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(case / name, tmp_path / name)
    tokenizer, original = convert_sentencepiece(tmp_path), SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    # As if this small vocabulary were the published one, whose ids for one question are known.
    monkeypatch.setattr(convert_tokenizer, "PUBLISHED_PIECES", original.vocab_size())
    with pytest.raises(UserError, match=r"expected \[1, 5658, 15567, .* 24 ids.*not the published one"):
        convert_tokenizer.check(tokenizer, original)
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="other ids than SentencePiece"):
        convert_tokenizer.check(tokenizer, original)
    assert main([str(tmp_path)]) == 1 and not (tmp_path / "tokenizer.json").exists()
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "no tokenizer.model here" in capsys.readouterr().err
