"""What is wrong with a policy whatever the network: known before any weight is loaded."""

from __future__ import annotations

import re
from typing import Any

from vidtune.tuning.layers import parse_ranges

DTYPES = ("float32", "bfloat16")
MODES = ("frozen", "full", "layernorm", "lora", "qlora")


def policy_faults(path: str, policy: Any) -> list[str]:
    """One sentence per fault.

    Args:
        path: role or part, for the sentences.
        policy: a ``PartPolicy``.
    """
    if policy.mode not in MODES:
        return [f"tuning: mode {policy.mode!r} of {path} is unknown; choose one of {', '.join(MODES)}."]
    faults = []
    if policy.mode in ("lora", "qlora"):
        if policy.rank is None or policy.rank < 1 or policy.alpha is None:
            found = f"found {policy.rank} and {policy.alpha}"
            faults.append(f"tuning.{path}: LoRA needs rank (>= 1) and alpha; {found}.")
        if not 0 <= policy.dropout < 1:
            faults.append(f"tuning.{path}.dropout={policy.dropout}; expected a probability below 1.")
        try:
            re.compile(policy.targets or "")
        except re.error as error:
            faults.append(f"tuning.{path}.targets={policy.targets!r} is no regular expression: {error}.")
    if policy.dtype not in DTYPES:
        faults.append(f"tuning.{path}.dtype={policy.dtype!r}; choose one of {', '.join(DTYPES)}.")
    try:
        parse_ranges(path, policy.freeze_layers)
    except ValueError as error:
        faults.append(str(error))
    return faults
