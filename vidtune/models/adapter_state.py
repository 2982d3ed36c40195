"""A LoRA adapter as it was read, under our names, fused expert parameters included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vidtune.contracts import UserError
from vidtune.models.blocks.expert_lora import PARAMETERS
from vidtune.models.key_table import KeyTable
from vidtune.models.loading import stream_file

PREFIX = "base_model.model."
"""PEFT's, in front of every name that it saves."""

_UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class AdapterState:
    """Low-rank pairs, and what was trained as a whole beside them.

    Args:
        rank, alpha: of every pair.
        modules: adapted linear layers, our paths.
        parameters: adapted fused expert parameters, our names.
        state: the pairs under PEFT's names over our paths, without ``base_model.model.``.
        whole: tensors of fully trained modules, our names.
    """

    rank: int
    alpha: float
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    state: Mapping[str, Tensor]
    whole: Mapping[str, Tensor] = field(default_factory=dict)


def open_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors (names without PEFT's prefix) of an adapter folder.

    Raises:
        UserError: files missing, or a LoRA variant that is more than plain pairs.
    """
    settings = folder / "adapter_config.json"
    files = [folder / name for name in ("adapter_model.safetensors", "adapter_model.bin") if (folder / name).is_file()]
    if not settings.is_file() or not files:
        raise UserError(f"{folder}: expected adapter_config.json and adapter_model.safetensors (or .bin) there.")
    config = json.loads(settings.read_text())
    if strange := [name for name in _UNSUPPORTED if config.get(name)]:
        raise UserError(f"{settings}: {', '.join(strange)} set; this model's adapters have plain LoRA pairs only.")
    return config, {name.removeprefix(PREFIX): tensor for name, tensor in stream_file(files[0])}


def read_peft_adapter(config: Mapping[str, Any], tensors: Mapping[str, Tensor], names: KeyTable) -> AdapterState:
    """An adapter that PEFT or ``vidtune export`` saved.

    Args:
        config, tensors: of ``open_folder``.
        names: module paths of the class that it was made for, and ours; ours pass unchanged.

    Raises:
        UserError: expert pairs that the configuration's ``target_parameters`` do not explain.
    """
    state = {ours: tensor for ours, tensor in names.to_ours(tensors.items()) if ".lora_" in ours}
    whole = {ours: tensor for ours, tensor in names.to_ours(tensors.items()) if ".lora_" not in ours}
    paths = dict.fromkeys(name.rpartition(".lora_")[0] for name in state)
    wrappers: dict[str, int] = {}
    for path in paths:
        bare = path
        while bare.endswith(".base_layer"):
            bare = bare.removesuffix(".base_layer")
        if bare.endswith(".experts"):
            wrappers[bare] = wrappers.get(bare, 0) + 1
    leaves = [leaf for leaf in PARAMETERS if any(t.endswith(leaf) for t in config.get("target_parameters") or ())]
    if odd := [path for path, count in wrappers.items() if count != len(leaves)]:
        raise UserError(
            f"the adapter has {wrappers[odd[0]]} pairs on {odd[0]}, but its target_parameters name {leaves or 'none'}; "
            f"expected one pair for each."
        )
    return AdapterState(
        config["r"],
        config["lora_alpha"],
        tuple(path for path in paths if not any(path.startswith(bare) for bare in wrappers)),
        tuple(f"{bare}.{leaf}" for bare in wrappers for leaf in leaves),
        state,
        whole,
    )
