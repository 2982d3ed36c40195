"""Runs on the small shapes that many tests of evaluation read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers import config, small_run
from vidtune.run import train
from vidtune.run.train import RUN_DIR_VARIABLE


@pytest.fixture(scope="session")
def tiny_run(shapes: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of six steps."""
    runs = tmp_path_factory.mktemp("runs")
    os.environ.pop(RUN_DIR_VARIABLE, None)
    train(config("train", small_run(shapes, cache_dir, runs, "run_name=tiny_run")))
    os.environ.pop(RUN_DIR_VARIABLE, None)
    return runs / "tiny_run"
