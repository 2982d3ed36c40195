"""Start values of adapters."""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from vidtune.models.blocks.expert_lora import ExpertLora


def draw_adapters(network: nn.Module, seed: int) -> None:
    """Draw adapters from the seed alone, whatever was drawn before: a sharded network, whose weights were never drawn,
    then starts like a whole one.

    Those beside weights on the meta device, where PEFT has put them too, come into host memory.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, LoraLayer):
                for name in module.lora_A:
                    for pair in (module.lora_A[name], module.lora_B[name]):
                        _leave_meta(pair)
                    module.reset_lora_parameters(name, init_lora_weights=True)
            elif isinstance(module, ExpertLora):
                _leave_meta(module)
                module.reset_parameters()


def _leave_meta(module: nn.Module) -> None:
    if any(parameter.is_meta for parameter in module.parameters()):
        trained = [parameter.requires_grad for parameter in module.parameters()]
        module.to_empty(device="cpu")
        for parameter, requires_grad in zip(module.parameters(), trained, strict=True):
            parameter.requires_grad_(requires_grad)
