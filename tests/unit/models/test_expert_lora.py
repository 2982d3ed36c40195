"""Adapters on fused experts: PEFT's numbers without PEFT's memory."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AriaTextConfig, AriaTextForCausalLM, MixtralConfig, MixtralForCausalLM

from vidtune.contracts import UserError
from vidtune.models.blocks.expert_lora import attach_expert_lora, merge_expert_lora
from vidtune.models.blocks.expert_lora_peft import expert_lora_state, load_expert_lora_state

RANK, ALPHA = 4, 8
PATTERN = r".*\.experts\.(gate_up|down)_proj"


def _aria() -> nn.Module:
    config = AriaTextConfig(
        hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
        moe_num_experts=6, moe_topk=2,
    )  # fmt: skip
    return AriaTextForCausalLM(config)


def _mixtral() -> nn.Module:
    config = MixtralConfig(
        hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=50, num_local_experts=6, num_experts_per_tok=2,
    )  # fmt: skip
    return MixtralForCausalLM(config)


@pytest.fixture(params=[_aria, _mixtral], ids=["in_out_layout", "out_in_layout"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param().eval()


IDS = torch.arange(2, 42).reshape(2, 20)


def _logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def _randomise(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)


def test_forward_and_gradients_equal_pefts_merged_weight(model: nn.Module) -> None:
    import copy

    twin = copy.deepcopy(model)
    attach_expert_lora(model, PATTERN, rank=RANK, alpha=ALPHA)
    _randomise(model)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=[],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )  # fmt: skip
    inject_adapter_in_model(config, twin)
    state = {name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."): tensor
             for name, tensor in expert_lora_state(model).items()}  # fmt: skip
    assert not twin.load_state_dict(state, strict=False).unexpected_keys

    ours, theirs = _logits(model), _logits(twin)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    expected = {name: parameter.grad for name, parameter in twin.named_parameters() if "lora_" in name}
    for adapters in (module for name, module in model.named_modules() if name.endswith("expert_lora")):
        for adapter in adapters.values():
            adapter.lora_A.data, adapter.lora_B.data = adapter.lora_A.grad, adapter.lora_B.grad
    for name, gradient in expert_lora_state(model).items():
        theirs_name = name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")
        torch.testing.assert_close(gradient, expected[theirs_name], rtol=1e-4, atol=1e-6)


def test_fresh_adapters_change_nothing(model: nn.Module) -> None:
    before = _logits(model)
    attach_expert_lora(model, PATTERN, rank=RANK, alpha=ALPHA)
    torch.testing.assert_close(_logits(model), before, rtol=0, atol=1e-6)


def test_merged_weights_give_the_logits_of_the_adapters(model: nn.Module) -> None:
    names = set(model.state_dict())
    adapted = attach_expert_lora(model, PATTERN, rank=RANK, alpha=ALPHA)
    _randomise(model)
    before = _logits(model)
    assert merge_expert_lora(model) == adapted
    assert set(model.state_dict()) == names
    torch.testing.assert_close(_logits(model), before, rtol=0, atol=2e-5)


class _NewShapes(TorchDispatchMode):
    """Notes the shapes, axes sorted, of all tensors that operations make anew; views of weights cost nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.weights:
                self.shapes.add(tuple(sorted(tensor.shape)))
        return result


def test_no_operation_of_a_training_step_makes_a_tensor_of_the_weights_size(model: nn.Module) -> None:
    adapted = attach_expert_lora(model, PATTERN, rank=RANK, alpha=ALPHA, dropout=0.05)
    shapes = {tuple(sorted(model.get_parameter(name).shape)) for name in adapted}
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    model.train()
    with _NewShapes(model) as seen:
        _logits(model).square().mean().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)
    assert not shapes & seen.shapes


def test_dropout_acts_in_training_on_the_adapter_alone(model: nn.Module) -> None:
    plain = _logits(model)
    attach_expert_lora(model, PATTERN, rank=RANK, alpha=ALPHA, dropout=0.5)
    torch.testing.assert_close(_logits(model.train()), plain, rtol=0, atol=1e-6)
    _randomise(model)
    one, other = _logits(model), _logits(model)
    assert not torch.equal(one, other)
    assert torch.equal(_logits(model.eval()), _logits(model))


def test_one_parameter_may_be_adapted_without_the_other_and_saved(model: nn.Module) -> None:
    attach_expert_lora(model, r".*\.experts\.down_proj", rank=RANK, alpha=ALPHA)
    _randomise(model)
    state = expert_lora_state(model)
    assert len(state) == 4 and not any("base_layer" in name for name in state)
    before = _logits(model)
    _randomise(model)
    assert load_expert_lora_state(model, state) == set(state)
    assert torch.equal(_logits(model), before)


def test_adapters_in_float32_on_bfloat16_weights_train(model: nn.Module) -> None:
    model.to(torch.bfloat16)
    attach_expert_lora(model, PATTERN, rank=RANK, alpha=ALPHA, dtype=torch.float32)
    # Rank 4 in bfloat16 has rows of 8 bytes, where grouped products want multiples of 16.
    _logits(model).float().square().mean().backward()
    gradients = [p.grad for n, p in model.named_parameters() if n.endswith("lora_B")]
    assert all(gradient.dtype == torch.float32 and gradient.abs().sum() > 0 for gradient in gradients)


def test_a_pattern_that_fits_nothing_or_a_linear_layer_is_refused(model: nn.Module) -> None:
    with pytest.raises(UserError, match="matches no parameter"):
        attach_expert_lora(model, r"nothing", rank=RANK, alpha=ALPHA)
    with pytest.raises(UserError, match=r"q_proj\.weight \(32, 32\) is no fused expert weight"):
        attach_expert_lora(model, r".*q_proj\.weight", rank=RANK, alpha=ALPHA)
