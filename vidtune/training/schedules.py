"""Learning-rate schedules as pure functions: optimizer step -> factor on the group's learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vidtune.contracts import UserError
from vidtune.text.templates import lookup

Factor = Callable[[int], float]


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


SCHEDULES = {"cosine": cosine, "constant": constant, "linear": linear}


def build_schedule(
    optimizer: Optimizer,
    total_steps: int,
    *,
    name: str,
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    min_ratio: float = 0.0,
) -> LambdaLR:
    """A scheduler that is stepped once per optimizer step.

    Args:
        total_steps: optimizer steps of the run.
        name: key of ``SCHEDULES``.
        warmup_steps, warmup_ratio: one of them; the ratio is of ``total_steps``, rounded up.
        min_ratio: floor, as a share of the learning rate.

    Raises:
        UserError: unknown name, or both warm-up settings.
    """
    if warmup_steps is not None and warmup_ratio is not None:
        raise UserError("optim.schedule: set warmup_steps or warmup_ratio, not both (the other one to null).")
    warmup = warmup_steps if warmup_steps is not None else math.ceil((warmup_ratio or 0.0) * total_steps)
    factor: Any = partial(
        lookup(SCHEDULES, name, "schedule", "optim.schedule.name"),
        total_steps=total_steps,
        warmup_steps=warmup,
        min_ratio=min_ratio,
    )
    return LambdaLR(optimizer, factor)
