"""What a run trained, as a PEFT folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from vidtune.contracts import UserError
from vidtune.models.blocks.expert_lora import adapted_experts

_PREFIX = "base_model.model."


def write_peft_folder(network: nn.Module, folder: Path, base: str) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; fully trained modules go in as
    ``modules_to_save``.

    Args:
        network: tuned and trained.
        base: path or hub id of the untuned weights, for the configuration.

    Raises:
        UserError: the run has no adapters, adapters of several ranks, or adapters on fused experts.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}
    if not layers:
        raise UserError("--to adapter: this run trained no adapter. Use --to merged (whole folder) or --to fp32.")
    if next(adapted_experts(network), None) is not None:
        raise UserError("--to adapter: adapters on fused experts have no place in this layout. Use --to merged.")
    settings = {_settings(layer) for layer in layers.values()}
    if len(settings) > 1:
        raise UserError(f"--to adapter: its adapters have several settings {sorted(settings)}. Use --to merged.")
    ((rank, alpha),) = settings
    whole = sorted({name.rpartition(".")[0] for name, p in network.named_parameters() if _trains_whole(name, p)})
    state = {
        _PREFIX + name.replace(".default.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    for module in whole:
        # PEFT saves such a module as a whole, buffers and frozen tensors too.
        for name, tensor in network.get_submodule(module).state_dict().items():
            state[f"{_PREFIX}{module}.{name}"] = tensor.detach().cpu().contiguous()
    config: Any = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(layers),
        modules_to_save=whole or None,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(state, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def _settings(layer: Any) -> tuple[int, float]:
    return int(layer.r["default"]), float(layer.lora_alpha["default"])


def _trains_whole(name: str, parameter: torch.Tensor) -> bool:
    return parameter.requires_grad and "lora_" not in name
