"""Interpolations for ``hardware=auto``: what this machine has."""

from __future__ import annotations

import torch
from omegaconf import OmegaConf


def found_devices() -> int:
    """Number of GPUs, or 1 (one CPU process)."""
    return max(1, torch.cuda.device_count())


def found_precision() -> str:
    """Lightning precision: bf16 autocast where the GPU has it, fp16 with loss scaling on older ones, else float32."""
    if not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def found_memory() -> float | None:
    """Memory of the smallest GPU in 10^9 bytes; None without one."""
    sizes = [torch.cuda.get_device_properties(i).total_memory / 1e9 for i in range(torch.cuda.device_count())]
    return round(min(sizes), 1) if sizes else None


def register() -> None:
    """Make the resolvers known to OmegaConf; may be called again."""
    for function in (found_devices, found_precision, found_memory):
        OmegaConf.register_new_resolver(function.__name__, function, replace=True)
