"""A template's ``tokenize`` decides where tokens may not reach across."""

from __future__ import annotations

from typing import Literal

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from vidtune.contracts import IGNORE, Message
from vidtune.text.encode import encode_conversation
from vidtune.text.templates import ChatTemplate, Part

VOCAB = {"<unk>": 0, "u": 1, ":": 2, "\n": 3, "a": 4, "b": 5, "\nb": 6, ":a": 7}
MERGES = [("\n", "b"), (":", "a")]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    model = models.BPE(vocab=VOCAB, merges=MERGES, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")


def _template(tokenize: Literal["joint", "runs", "parts"]) -> ChatTemplate:
    header = Part("\n")
    return ChatTemplate(
        user=(Part("u:{content}"),),
        assistant=(header, Part("{content}", train=True)),
        generation=(header,),
        tokenize=tokenize,
    )


@pytest.mark.parametrize(
    ("tokenize", "ids", "labels"),
    [
        ("joint", [1, 7, 6], [IGNORE, IGNORE, 6]),
        ("runs", [1, 7, 3, 5], [IGNORE, IGNORE, IGNORE, 5]),
        ("parts", [1, 2, 4, 3, 5], [IGNORE, IGNORE, IGNORE, IGNORE, 5]),
    ],
)
def test_prompt_and_answer_share_a_token_only_where_the_template_says_so(tokenizer, tokenize, ids, labels):
    messages = (Message("user", ("a",)), Message("assistant", ("b",)))
    encoded = encode_conversation(messages, (), tokenizer, _template(tokenize))
    assert (encoded.input_ids, encoded.labels) == (ids, labels)


def test_a_prompt_for_generation_is_the_beginning_of_the_training_row(tokenizer):
    messages = (Message("user", ("a",)), Message("assistant", ("b",)))
    template = _template("runs")
    row = encode_conversation(messages, (), tokenizer, template)
    prompt = encode_conversation(messages, (), tokenizer, template, generation=True)
    assert row.input_ids[: prompt.num_tokens] == prompt.input_ids


@pytest.mark.parametrize("tokenize", ["joint", "runs", "parts"])
def test_a_message_reads_the_same_however_its_text_is_cut_into_strings(tokenizer, tokenize):
    whole = (Message("user", ("\nb",)), Message("assistant", ("b",)))
    pieces = (Message("user", ("\n", "", "b")), Message("assistant", ("b",)))
    template = _template(tokenize)
    expected = encode_conversation(whole, (), tokenizer, template)
    assert encode_conversation(pieces, (), tokenizer, template) == expected
