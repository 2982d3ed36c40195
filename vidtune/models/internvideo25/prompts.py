"""The published prompt forms: chat framing, and the text around the frames."""

from __future__ import annotations

from dataclasses import dataclass

from vidtune.text.templates import ChatTemplate, Part

SYSTEM_INTERNVL2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
SYSTEM_INTERNLM2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)


@dataclass(frozen=True)
class PromptForm:
    """One way to write a conversation about a video.

    Args:
        template: chat framing.
        duration_sentence: begin with the video's length and the number of frames.
        newline_after_frames: put the question on a line of its own.
    """

    template: ChatTemplate
    duration_sentence: bool
    newline_after_frames: bool


def _framing(system: str, separator: str) -> ChatTemplate:
    end = f"<|im_end|>{separator}"
    header = Part("<|im_start|>assistant\n")
    return ChatTemplate(
        system=(Part(f"<|im_start|>system\n{{content}}{end}"),),
        user=(Part(f"<|im_start|>user\n{{content}}{end}"),),
        assistant=(header, Part(f"{{content}}{end}", train=True)),
        generation=(header,),
        default_system=system,
        bos=True,
        # The fine-tuner encodes "prompt with assistant header" and "answer with separator" separately.
        tokenize="runs",
    )


FORMS: dict[str, PromptForm] = {
    "internvl2_5": PromptForm(_framing(SYSTEM_INTERNVL2_5, "\n"), duration_sentence=False, newline_after_frames=True),
    "internvl2_5_duration": PromptForm(
        _framing(SYSTEM_INTERNVL2_5, "\n"), duration_sentence=True, newline_after_frames=True
    ),
    "upstream": PromptForm(_framing(SYSTEM_INTERNLM2, ""), duration_sentence=True, newline_after_frames=False),
}
"""``internvl2_5``: model card and chat call. ``upstream``: the XTuner fine-tuner, which picks an older template by the
class of the language model. ``internvl2_5_duration``: the card's framing with the fine-tuner's sentence."""
