"""Whether what a device must hold whole fits it, and what would fit where it does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

_HARDWARE = Path(__file__).parents[2] / "conf" / "hardware"
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_WHOLE_WEIGHTS = ("auto", "single", "ddp", "zero1", "zero2", "zero2_offload")
"""Strategies under which every device holds all weights."""


def memory_faults(cfg: DictConfig) -> list[str]:
    """Static memory against that of a device; activations come on top and are not judged."""
    memory, strategy = cfg.hardware.memory_gb, cfg.strategy.name
    if memory is None or strategy not in _WHOLE_WEIGHTS:
        return []
    trains_all = "tuning" in cfg and cfg.tuning.language.mode == "full" and "optim" in cfg
    if not trains_all:
        per_weight, what = _BYTES[cfg.model.dtype], f"weights in {cfg.model.dtype}"
    elif strategy.startswith("zero"):
        per_weight, what = 4, "float32 weights, which this strategy keeps whole on every device"
    else:
        dtype = cfg.tuning.language.dtype
        per_weight, what = 4 * _BYTES.get(dtype, 4), f"{dtype} weights, gradients and AdamW states"
    needed = cfg.model.num_parameters * per_weight
    if needed <= memory:
        return []
    sharded = math.ceil(cfg.model.num_parameters * (16 if trains_all else per_weight) / memory)
    fits = [f"hardware={name}" for name in _presets_of(needed)]
    fits += [
        f"strategy=zero3 or fsdp on {sharded} devices or more of this kind",
        "strategy=zero3_offload (host memory)",
    ]
    if trains_all:
        fits += ["tuning=lora"]
    return [
        f"model={cfg.model.name} needs {needed:.1f} GB for its {what}, but a device has {memory} GB "
        f"(hardware={cfg.hardware.name}, strategy={strategy}). What would fit: {'; '.join(fits)}; or a smaller model."
    ]


def _presets_of(needed_gb: float) -> list[str]:
    """Choices of ``hardware=`` whose devices have this much memory."""
    names: list[str] = []
    for file in sorted(_HARDWARE.glob("*.yaml")):
        memory: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)["memory_gb"]  # type: ignore[index, call-overload]
        if isinstance(memory, float | int) and memory >= needed_gb:
            names.append(file.stem)
    return names
