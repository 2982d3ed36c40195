"""Cross-field checks: everything that is wrong with a configuration, in one message, before any weight is loaded."""

from __future__ import annotations

from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from vidtune.contracts import UserError
from vidtune.data.datamodule import BatchArithmetic
from vidtune.media import BACKENDS
from vidtune.media.feature_cache import CACHE_DTYPES, CACHE_MODES
from vidtune.media.sampling import SAMPLING, SHORT
from vidtune.models.attention import ATTENTION
from vidtune.models.base import ROLES
from vidtune.run.memory_check import memory_faults
from vidtune.training.schedules import build_factor, build_schedule, override
from vidtune.training.strategies import build_strategy, num_processes
from vidtune.tuning.faults import policy_faults

_DTYPES = ("float32", "bfloat16", "float16")
_REDUCTIONS = ("token", "sample")
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_config(cfg: DictConfig) -> None:
    """Raises:
    UserError: one line per fault.
    """
    faults = [str(fault) for fault in _faults(cfg)]
    if faults:
        raise UserError("\n".join(faults) if len(faults) == 1 else "\n- ".join([f"{len(faults)} faults:", *faults]))


def _faults(cfg: DictConfig) -> list[Any]:
    missing = sorted(OmegaConf.missing_keys(cfg))
    faults: list[Any] = [f"{key} is not set; set {key}=..." for key in missing]
    faults += bind_faults(cfg)
    faults += _choice(cfg.media.backend, BACKENDS, "media.backend")
    faults += _choice(cfg.media.short, (None, *SHORT), "media.short")
    faults += _choice(cfg.media.feature_cache_mode, CACHE_MODES, "media.feature_cache_mode")
    faults += _choice(cfg.media.feature_cache_dtype, CACHE_DTYPES, "media.feature_cache_dtype")
    faults += _choice(cfg.batch.reduction, _REDUCTIONS, "batch.reduction")
    faults += _choice(cfg.hardware.precision, _PRECISIONS, "hardware.precision")
    faults += _loss_scaling(cfg)
    faults += _choice(cfg.hardware.attention, ("auto", *ATTENTION), "hardware.attention")
    if not 0 <= cfg.hardware.selective_recompute <= 1:
        faults.append(f"hardware.selective_recompute={cfg.hardware.selective_recompute}; expected a share from 0 to 1")
    faults += _choice(cfg.model.dtype, _DTYPES, "model.dtype")
    if not missing:
        faults += _choice(cfg.data.sampling, tuple(SAMPLING), "data.sampling")
        if cfg.data.num_frames < 1:
            faults.append(f"data.num_frames={cfg.data.num_frames}; expected at least 1")
        faults += _processor(cfg)
        faults += memory_faults(cfg)
        faults += [fault for path, policy in _policies(cfg).items() for fault in policy_faults(path, policy)]
        faults += _four_bit(cfg)
        faults += _trained_types(cfg)
    if "trainer" in cfg:
        faults += _cadence(cfg.trainer)
        faults += _schedules(cfg)
    for check in (_batch, _strategy):
        try:
            check(cfg)
        except UserError as error:
            faults.append(error)
    return faults


def _choice(value: Any, known: tuple[Any, ...], key: str) -> list[str]:
    if value in known:
        return []
    near = get_close_matches(str(value), [str(name) for name in known], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return [f"{key}={value!r}; expected one of {', '.join(str(name) for name in known)}.{hint}"]


def _batch(cfg: DictConfig) -> None:
    if "global_batch_size" in cfg:
        processes = num_processes(cfg.hardware)
        BatchArithmetic.derive(cfg.global_batch_size, cfg.micro_batch_size, cfg.accumulation, processes)


def _cadence(trainer: DictConfig) -> list[str]:
    faults = []
    if trainer.checkpoint_every is not None and trainer.checkpoint_every_epochs is not None:
        faults.append(
            f"trainer.checkpoint_every={trainer.checkpoint_every} and trainer.checkpoint_every_epochs="
            f"{trainer.checkpoint_every_epochs} exclude each other; set one of them to null"
        )
    for key in ("checkpoint_every", "checkpoint_every_epochs", "keep_checkpoints", "keep_gb"):
        if trainer[key] is not None and trainer[key] <= 0:
            faults.append(f"trainer.{key}={trainer[key]}; expected more than 0")
    return faults


def _strategy(cfg: DictConfig) -> None:
    build_strategy(cfg.strategy, cfg.hardware)


def _processor(cfg: DictConfig) -> list[str]:
    """Settings of the family's input that do not fit one another, its number of frames among them."""
    settings = OmegaConf.to_container(cfg.model.processor, resolve=True)
    assert isinstance(settings, dict)
    try:
        family = get_object(str(settings.pop("_target_")))
        bound = signature(family).bind(**settings)
    except Exception:  # what does not exist or fit the signature is a fault of its own: see bind_faults
        return []
    bound.apply_defaults()
    faults = family.setting_faults(**bound.arguments)
    frames, tokens, length = cfg.data.num_frames, family.tokens_per_frame(**bound.arguments), cfg.model.max_length
    if frames * tokens >= length:
        faults.append(
            f"data.num_frames={frames}: so many frames of {tokens} tokens leave no room for a question in "
            f"model.max_length={length}. Set data.num_frames to at most {(length - 1) // tokens}, or raise "
            f"model.max_length."
        )
    return faults


def _loss_scaling(cfg: DictConfig) -> list[str]:
    on_cpu = cfg.hardware.accelerator == "cpu" or (cfg.hardware.accelerator == "auto" and not torch.cuda.is_available())
    if cfg.hardware.precision != "16-mixed" or not on_cpu:
        return []
    return [
        "hardware.precision=16-mixed scales the loss for GPUs without bf16; Lightning would run bf16 in its place on a "
        "CPU. Set hardware.precision=32-true or bf16-mixed"
    ]


def _policies(cfg: DictConfig) -> dict[str, Any]:
    return {role: cfg.tuning[role] for role in ROLES} | dict(cfg.tuning.parts)


def _four_bit(cfg: DictConfig) -> list[str]:
    """NF4 weights are packed bytes: what shards or flattens weights needs one storage type for all of a unit."""
    paths = [path for path, policy in _policies(cfg).items() if policy.mode == "qlora"]
    if paths and (cfg.strategy.name.startswith("zero3") or cfg.strategy.name.startswith("fsdp")):
        return [
            f"tuning.{paths[0]}.mode=qlora does not fit strategy={cfg.strategy.name}: weights that are sharded must "
            f"have one storage type, and NF4 weights are packed bytes beside bf16 ones. Choose strategy=ddp or zero2 "
            f"(each device holds the small 4-bit base), or mode=lora."
        ]
    return []


def _trained_types(cfg: DictConfig) -> list[str]:
    """DeepSpeed's optimizer keeps float32 weights and moments of whatever trains."""
    trained = {path: policy.dtype for path, policy in _policies(cfg).items() if policy.mode != "frozen"}
    others = [f"tuning.{path}.dtype={dtype}" for path, dtype in trained.items() if dtype != "float32"]
    if others and cfg.strategy.name.startswith("zero"):
        return [
            f"{others[0]} does not fit strategy={cfg.strategy.name}: "
            f"DeepSpeed keeps float32 weights and moments whatever it is given. Leave dtype out, or choose "
            f"strategy=fsdp."
        ]
    return []


def _schedules(cfg: DictConfig) -> list[str]:
    """Options of the schedule and of those that a part has of its own; one that is not ours checks itself."""
    settings: Any = OmegaConf.to_container(cfg.optim.schedule, resolve=True)
    if settings.pop("_target_") != f"{build_schedule.__module__}.{build_schedule.__name__}":
        return []
    settings.pop("_partial_", None)
    own = [policy.schedule for policy in _policies(cfg).values() if policy.schedule]
    try:
        for differs in ({}, *own):
            build_factor(cfg.optim.lr, 1, **override(settings, differs))
    except UserError as error:
        return [str(error)]
    return []


def bind_faults(cfg: Any, path: str = "") -> list[str]:
    """Keys beside a ``_target_`` that its signature does not have, or required ones that are not there."""
    faults: list[str] = []
    if OmegaConf.is_dict(cfg):
        target = cfg._get_node("_target_") if "_target_" in cfg else None
        if target is not None:
            faults += _bind(str(cfg["_target_"]), [str(key) for key in cfg], path)
        for key in cfg:
            node = cfg._get_node(key)
            if OmegaConf.is_config(node) and not node._is_none():
                faults += bind_faults(node, f"{path}.{key}" if path else str(key))
    return faults


def _bind(target: str, keys: list[str], path: str) -> list[str]:
    try:
        parameters = signature(get_object(target)).parameters
    except Exception as error:
        return [f"{path}._target_={target}: it cannot be imported ({error})"]
    given = [key for key in keys if not (key.startswith("_") and key.endswith("_"))]
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    faults = []
    for key in given:
        if key not in parameters:
            near = get_close_matches(key, parameters, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(parameters)}"
            faults.append(f"{path}.{key}: {target} has no such option{hint}")
    return faults
