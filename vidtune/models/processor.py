"""What the processors of all families share: tokenizer, prompt presets and length limit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vidtune.contracts import Encoded, MediaInfo, MediaItem, MediaPlan, Message, Preset, UserError
from vidtune.text.encode import encode_conversation, truncate
from vidtune.text.templates import ChatTemplate, lookup


class BaseProcessor(ABC):
    """A family's knowledge of its input.

    Args:
        tokenizer: a fast tokenizer, loaded by the family.
        train_template, infer_template: names in ``templates``; the two prompt presets of the recipe.
        max_length: tokens a row may have.
    """

    templates: ClassVar[Mapping[str, ChatTemplate]] = {}

    def __init__(self, tokenizer: Any, train_template: str, infer_template: str, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.presets: dict[str, ChatTemplate] = {
            "train": lookup(self.templates, train_template, "template", "model.processor.train_template"),
            "infer": lookup(self.templates, infer_template, "template", "model.processor.infer_template"),
        }

    @classmethod
    def setting_faults(cls, *_: Any, **settings: Any) -> list[str]:
        """Constructor arguments that do not fit one another: one line each, found without reading a file.

        A run asks before it loads anything; a constructor asks through ``refuse_settings``.
        """
        return []

    @classmethod
    def tokens_per_frame(cls, *_: Any, **settings: Any) -> int:
        """Tokens of one frame of a video, those around it included, by the constructor arguments; 0 where a video has
        as many tokens whatever its frames."""
        return 0

    @classmethod
    def refuse_settings(cls, **settings: Any) -> None:
        """Raises:
        UserError: all that ``setting_faults`` finds.
        """
        if faults := cls.setting_faults(**settings):
            raise UserError("\n".join(faults))

    @abstractmethod
    def plan_media(self, info: MediaInfo, rng: np.random.Generator, preset: Preset) -> MediaPlan: ...

    @abstractmethod
    def load_media(self, plan: MediaPlan, frames: Iterable[np.ndarray]) -> MediaItem: ...

    @abstractmethod
    def dummy_media(self) -> MediaItem: ...

    def encode(
        self,
        messages: Sequence[Message],
        plans: Sequence[MediaPlan],
        *,
        preset: Preset,
        generation: bool = False,
        name: str = "sample",
    ) -> Encoded:
        """Ids and labels of a conversation, at most ``max_length`` long; see ``encode_conversation``.

        Raises:
            UserError: a system message where the template has no place for one, or a row to be answered that is longer.
        """
        _check_system(messages, self.presets[preset], name)
        encoded = encode_conversation(messages, plans, self.tokenizer, self.presets[preset], generation=generation)
        return truncate(encoded, self.max_length, name, asks=generation or preset == "infer")

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer, so that a run folder needs no other source of it."""
        self.tokenizer.save_pretrained(str(folder))

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer."""
        return [self.tokenizer.eos_token_id]

    @property
    def stop_strings(self) -> list[str]:
        """Strings that end an answer where no single id does."""
        return []

    @property
    def pad_id(self) -> int:
        """Fills padded positions, which the attention mask hides: masks never come from comparing ids with it."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens and stop strings."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in self.stop_strings:
            text = text.split(stop)[0]
        return text.strip()


def _check_system(messages: Sequence[Message], template: ChatTemplate, name: str) -> None:
    places = [index for index, message in enumerate(messages) if message.role == "system" and any(message.content)]
    if places and not template.system:
        raise UserError(
            f"{name}: it has a system message, for which this model's chat format has no place. Move its text into the "
            f"first user message, or take it out of the annotation (or choose another model.processor.train_template)."
        )
    if places and places != [0]:
        raise UserError(f"{name}: message {places[-1] + 1} is a system message; expected at most one, as the first.")
