"""Conversations to ids and labels.

Labels are written while the pieces are emitted: every piece knows whether it is supervised, and a token takes the flag
of the piece in which it ends. Nothing is found again by tokenising substrings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vidtune.contracts import IGNORE, Encoded, MediaPlan, MediaRef, Message, UserError, VisualSpan
from vidtune.text.templates import CONTENT, ChatTemplate, Part


@dataclass
class _Text:
    """A stretch of text that is tokenised at once; ``flags[i]`` says whether character i is supervised."""

    text: str = ""
    flags: list[bool] = field(default_factory=list)

    def add(self, text: str, train: bool) -> None:
        self.text += text
        self.flags += [train] * len(text)

    def strip(self, left: bool, right: bool) -> None:
        start = len(self.text) - len(self.text.lstrip()) if left else 0
        end = len(self.text.rstrip()) if right else len(self.text)
        self.text, self.flags = self.text[start:end], self.flags[start:end]


def encode_conversation(
    messages: Sequence[Message],
    plans: Sequence[MediaPlan],
    tokenizer: Any,
    template: ChatTemplate,
    *,
    generation: bool = False,
) -> Encoded:
    """Render, tokenise and label a conversation.

    Args:
        messages: turns in order; the first may be a system turn.
        plans: one per medium, in reading order.
        tokenizer: a Hugging Face fast tokenizer (character offsets are used).
        template: the framing.
        generation: leave the last answer out and end with the prompt for it.

    Returns:
        Ids and labels of equal length; the first answer token is the first supervised one of its turn.

    Raises:
        UserError: more or fewer plans than media, or a token that reaches from supervised into unsupervised text.
    """
    pieces = _pieces(messages, plans, template, generation)
    if template.tokenize != "parts":
        pieces = _join(pieces, cut_at_supervision=template.tokenize == "runs")
    if template.strip_at_spans:
        _strip_at_spans(pieces)

    ids: list[int] = []
    labels: list[int] = []
    visual_positions: list[int] = []
    prefix_length = 0
    if template.bos:
        ids.append(tokenizer.bos_token_id)
        labels.append(IGNORE)
    for piece in pieces:
        if isinstance(piece, VisualSpan):
            start = len(ids) + len(piece.before_ids)
            visual_positions += range(start, start + piece.num_placeholders)
            ids += [*piece.before_ids, *[0] * piece.num_placeholders, *piece.after_ids]
            labels += [IGNORE] * piece.num_tokens
            prefix_length = len(ids)
        elif piece.text:
            piece_ids, piece_labels = _tokenize(piece, tokenizer)
            ids += piece_ids
            labels += piece_labels
    if template.labels == "matched":
        labels = _match_framing(ids, labels)
    return Encoded(ids, labels, visual_positions, tuple(plans), prefix_length)


def render_conversation(
    messages: Sequence[Message],
    plans: Sequence[MediaPlan],
    template: ChatTemplate,
    *,
    generation: bool = False,
    span_text: str = "<visual×{num_placeholders}>",
) -> str:
    """The conversation as one string, as ``encode_conversation`` reads it before any white space is removed.

    Args:
        span_text: stands for a visual span.
    """
    return "".join(
        span_text.format(num_placeholders=piece.num_placeholders) if isinstance(piece, VisualSpan) else piece.text
        for piece in _pieces(messages, plans, template, generation)
    )


def truncate(encoded: Encoded, max_length: int, name: str, *, asks: bool = False) -> Encoded:
    """Cut a row on the right to ``max_length`` tokens.

    Args:
        asks: the row asks a model for an answer, or how likely one is; it is never cut.

    Raises:
        UserError: the cut would fall before the end of the visual prefix, or into a question to a model.
    """
    if encoded.num_tokens <= max_length:
        return encoded
    if asks:
        raise UserError(
            f"{name}: the question takes {encoded.num_tokens} tokens, {encoded.prefix_length} of them for the media "
            f"and the text before them, but model.max_length is {max_length}. Cut at its end it would be another "
            f"question. Raise model.max_length if the model reads so far, lower data.num_frames, or shorten it."
        )
    if max_length < encoded.prefix_length:
        raise UserError(
            f"{name}: {encoded.num_tokens} tokens, of which the media and the text before them take "
            f"{encoded.prefix_length}, but model.max_length is {max_length}. A cut inside the frames would destroy the "
            f"sample. Raise model.max_length, or lower data.num_frames or the image size."
        )
    return Encoded(
        encoded.input_ids[:max_length],
        encoded.labels[:max_length],
        encoded.visual_positions,
        encoded.plans,
        encoded.prefix_length,
    )


def _pieces(
    messages: Sequence[Message], plans: Sequence[MediaPlan], template: ChatTemplate, generation: bool
) -> list[_Text | VisualSpan]:
    """Every part and every content as a piece of its own; a span cuts a content, a border between strings does not."""
    queue = iter(plans)
    pieces: list[_Text | VisualSpan] = []

    def text_piece(text: str, train: bool) -> _Text:
        piece = _Text()
        piece.add(text, train)
        return piece

    for parts, message in _turns(messages, template, generation):
        for part in parts:
            before, marker, after = part.text.partition(CONTENT)
            pieces.append(text_piece(before, part.train))
            content: list[_Text | VisualSpan] = []
            placed = _media_last(message.content) if template.media == "last" else message.content
            for item in placed if marker else ():
                if isinstance(item, MediaRef):
                    plan = next(queue, None)
                    if plan is None:
                        raise UserError(f"{item.path}: the conversation holds more media than plans ({len(plans)}).")
                    for element in plan.content:
                        if isinstance(element, VisualSpan):
                            content.append(element)
                        else:
                            content.append(text_piece(element, part.train))
                else:
                    content.append(text_piece(item.strip() if template.strip_content else item, part.train))
            pieces += _join(content, cut_at_supervision=False)
            pieces.append(text_piece(after, part.train))
    left_over = sum(1 for _ in queue)
    if left_over:
        raise UserError(f"{left_over} of {len(plans)} media do not stand in the conversation.")
    return [piece for piece in pieces if isinstance(piece, VisualSpan) or piece.text]


def _media_last(content: Sequence[str | MediaRef]) -> Sequence[str | MediaRef]:
    """The text of a turn, then its media; as it is where it ends with all its media."""
    media = [part for part in content if isinstance(part, MediaRef)]
    text = "".join(part for part in content if isinstance(part, str)).strip()
    if not text or list(content[len(content) - len(media) :]) == media:
        return content
    return [f"{text}\n", *media]


def _turns(
    messages: Sequence[Message], template: ChatTemplate, generation: bool
) -> Iterator[tuple[tuple[Part, ...], Message]]:
    messages = list(messages)
    if generation and messages and messages[-1].role == "assistant":
        messages.pop()
    if messages and messages[0].role == "system":
        system: Message | None = messages.pop(0)
    elif template.default_system is not None:
        system = Message("system", (template.default_system,))
    else:
        system = None
    if system is not None:
        yield template.system, system
    is_first_user = True
    for message in messages:
        if message.role == "assistant":
            empty = not any(message.content) and template.empty_assistant is not None
            yield (template.empty_assistant if empty else template.assistant) or (), message
        else:
            first = is_first_user and template.first_user is not None
            yield (template.first_user if first else template.user) or (), message
            is_first_user = False
    if generation:
        yield template.generation, Message("assistant", ())


def _join(pieces: Sequence[_Text | VisualSpan], cut_at_supervision: bool) -> list[_Text | VisualSpan]:
    joined: list[_Text | VisualSpan] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if (
            isinstance(piece, _Text)
            and isinstance(last, _Text)
            and not (cut_at_supervision and last.flags[-1] != piece.flags[0])
        ):
            last.text += piece.text
            last.flags += piece.flags
        else:
            joined.append(piece)
    return joined


def _strip_at_spans(pieces: Sequence[_Text | VisualSpan]) -> None:
    for index, piece in enumerate(pieces):
        if isinstance(piece, _Text):
            after_span = index > 0 and isinstance(pieces[index - 1], VisualSpan)
            before_span = index + 1 < len(pieces) and isinstance(pieces[index + 1], VisualSpan)
            piece.strip(left=after_span, right=before_span)


def _tokenize(piece: _Text, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of a stretch of text and their labels; a token takes the flag of the character it ends with."""
    if len(set(piece.flags)) == 1:
        ids = list(tokenizer(piece.text, add_special_tokens=False)["input_ids"])
        return ids, ids.copy() if piece.flags[0] else [IGNORE] * len(ids)
    encoding = tokenizer(piece.text, add_special_tokens=False, return_offsets_mapping=True)
    ids, labels = list(encoding["input_ids"]), []
    for token, (start, end) in zip(ids, encoding["offset_mapping"], strict=True):
        train = piece.flags[max(end - 1, 0)]
        if end > start and piece.flags[start] and not train:
            raise UserError(
                f"the token {piece.text[start:end]!r} begins in supervised and ends in unsupervised text; the template "
                f"must put a token boundary between them (set its tokenize to 'runs', or move the part's border)."
            )
        labels.append(token if train else IGNORE)
    return ids, labels


def _match_framing(ids: Sequence[int], labels: Sequence[int]) -> list[int]:
    """Labels after greedy matching: the framing is a subsequence of the row, so that the walk always uses it up."""
    framing = iter([token for token, label in zip(ids, labels, strict=True) if label == IGNORE])
    expected = next(framing, None)
    matched: list[int] = []
    for token in ids:
        if token == expected:
            matched.append(IGNORE)
            expected = next(framing, None)
        else:
            matched.append(token)
    return matched
