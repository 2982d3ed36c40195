"""Turns without text, and the conversation as one string."""

from vidtune.contracts import MediaInfo, MediaPlan, MediaRef, Message, VisualSpan
from vidtune.text.encode import render_conversation
from vidtune.text.templates import ChatTemplate, Part

TEMPLATE = ChatTemplate(
    user=(Part("USER: {content} "),),
    assistant=(Part("ASSISTANT:"), Part(" {content}</s>", train=True)),
    empty_assistant=(Part("ASSISTANT:"),),
    generation=(Part("ASSISTANT:"),),
)


def test_empty_answer_leaves_out_separator_and_end_token_where_the_template_says_so():
    turns = [
        Message("user", ("a",)),
        Message("assistant", ("",)),
        Message("user", ("b",)),
        Message("assistant", ("c",)),
    ]
    assert render_conversation(turns, [], TEMPLATE) == "USER: a ASSISTANT:USER: b ASSISTANT: c</s>"


def test_rendering_shows_spans_in_place_of_their_ids():
    ref = MediaRef("/video.mp4")
    plan = MediaPlan(MediaInfo(ref, 1, 1.0, 1.0, 2, 2), (0,), (0.0,), (VisualSpan(7, (1,), (2,)),))
    turns = [Message("user", ("look: ", ref))]
    assert render_conversation(turns, [plan], TEMPLATE, generation=True) == "USER: look: <visual×7> ASSISTANT:"
