"""The feature cache of a run: whether it may be used, what it holds, and which roles need not be loaded."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig, OmegaConf

import vidtune
from vidtune.contracts import MediaItem, MediaPlan, MediaRef, Preset, UserError
from vidtune.data.media_source import MediaSource
from vidtune.media.feature_cache import DUMMY_KEY, FeatureCache, Stage, differences, drawn
from vidtune.models.base import VideoLLM
from vidtune.run.weights_identity import (
    KnownWeights,
    config_digest,
    fingerprint,
    settings_without_paths,
    source_identity,
)

log = logging.getLogger(__name__)

_TEXT_ONLY = ("tokenizer_path", "max_length", "train_template", "infer_template", "num_frames", "sampling", "short")
"""Of a processor's settings: what no pixel depends on, or only through the frames that a plan names."""
_UNSHARDED = ("auto", "single", "ddp", "zero1", "zero2", "zero2_offload")
"""Strategies that keep all weights on every device: there one process may run the tower while another does not."""
_DRAWS_CHECKED = 64


def cached_stage(cfg: DictConfig, trains: bool = True) -> Stage:
    """The output of the last frozen part before the language model.

    Args:
        trains: whether the tuning policies of the configuration are in force; without, nothing trains, and ``features``
            serves any tuning.

    Raises:
        UserError: the tower trains.
    """
    training = {path.split(".")[0]: path for path, mode in _modes(cfg) if mode != "frozen"}
    if trains and "vision" in training:
        raise UserError(
            f"media.feature_cache={cfg.media.feature_cache}: {training['vision']} trains, so that what the tower makes "
            f"of a video changes with every step. Set tuning.vision.mode=frozen, or media.feature_cache=null."
        )
    return "features" if "connector" in training or "vision" in training else "connected"


def _modes(cfg: DictConfig) -> list[tuple[str, str]]:
    tuning = cfg.tuning
    return [(role, tuning[role].mode) for role in ("vision", "connector")] + [
        (p, v.mode) for p, v in tuning.parts.items()
    ]


class RunFeatures:
    """The feature cache as one run uses it.

    The order of calls is that of a run: ``plan`` when the media are known, ``absent`` when the network is built,
    ``attach`` when it has its weights, ``close`` at the end.

    Args:
        cfg: composed; ``media.feature_cache`` is set.
        source: of the run; it is given the cache.
        trains: see ``cached_stage``.
        more_weights: files that change weights after loading (an adapter).

    Raises:
        UserError: the cached part trains.
    """

    def __init__(self, cfg: DictConfig, source: MediaSource, trains: bool = True, *more_weights: Path) -> None:
        self.cfg, self.source = cfg, source
        self.folder = Path(cfg.media.feature_cache)
        self.stage = cached_stage(cfg, trains)
        self.known = KnownWeights(self.folder)
        self.identity = source_identity(cfg, self.stage, *more_weights)
        self.cache: FeatureCache | None = None
        self.plans: list[MediaPlan] = []
        weights = self.known.get(self.identity)
        if weights is not None:
            self.cache = self._open(weights)

    def plan(self, refs: Iterable[MediaRef], preset: Preset, epochs: bool) -> None:
        """Plan the media of the run.

        Args:
            epochs: the media are read in several epochs, each with its own draws.

        Raises:
            UserError: frames or crops are drawn anew in every epoch; in mode ``read``, something is missing.
        """
        unique = list({ref.key: ref for ref in refs}.values())
        if epochs:
            for ref in unique[:_DRAWS_CHECKED]:
                first, second = (self.source.plan(ref, epoch, preset) for epoch in (0, 1))
                _check_same_draws(first, second)
        self.plans = [self.source.plan(ref, 0, preset) for ref in unique]
        missing = self.missing()
        if self.cfg.media.feature_cache_mode == "read" and (self.cache is None or missing):
            raise UserError(self._incomplete(len(missing)))
        if missing and "strategy" in self.cfg and self.cfg.strategy.name not in _UNSHARDED:
            raise UserError(
                f"media.feature_cache={self.folder}: {len(missing)} media are not in it, and strategy="
                f"{self.cfg.strategy.name} needs every process to run the tower for every row or for none. "
                f"Run `vidtune precompute` with the same settings first."
            )

    def missing(self) -> dict[str, MediaPlan | None]:
        """Keys that are not stored, with their plans; the dummy has none. Everything while the weights are unknown."""
        if self.cache is None:
            return {plan.info.ref.key: plan for plan in self.plans} | {DUMMY_KEY: None}
        keyed: dict[str, MediaPlan | None] = {self.cache.key(plan): plan for plan in self.plans}
        return {key: plan for key, plan in (keyed | {DUMMY_KEY: None}).items() if key not in self.cache}

    @property
    def absent(self) -> tuple[str, ...]:
        """Roles that need not be loaded, since all they would compute is stored."""
        if self.cache is None or self.missing():
            return ()
        return ("vision",) if self.stage == "features" else ("vision", "connector")

    def attach(self, network: VideoLLM, absent: tuple[str, ...]) -> None:
        """Connect source and network to the cache.

        Args:
            network: with its weights.
            absent: roles it was built without.
        """
        if not absent:
            roles = ("vision",) if self.stage == "features" else ("vision", "connector")
            weights = fingerprint(getattr(network, role) for role in roles)
            self.known.remember(self.identity, weights)
            self.cache = self._open(weights)
            self._store_dummy(network)
            missing = self.missing()
            self.cache.expect(missing, sum(plan.num_placeholders for plan in missing.values() if plan is not None))
            network.feature_sink = self.cache.add
            log.info(
                "feature cache: %d of %d media are stored", len(self.plans) + 1 - len(missing), len(self.plans) + 1
            )
        else:
            log.info("feature cache: all %d media are stored; %s not loaded", len(self.plans), " and ".join(absent))
        self.source.features = self.cache

    def _store_dummy(self, network: VideoLLM) -> None:
        """No row may need the dummy today, but one of a later run that has no tower left to make it."""
        assert self.cache is not None
        if DUMMY_KEY not in self.cache:
            with torch.no_grad():
                self.cache.add(self.encode(network, replace(self.source.processor.dummy_media(), cache_key=DUMMY_KEY)))

    def encode(self, network: VideoLLM, item: MediaItem) -> MediaItem:
        """The item at the stage of the cache."""
        (done,) = network.encode_features([item])
        if self.stage == "connected" and done.stage != "connected":
            done = done.at("connected", {"values": network.encode_media([done])})
        return done

    def close(self) -> None:
        """Write what is waiting."""
        if self.cache is not None:
            self.cache.flush()

    def _open(self, weights: str) -> FeatureCache:
        cfg = self.cfg
        dtype = cfg.media.feature_cache_dtype
        return FeatureCache(self.folder, self._about(weights), self.stage, getattr(torch, dtype) if dtype else None)

    def _about(self, weights: str) -> dict[str, Any]:
        """Everything but the medium itself that features depend on."""
        cfg = self.cfg
        network = settings_without_paths(cfg, _plain(cfg.model.network))
        processor = settings_without_paths(cfg, _plain(cfg.model.processor))
        return {
            "weights": weights,
            "network": network,
            "geometry": config_digest(cfg),
            "processor": {key: value for key, value in processor.items() if key not in _TEXT_ONLY},
            "precision": [cfg.model.dtype, cfg.hardware.precision],
            "backend": cfg.media.backend,
            "code": _code_digest(network["_target_"], processor["_target_"]),
        }

    def _incomplete(self, num_missing: int) -> str:
        found = [] if self.cache is None else differences(self.folder, self.cache.about)
        held = f" It holds: {'; '.join(found)}." if found else ""
        return (
            f"media.feature_cache={self.folder}: {num_missing} of {len(self.plans) + 1} media of this run are not in it"
            f"{' for these weights' if self.cache is None else ''}, and media.feature_cache_mode=read computes none."
            f"{held} Run `vidtune precompute` with the same settings, or set media.feature_cache_mode=fill."
        )


def open_features(cfg: DictConfig, source: MediaSource, trains: bool = True, *more_weights: Path) -> RunFeatures | None:
    """The feature cache of a run; None where it uses none. See ``RunFeatures``."""
    return RunFeatures(cfg, source, trains, *more_weights) if cfg.media.feature_cache else None


def _check_same_draws(first: MediaPlan, second: MediaPlan) -> None:
    one, other = drawn(first), drawn(second)
    different = [name for name in one if name != "extra" and one[name] != other[name]]
    # What a family draws has names of its own, such as ``crop``.
    different += [n for n in one["extra"] | other["extra"] if one["extra"].get(n) != other["extra"].get(n)]
    if different:
        raise UserError(
            f"media.feature_cache: {', '.join(different)} of {first.info.ref.path} are drawn anew in every epoch, so "
            f"that stored features would take their variety from the run. Choose a data.sampling that does not draw "
            f"and switch random crops off in model.processor, or set media.feature_cache=null."
        )


def _plain(section: DictConfig) -> dict[str, Any]:
    return dict(OmegaConf.to_container(section, resolve=True))  # type: ignore[arg-type]


def _code_digest(*targets: str) -> str:
    """The code that turns a file into features: the family's, the decoders', and the library its blocks come from."""
    home = Path(vidtune.__file__).parent
    parts = {Path(*target.split(".")[1:]).parent.parent for target in targets if target.startswith("vidtune.")}
    digest = hashlib.sha256(transformers.__version__.encode())
    for folder in sorted({home / part for part in parts} | {home / "media"}):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:32]
