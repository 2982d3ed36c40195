"""Adapters: LoRA on linear layers and fused expert weights, and the NF4 base of QLoRA."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from vidtune.contracts import UserError
from vidtune.models.base import VideoLLM
from vidtune.models.blocks.expert_lora import attach_expert_lora


def add_adapters(
    network: VideoLLM,
    path: str,
    policy: Any,
    lora_targets: Mapping[str, str],
    lora_parameters: Mapping[str, str],
    frozen_layers: Collection[str] = (),
    compute_dtype: torch.dtype = torch.bfloat16,
) -> list[str]:
    """Put adapters on what matches below a path; with ``mode: qlora`` the adapted layers become NF4 first.

    Args:
        policy: a ``PartPolicy`` with ``rank`` and ``alpha``.
        lora_targets: role -> the family's pattern for linear layers.
        lora_parameters: role -> its pattern for fused expert parameters.
        frozen_layers: module paths that stay without adapters.
        compute_dtype: in which four-bit layers compute.

    Returns:
        Names of the adapters' parameters.

    Raises:
        UserError: no pattern, or one that matches nothing.
    """
    role = path.split(".")[0]
    linears = adapted_linears(network, path, policy, lora_targets, frozen_layers)
    if policy.mode == "qlora":
        quantise(network, linears, compute_dtype)
    before = {name for name, parameter in network.named_parameters() if "lora_" in name}
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    config = LoraConfig(
        r=policy.rank,
        lora_alpha=policy.alpha,
        lora_dropout=policy.dropout,
        target_modules="|".join(map(re.escape, linears)),
    )
    inject_adapter_in_model(config, network, adapter_name="default")
    # A pattern of the user speaks of linear layers; the family's own covers its experts too.
    experts = None if policy.targets else lora_parameters.get(role)
    if experts and role == path:
        attach_expert_lora(
            network,
            _without(experts, frozen_layers),
            rank=policy.rank,
            alpha=policy.alpha,
            dropout=policy.dropout,
            dtype=torch.float32,
        )
    for name, parameter in network.named_parameters():
        # peft freezes everything that is no adapter; what other policies train must go on training.
        parameter.requires_grad_(parameter.requires_grad or name in trained)
    return [name for name, _ in network.named_parameters() if "lora_" in name and name not in before]


def adapted_linears(
    network: nn.Module,
    path: str,
    policy: Any,
    lora_targets: Mapping[str, str],
    frozen_layers: Collection[str] = (),
) -> list[str]:
    """Linear modules below a path that a policy puts adapters on; arguments as for ``add_adapters``.

    Raises:
        UserError: no pattern, or one that matches nothing.
    """
    pattern = policy.targets or lora_targets.get(path.split(".")[0])
    if not pattern:
        raise UserError(f"tuning.{path}.targets: the family names no LoRA targets for this part; set a pattern.")
    return matching_linears(network, path, pattern, frozen_layers)


def matching_linears(network: nn.Module, path: str, pattern: str, frozen_layers: Collection[str] = ()) -> list[str]:
    """Linear modules below a path whose whole path matches a regular expression.

    Raises:
        UserError: there is none.
    """
    linears = [n for n, m in network.named_modules() if n.startswith(f"{path}.") and isinstance(m, nn.Linear)]
    matching = [
        name
        for name in linears
        if re.fullmatch(pattern, name) and not any(name.startswith(f"{layer}.") for layer in frozen_layers)
    ]
    if not matching:
        example = linears[0] if linears else f"{path}.<linear>"
        left_out = " outside of freeze_layers" if frozen_layers else ""
        raise UserError(
            f"tuning.{path}.targets={pattern!r} matches no linear module below {path}{left_out}. "
            f"It must match the whole path, such as {example!r}."
        )
    return matching


def quantise(network: nn.Module, names: Collection[str], compute_dtype: torch.dtype = torch.bfloat16) -> None:
    """Store the weights of these linear layers in NF4 with double quantisation.

    Embeddings, head, norms and all else keep their dtype: only what adapters correct is rounded. On a GPU the values
    are rounded when the strategy moves them there.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in names:
        linear = network.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        four_bit = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=compute_dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        four_bit.weight = Params4bit(
            linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=four_bit
        )
        four_bit.bias = linear.bias
        # On some CPUs bitsandbytes repacks the weights in eval mode, for good: scales become bf16, sizes that are no
        # multiple of 64 fail, and training after a validation would read the packed bytes as plain ones.
        four_bit.support_avx512bf16_for_cpu = False
        if not torch.cuda.is_available():
            four_bit = four_bit.to("cpu")
        network.set_submodule(name, four_bit)
    # What peft asks of a model before it puts adapters on four-bit layers.
    network.is_loaded_in_4bit = True  # type: ignore[assignment]


def four_bit_linears(network: nn.Module) -> list[str]:
    """Paths of the linear layers that are stored in four bits, as an untuned network names them."""
    from bitsandbytes.nn import Linear4bit

    found = [name for name, module in network.named_modules() if isinstance(module, Linear4bit)]
    return [name.removesuffix(".base_layer") for name in found]


def _without(pattern: str, frozen_layers: Collection[str]) -> str:
    """The pattern, restricted to names outside of these modules."""
    if not frozen_layers:
        return pattern
    frozen = "|".join(re.escape(layer) for layer in frozen_layers)
    return f"(?!(?:{frozen})\\.)(?:{pattern})"
