"""Prompt formats of Video-LLaMA: what it was trained with, and what its demo asks with (they differ).

Source: DAMO-NLP-SG/Video-LLaMA, conversation/conversation_video.py and datasets/video_instruct_dataset.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vidtune.text.templates import ChatTemplate, Part

DEMO_SYSTEM = (
    "You are able to understand the visual content that the user provides. "
    "Follow the instructions carefully and explain your answers in detail."
)

LLAMA_2 = ChatTemplate(
    system=(Part("[INST] <<SYS>>\n{content}\n<</SYS>>\n\n"),),
    first_user=(Part("{content} [/INST]"),),
    user=(Part("<s>[INST] {content} [/INST]"),),
    # The lone space piece and </s> are supervised with the answer.
    assistant=(Part(" {content} </s>", train=True),),
    generation=(),
    default_system=" ",
    bos=True,
)

VICUNA = ChatTemplate(
    system=(Part("{content}\n\n"),),
    # The original supervises the ### that opens every turn, human turns included. Here the one after an answer belongs
    # to the answer, which gives the same text.
    first_user=(Part("###", train=True), Part("Human: {content}\n")),
    user=(Part("Human: {content}\n"),),
    assistant=(Part("###Assistant: {content}\n###", train=True),),
    generation=(Part("###Assistant:"),),
    default_system="",
    bos=True,
)

TEMPLATES: Mapping[str, ChatTemplate] = {
    "llama_2": LLAMA_2,
    "vicuna": VICUNA,
    "llama_2_demo": replace(LLAMA_2, default_system=DEMO_SYSTEM),
    "vicuna_demo": replace(
        VICUNA,
        system=(Part("{content}"),),
        first_user=(Part("###Human: {content}"),),
        user=(Part("Human: {content}"),),
        assistant=(Part("###Assistant:"), Part(" {content}###", train=True)),
        default_system=DEMO_SYSTEM,
    ),
    # Image and video captions (the original's second forward path): the caption is tokenised by itself. The backslashes
    # before n are two characters: its YAML puts the template in single quotes.
    "llama_2_caption": ChatTemplate(
        user=(Part("[INST] <<SYS>>\\n \\n<</SYS>>\\n\\n{content} [/INST] "),),
        assistant=(Part("{content}</s>", train=True),),
        generation=(),
        bos=True,
        tokenize="runs",
    ),
    "vicuna_caption": ChatTemplate(
        user=(Part("###Human: {content} ###Assistant: "),),
        assistant=(Part("{content}###", train=True),),
        generation=(),
        bos=True,
        tokenize="runs",
    ),
}

DEMO = frozenset({"llama_2_demo", "vicuna_demo"})
"""The demo appends the question to the frame message with a space of its own; training has one space there."""


def frame_message(times_s: tuple[float, ...]) -> str:
    """The sentence that tells the decoder when the frames were taken, rounded to a tenth of a second."""
    seconds = ", ".join(str(round(time, 1)) for time in times_s)
    return f"The video contains {len(times_s)} frames sampled at {seconds} seconds. "


def media_text(kind: str, times_s: tuple[float, ...], style: str, demo: bool) -> tuple[str, str]:
    """What stands before and after the placeholders of a medium.

    Args:
        kind: ``video``, ``image`` or ``audio`` (audio features of frames read as a video, those of sound as nothing).
        times_s: of the frames.
        style: ``timed`` | ``plain`` | ``bare`` | ``none``; see ``VideoLlamaProcessor``.
        demo: the prompt is the demo's.
    """
    if style == "none" or kind == "audio":
        return "", ""
    if kind == "image":
        return "<Image>", "</Image>  " if demo else "</Image>"
    tail = {"timed": " " + frame_message(times_s), "plain": " ", "bare": ""}[style]
    return "<Video>", f"</Video>{tail}" + (" " if demo and style != "bare" else "")
