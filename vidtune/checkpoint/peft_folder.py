"""What a run trained, as a PEFT folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from vidtune.contracts import UserError
from vidtune.models.adapter_state import PREFIX
from vidtune.models.blocks.expert_lora import CHILD, adapted_experts
from vidtune.models.blocks.expert_lora_peft import expert_lora_state
from vidtune.models.key_table import KeyTable


def write_peft_folder(network: nn.Module, folder: Path, base: str, names: KeyTable | None = None) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; fully trained modules go in as
    ``modules_to_save``, adapters on fused experts as ``target_parameters``.

    Args:
        network: tuned and trained.
        base: path or hub id of the untuned weights, for the configuration.
        names: module paths of the class that the folder is for, and ours; None for ours.

    Raises:
        UserError: the run has no adapters, or adapters of several ranks.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}
    experts = [
        (f"{path}.{leaf}", adapter)
        for path, _, adapters in adapted_experts(network)
        for leaf, adapter in adapters.items()
    ]
    if not layers and not experts:
        raise UserError("--to adapter: this run trained no adapter. Use --to merged (whole folder) or --to fp32.")
    settings = {_settings(layer) for layer in layers.values()}
    settings |= {(adapter.rank, adapter.scaling * adapter.rank) for _, adapter in experts}
    if len(settings) > 1:
        raise UserError(f"--to adapter: its adapters have several settings {sorted(settings)}. Use --to merged.")
    ((rank, alpha),) = settings
    whole = _outermost({name.rpartition(".")[0] for name, p in network.named_parameters() if _trains_whole(name, p)})
    state = {
        name.replace(".default.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and f".{CHILD}." not in name
    }
    state |= {name: tensor.cpu() for name, tensor in expert_lora_state(network).items()}
    for module in whole:
        # PEFT saves such a module as a whole, buffers and frozen tensors too.
        for name, tensor in network.get_submodule(module).state_dict().items():
            state[f"{module}.{name}"] = tensor.detach().cpu().contiguous()
    config: Any = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(_theirs(layers, names)),
        target_parameters=sorted(_theirs([name for name, _ in experts], names)) or None,
        modules_to_save=_theirs(whole, names) or None,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    named = dict(names.to_theirs(state.items())) if names else state
    file = folder / "adapter_model.safetensors"
    save_file({PREFIX + name: tensor for name, tensor in named.items()}, str(file), metadata={"format": "pt"})


def _theirs(paths: Iterable[str], names: KeyTable | None) -> list[str]:
    """Module paths and parameter names in the class that the folder is for."""
    if names is None:
        return list(paths)
    # Rules speak of tensors: a module stands for any tensor below it.
    named = names.to_theirs((f"{path}.weight", torch.empty(0)) for path in paths)
    return [name.removesuffix(".weight") for name, _ in named]


def _settings(layer: Any) -> tuple[int, float]:
    return int(layer.r["default"]), float(layer.lora_alpha["default"])


def _trains_whole(name: str, parameter: torch.Tensor) -> bool:
    return parameter.requires_grad and "lora_" not in name


def _outermost(paths: set[str]) -> list[str]:
    """Without those that lie below another one: PEFT would wrap these twice."""
    return sorted(path for path in paths if not any(path.startswith(f"{other}.") for other in paths))
