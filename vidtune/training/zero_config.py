"""DeepSpeed configurations: ours, and a user's JSON reduced to what is his to say."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from vidtune.contracts import UserError

log = logging.getLogger(__name__)

OWNED = {
    "train_batch_size": "global_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "accumulation",
    "gradient_clipping": "trainer.grad_clip",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "bf16": "hardware.precision",
    "fp16": "hardware.precision",
    "amp": "hardware.precision",
}
"""Keys of a DeepSpeed configuration that vidtune sets itself, and the setting that decides them."""

_BUCKET = 50_000_000  # elements; 0.2 GB in fp32 per buffer


def zero_config(stage: int, offload_optimizer: bool, offload_parameters: bool, config: str | None) -> dict[str, Any]:
    """The dictionary that Lightning's strategy takes.

    Args:
        stage: of ZeRO.
        offload_optimizer, offload_parameters: to host memory; ignored where ``config`` says what to offload.
        config: path of a user's JSON. Values "auto" (an idiom of the Hugging Face trainer) and the keys of ``OWNED``
            are left out with a line in the log; the rest is kept.

    Raises:
        UserError: the file is missing, no JSON object, or of another stage.
    """
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": False,
        "reduce_bucket_size": _BUCKET,
        "allgather_bucket_size": _BUCKET,
    }
    if offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    merged: dict[str, Any] = {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 1,  # for its own throughput report only
    }
    user = read_deepspeed_json(Path(config)) if config else {}
    theirs = user.pop("zero_optimization", None)
    if theirs is not None and theirs.get("stage", 0) != stage:
        raise UserError(
            f"strategy.config={config}: its zero_optimization.stage is {theirs.get('stage', 0)}, but the strategy is "
            f"ZeRO {stage}. Choose strategy=zero{theirs.get('stage', 0)}."
        )
    return {**merged, **user, "zero_optimization": theirs if theirs is not None else zero}


def read_deepspeed_json(file: Path) -> dict[str, Any]:
    """A user's DeepSpeed JSON without "auto" values and without what vidtune sets itself.

    Raises:
        UserError: missing, or no JSON object.
    """
    try:
        config = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"strategy.config={file}: it cannot be read as JSON ({error}).") from error
    if not isinstance(config, dict):
        raise UserError(f"strategy.config={file}: expected a JSON object, found {type(config).__name__}.")
    owned = {key: OWNED[key] for key in config if key in OWNED}
    autos: list[str] = []
    kept = _without_auto({key: value for key, value in config.items() if key not in OWNED}, "", autos)
    if owned or autos:
        ignored = [f"{key} (set {setting})" for key, setting in owned.items()] + [f"{key}=auto" for key in autos]
        log.info("%s: left out %s", file.name, ", ".join(ignored))
    return kept


def _without_auto(node: dict[str, Any], path: str, found: list[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in node.items():
        if value == "auto":
            found.append(f"{path}{key}")
        else:
            kept[key] = _without_auto(value, f"{path}{key}.", found) if isinstance(value, dict) else value
    return kept
