"""Pixels and seconds: headers, frames, and the choice of frames. No text, no models."""

from vidtune.media.deadline import read_with_deadline, start_reader
from vidtune.media.decode import BACKENDS, DEADLINE_S, decoder_name, probe, read_frames
from vidtune.media.errors import MediaError
from vidtune.media.probe_cache import ProbeCache
from vidtune.media.sampling import SAMPLING, draw_rng, fit_short, get_sampling

__all__ = [
    "BACKENDS",
    "DEADLINE_S",
    "SAMPLING",
    "MediaError",
    "ProbeCache",
    "decoder_name",
    "draw_rng",
    "fit_short",
    "get_sampling",
    "probe",
    "read_frames",
    "read_with_deadline",
    "start_reader",
]
