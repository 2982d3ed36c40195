"""One short run on the small shapes, trained once and evaluated by many tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import config, small_run
from vidtune.run import train


@pytest.fixture(scope="session")
def tiny_run(shapes: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of six steps."""
    runs = tmp_path_factory.mktemp("runs")
    train(config("train", small_run(shapes, cache_dir, runs, "run_name=tiny_run")))
    return runs / "tiny_run"
