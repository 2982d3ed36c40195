"""Labels that follow originals which find answers by comparing ids."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from vidtune.contracts import IGNORE, Message
from vidtune.text.encode import encode_conversation
from vidtune.text.templates import ChatTemplate, Part

VOCAB = {"<unk>": 0, "u": 1, ":": 2, "\n": 3, "a": 4, "b": 5, "$": 6}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    model = models.BPE(vocab=VOCAB, merges=[], unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("parts", [IGNORE, IGNORE, IGNORE, 4, 3, 5, 6, IGNORE]),
        # The newline of the answer is taken for the one after it, which is then supervised in its place.
        ("matched", [IGNORE, IGNORE, IGNORE, 4, IGNORE, 5, 6, 3]),
    ],
)
def test_a_newline_in_an_answer_is_supervised_unless_the_template_repeats_the_quirk(tokenizer, labels, expected):
    template = ChatTemplate(
        user=(Part("u{content}"),),
        assistant=(Part(":"), Part("{content}$", train=True), Part("\n")),
        generation=(Part(":"),),
        labels=labels,
    )
    messages = (Message("user", ("b",)), Message("assistant", ("a\nb",)))
    encoded = encode_conversation(messages, (), tokenizer, template)
    assert encoded.input_ids == [1, 5, 2, 4, 3, 5, 6, 3]
    assert encoded.labels == expected
