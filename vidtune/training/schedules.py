"""Learning-rate schedules as pure functions: optimizer step -> factor on the group's learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vidtune.contracts import UserError
from vidtune.text.templates import lookup


def cosine(step: int, *, total_steps: int, warmup_steps: int, min_ratio: float) -> float:
    """Linear from 0 over the warm-up, then half a cosine down to ``min_ratio`` at ``total_steps``.

    The formula of transformers' ``get_cosine_schedule_with_warmup``, with a floor.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def constant(step: int, *, total_steps: int, warmup_steps: int, min_ratio: float) -> float:
    """Linear from 0 over the warm-up, then 1."""
    return min(1.0, step / max(1, warmup_steps)) if warmup_steps else 1.0


def linear(step: int, *, total_steps: int, warmup_steps: int, min_ratio: float) -> float:
    """Linear from 0 over the warm-up, then linear down to ``min_ratio`` at ``total_steps``."""
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1 - (1 - min_ratio) * progress


def ramped_cosine(step: int, *, total_steps: int, warmup_steps: int, min_ratio: float) -> float:
    """Linear over the warm-up from 1 / ``warmup_steps`` in the first step to 1 in its last, then half a cosine that
    starts at 1 again. XTuner's fine-tuner; no step trains at rate 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return cosine(step, total_steps=total_steps, warmup_steps=warmup_steps, min_ratio=min_ratio)


def restarting_cosine(
    step: int, *, total_steps: int, warmup_steps: int, min_ratio: float, start_ratio: float = 0.0, epoch_steps: int
) -> float:
    """LAVIS' ``linear_warmup_cosine_lr``, both oddities kept: the warm-up counts the steps of the current epoch, so
    that one longer than an epoch starts again with every epoch; the cosine runs from step 0, so that the rate jumps
    down where the warm-up ends.

    Args:
        start_ratio: where the warm-up starts, as a share of the learning rate.
        epoch_steps: steps of an epoch, a plain number that need not fit the data.
    """
    if step < warmup_steps:
        return min(1.0, start_ratio + (1 - start_ratio) * (step % epoch_steps) / max(warmup_steps, 1))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))


SCHEDULES = {
    "cosine": cosine,
    "constant": constant,
    "linear": linear,
    "ramped_cosine": ramped_cosine,
    "restarting_cosine": restarting_cosine,
}
_ROUNDING = {"up": math.ceil, "down": math.floor}


def build_schedule(
    optimizer: Optimizer, total_steps: int, *, own: Sequence[Mapping[str, Any]] = (), **settings: Any
) -> LambdaLR:
    """A scheduler that is stepped once per optimizer step.

    Args:
        total_steps: optimizer steps of the run.
        own: per parameter group, what differs from ``settings``; see ``override``. None given: nothing does.
        settings: of ``build_factor``, for all groups.

    Raises:
        UserError: as ``build_factor``.
    """
    groups = optimizer.param_groups
    factors = [
        build_factor(group["lr"], total_steps, **override(settings, differs))
        for group, differs in zip(groups, own or [{}] * len(groups), strict=True)
    ]
    return LambdaLR(optimizer, factors)


_EXCLUSIVE = {"warmup_steps": "warmup_ratio", "warmup_ratio": "warmup_steps", "min_ratio": "min_lr"}
_COMMON = {"name", "warmup_steps", "warmup_ratio", "warmup_rounding", "min_ratio", "min_lr"}


def override(settings: Mapping[str, Any], differs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one group: its own before the common ones, of which those are left out that its own replace
    (a ratio by a number of steps, the options of another schedule)."""
    replaced = {_EXCLUSIVE[key] for key in differs if key in _EXCLUSIVE}
    other = differs.get("name", settings.get("name")) != settings.get("name")
    kept = {k: v for k, v in settings.items() if k not in replaced and (k in _COMMON or not other)}
    return {**kept, **differs}


def build_factor(
    lr: float,
    total_steps: int,
    *,
    name: str,
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    warmup_rounding: str = "up",
    min_ratio: float = 0.0,
    min_lr: float | None = None,
    **options: Any,
) -> Callable[[int], float]:
    """Optimizer step -> factor on a learning rate.

    Args:
        lr: the learning rate.
        total_steps: optimizer steps of the run.
        name: key of ``SCHEDULES``.
        warmup_steps, warmup_ratio: one of them; the ratio is of ``total_steps``.
        warmup_rounding: of that share to steps, ``up`` (transformers) or ``down``.
        min_ratio: floor, as a share of the learning rate.
        min_lr: floor as a learning rate; takes the place of ``min_ratio``.
        options: further arguments of that schedule.

    Raises:
        UserError: unknown name, options the schedule does not take or lacks, or both warm-up settings.
    """
    if warmup_steps is not None and warmup_ratio is not None:
        raise UserError("optim.schedule: set warmup_steps or warmup_ratio, not both (the other one to null).")
    policy: Any = lookup(SCHEDULES, name, "schedule", "optim.schedule.name")
    rounded = lookup(_ROUNDING, warmup_rounding, "rounding", "optim.schedule.warmup_rounding")
    warmup = warmup_steps if warmup_steps is not None else rounded((warmup_ratio or 0.0) * total_steps)
    arguments = {"total_steps": total_steps, "warmup_steps": warmup, **options}
    try:
        signature(policy).bind(0, min_ratio=min_ratio, **arguments)
    except TypeError as error:
        raise UserError(f"optim.schedule: {name!r} and its options {sorted(options)} do not fit: {error}.") from error
    return partial(policy, min_ratio=min_ratio if min_lr is None else min_lr / lr, **arguments)
