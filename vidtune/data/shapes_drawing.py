"""What a video of the embedded data set shows, and its frames: pure functions of (seed, split, index).

A large shape drifts in one direction, its colour changes once, and up to three grey dots sit in the corners. Shape and
count can be read off any frame. Direction and colour order cannot: the position at the middle frame is drawn
independently of the direction, and the middle frame shows the first colour in exactly half of the cases.

The sizes are those of a measured recipe that a 0.7 M parameter model learns in about 100 CPU seconds; smaller shapes,
shorter paths or brighter backgrounds were at chance after the same time.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

SIZE = 64
"""Height and width in pixels."""
NUM_FRAMES = 17
"""Odd, so that there is one middle frame; twice the 8 frames a model usually gets, so that sampling really selects."""
FPS = 8

SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = ("left", "right", "up", "down")
COUNTS = ("0", "1", "2", "3")
COLORS = {
    "red": (0.95, 0.15, 0.15),
    "green": (0.15, 0.85, 0.2),
    "blue": (0.2, 0.3, 1.0),
    "yellow": (0.95, 0.9, 0.15),
    "magenta": (0.9, 0.2, 0.9),
    "cyan": (0.15, 0.9, 0.9),
}
SPLITS = ("train", "val", "test")

_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_COLOR_PAIRS = tuple((first, second) for first in COLORS for second in COLORS if first != second)
_CORNERS = ((6, 6), (SIZE - 7, 6), (6, SIZE - 7), (SIZE - 7, SIZE - 7))
_DOT_RADIUS = 3.0
_DOT_GREY = 0.6
_NOISE = 0.03
# Frames 0-4 always show the first colour and 12-16 the second; frame 8, the middle, is right of the change for the
# half of these choices that is <= 8.
_CHANGE_FRAMES = tuple(range(5, 13))
# Streams of random numbers of one video; a stream's number is part of its key.
_LOOKS, _NOISE_STREAM, _SHAPE, _DIRECTION, _COUNT, _PAIR, _OPTION_ORDER, _CHANGE = range(8)


@dataclass(frozen=True)
class ShapesVideo:
    """All that was drawn for one video; colours in [0, 1], lengths in pixels.

    Args:
        shape, direction, count: the answers to three of the questions.
        colors: the colour before and after the change.
        options: the same two colours in the order in which the question names them.
        change_frame: first frame with the second colour.
        radius: half the width of the shape.
        middle_xy: centre of the shape at the middle frame.
        travel: distance between the centres at the first and the last frame.
        background: RGB.
        corners: indices of the corners that hold a dot.
    """

    shape: str
    direction: str
    count: str
    colors: tuple[str, str]
    options: tuple[str, str]
    change_frame: int
    radius: float
    middle_xy: tuple[float, float]
    travel: float
    background: tuple[float, float, float]
    corners: tuple[int, ...]

    @property
    def signature(self) -> tuple[object, ...]:
        """What two videos must not have in common; the wording of the question is not a part of it."""
        return astuple(self)[:4] + astuple(self)[5:]

    def centers(self) -> np.ndarray:
        """(T, 2) float64 x, y of the shape's centre in each frame; y points down."""
        times_T = np.arange(NUM_FRAMES) / (NUM_FRAMES - 1) - 0.5
        return np.array(self.middle_xy) + self.travel * times_T[:, None] * np.array(_STEPS[self.direction])

    def questions(self) -> list[tuple[str, str, str, tuple[str, ...]]]:
        """(question type, question, answer, options) of the four questions.

        The wording is short on purpose: with questions of five to seven words the small model needs several times as
        many steps before it notices which question is asked.
        """
        return [
            ("shape", "shape ?", self.shape, SHAPES),
            ("direction", "direction ?", self.direction, DIRECTIONS),
            ("count", "count ?", self.count, COUNTS),
            ("order", f"{self.options[0]} or {self.options[1]} first ?", self.colors[0], self.options),
        ]


def _rng(seed: int, split: str, stream: int, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), stream, index)))


def _balanced(seed: int, split: str, stream: int, index: int, num_choices: int) -> int:
    """A choice that is balanced over the split: consecutive blocks of ``num_choices`` videos are permutations."""
    block, offset = divmod(index, num_choices)
    return int(_rng(seed, split, stream, block).permutation(num_choices)[offset])


def draw_video(seed: int, split: str, index: int) -> ShapesVideo:
    """Draw the video ``index`` of a split; depends on nothing but the three arguments."""

    def choose(stream: int, num_choices: int) -> int:
        return _balanced(seed, split, stream, index, num_choices)

    colors = _COLOR_PAIRS[choose(_PAIR, len(_COLOR_PAIRS))]
    count = choose(_COUNT, len(COUNTS))
    rng = _rng(seed, split, _LOOKS, index)
    middle_x, middle_y = rng.uniform(SIZE / 2 - 5, SIZE / 2 + 5, size=2)
    red, green, blue = rng.uniform(0.0, 0.12, size=3)
    return ShapesVideo(
        shape=SHAPES[choose(_SHAPE, len(SHAPES))],
        direction=DIRECTIONS[choose(_DIRECTION, len(DIRECTIONS))],
        count=COUNTS[count],
        colors=colors,
        options=colors if choose(_OPTION_ORDER, 2) else (colors[1], colors[0]),
        change_frame=_CHANGE_FRAMES[choose(_CHANGE, len(_CHANGE_FRAMES))],
        radius=float(rng.uniform(10, 14)),
        middle_xy=(float(middle_x), float(middle_y)),
        travel=float(rng.uniform(34, 42)),
        background=(float(red), float(green), float(blue)),
        corners=tuple(sorted(int(corner) for corner in rng.permutation(len(_CORNERS))[:count])),
    )


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels to the outline (negative inside); x, y relative to the centre, y down."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    if shape == "triangle":  # apex up, base and height of two radii
        return np.maximum(y - radius, (2 * np.abs(x) - y - radius) / np.sqrt(5))
    assert shape == "cross"
    near, far = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return np.maximum(near - 0.3 * radius, far - radius)


def draw_frames(video: ShapesVideo, seed: int, split: str, index: int) -> np.ndarray:
    """The frames, (T, H, W, 3) uint8 RGB; seed, split and index key the noise."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    still = np.broadcast_to(np.array(video.background, dtype=np.float32), (SIZE, SIZE, 3)).copy()
    for corner in video.corners:
        dot_x, dot_y = _CORNERS[corner]
        still[np.hypot(x - dot_x, y - dot_y) <= _DOT_RADIUS] = _DOT_GREY

    centers = video.centers().astype(np.float32)
    distance_THW = _distance(video.shape, x - centers[:, 0, None, None], y - centers[:, 1, None, None], video.radius)
    cover = np.clip(0.5 - distance_THW, 0.0, 1.0)[..., None]  # a border one pixel wide blends, so that motion is smooth
    second = np.arange(NUM_FRAMES) >= video.change_frame
    colors_TC = np.array([COLORS[video.colors[int(late)]] for late in second], dtype=np.float32)
    frames = still * (1 - cover) + colors_TC[:, None, None, :] * cover
    noise = _rng(seed, split, _NOISE_STREAM, index).standard_normal(frames.shape, dtype=np.float32)
    return (np.clip(frames + _NOISE * noise, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
