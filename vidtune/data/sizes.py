"""Token lengths of a data set, measured once and kept on disk.

Lengths depend on everything that turns a row into ids. The file's name is a digest of all of it: the rows, the headers
of their media, the processor's configuration, its tokenizer and the code of vidtune itself. So it is either right or
not found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import track

import vidtune
from vidtune.contracts import Processor, Sample
from vidtune.data.media_source import SHOW_PROGRESS_FROM
from vidtune.data.planner import SampleSize
from vidtune.data.rows import Encoder

_ROOMS = ("contracts.py", "text", "media", "models", "data")
"""Code that has a say in lengths."""


def processor_digest(processor: Processor, settings: Mapping[str, Any]) -> str:
    """Names what a processor does to a row.

    Args:
        settings: the configuration it was built from.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    digest.update((backend.to_str() if backend is not None else repr(processor.tokenizer)).encode())
    digest.update("".join(version(name) for name in ("transformers", "tokenizers")).encode())
    home = Path(vidtune.__file__).parent
    for room in _ROOMS:
        files = [home / room] if room.endswith(".py") else sorted((home / room).rglob("*.py"))
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def measure(
    samples: Sequence[Sample], encoder: Encoder, cache_dir: Path | None = None, processor: str = ""
) -> list[SampleSize]:
    """Sizes of the samples, in order; reads headers, no pixels.

    Args:
        cache_dir: folder of measured sizes; None measures anew.
        processor: ``processor_digest``.
    """
    encoder.source.read_headers(ref for sample in samples for ref in sample.media)
    if cache_dir is None:
        return _measure(samples, encoder)
    cache_dir.mkdir(parents=True, exist_ok=True)
    file = cache_dir / f"{_rows_digest(samples, encoder, processor)}.json"
    with FileLock(f"{file}.lock"):  # of the processes of a run, one measures
        if file.is_file():
            return [SampleSize(*row) for row in json.loads(file.read_text())]
        sizes = _measure(samples, encoder)
        part = file.with_suffix(".part")
        part.write_text(json.dumps([astuple(size) for size in sizes]))
        part.replace(file)
    return sizes


def _measure(samples: Sequence[Sample], encoder: Encoder) -> list[SampleSize]:
    progress = track(
        samples,
        "token lengths",
        console=Console(stderr=True),
        disable=len(samples) < SHOW_PROGRESS_FROM,
        transient=True,
    )
    return [encoder.size(sample) for sample in progress]


def _rows_digest(samples: Sequence[Sample], encoder: Encoder, processor: str) -> str:
    source = encoder.source
    digest = hashlib.blake2b(f"{processor}/{encoder.preset}/{source.seed}".encode(), digest_size=16)
    for sample in samples:
        infos = [(source.info(ref), ref.stretch in source.bad.headers) for ref in sample.media]
        digest.update(repr((sample.messages, sample.weight, infos)).encode())
    return digest.hexdigest()
