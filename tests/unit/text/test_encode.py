from __future__ import annotations

import pytest

from tests.helpers import CountingTokenizer
from vidtune.contracts import IGNORE, MediaInfo, MediaPlan, MediaRef, Message, UserError, VisualSpan
from vidtune.text.encode import encode_conversation, truncate
from vidtune.text.templates import ChatTemplate, Part, lookup

TEMPLATE = ChatTemplate(
    system=(Part("S:{content}."),),
    user=(Part("U:{content};"),),
    assistant=(Part("A:"), Part("{content}!", train=True), Part("|")),
    generation=(Part("A:"),),
)


def conversation(*turns: str) -> list[Message]:
    return [Message("assistant" if index % 2 else "user", (turn,)) for index, turn in enumerate(turns)]


def plan(*spans: VisualSpan | str) -> MediaPlan:
    ref = MediaRef("clip.mp4")
    return MediaPlan(MediaInfo(ref, 8, 4.0, 2.0, 64, 64), (0,), (0.0,), spans)


def supervised(encoded) -> str:
    return "".join(chr(label) if label != IGNORE else "_" for label in encoded.labels)


def text(encoded) -> str:
    return "".join(chr(token) for token in encoded.input_ids)


@pytest.mark.parametrize("tokenize", ["joint", "parts"])
def test_only_the_parts_marked_for_training_are_supervised(tokenize: str, char_tokenizer: CountingTokenizer) -> None:
    template = ChatTemplate(**{**TEMPLATE.__dict__, "tokenize": tokenize})
    encoded = encode_conversation(conversation("why", "so", "ok", "yes"), [], char_tokenizer, template)
    assert text(encoded) == "U:why;A:so!|U:ok;A:yes!|"
    assert supervised(encoded) == "________so!________yes!_"
    assert encoded.num_targets == 7


def test_generation_leaves_the_answer_out_and_ends_with_the_prompt_for_it(char_tokenizer: CountingTokenizer) -> None:
    encoded = encode_conversation(conversation("why", "so"), [], char_tokenizer, TEMPLATE, generation=True)
    assert text(encoded) == "U:why;A:"
    assert encoded.num_targets == 0


def test_a_system_text_comes_from_the_conversation_or_the_template(char_tokenizer: CountingTokenizer) -> None:
    with_default = ChatTemplate(**{**TEMPLATE.__dict__, "default_system": "d"})
    own = [Message("system", ("own",)), *conversation("q")]
    assert text(encode_conversation(own, [], char_tokenizer, with_default)) == "S:own.U:q;"
    assert text(encode_conversation(conversation("q"), [], char_tokenizer, with_default)) == "S:d.U:q;"
    assert text(encode_conversation(conversation("q"), [], char_tokenizer, TEMPLATE)) == "U:q;"


def test_spans_stand_where_the_medium_does_with_their_ids_around_them(char_tokenizer: CountingTokenizer) -> None:
    messages = [Message("user", ("see ", MediaRef("clip.mp4"), " now"))]
    media = plan("at 1s ", VisualSpan(3, before_ids=(5,), after_ids=(6, 7)))
    encoded = encode_conversation(messages, [media], char_tokenizer, TEMPLATE)
    before = [ord(c) for c in "U:see at 1s "]
    assert encoded.input_ids == [*before, 5, 0, 0, 0, 6, 7, *[ord(c) for c in " now;"]]
    assert encoded.visual_positions == [13, 14, 15]
    assert encoded.prefix_length == 18


def test_media_and_plans_that_disagree_are_refused(char_tokenizer: CountingTokenizer) -> None:
    messages = [Message("user", (MediaRef("a.mp4"), "q"))]
    with pytest.raises(UserError, match="more media"):
        encode_conversation(messages, [], char_tokenizer, TEMPLATE)
    with pytest.raises(UserError, match="do not stand"):
        encode_conversation(messages, [plan(VisualSpan(1)), plan(VisualSpan(1))], char_tokenizer, TEMPLATE)


class PairTokenizer(CountingTokenizer):
    """Two characters per token: borders inside a token show."""

    def __call__(self, text: str, add_special_tokens: bool = True, return_offsets_mapping: bool = False) -> dict:
        starts = range(0, len(text), 2)
        encoding = {"input_ids": [ord(text[start]) for start in starts]}
        if return_offsets_mapping:
            encoding["offset_mapping"] = [(start, min(start + 2, len(text))) for start in starts]
        return encoding


def test_a_token_that_ends_in_the_answer_is_supervised_and_one_that_leaves_it_is_refused() -> None:
    template = ChatTemplate(user=(Part("{content}"),), assistant=(Part("{content}", train=True),), generation=())
    encoded = encode_conversation(conversation("a", "bc"), [], PairTokenizer(), template)
    assert encoded.labels == [ord("a"), ord("c")]
    after = ChatTemplate(**{**template.__dict__, "assistant": (Part("{content}", train=True), Part("."))})
    with pytest.raises(UserError, match="begins in supervised"):
        encode_conversation(conversation("ab", "c"), [], PairTokenizer(), after)


def test_truncation_never_cuts_a_visual_span(char_tokenizer: CountingTokenizer) -> None:
    messages = [Message("user", (MediaRef("clip.mp4"), "question")), Message("assistant", ("answer",))]
    encoded = encode_conversation(messages, [plan(VisualSpan(4))], char_tokenizer, TEMPLATE)
    assert truncate(encoded, 100, "s") is encoded
    assert truncate(encoded, 17, "s").num_tokens == 17
    assert truncate(encoded, 17, "s").num_targets < encoded.num_targets
    with pytest.raises(UserError, match=r"s: 25 tokens.*take 6.*max_length is 5"):
        truncate(encoded, 5, "s")


def test_a_question_to_a_model_is_refused_where_it_would_be_cut(char_tokenizer: CountingTokenizer) -> None:
    """Without its end and the mark where the answer begins it is another question."""
    messages = [Message("user", (MediaRef("clip.mp4"), "question")), Message("assistant", ("answer",))]
    encoded = encode_conversation(messages, [plan(VisualSpan(4))], char_tokenizer, TEMPLATE)
    assert truncate(encoded, 25, "s", asks=True) is encoded
    with pytest.raises(UserError, match=r"s: the question takes 25 tokens, 6 of them.*model\.max_length is 24"):
        truncate(encoded, 24, "s", asks=True)


def test_an_unknown_name_is_answered_with_the_known_and_the_nearest() -> None:
    with pytest.raises(UserError, match=r"chatlm.*Known: chatml, plain. Did you mean 'chatml'"):
        lookup({"chatml": 1, "plain": 2}, "chatlm", "template", "model.processor.train_template")
