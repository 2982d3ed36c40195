"""Media for samples: headers for the planner, frames for the rows; bad media are reported, never replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vidtune.contracts import MediaInfo, MediaItem, MediaPlan, MediaRef, Preset, Processor
from vidtune.media import MediaError, ProbeCache, draw_rng, probe, read_frames

_NOMINAL_FRAMES = 32
"""Frame count that a medium without a readable header is planned with; its samples carry weight 0."""


@dataclass
class MediaSource:
    """Plans and reads media for a processor.

    Args:
        processor: decides frames, spans and pixel steps.
        backend: decoder; see ``vidtune.media.read_frames``.
        seed: of the visual draws.
        cache_dir: folder of the header cache; None for none.
        known_bad: path -> reason of media that are not to be tried again; grows while the run goes on.
    """

    processor: Processor
    backend: str = "auto"
    seed: int = 0
    cache_dir: str | None = None
    known_bad: dict[str, str] = field(default_factory=dict)
    _probes: ProbeCache | None = field(default=None, init=False, repr=False)

    def plan(self, ref: MediaRef, epoch: int, preset: Preset) -> MediaPlan:
        """Frames and spans of a medium; the draws depend on seed, epoch and medium alone, so that all questions of a
        video see the same frames."""
        return self.processor.plan_media(self.info(ref), draw_rng(self.seed, epoch, ref.key), preset)

    def plan_all(self, refs: Sequence[MediaRef], epoch: int, preset: Preset) -> list[MediaPlan]:
        return [self.plan(ref, epoch, preset) for ref in refs]

    def info(self, ref: MediaRef) -> MediaInfo:
        """The header; of an unreadable medium a nominal one, and the medium is noted in ``known_bad``."""
        if ref.key not in self.known_bad:
            try:
                return self._probe(ref)
            except MediaError as error:
                self.known_bad[ref.key] = error.reason
        return MediaInfo(ref, _NOMINAL_FRAMES, 8.0, _NOMINAL_FRAMES / 8.0, 224, 224, exact=False)

    def why_bad(self, refs: Sequence[MediaRef]) -> str:
        """Why the first unreadable one of these media is so; empty where all could be read."""
        return next((self.known_bad[ref.key] for ref in refs if ref.key in self.known_bad), "")

    def load(self, plan: MediaPlan) -> MediaItem:
        """Tensors of a medium; black frames where it cannot be read, and the medium is noted in ``known_bad``."""
        ref = plan.info.ref
        if ref.key not in self.known_bad:
            try:
                return self._finish(plan, self._frames(plan))
            except MediaError as error:
                self.known_bad[ref.key] = error.reason
        height, width = plan.frame_size or (plan.info.height, plan.info.width)
        black = np.zeros((height, width, 3), np.uint8)
        return self._finish(plan, iter([black] * len(plan.frame_indices)))

    def _finish(self, plan: MediaPlan, frames: Iterator[np.ndarray]) -> MediaItem:
        item = self.processor.load_media(plan, frames)
        item.name = Path(plan.info.ref.path).name
        return item

    def _frames(self, plan: MediaPlan) -> Iterator[np.ndarray]:
        return read_frames(
            plan.info.ref,
            plan.frame_indices,
            backend=self.backend,
            size=plan.frame_size,
            frame_filter=plan.frame_filter,
        )

    def _probe(self, ref: MediaRef) -> MediaInfo:
        if self.cache_dir is None:
            return probe(ref)
        if self._probes is None:
            self._probes = ProbeCache(self.cache_dir)
        return self._probes.probe(ref)

    def __getstate__(self) -> dict:
        """Workers open the header cache themselves: its handle does not survive a fork or a pickle."""
        return {**self.__dict__, "_probes": None}
