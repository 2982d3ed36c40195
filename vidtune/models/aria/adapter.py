"""Adapters of Aria that lie on disk: those of the original's code, and those of PEFT on transformers' class.

The common form between them is PEFT's naming over our module paths (``vidtune.models.adapter_state``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vidtune.contracts import UserError
from vidtune.models.adapter_state import AdapterState, open_folder, read_peft_adapter
from vidtune.models.aria.weights import LEGACY_KEY_TABLE
from vidtune.models.blocks.expert_lora import PARAMETERS
from vidtune.models.blocks.expert_lora_peft import to_peft, wrapper_names
from vidtune.models.key_table import KeyTable, Rename

_ORIGINAL_ROLES = ("language_model.", "multi_modal_projector.", "vision_tower.")

_NATIVE_TABLE = KeyTable(
    (
        Rename("model.language_model.{rest*}", "language.model.{rest*}"),
        Rename("lm_head.{rest*}", "language.lm_head.{rest*}"),
        Rename("model.vision_tower.{rest*}", "vision.{rest*}"),
        Rename("model.multi_modal_projector.{rest*}", "connector.{rest*}"),
    )
)


def native_names() -> KeyTable:
    """Module paths of transformers' ``AriaForConditionalGeneration``, and ours."""
    return _NATIVE_TABLE


def read_adapter(folder: Path) -> AdapterState:
    """The adapter in a folder, whoever saved it: the original's code, PEFT on the native class, ``vidtune export``.

    Raises:
        UserError: files missing, a LoRA variant that is more than plain pairs, or half a pair.
    """
    config, tensors = open_folder(Path(folder))
    if any(name.startswith(_ORIGINAL_ROLES) for name in tensors):
        return _read_original(config, tensors, folder)
    return read_peft_adapter(config, tensors, _NATIVE_TABLE)


def our_path(module: str) -> str:
    """Our path of a module or fused parameter that the original's code calls ``module``."""
    ((name, _),) = LEGACY_KEY_TABLE.to_ours([(f"{module}.weight", None)])  # type: ignore[list-item]
    return name.removesuffix(".weight")


def _read_original(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> AdapterState:
    """Expert pairs lie there as (E, in, r) under ``...experts.fc1.lora_A.weight`` and (E, r, out) under ``lora_B``."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, rest = name.rpartition(".lora_")
        pairs.setdefault(our_path(module), {})[rest.removesuffix(".weight")] = tensor
    broken = sorted(path for path, pair in pairs.items() if set(pair) != {"A", "B"})
    if broken:
        raise UserError(f"{folder}: no complete lora_A and lora_B for {', '.join(broken[:5])}.")
    parameters = tuple(path for path in pairs if path.rpartition(".")[0].endswith(".experts"))
    return AdapterState(
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
            present = [name for name in PARAMETERS if f"{experts}.{name}" in parameters]
            path = wrapper_names(experts, present)[path.rpartition(".")[2]]
            a, b = to_peft(a, b)
        state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"] = a, b
    return state
