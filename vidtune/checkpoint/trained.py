"""Trained weights back into a network: those of a run, or a PEFT adapter trained elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig, inject_adapter_in_model
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import nn

from vidtune.checkpoint.storage import read_checkpoint
from vidtune.contracts import UserError
from vidtune.models.adapter_state import PREFIX
from vidtune.models.shards import write_whole
from vidtune.tuning.policy import trainable_state


def load_trained(network: nn.Module, file: Path) -> int:
    """Copy the trained tensors of a checkpoint into a network that was adapted like the run's.

    Returns:
        The optimizer step of the checkpoint.

    Raises:
        UserError: the file is damaged, or was made with another model or tuning.
    """
    checkpoint = read_checkpoint(file)
    own = {f"network.{name}": parameter for name, parameter in trainable_state(network).items()}
    found = checkpoint["state_dict"]
    wrong = sorted(set(own) ^ set(found)) + [
        name for name in set(own) & set(found) if own[name].shape != found[name].shape
    ]
    if wrong:
        raise UserError(
            f"{file}: the checkpoint does not fit model and tuning: {len(wrong)} tensors differ, such as {wrong[0]}. "
            f"Evaluate a run with its own model= and tuning=."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            write_whole(parameter, found[name])
    return int(checkpoint["global_step"])


def load_adapter(network: nn.Module, folder: Path) -> None:
    """Put a PEFT adapter folder (``adapter_config.json``, ``adapter_model.safetensors``) onto a network.

    Raises:
        UserError: no adapter there, or one that was made for another model.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        state = load_peft_weights(str(folder), device="cpu")
    except Exception as error:
        raise UserError(f"adapter={folder}: no PEFT adapter can be read there ({error}).") from error
    try:
        inject_adapter_in_model(config, network, adapter_name="default")
        # PEFT finds tensors of wholly trained modules under the network's own names only.
        state = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
        outcome = set_peft_model_state_dict(network, state, adapter_name="default")
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"adapter={folder}: it was made for another model ({error}). Set model=.") from error
    adapters = {name for name, _ in network.named_parameters() if "lora_" in name}
    missing = adapters & set(outcome.missing_keys)
    if missing or outcome.unexpected_keys:
        name = next(iter(sorted(missing) or outcome.unexpected_keys))
        raise UserError(
            f"adapter={folder}: it was made for another model: {len(missing)} adapter tensors are missing and "
            f"{len(outcome.unexpected_keys)} have no place, such as {name}. Set model= to the one it was made for."
        )
