"""Adapters that the original saved, and the names under which plain PEFT opens ours on the native class.

The common form between them is PEFT's naming over our module paths, without ``base_model.model.``: what
``vidtune.models.blocks.expert_lora_peft`` calls PEFT's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vidtune.contracts import UserError
from vidtune.models.aria.weights import LEGACY_KEY_TABLE
from vidtune.models.blocks.expert_lora_peft import to_peft, wrapper_names
from vidtune.models.key_table import KeyTable, Rename
from vidtune.models.loading import stream_file

_PREFIX = "base_model.model."
_EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")
_UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")

NATIVE_TABLE = KeyTable(
    (
        Rename("model.language_model.{rest*}", "language.model.{rest*}"),
        Rename("lm_head.{rest*}", "language.lm_head.{rest*}"),
        Rename("model.vision_tower.{rest*}", "vision.{rest*}"),
        Rename("model.multi_modal_projector.{rest*}", "connector.{rest*}"),
    )
)
"""Module paths of transformers' ``AriaForConditionalGeneration`` and ours."""


@dataclass(frozen=True)
class OriginalAdapter:
    """An adapter in the original's layout, read.

    Args:
        rank, alpha: of every pair.
        modules: adapted linear layers, our paths.
        parameters: adapted fused expert parameters, our names.
        state: pairs under PEFT's names over our paths.
    """

    rank: int
    alpha: float
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    state: Mapping[str, Tensor]


def our_path(module: str) -> str:
    """Our path of a module or fused parameter that the original's code calls ``module``."""
    ((name, _),) = LEGACY_KEY_TABLE.to_ours([(f"{module}.weight", None)])  # type: ignore[list-item]
    return name.removesuffix(".weight")


def read_original_adapter(folder: Path) -> OriginalAdapter:
    """Read ``adapter_config.json`` and the tensors beside it.

    Expert pairs lie there as (E, in, r) under ``...experts.fc1.lora_A.weight`` and (E, r, out) under ``lora_B``.

    Raises:
        UserError: files missing, a LoRA variant that the original never writes, or half a pair.
    """
    settings = folder / "adapter_config.json"
    files = [folder / name for name in ("adapter_model.safetensors", "adapter_model.bin") if (folder / name).is_file()]
    if not settings.is_file() or not files:
        raise UserError(f"{folder}: expected adapter_config.json and adapter_model.safetensors (or .bin) there.")
    config = json.loads(settings.read_text())
    strange = [name for name in _UNSUPPORTED if config.get(name)]
    if strange:
        raise UserError(f"{settings}: {', '.join(strange)} set; an adapter of the original has plain LoRA pairs only.")
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stream_file(files[0]):
        module, _, rest = name.removeprefix(_PREFIX).rpartition(".lora_")
        pairs.setdefault(our_path(module), {})[rest.removesuffix(".weight")] = tensor
    broken = sorted(path for path, pair in pairs.items() if set(pair) != {"A", "B"})
    if broken:
        raise UserError(f"{files[0]}: no complete lora_A and lora_B for {', '.join(broken[:5])}.")
    parameters = tuple(path for path in pairs if path.rpartition(".")[0].endswith(".experts"))
    return OriginalAdapter(
        config["r"],
        config["lora_alpha"],
        tuple(path for path in pairs if path not in parameters),
        parameters,
        _peft_names(pairs, parameters),
    )


def _peft_names(pairs: Mapping[str, Mapping[str, Tensor]], parameters: tuple[str, ...]) -> dict[str, Tensor]:
    state = {}
    for path, pair in pairs.items():
        a, b = pair["A"], pair["B"]
        if path in parameters:
            experts = path.rpartition(".")[0]
            present = [name for name in _EXPERT_PARAMETERS if f"{experts}.{name}" in parameters]
            path = wrapper_names(experts, present)[path.rpartition(".")[2]]
            a, b = to_peft(a, b)
        state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"] = a, b
    return state
