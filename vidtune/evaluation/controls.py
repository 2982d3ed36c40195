"""Does a model watch the video? The same questions with less, or with wrong, to see.

A control changes which media a sample names, or which frames of them are read. Prompt and number of visual tokens
stay those of the evaluation (without a video there are none), so no model has to know about controls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from vidtune.contracts import MediaItem, MediaPlan, MediaRef, Sample, UserError
from vidtune.data.media_source import MediaSource
from vidtune.media import draw_rng


def same_samples(samples: Sequence[Sample], seed: int) -> list[Sample]:
    return list(samples)


def same_frames(plan: MediaPlan, seed: int) -> MediaPlan:
    return plan


def without_media(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The text alone."""
    return [_with_media(sample, {}) for sample in samples]


def with_other_media(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Every medium replaced by another one of the set, each used once: all questions of a video see the same wrong one.

    Raises:
        UserError: the set holds a single medium of a kind.
    """
    partner: dict[MediaRef, MediaRef] = {}
    refs = list(dict.fromkeys(ref for sample in samples for ref in sample.media))
    for kind in sorted({ref.kind for ref in refs}):
        same_kind = [ref for ref in refs if ref.kind == kind]
        if len(same_kind) < 2:
            raise UserError(
                f"eval.controls: the questions share a single {kind} ({same_kind[0].path}), so there is no other one "
                f"to show instead. Evaluate more media, or set eval.controls=false."
            )
        order = np.random.default_rng(seed).permutation(len(same_kind))
        for place, index in enumerate(order):
            partner[same_kind[index]] = same_kind[order[(place + 1) % len(order)]]
    return [_with_media(sample, partner) for sample in samples]


def one_frame(plan: MediaPlan, seed: int) -> MediaPlan:
    """The middle frame in place of all."""
    middle = plan.frame_indices[len(plan.frame_indices) // 2]
    return replace(plan, frame_indices=(middle,) * len(plan.frame_indices))


def shuffled_frames(plan: MediaPlan, seed: int) -> MediaPlan:
    """The same frames in a random order that depends on seed and medium alone; times in the prompt stay."""
    if len(set(plan.frame_indices)) < 2:
        return plan
    rng = draw_rng(seed, 0, f"shuffled {plan.info.ref.key}")
    indices = plan.frame_indices
    while indices == plan.frame_indices:
        indices = tuple(plan.frame_indices[i] for i in rng.permutation(len(plan.frame_indices)))
    return replace(plan, frame_indices=indices)


@dataclass(frozen=True)
class Control:
    """What a control changes.

    Args:
        name: of its column.
        samples: (samples, seed) -> samples with the same ids, questions and answers.
        frames: (plan, seed) -> plan with the same spans and number of frames.
    """

    name: str
    samples: Callable[[Sequence[Sample], int], list[Sample]] = same_samples
    frames: Callable[[MediaPlan, int], MediaPlan] = same_frames

    def source(self, source: MediaSource) -> MediaSource:
        """A reader that shows what the control shows."""
        settings = {item.name: getattr(source, item.name) for item in fields(MediaSource) if item.init}
        return ControlledSource(**settings, change=self.frames)


CONTROLS = {
    "no_video": Control("no video", samples=without_media),
    "one_frame": Control("one frame", frames=one_frame),
    "shuffled": Control("shuffled frames", frames=shuffled_frames),
    "other_video": Control("other video", samples=with_other_media),
}


@dataclass
class ControlledSource(MediaSource):
    """Plans like the reader it stands for and reads other frames."""

    change: Callable[[MediaPlan, int], MediaPlan] = field(default=same_frames)

    def load(self, plan: MediaPlan) -> MediaItem:
        return super().load(self.change(plan, self.seed))


def _with_media(sample: Sample, partner: dict[MediaRef, MediaRef]) -> Sample:
    """The sample with each medium replaced by its partner, or left out where it has none."""
    messages = tuple(
        replace(
            message,
            content=tuple(partner.get(part, "") if isinstance(part, MediaRef) else part for part in message.content),
        )
        for message in sample.messages
    )
    return replace(
        sample,
        messages=tuple(
            replace(message, content=tuple(part for part in message.content if part)) for message in messages
        ),
    )
