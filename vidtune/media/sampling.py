"""Which frames of a video are read: one pure function per formula, and the random generators they draw from.

Every policy has the signature ``(num_frames, count, fps, rng) -> indices``: frames in the medium, frames wanted,
frames per second, numpy generator. Policies with further options take them by keyword. Whether fewer than ``count``
indices come back for a short medium is part of each original's formula; ``fit_short`` replaces that rule.

Formulas follow the originals to the last rounding, since a shift by one frame changes pixels and times in the prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np

from vidtune.contracts import UserError

Short = Literal["repeat", "loop", "pad"]
SHORT: tuple[Short, ...] = ("repeat", "loop", "pad")


class Sampling(Protocol):
    """A frame choice."""

    def __call__(self, num_frames: int, count: int, fps: float, rng: np.random.Generator) -> list[int]: ...


SAMPLING: dict[str, Sampling] = {}
"""Policies by name."""


def register_sampling(name: str) -> Callable[[Sampling], Sampling]:
    """Add a policy under ``name``.

    Raises:
        UserError: the name is taken.
    """

    def add(policy: Sampling) -> Sampling:
        if name in SAMPLING:
            raise UserError(f"sampling policy {name!r} is defined twice; choose another name")
        SAMPLING[name] = policy
        return policy

    return add


def get_sampling(name: str) -> Sampling:
    """Raises:
    UserError: unknown name.
    """
    if name not in SAMPLING:
        raise UserError(f"sampling policy {name!r} is unknown; choose one of {', '.join(sorted(SAMPLING))}")
    return SAMPLING[name]


def draw_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator of all visual draws for one medium in one epoch.

    Depends on nothing else, so that all questions of a video see the same frames, for any number of workers.

    Args:
        seed: seed of the run.
        epoch: number of the epoch.
        key: ``MediaRef.key``, medium and segment.
    """
    digest = hashlib.blake2b(f"{seed}\0{epoch}\0{key}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


# ------------------------------------------------------------------------------------------------ deterministic


@register_sampling("uniform")
def uniform(num_frames: int, count: int, fps: float, rng: np.random.Generator) -> list[int]:
    """Middles of ``count`` equal segments; frames repeat where there are fewer. The neutral default."""
    return [min(num_frames - 1, (2 * k + 1) * num_frames // (2 * count)) for k in range(count)]


# Source: rhymes-ai/Aria, video branch of the training collator.
@register_sampling("stride")
def stride(num_frames: int, count: int, fps: float, rng: np.random.Generator) -> list[int]:
    """Every ``num_frames // count``-th frame from frame 0; the rest at the end is never seen, and a medium with fewer
    frames than ``count`` gives frame 0 throughout."""
    return [num_frames // count * k for k in range(count)]


# Source: DAMO-NLP-SG/Video-LLaMA, video_processor.load_video, sampling "uniform".
@register_sampling("segment_starts")
def segment_starts(num_frames: int, count: int, fps: float, rng: np.random.Generator) -> list[int]:
    """Starts of min(count, num_frames) equal segments; never the last frame of a longer medium."""
    count = min(count, num_frames)
    return [k * num_frames // count for k in range(count)]


# Source: mbzuai-oryx/Video-ChatGPT, get_seq_frames as called by load_video.
@register_sampling("rounded_midpoints")
def rounded_midpoints(num_frames: int, count: int, fps: float, rng: np.random.Generator) -> list[int]:
    """Middles between K + 1 = min(count, num_frames) + 1 boundaries round(k * (num_frames - 1) / K), half to even."""
    count = min(count, num_frames)
    width = (num_frames - 1) / count
    edges = [int(np.round(width * k)) for k in range(count + 1)]
    return [(low + high) // 2 for low, high in pairwise(edges)]


# Source: NVlabs/VILA, _load_video.
@register_sampling("linspace")
def linspace(num_frames: int, count: int, fps: float, rng: np.random.Generator) -> list[int]:
    """round(linspace(0, num_frames - 1, count)), half to even: first and last frame included, repeats when short."""
    return np.round(np.linspace(0, num_frames - 1, count)).astype(int).tolist()


def _edges(num_frames: int, count: int) -> list[int]:
    return np.linspace(0, num_frames, count + 1).astype(int).tolist()


def _hold_last(indices: list[int], count: int) -> list[int]:
    return indices + [indices[-1]] * (count - len(indices))


# Source: OpenGVLab/VideoChat-Flash, get_frame_indices, sample "middle".
@register_sampling("middle")
def middle(num_frames: int, count: int, fps: float, rng: np.random.Generator) -> list[int]:
    """Middle frame of each of min(count, num_frames) intervals; the last index is repeated up to ``count``."""
    edges = _edges(num_frames, min(count, num_frames))
    return _hold_last([(low + high - 1) // 2 for low, high in pairwise(edges)], count)


# Source: OpenGVLab/InternVL, evaluate_mvbench.get_index.
@register_sampling("chat")
def chat(
    num_frames: int,
    count: int,
    fps: float,
    rng: np.random.Generator,
    *,
    bound_s: tuple[float, float] | None = None,
) -> list[int]:
    """Middles of ``count`` steps between first and last frame, the steps rounded and the half step added unrounded.

    Args:
        bound_s: start and end in seconds that the choice is limited to.
    """
    start, end = (0, num_frames - 1) if bound_s is None else (round(bound_s[0] * fps), round(bound_s[1] * fps))
    first, last = max(0, start), min(end, num_frames - 1)
    step = (last - first) / count
    return [int(first + step / 2 + np.round(step * k)) for k in range(count)]


# Source: OpenGVLab/VideoChat-Flash, get_frame_indices, sample "fpsX".
@register_sampling("cell_centres")
def cell_centres(
    num_frames: int, count: int, fps: float, rng: np.random.Generator, *, target_fps: float = 1.0
) -> list[int]:
    """Frames at the centres of cells of 1 / ``target_fps`` seconds, the first ``count`` of them (all if count <= 0);
    the middle frame where the medium is shorter than half a cell."""
    cell = 1 / target_fps
    times = np.arange(cell / 2, num_frames / fps + cell / 2, cell)
    indices = [index for index in np.around(times * fps).astype(int).tolist() if index < num_frames]
    indices = indices or [num_frames // 2]
    return indices[:count] if count > 0 else indices


@register_sampling("fps_with_cap")
def fps_with_cap(
    num_frames: int, count: int, fps: float, rng: np.random.Generator, *, target_fps: float = 1.0
) -> list[int]:
    """``target_fps`` frames per second, at least one and at most ``count`` and ``num_frames``, spread evenly."""
    wanted = max(1, round(num_frames / fps * target_fps))
    return uniform(num_frames, min(wanted, count, num_frames), fps, rng)


# -------------------------------------------------------------------------------------------------------- random


def headtail_indices(num_frames: int, count: int, choose: Callable[[range, int], Sequence[int]]) -> list[int]:
    """count // 2 distinct frames from the first half and as many from the second, each sorted.

    Args:
        choose: draws k distinct members of a range; the original's is ``random.sample``.
    """
    each = min(count, num_frames) // 2
    half = num_frames // 2
    if not each:
        return [0]
    return sorted(choose(range(0, half), each)) + sorted(choose(range(half, num_frames), each))


# Source: DAMO-NLP-SG/Video-LLaMA, video_processor.load_video, sampling "headtail".
@register_sampling("headtail")
def headtail(num_frames: int, count: int, fps: float, rng: np.random.Generator) -> list[int]:
    """Half of the frames at random from each half of the medium; an odd ``count`` gives one frame less."""
    return headtail_indices(num_frames, count, lambda frames, k: rng.choice(frames, k, replace=False).tolist())


@register_sampling("random")
def distinct_random(num_frames: int, count: int, fps: float, rng: np.random.Generator) -> list[int]:
    """min(count, num_frames) distinct frames in ascending order, all choices equally likely."""
    return sorted(rng.choice(num_frames, min(count, num_frames), replace=False).tolist())


def rand_indices(
    num_frames: int,
    count: int,
    pick: Callable[[range], int],
    permute: Callable[[int], Sequence[int]],
) -> list[int]:
    """One random frame of each of min(count, num_frames) intervals, never the last frame of an interval.

    As soon as one interval holds a single frame nothing can be picked from it, and the whole list becomes the head of
    a permutation, sorted: an oddity of the original that is kept.

    Args:
        pick: draws from a range; the original's is ``random.choice``.
        permute: permutes range(n); the original's is ``numpy.random.permutation``.
    """
    wanted = min(count, num_frames)
    edges = _edges(num_frames, wanted)
    cells = [range(low, high - 1) for low, high in pairwise(edges)]
    indices = [pick(cell) for cell in cells] if all(cells) else sorted(int(i) for i in permute(num_frames)[:wanted])
    return _hold_last(indices, count)


# Source: OpenGVLab/VideoChat-Flash, get_frame_indices, sample "rand".
@register_sampling("rand")
def rand(num_frames: int, count: int, fps: float, rng: np.random.Generator) -> list[int]:
    """A random frame of each interval; the last index is repeated up to ``count``."""
    return rand_indices(num_frames, count, lambda cell: int(rng.choice(cell)), lambda n: rng.permutation(n).tolist())


# ------------------------------------------------------------------------------------------- counts and segments


def frame_count_by_duration(duration_s: float, min_frames: int, max_frames: int, *, step: int = 8) -> int:
    """Frames for a medium of ``duration_s``: one a second, down to a multiple of ``step`` (at least one step), then at
    most ``max_frames``, then at least ``min_frames``.

    A network that groups frames needs all three to be multiples of the group; its processor checks that.
    """
    # Source: OpenGVLab/VideoChat-Flash training data: one local group of 8 frames per 8 seconds.
    wanted = max(1, int(duration_s // step)) * step
    return max(min_frames, min(max_frames, wanted))


SEGMENT_TAIL_S = 0.1
"""Seconds at the end of a medium that a segment with an end does not reach."""


def segment_span(num_frames: int, fps: float, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """First frame and number of frames of a segment; the number is not positive where it lies outside.

    The end is cut ``SEGMENT_TAIL_S`` before that of the medium: containers overstate their length by about a frame.
    """
    # Source: OpenGVLab/VideoChat-Flash, read_frames_decord with clip.
    start = max(0.0, start_s or 0.0)
    first = int(start * fps)
    if end_s is None:
        return first, num_frames - first
    end = min(end_s, num_frames / fps - SEGMENT_TAIL_S)
    if end <= start or first >= num_frames:
        return first, 0
    return first, min(max(1, int((end - start) * fps)), num_frames - first)


def fit_short(indices: Sequence[int], num_frames: int, count: int, short: Short | None) -> list[int]:
    """``count`` indices for a medium with fewer frames than that; others keep the ``indices`` of their policy.

    Args:
        short: ``repeat`` holds each frame in turn (0 0 1 1 2 2), ``loop`` starts again (0 1 2 0 1 2), ``pad`` holds the
            last one (0 1 2 2 2 2), None keeps what the policy gave.

    Raises:
        UserError: another ``short``.
    """
    if short is not None and short not in SHORT:
        raise UserError(f"media.short={short!r} is unknown; choose one of {', '.join(SHORT)} or null")
    if short is None or num_frames >= count:
        return list(indices)
    if short == "repeat":
        return [k * num_frames // count for k in range(count)]
    if short == "loop":
        return [k % num_frames for k in range(count)]
    return [min(k, num_frames - 1) for k in range(count)]
