"""What reading in a process that can be killed costs: CPU time against reading in the caller's own, in one run.

python benchmarks/reader_process.py --repeats 5
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.decode import CLIPS
from vidtune.contracts import MediaRef
from vidtune.media import deadline, read_frames

READS = 4
"""Of one clip in a turn: a reader process serves a whole epoch, so that its fork is shared among many."""


def cpu_seconds(path: Path, indices: list[int], deadline_s: float | None) -> float:
    """CPU time of a read, children included."""
    before = _spent()
    for _ in range(READS):
        for frame in read_frames(MediaRef(str(path)), indices, deadline_s=deadline_s):
            frame.mean()
    while deadline._idle:  # the time of a child counts once it has ended
        deadline._idle.pop().kill()
    return (_spent() - before) / READS


def _spent() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="paired turns per cell")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        for clip in CLIPS:
            path = clip.write(Path(folder))
            for count in (8, 32, 128):
                indices = np.linspace(0, clip.num_frames - 1, count).round().astype(int).tolist()
                ratios = [cpu_seconds(path, indices, 60.0) / cpu_seconds(path, indices, None) for _ in range(repeats)]
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"{clip.name}, {count} frames: {spread}", flush=True)


if __name__ == "__main__":
    main()
