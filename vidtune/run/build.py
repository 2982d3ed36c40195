"""From a composed configuration to objects: one processor, handed to the data module and to the Lightning module."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vidtune.checkpoint.attach import attach_adapter
from vidtune.checkpoint.trained import load_adapter
from vidtune.contracts import Processor, UserError
from vidtune.data.bad_media import BadMedia, read_known_bad
from vidtune.data.datamodule import BatchArithmetic, VideoDataModule
from vidtune.data.media_source import MediaSource
from vidtune.data.sizes import processor_digest
from vidtune.models.absent import hollow, remove
from vidtune.models.attention import resolve_attention
from vidtune.models.base import VideoLLM
from vidtune.models.recompute import recompute_activations
from vidtune.models.shards import Cut, defer, unwritten, weights_on_meta
from vidtune.training.strategies import num_processes
from vidtune.tuning.draw import draw_adapters
from vidtune.tuning.policy import apply_tuning, check_tuning

log = logging.getLogger(__name__)

_BAD_MEDIA = ".bad_media.jsonl"
"""Failed decodes of a run, shared by its processes."""


def prepare(cfg: DictConfig) -> None:
    """Write what a configuration can write itself: a tiny model's checkpoint, a generated data set."""
    if cfg.model.prepare is not None:
        folder = Path(cfg.model.path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / ".complete").is_file():
                instantiate(cfg.model.prepare, folder=folder)
                (folder / ".complete").touch()
    if cfg.data.prepare is not None:
        instantiate(cfg.data.prepare, root=cfg.data.root)


def build_processor(cfg: DictConfig) -> Processor:
    """The family's processor: prompts, frames, pixels."""
    return instantiate(cfg.model.processor)


def build_source(cfg: DictConfig, processor: Processor, run_dir: Path | None = None) -> MediaSource:
    """Reads the media of a run.

    Args:
        run_dir: where the processes of the run tell each other which media cannot be decoded; None for one process.
    """
    listed = read_known_bad(cfg.media.known_bad) if cfg.media.known_bad else None
    return MediaSource(
        processor,
        backend=cfg.media.backend,
        seed=cfg.seed,
        cache_dir=str(Path(cfg.paths.cache_dir) / "headers"),
        deadline_s=cfg.media.deadline_s,
        bad=BadMedia(listed, run_dir / _BAD_MEDIA if run_dir is not None else None),
        variant=partial(_build_variant, OmegaConf.to_container(cfg.model.processor, resolve=True)),
    )


def _build_variant(settings: dict[str, Any], num_frames: int | None, sampling: str | None) -> Processor:
    """The processor with another choice of frames."""
    chosen = {"num_frames": num_frames, "sampling": sampling}
    return instantiate(settings | {name: value for name, value in chosen.items() if value is not None})


def build_datamodule(cfg: DictConfig, processor: Processor, run_dir: Path | None = None) -> VideoDataModule:
    """Samples and plan of a training run."""
    batch = BatchArithmetic.derive(
        cfg.global_batch_size, cfg.micro_batch_size, cfg.accumulation, num_processes(cfg.hardware)
    )
    return VideoDataModule(
        instantiate(cfg.data.reader),
        processor,
        build_source(cfg, processor, run_dir),
        train_split=cfg.data.train_split,
        val_split=cfg.data.val_split,
        batch=batch,
        epochs=cfg.trainer.epochs,
        steps=cfg.trainer.max_steps,
        max_tokens=cfg.batch.max_tokens,
        questions_per_video=cfg.batch.questions_per_video,
        reduction=cfg.batch.reduction,
        val_samples=cfg.trainer.val_samples,
        limit=cfg.data.limit,
        num_workers=cfg.data.num_workers,
        seed=cfg.seed,
        max_bad_fraction=cfg.media.max_bad_fraction,
        sizes_dir=Path(cfg.paths.cache_dir) / "sizes",
        processor_digest=processor_digest(processor, OmegaConf.to_container(cfg.model.processor, resolve=True)),
    )


def build_network(cfg: DictConfig, absent: Sequence[str] = (), cut: Cut | None = None) -> VideoLLM:
    """The family's network with its weights loaded, nothing frozen yet.

    Args:
        absent: roles to do without; an error stands in their place.
        cut: where weights are sharded: they are cut as they are read, and the network is left on the meta device, with
            its parts, to be given room (``vidtune.models.shards``).

    Raises:
        UserError: the checkpoint is missing, damaged or does not fit.
    """
    network = _construct(cfg, absent, cut)
    _load(cfg, network)
    remove(network, absent)
    return network


def build_adapted_network(cfg: DictConfig, folder: Path) -> VideoLLM:
    """The untuned network with an adapter that lies in a folder.

    Raises:
        UserError: no adapter there, or one that was made for another model.
    """
    network = build_network(cfg)
    if reader := cfg.model.get("read_adapter"):
        attach_adapter(network, instantiate(reader, folder), str(folder))
    else:
        load_adapter(network, folder)
    return network


def build_tuned_network(
    cfg: DictConfig, absent: Sequence[str] = (), cut: Cut | None = None
) -> tuple[VideoLLM, Mapping[str, Any]]:
    """The network as it trains, and the policy of every parameter that does.

    Args:
        absent, cut: as for ``build_network``.

    Raises:
        UserError: the checkpoint is missing, damaged or does not fit; the policies do not.
    """
    network = _construct(cfg, absent, cut)
    # Before the minutes that reading takes.
    check_tuning(network, cfg.tuning, cfg.model.lora_targets)
    _load(cfg, network)
    # A card that needs loss scaling has no bf16.
    compute_dtype = torch.float16 if cfg.hardware.precision == "16-mixed" else torch.bfloat16
    policies = apply_tuning(network, cfg.tuning, cfg.model.lora_targets, cfg.model.lora_parameters, compute_dtype)
    draw_adapters(network, cfg.seed)
    remove(network, absent)
    if cfg.hardware.activation_checkpointing:
        recompute_activations(network.language, cfg.hardware.selective_recompute)
    return network, policies


def _construct(cfg: DictConfig, absent: Sequence[str], cut: Cut | None = None) -> VideoLLM:
    with weights_on_meta() if cut else nullcontext():
        network = instantiate(cfg.model.network)
    _check_context(cfg, network)
    if cut:
        defer(network, cut, absent)
    hollow(network, absent)
    return network


def _load(cfg: DictConfig, network: VideoLLM) -> None:
    report = instantiate(cfg.model.weights, network)
    assert not (left := unwritten(network)), f"nothing was written to {left[:5]}"
    log.info("loaded %s tensors from %s", getattr(report, "loaded", "all"), cfg.model.path)
    network.set_attention(resolve_attention(cfg.hardware.attention))


def _check_context(cfg: DictConfig, network: VideoLLM) -> None:
    """Refuse rows at positions that the language model never learned; answers there are wrong without a sign of it.

    Positions restart with every sample of a packed row, so that ``batch.max_tokens`` may be larger.
    """
    config = network.language.config
    context, rope = getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None) or {}
    if context and cfg.model.max_length > context and rope.get("rope_type", "default") == "default":
        raise UserError(
            f"model.max_length={cfg.model.max_length}, but the language model of model={cfg.model.name} reads "
            f"{context} tokens (max_position_embeddings in {cfg.model.path}). Set model.max_length={context} or less."
        )
