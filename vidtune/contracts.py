"""The data that all rooms of vidtune share.

A *sample* is a conversation that may hold media. On its way into a model it passes three stages, each of which
knows only what it needs:

1. ``MediaRef`` -> ``MediaInfo``: the header of a file (``vidtune.media``), no pixels.
2. ``MediaInfo`` -> ``MediaPlan``: which frames, and how the medium reads as text and placeholders (a processor).
3. ``MediaPlan`` + frames -> ``MediaItem``: the tensors a network encodes (a processor).

Because stage 2 needs no pixels, every token length is known before anything is decoded.

Axes: B batch, T frames, C channels, H height, W width, L text length, N visual tokens, S supervised tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
"""Label of a position that is not supervised."""

Role = Literal["system", "user", "assistant"]
Preset = Literal["train", "infer"]


class UserError(ValueError):
    """A mistake in what the user gave us: says what was found, where, what was expected, which setting to change.

    The entry points print it without a traceback and exit with code 1.
    """


# --------------------------------------------------------------------------------------------------- media


@dataclass(frozen=True)
class MediaRef:
    """Where a medium lies, and which part of it is meant.

    Args:
        path: absolute path of a video, an image, an animated GIF, a folder of frames, or a feature file.
        kind: what the model should take it for.
        start_s, end_s: segment of a longer video in seconds; ``None`` means its start or end.
        tiled: a model that cuts images into tiles may do so with this one. Some data sets ask for whole images.
        num_frames, sampling: this data set's own frame count and policy in a mixture; None for those of the model.
    """

    path: str
    kind: Literal["video", "image", "audio"] = "video"
    start_s: float | None = None
    end_s: float | None = None
    tiled: bool = True
    num_frames: int | None = None
    sampling: str | None = None

    @property
    def stretch(self) -> str:
        """Names medium and segment, whatever is done with them; ledgers of bad media use it."""
        segment = "" if self.start_s is None and self.end_s is None else f"#{self.start_s}-{self.end_s}"
        return f"{self.path}{segment}"

    @property
    def key(self) -> str:
        """Names medium, segment and treatment; seeds the visual draws and keys the caches."""
        frames = "" if self.num_frames is None and self.sampling is None else f"#{self.num_frames}x{self.sampling}"
        return f"{self.stretch}{'' if self.tiled else '#whole'}{frames}"


@dataclass(frozen=True)
class MediaInfo:
    """What the header of a medium says; all of it about the segment that ``ref`` names.

    Args:
        num_frames: number of readable frames; frame indices run from 0 to ``num_frames - 1`` within the segment.
        fps: average frames per second (1.0 for an image or a folder of frames without a rate).
        duration_s: length in seconds.
        height, width: size in pixels as displayed, that is after the rotation stored in the file.
        exact: the frame count is that of a full decode, not a header's claim.
    """

    ref: MediaRef
    num_frames: int
    fps: float
    duration_s: float
    height: int
    width: int
    exact: bool = True


@dataclass(frozen=True)
class VisualSpan:
    """One run of placeholder positions with the ids that frame it.

    The ids are given as ids, so that neighbouring text never merges with them into one token.
    """

    num_placeholders: int
    before_ids: tuple[int, ...] = ()
    after_ids: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.before_ids) + self.num_placeholders + len(self.after_ids)


@dataclass(frozen=True)
class MediaPlan:
    """How one medium enters the conversation.

    Args:
        info: the header it was made from.
        frame_indices: frames to read, in reading order; repeats are allowed.
        times_s: time of each of these frames in seconds from the start of the segment.
        content: what stands in the conversation in place of the medium. Strings take part in the tokenisation of the
            text around them; spans are hard boundaries.
        frame_size: (height, width) the decoder should scale to with the filter ``frame_filter``, or None for native
            frames (the processor then resizes them as its original does).
        frame_filter: exact name of a decoder scaling filter, e.g. ``swscale_bilinear``.
        extra: what else the processor decided here and needs again in ``load_media`` (a tile grid, a crop box).
    """

    info: MediaInfo
    frame_indices: tuple[int, ...]
    times_s: tuple[float, ...]
    content: tuple[str | VisualSpan, ...]
    frame_size: tuple[int, int] | None = None
    frame_filter: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spans(self) -> tuple[VisualSpan, ...]:
        return tuple(part for part in self.content if isinstance(part, VisualSpan))

    @property
    def num_placeholders(self) -> int:
        return sum(span.num_placeholders for span in self.spans)


@dataclass
class MediaItem:
    """Tensors of one medium, in the order in which its spans stand in the row.

    Args:
        kind: ``video``, ``image`` or ``audio``; a network may treat kinds differently.
        tensors: what the processor made (``pixel_values`` ...) at stage ``pixels``, or what a frozen part of the
            network made of it: stage ``features`` or ``connected`` (``values`` (N, D)).
        num_placeholders: how many positions the medium fills; checked against the network's output.
        name: for messages.
        cache_key: name under which the feature cache stores what is made of it; empty where it does not.
    """

    kind: str
    tensors: dict[str, Tensor]
    num_placeholders: int
    name: str = ""
    stage: Literal["pixels", "features", "connected"] = "pixels"
    cache_key: str = ""

    def to(self, device: torch.device | str) -> MediaItem:
        tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors)

    def at(self, stage: Literal["features", "connected"], tensors: dict[str, Tensor]) -> MediaItem:
        """The same medium one stage further."""
        return replace(self, stage=stage, tensors=tensors)


# --------------------------------------------------------------------------------------------------- conversations


@dataclass(frozen=True)
class Message:
    """One turn. ``content`` mixes text and media in reading order."""

    role: Role
    content: tuple[str | MediaRef, ...]

    @property
    def media(self) -> tuple[MediaRef, ...]:
        return tuple(part for part in self.content if isinstance(part, MediaRef))

    @property
    def text(self) -> str:
        return "".join(part for part in self.content if isinstance(part, str))


@dataclass(frozen=True)
class Sample:
    """One row of a data set.

    Args:
        sample_id: unique within its data set; predictions, ledgers and messages use it.
        messages: the conversation, answers included where they are known.
        source: name of the data set.
        question_type: groups the accuracy table.
        options: the closed list of answers, if there is one.
        answer: the reference answer (for a multiple-choice question its text, not its letter).
        weight: factor on the loss of all its tokens.
        extra: further columns of the annotation, kept for evaluation and export.
    """

    sample_id: str
    messages: tuple[Message, ...]
    source: str = ""
    question_type: str = ""
    options: tuple[str, ...] = ()
    answer: str = ""
    weight: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def media(self) -> tuple[MediaRef, ...]:
        return tuple(ref for message in self.messages for ref in message.media)


@dataclass
class Encoded:
    """A sample as ids.

    Args:
        input_ids: (L,) ids; positions of placeholders hold 0 and are never embedded.
        labels: (L,) the id to predict *at* this position, or ``IGNORE`` (not shifted).
        visual_positions: positions of the placeholders, ascending.
        plans: the media, in the order of their spans.
        prefix_length: number of leading positions up to and including the last visual span (its ``after_ids``
            included); 0 for a text-only sample.
    """

    input_ids: list[int]
    labels: list[int]
    visual_positions: list[int]
    plans: tuple[MediaPlan, ...]
    prefix_length: int

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """Supervised positions; the first position has no predecessor that could predict it."""
        return sum(label != IGNORE for label in self.labels[1:])


# --------------------------------------------------------------------------------------------------- batches


@dataclass
class Batch:
    """Rows of tokens as a network takes them.

    Training packs samples of any kind into one flat row (B = 1). A *segment* is a stretch that attends to nothing
    outside itself: one sample, or several samples that share one visual prefix. Within a segment *branch* 0 is the
    shared prefix and branches 1, 2, ... are questions; a token sees the earlier tokens of branch 0 and of its own
    branch. Generation uses the padded layout (B, L) with ``attention_mask`` and no segments.

    Args:
        input_ids: (B, L) int64; placeholders hold 0.
        position_ids: (B, L) int64; restart with every segment, and after the prefix with every branch.
        visual_positions: (N,) int64 flat indices into B*L, in the order of ``media``.
        media: the media of the row in span order.
        segment_ids, branch_ids: (B, L) int64, or None in the padded layout.
        attention_mask: (B, L) bool, True where there is a token; None in the packed layout.
        target_positions: (S,) int64 flat indices of the positions whose *next* token is supervised.
        target_ids: (S,) int64.
        target_weights: (S,) float32; 0 keeps a token out of the loss.
        target_samples: (S,) int64 index into ``sample_ids``.
        normalizer: denominator of the loss: weights of the whole optimizer step, over all rows and processes.
        sample_ids: samples in the row, for messages.
        token_weights: (B, L) float32, how many samples use a token; for losses that are batch statistics.
        dummy_media: True where ``media`` holds only a stand-in that keeps the processes in step.
        tokens_separate: tokens that the samples would need without sharing; for the meters.
    """

    input_ids: Tensor
    position_ids: Tensor
    visual_positions: Tensor
    media: list[MediaItem]
    segment_ids: Tensor | None = None
    branch_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    target_positions: Tensor | None = None
    target_ids: Tensor | None = None
    target_weights: Tensor | None = None
    target_samples: Tensor | None = None
    normalizer: float = 1.0
    sample_ids: tuple[str, ...] = ()
    token_weights: Tensor | None = None
    dummy_media: bool = False
    tokens_separate: int = 0
    bad_media: tuple[tuple[str, str], ...] = ()
    """(medium, reason) of media that could not be read, once for each sample of weight 0 on it."""

    def to(self, device: torch.device | str) -> Batch:
        """A copy on ``device``; Lightning calls this to move a batch."""
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in self.__dict__.items()
        }
        moved["media"] = [item.to(device) for item in self.media]
        return Batch(**moved)

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())


@dataclass
class NetworkOutput:
    """What a network's ``forward`` returns.

    Args:
        nll: (S,) float32 negative log-likelihood of each target, in nats.
        correct: (S,) bool, whether the target is the most likely token.
        auxiliary: scalar losses beside the task loss, already weighted; averaged over the rows of a step.
        logits: (B, L, V) only where asked for.
    """

    nll: Tensor
    correct: Tensor
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


# --------------------------------------------------------------------------------------------------- processors


class Tokenizer(Protocol):
    """The part of a Hugging Face fast tokenizer that vidtune uses."""

    def __call__(self, text: str, **kwargs: Any) -> Mapping[str, Any]: ...
    def decode(self, token_ids: Sequence[int], **kwargs: Any) -> str: ...
    def save_pretrained(self, save_directory: str, **kwargs: Any) -> Any: ...


class Processor(Protocol):
    """What a family knows about its input: no weights, cheap, picklable, used in data workers."""

    tokenizer: Tokenizer

    def plan_media(self, info: MediaInfo, rng: np.random.Generator, preset: Preset) -> MediaPlan:
        """Choose frames and spans from the header alone.

        Raises:
            UserError: the medium does not fit the model (kind, number of frames).
        """
        ...

    def load_media(self, plan: MediaPlan, frames: Iterable[np.ndarray]) -> MediaItem:
        """Turn frames, (H, W, 3) uint8 RGB, one at a time and in the order of the plan, into tensors."""
        ...

    def dummy_media(self) -> MediaItem:
        """The smallest valid visual, for a row that has none."""
        ...

    def encode(
        self,
        messages: Sequence[Message],
        plans: Sequence[MediaPlan],
        *,
        preset: Preset,
        generation: bool = False,
        name: str = "sample",
    ) -> Encoded:
        """Render, tokenise and label a conversation whose media were planned; ``generation`` leaves the last answer
        out and ends with the prompt for it. ``name`` is for messages."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a generated answer."""
        ...

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer into a run folder."""
        ...

    @property
    def pad_id(self) -> int: ...

    @property
    def stop_ids(self) -> list[int]: ...

    @property
    def stop_strings(self) -> list[str]: ...
