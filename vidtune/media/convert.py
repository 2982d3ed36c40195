"""Decoded pictures to RGB arrays, bit for bit as decord does it."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.filter import Graph

from vidtune.contracts import UserError

FRAME_FILTERS = ("swscale_bilinear",)
"""Scaling filters a processor may name."""


def check_filter(size: tuple[int, int] | None, frame_filter: str | None) -> None:
    """Raises:
    UserError: a size without a known filter, or a filter without a size.
    """
    if size is not None and frame_filter not in FRAME_FILTERS:
        raise UserError(
            f"frames were asked for at {size} with frame_filter={frame_filter!r}; known filters: "
            f"{', '.join(FRAME_FILTERS)}"
        )
    if size is None and frame_filter is not None:
        raise UserError(f"frame_filter={frame_filter!r} was asked for without a size (height, width)")


TURNS = {
    0: (),
    1: (("transpose", "dir=cclock"),),
    2: (("hflip",), ("vflip",)),
    3: (("transpose", "dir=clock"),),
}
"""FFmpeg filters for a number of counter-clockwise quarter turns."""


def quarter_turns(rotation: int) -> int:
    """Counter-clockwise quarter turns that show a frame upright, from FFmpeg's rotation in degrees."""
    return round(rotation / 90) % 4


class FrameConverter:
    """Turns ``VideoFrame`` into (H, W, 3) uint8 RGB, upright.

    Pixels go through an FFmpeg filter graph ``scale=...:flags=bilinear,format=rgb24``: that is what decord 0.6 does,
    with and without a size, and its result is bit-identical. ``VideoFrame.reformat`` is not when it scales (up to 125
    grey levels in chroma).

    Args:
        size: (height, width) of the upright frame, or None for the native size.
    """

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size
        self._graphs: dict[tuple[int, int, str, int], Graph] = {}

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        turns = quarter_turns(frame.rotation)
        # A stream may change its size or pixel format on the way.
        key = (frame.width, frame.height, frame.format.name, turns)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._build(frame, turns)
        frame.pts = None
        graph.vpush(frame)
        return graph.vpull().to_ndarray()

    def _build(self, frame: av.VideoFrame, turns: int) -> Graph:
        height, width = self.size or ((frame.width, frame.height) if turns % 2 else (frame.height, frame.width))
        graph = Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
        )
        # Turned first, scaled then: the order decides the last bit.
        turned = [graph.add(*step) for step in TURNS[turns]]
        scale = graph.add("scale", f"w={width}:h={height}:flags=bilinear")
        graph.link_nodes(source, *turned, scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        return graph
