"""Chat templates as data: the literal text around messages, and which of it is supervised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypeVar

from vidtune.contracts import UserError

CONTENT = "{content}"
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Literal text of a template; ``{content}`` stands for the message. ``train`` supervises all of its tokens."""

    text: str
    train: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation reads.

    Args:
        user, assistant: parts of one turn.
        generation: parts of the prompt for an answer: what an assistant turn starts with.
        system: parts of the system turn; left out when there is no system text.
        first_user: parts of the first user turn where it differs (LLaMA-2 wraps the system text into it).
        empty_assistant: parts of an assistant turn without text where they differ (templates of FastChat's kind then
            leave the separator and the end token out as well).
        default_system: system text of a conversation that brings none; None for no system turn.
        bos: start with the tokenizer's BOS id.
        tokenize: ``joint`` tokenises all text between two spans at once, as the strings stand; ``runs`` does the same
            but cuts wherever supervision begins or ends, so that no token holds both; ``parts`` tokenises every part
            and every content by itself. Originals differ, and ids differ with them.
        strip_content: remove white space around each text of a message.
        strip_at_spans: remove white space that touches a visual span, as tokenizers do whose added tokens strip.
        media: ``given``: media stand where the sample has them; ``last``: behind the text of their turn, on a new line,
            whatever the sample says. Prompts with one beginning share its keys and values, so that questions about a
            video share it only where it stands before them.
        labels: ``parts`` supervises what stands in supervised parts. ``matched`` then walks through the ids and masks
            each one that equals the next framing id, as originals do that find the answers by comparing ids: an id of
            an answer that looks like the framing after it is masked, and that framing supervised in its place.
    """

    user: tuple[Part, ...]
    assistant: tuple[Part, ...]
    generation: tuple[Part, ...]
    system: tuple[Part, ...] = ()
    first_user: tuple[Part, ...] | None = None
    empty_assistant: tuple[Part, ...] | None = None
    default_system: str | None = None
    bos: bool = False
    tokenize: Literal["joint", "runs", "parts"] = "joint"
    strip_content: bool = False
    strip_at_spans: bool = False
    media: Literal["given", "last"] = "given"
    labels: Literal["parts", "matched"] = "parts"


def lookup(table: Mapping[str, T], name: str, what: str, setting: str) -> T:
    """The entry called ``name``.

    Raises:
        UserError: there is none; the message lists the known names and the nearest one.
    """
    if name in table:
        return table[name]
    near = get_close_matches(name, table, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{setting}={name!r}: no such {what}. Known: {', '.join(sorted(table))}.{hint}")
