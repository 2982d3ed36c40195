"""What many tests need: one thread, small videos made once, runs as a user starts them."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch

from tests.helpers import CountingTokenizer, small_shapes

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shapes data set of 16 training, 6 validation and 8 test videos, four questions each."""
    return small_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the tiny models, written once per session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def char_tokenizer() -> CountingTokenizer:
    """One id per character: expected labels can be read."""
    return CountingTokenizer()
