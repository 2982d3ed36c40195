"""Estimate which tuning of which model fits a machine under which strategy: arithmetic on static memory.

Mixed-precision Adam holds 16 bytes per trained parameter: weight 2 and gradient 2 in 16 bits, then fp32 master weight
and two moments 12 (ZeRO paper, section 3.1). Activations depend on the recipe and are only allowed for by a constant,
so this says what is worth trying, not what is certain.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidtune.commands.machine import Machine

ACTIVATIONS_GB = 4.0
"""Room for activations, logits and the CUDA context of small checkpointed rows; long videos need more."""
ADAPTER_SHARE = 0.1
"""Adapters with gradients and optimizer state, as a share of the bf16 weights: 1.6 GB of 16.2 in a worked-out case."""

FACTS_FILE = Path(__file__).parents[2] / "conf" / "model_memory.json"

Tuning = Literal["full", "lora", "qlora"]


@dataclass(frozen=True)
class ModelMemory:
    """Static sizes of a model in GB; ``weights_4bit_gb`` is None where 4-bit loading does not fit the model."""

    name: str
    weights_gb: float
    weights_4bit_gb: float | None
    note: str = ""


@dataclass(frozen=True)
class StrategyMemory:
    """What a strategy divides by the number of devices, and what it moves to the host.

    Args:
        shards: of ``weights``, ``gradients``, ``optimizer`` those that each device holds only a part of.
        offloads: those that lie in host memory; gradients follow the optimizer there.
        deepspeed: needs the package.
        four_bit: works on quantised weights; sharding would need them in a matching storage type.
    """

    name: str
    shards: frozenset[str] = frozenset()
    offloads: frozenset[str] = frozenset()
    deepspeed: bool = False
    four_bit: bool = False
    one_device: bool = False


_ALL = frozenset({"weights", "gradients", "optimizer"})
_STATES = frozenset({"gradients", "optimizer"})
STRATEGIES = (
    StrategyMemory("single", four_bit=True, one_device=True),
    StrategyMemory("ddp", four_bit=True),
    StrategyMemory("zero1", frozenset({"optimizer"}), deepspeed=True),
    StrategyMemory("zero2", _STATES, deepspeed=True),
    StrategyMemory("zero2_offload", _STATES, _STATES, deepspeed=True),
    StrategyMemory("zero3", _ALL, deepspeed=True),
    StrategyMemory("zero3_offload", _ALL, _ALL, deepspeed=True),
    StrategyMemory("fsdp", _ALL),
)


@dataclass(frozen=True)
class Need:
    """Memory that a combination takes, in GB: on each device, and on the host for all devices together."""

    device_gb: float
    host_gb: float


def load_model_memory(path: Path = FACTS_FILE) -> list[ModelMemory]:
    """Read the table of sizes."""
    families = json.loads(path.read_text())["families"]
    return [ModelMemory(name, **facts) for name, facts in families.items()]


def estimate(model: ModelMemory, strategy: StrategyMemory, tuning: Tuning, num_devices: int) -> Need | None:
    """Memory of one combination, or None where it cannot work at any size."""
    if tuning == "qlora":
        if not strategy.four_bit or model.weights_4bit_gb is None:
            return None
        return Need(model.weights_4bit_gb + ADAPTER_SHARE * model.weights_gb + ACTIVATIONS_GB, 0.0)
    if tuning == "lora":
        # Adapters are small; that a strategy could divide or move them too is left out.
        parts = {"weights": model.weights_gb, "adapters": ADAPTER_SHARE * model.weights_gb}
    else:
        parts = {"weights": model.weights_gb, "gradients": model.weights_gb, "optimizer": 6 * model.weights_gb}
    device, host = ACTIVATIONS_GB, 0.0
    for part, size in parts.items():
        if part in strategy.offloads:
            host += size
        else:
            device += size / (num_devices if part in strategy.shards else 1)
    return Need(device, host)


def best_fit(model: ModelMemory, strategy: StrategyMemory, machine: Machine) -> str:
    """One cell of the report: the most thorough tuning that fits and its memory per device, or why none does."""
    if not machine.gpus:
        return "no GPU"
    if strategy.deepspeed and "deepspeed" not in machine.versions:
        return "no DeepSpeed"
    num_devices = 1 if strategy.one_device else len(machine.gpus)
    device_gb = min(gpu.memory_gb for gpu in machine.gpus)
    host_gb = float("inf") if machine.ram_gb is None else machine.ram_gb
    short: list[tuple[float, str]] = []
    order: tuple[Tuning, ...] = ("full", "lora", "qlora")
    for tuning in order:
        need = estimate(model, strategy, tuning, num_devices)
        if need is None:
            continue
        if need.device_gb <= device_gb and need.host_gb <= host_gb:
            host = f" + {need.host_gb:.0f} RAM" if need.host_gb else ""
            return f"{tuning} {need.device_gb:.0f}{host} GB"
        if need.device_gb > device_gb:
            short.append((need.device_gb, f"no: {tuning} {need.device_gb:.0f} GB"))
        else:
            short.append((need.host_gb, f"no: {tuning} {need.host_gb:.0f} GB RAM"))
    return min(short)[1]


def plan(models: Sequence[ModelMemory], machine: Machine) -> list[tuple[str, ...]]:
    """Rows of the report: name of the strategy, then one cell per model."""
    return [(strategy.name, *(best_fit(model, strategy, machine) for model in models)) for strategy in STRATEGIES]
