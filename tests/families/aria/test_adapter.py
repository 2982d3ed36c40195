"""The original's adapter: read, applied, merged, handed on to plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from tests.families.aria.adapters import apply_adapter, merge_linear
from tests.families.aria.case import CASES, PACKED, Case, runs
from tests.families.aria.test_stages import _native
from vidtune.checkpoint.attach import attach_adapter
from vidtune.checkpoint.peft_folder import write_peft_folder
from vidtune.contracts import UserError
from vidtune.models.aria.adapter import native_names, read_adapter
from vidtune.models.aria.network import Aria
from vidtune.models.blocks.expert_lora import merge_expert_lora

TOLERANCE = 3e-4
"""LoRA logits, golden README."""

LORA_RUNS = runs("train", "lora_lm.safetensors")


@torch.no_grad()
def _error(case: Case, run: str, network: Aria) -> float:
    expected = case.tensors(run, "lora_lm")
    rows, columns = expected["positions"].unbind(1)
    logits = network(case.padded(run).batch, return_logits=True).logits
    return float((logits[rows, columns] - expected["logits"]).abs().max())


@pytest.mark.parametrize("case, run", LORA_RUNS)
def test_the_originals_adapter_applied(case: Case, run: str) -> None:
    network = case.network()
    apply_adapter(network, read_adapter(case.root / "adapter"))
    assert _error(case, run, network) <= TOLERANCE


@pytest.mark.parametrize("case, run", LORA_RUNS)
def test_the_originals_adapter_merged(case: Case, run: str) -> None:
    network, adapter = case.network(), read_adapter(case.root / "adapter")
    plain = set(network.state_dict())
    merge_linear(network, adapter)
    twin = case.network()
    apply_adapter(twin, adapter)
    assert sorted(merge_expert_lora(twin)) == sorted(adapter.parameters)
    for name in adapter.parameters:
        network.get_parameter(name).data.copy_(twin.get_parameter(name))
    assert set(network.state_dict()) == plain
    assert _error(case, run, network) <= TOLERANCE


@pytest.mark.parametrize("case", [pytest.param(case, id=case.root.name) for case in CASES])
def test_what_is_saved_opens_in_plain_peft_on_the_native_class(case: Case, tmp_path: Path) -> None:
    network, adapter = case.network(attention=PACKED), read_adapter(case.root / "adapter")
    apply_adapter(network, adapter, dropout=0.05)
    network.eval()  # peft adds its dropout in training mode
    write_peft_folder(network, tmp_path, "base", native_names())
    native = PeftModel.from_pretrained(_native(case), tmp_path)
    ids = torch.arange(10, 60)[None]
    with torch.no_grad():
        theirs = native(input_ids=ids, use_cache=False).logits
        ours = network.language(input_ids=ids, use_cache=False).logits
        plain = case.network().language(input_ids=ids, use_cache=False).logits
    assert (ours - theirs).abs().max() <= TOLERANCE < (ours - plain).abs().max()

    again = read_adapter(tmp_path)
    assert sorted(again.modules) == sorted(adapter.modules) and sorted(again.parameters) == sorted(adapter.parameters)
    assert again.state.keys() == adapter.state.keys() and not again.whole
    assert all(torch.equal(tensor, adapter.state[name]) for name, tensor in again.state.items())


@pytest.mark.parametrize("case", [pytest.param(case, id=case.root.name) for case in CASES])
def test_a_fully_trained_projector_beside_the_adapters_opens_too(case: Case, tmp_path: Path) -> None:
    network = case.network(attention=PACKED)
    apply_adapter(network, read_adapter(case.root / "adapter"))
    network.connector.requires_grad_(True)
    with torch.no_grad():
        for parameter in network.connector.parameters():
            parameter.mul_(1.5)
    write_peft_folder(network, tmp_path, "base", native_names())
    native = PeftModel.from_pretrained(_native(case), tmp_path).base_model.model.model.multi_modal_projector
    theirs = {name.replace("modules_to_save.default.", ""): tensor for name, tensor in native.state_dict().items()}
    fresh = case.network()
    attach_adapter(fresh, read_adapter(tmp_path), "folder")
    for name, tensor in network.connector.state_dict().items():
        assert torch.equal(theirs[name], tensor) and torch.equal(fresh.connector.state_dict()[name], tensor), name


def test_half_a_pair_or_another_kind_of_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    name = "base_model.model.language_model.lm_head.lora_A.weight"
    save_file({name: torch.zeros(2, 4)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"no complete lora_A and lora_B for language\.lm_head"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "use_dora": True}))
    with pytest.raises(UserError, match="use_dora"):
        read_adapter(tmp_path)


def test_an_adapter_of_another_model_is_refused_with_what_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    for name, message in (("lm_head", r"lm_head"), ("model.layers.99.self_attn.q_proj", r"such as .*layers\.99")):
        pair = {"A": torch.zeros(2, 4), "B": torch.zeros(4, 2)}
        state = {f"base_model.model.language_model.{name}.lora_{k}.weight": tensor for k, tensor in pair.items()}
        save_file(state, tmp_path / "adapter_model.safetensors")
        with pytest.raises(UserError, match=rf"made for another model: .*{message}"):
            attach_adapter(CASES[0].network(), read_adapter(tmp_path), "folder")
