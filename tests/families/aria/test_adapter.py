"""The original's adapter: read, applied, merged, handed on to plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file

from tests.families.aria.adapters import apply_adapter, merge_linear
from tests.families.aria.case import CASES, PACKED, Case, runs
from tests.families.aria.test_stages import _native
from vidtune.contracts import UserError
from vidtune.models.aria.adapter import NATIVE_TABLE, read_original_adapter
from vidtune.models.aria.network import Aria
from vidtune.models.blocks.expert_lora import merge_expert_lora
from vidtune.models.blocks.expert_lora_peft import expert_lora_state

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
    apply_adapter(network, read_original_adapter(case.root / "adapter"))
    assert _error(case, run, network) <= TOLERANCE


@pytest.mark.parametrize("case, run", LORA_RUNS)
def test_the_originals_adapter_merged(case: Case, run: str) -> None:
    network, adapter = case.network(), read_original_adapter(case.root / "adapter")
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
    network, adapter = case.network(attention=PACKED), read_original_adapter(case.root / "adapter")
    apply_adapter(network, adapter, dropout=0.05)
    network.eval()  # peft adds its dropout in training mode
    experts = expert_lora_state(network)
    for name, tensor in experts.items():
        assert torch.equal(tensor, adapter.state[name]), name
    state = NATIVE_TABLE.to_theirs(adapter.state.items())
    save_file({f"base_model.model.{name}": tensor for name, tensor in state}, tmp_path / "adapter_model.safetensors")
    modules = [name for name, _ in NATIVE_TABLE.to_theirs((f"{m}.weight", torch.empty(0)) for m in adapter.modules)]
    LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules="|".join(name.removesuffix(".weight").replace(".", r"\.") for name in modules),
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ).save_pretrained(tmp_path)
    native = PeftModel.from_pretrained(_native(case), tmp_path)
    ids = torch.arange(10, 60)[None]
    with torch.no_grad():
        theirs = native(input_ids=ids, use_cache=False).logits
        ours = network.language(input_ids=ids, use_cache=False).logits
        plain = case.network().language(input_ids=ids, use_cache=False).logits
    assert (ours - theirs).abs().max() <= TOLERANCE < (ours - plain).abs().max()


def test_half_a_pair_or_another_kind_of_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        read_original_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    name = "base_model.model.language_model.lm_head.lora_A.weight"
    save_file({name: torch.zeros(2, 4)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"no complete lora_A and lora_B for language\.lm_head"):
        read_original_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "use_dora": True}))
    with pytest.raises(UserError, match="use_dora"):
        read_original_adapter(tmp_path)
