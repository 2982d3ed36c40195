"""Media for samples: headers for the planner, frames for the rows; bad media are reported, never replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from vidtune.contracts import MediaInfo, MediaItem, MediaPlan, MediaRef, Preset, Processor
from vidtune.data.bad_media import BadMedia
from vidtune.media import MediaError, ProbeCache, draw_rng, probe, read_frames, start_reader
from vidtune.media.feature_cache import DUMMY_KEY, FeatureCache

_NOMINAL_FRAMES = 32
"""Frame count that a medium without a readable header is planned with; its samples carry weight 0."""
_PROBE_THREADS = 4
"""FFmpeg releases the interpreter's lock while it opens a file."""
SHOW_PROGRESS_FROM = 500
"""Number of items from which a bar is shown."""

Variant = Callable[[int | None, str | None], Processor]


@dataclass
class MediaSource:
    """Plans and reads media for a processor.

    Args:
        processor: decides frames, spans and pixel steps.
        backend: decoder; see ``vidtune.media.read_frames``.
        seed: of the visual draws.
        cache_dir: folder of the header cache; None for none.
        deadline_s: seconds of decoding after which a medium counts as unreadable; None for no limit.
        bad: what is known to be unreadable; grows while the run goes on.
        variant: (num_frames, sampling) -> the same processor with another choice of frames, for the sets of a mixture
            that bring their own.
        features: media that are encoded already; None where there are none.
    """

    processor: Processor
    backend: str = "auto"
    seed: int = 0
    cache_dir: str | None = None
    deadline_s: float | None = None
    bad: BadMedia = field(default_factory=BadMedia)
    variant: Variant | None = None
    features: FeatureCache | None = None
    _variants: dict[tuple[int | None, str | None], Processor] = field(default_factory=dict, init=False, repr=False)
    _probes: ProbeCache | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.deadline_s is not None:
            start_reader()  # before this process holds a network

    def plan(self, ref: MediaRef, epoch: int, preset: Preset) -> MediaPlan:
        """Frames and spans of a medium; the draws depend on seed, epoch and medium alone, so that all questions of a
        video see the same frames."""
        return self._processor(ref).plan_media(self.info(ref), draw_rng(self.seed, epoch, ref.key), preset)

    def plan_all(self, refs: Sequence[MediaRef], epoch: int, preset: Preset) -> list[MediaPlan]:
        return [self.plan(ref, epoch, preset) for ref in refs]

    def info(self, ref: MediaRef) -> MediaInfo:
        """The header; of an unreadable medium a nominal one, and the medium is noted in ``bad.headers``."""
        if ref.stretch not in self.bad.headers:
            try:
                return self._probe(ref)
            except MediaError as error:
                self.bad.headers[ref.stretch] = error.reason
        return MediaInfo(ref, _NOMINAL_FRAMES, 8.0, _NOMINAL_FRAMES / 8.0, 224, 224, exact=False)

    def read_headers(self, refs: Iterable[MediaRef]) -> None:
        """Fill the header cache for these media, several at a time."""
        unique = list({ref.stretch: ref for ref in refs}.values())
        if self.cache_dir is None or not unique:
            return
        self._probe_cache()
        with ThreadPoolExecutor(_PROBE_THREADS) as pool:
            results = pool.map(self.info, unique)
            console = Console(stderr=True)
            for _ in track(
                results,
                "headers",
                len(unique),
                console=console,
                disable=len(unique) < SHOW_PROGRESS_FROM,
                transient=True,
            ):
                pass

    def why_bad(self, refs: Sequence[MediaRef]) -> str:
        """Why the first unreadable one of these media is so; empty where all could be read."""
        return next((reason for ref in refs if (reason := self.bad.reason(ref))), "")

    def load(self, plan: MediaPlan) -> MediaItem:
        """Tensors of a medium; black frames where it cannot be read, and the medium is noted in ``bad``."""
        ref = plan.info.ref
        key = "" if self.features is None else self.features.key(plan)
        if (stored := self._stored(key, ref)) is not None:
            return stored
        if not self.bad.reason(ref):
            try:
                item = self._finish(plan, self._frames(plan))
                item.cache_key = key
                return item
            except MediaError as error:
                self.bad.note(ref, error.reason)
        height, width = plan.frame_size or (plan.info.height, plan.info.width)
        black = np.zeros((height, width, 3), np.uint8)
        return self._finish(plan, iter([black] * len(plan.frame_indices)))

    def dummy_media(self) -> MediaItem:
        """The processor's dummy, encoded already where the feature cache has it."""
        if self.features is None:
            return self.processor.dummy_media()
        found = self.features.get(DUMMY_KEY, "dummy")
        return replace(self.processor.dummy_media(), cache_key=DUMMY_KEY) if found is None else found[0]

    def _stored(self, key: str, ref: MediaRef) -> MediaItem | None:
        """The medium from the feature cache; one that was unreadable when it was stored is noted in ``bad``."""
        found = None if self.features is None else self.features.get(key, Path(ref.path).name)
        if found is None:
            return None
        item, reason = found
        if reason and not self.bad.reason(ref):
            self.bad.note(ref, reason)
        return item

    def _finish(self, plan: MediaPlan, frames: Iterator[np.ndarray]) -> MediaItem:
        item = self._processor(plan.info.ref).load_media(plan, frames)
        item.name = Path(plan.info.ref.path).name
        return item

    def _frames(self, plan: MediaPlan) -> Iterator[np.ndarray]:
        return read_frames(
            plan.info.ref,
            plan.frame_indices,
            backend=self.backend,
            size=plan.frame_size,
            frame_filter=plan.frame_filter,
            deadline_s=self.deadline_s,
        )

    def _processor(self, ref: MediaRef) -> Processor:
        key = (ref.num_frames, ref.sampling)
        if key == (None, None):
            return self.processor
        if key not in self._variants:
            assert self.variant is not None, "a medium asks for its own frames, but no way to build them was given"
            self._variants[key] = self.variant(*key)
        return self._variants[key]

    def _probe(self, ref: MediaRef) -> MediaInfo:
        if self.cache_dir is None:
            return probe(ref, deadline_s=self.deadline_s)
        return self._probe_cache().probe(ref)

    def _probe_cache(self) -> ProbeCache:
        if self._probes is None:
            assert self.cache_dir is not None
            self._probes = ProbeCache(self.cache_dir, self.deadline_s)
        return self._probes

    def __getstate__(self) -> dict:
        """Workers open the header cache themselves: its handle does not survive a fork or a pickle."""
        return {**self.__dict__, "_probes": None}
