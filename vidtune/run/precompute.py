"""The feature cache filled ahead of any run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from vidtune.contracts import MediaItem, MediaPlan, Preset, UserError
from vidtune.data.media_source import MediaSource
from vidtune.media.feature_cache import DUMMY_KEY
from vidtune.run.answerer import autocast, pick_device
from vidtune.run.build import build_network, build_processor, build_source, prepare
from vidtune.run.checks import check_config
from vidtune.run.features import RunFeatures
from vidtune.run.logs import start_logging

log = logging.getLogger(__name__)

Shard = tuple[int, int]


class _Media(Dataset):
    """Decoded media with their keys, and why one could not be read."""

    def __init__(self, plans: Sequence[tuple[str, MediaPlan]], source: MediaSource) -> None:
        self.plans, self.source = plans, source

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index: int) -> tuple[MediaItem, str]:
        key, plan = self.plans[index]
        item = replace(self.source.load(plan), cache_key=key)
        return item, self.source.bad.reason(plan.info.ref)


def precompute(
    cfg: DictConfig, splits: Sequence[str], preset: Preset = "train", shard: Shard = (0, 1)
) -> dict[str, str]:
    """Encode every medium of some splits that is not stored yet. What an interrupted call stored is not done again.

    Args:
        cfg: composed from ``conf/train.yaml``; its tuning decides which stage is stored.
        splits: names the reader knows.
        preset: ``train`` for training and its validation, ``infer`` for evaluation.
        shard: (i, n): of n processes that share the work, this is number i, from 0.

    Returns:
        Unreadable media and why; something black is stored for them, and they are tried again by the next call.

    Raises:
        UserError: no ``media.feature_cache``; a part trains that would be stored; frames drawn at random; a full disk.
    """
    if not cfg.media.feature_cache:
        raise UserError("media.feature_cache is not set; name a folder: media.feature_cache=<folder>.")
    cfg.media.feature_cache_mode = "fill"
    check_config(cfg)
    start_logging()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    prepare(cfg)
    source = build_source(cfg, build_processor(cfg))
    features = RunFeatures(cfg, source)
    read = instantiate(cfg.data.reader)
    refs = [ref for split in splits for sample in read(split) for ref in sample.media]
    source.read_headers(refs)
    features.plan(refs, preset, epochs=preset == "train")
    network = build_network(cfg, absent=("language",)).requires_grad_(False).eval()
    features.attach(network, ())
    network.feature_sink = None  # items are stored below, with the reason where they are bad
    cache = features.cache
    assert cache is not None
    mine = {cache.key(plan): plan for plan in features.plans[shard[0] :: shard[1]]}
    todo = [(key, plan) for key, plan in mine.items() if cache.why_bad(key) != ""]
    log.info("%d of %d media of this shard are stored", len(mine) - len(todo), len(mine))
    cache.expect([key for key, _ in todo], sum(plan.num_placeholders for _, plan in todo))
    # Bad media are tried again: what stands for them in the cache must not answer.
    source.features = None
    device = pick_device(cfg.hardware.accelerator)
    network.to(device)
    loader = DataLoader(_Media(todo, source), batch_size=None, num_workers=cfg.data.num_workers)
    bad: dict[str, str] = {}
    try:
        with torch.no_grad(), autocast(device, cfg.hardware.precision):
            for item, reason in track(loader, "features", total=len(todo), console=Console(stderr=True)):
                cache.add(features.encode(network, item.to(device)), reason)
                if reason:
                    bad[mine[item.cache_key].info.ref.stretch] = reason
    finally:
        cache.flush()
    assert DUMMY_KEY in cache
    return bad
