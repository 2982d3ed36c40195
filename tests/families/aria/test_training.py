"""Gradients of the two recipes, router losses, packed rows, what a frozen tower costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.families.aria.adapters import apply_adapter, live_names
from tests.families.aria.case import CASES, PACKED, Case, Row, packed, runs, tables
from vidtune.config.schema import PartPolicy
from vidtune.contracts import Batch
from vidtune.models.aria.adapter import our_path, read_adapter
from vidtune.models.aria.network import Aria
from vidtune.models.aria.weights import LEGACY_KEY_TABLE
from vidtune.models.blocks.router_loss import router_losses
from vidtune.tuning.groups import parameter_groups

LOSS, RELATIVE = 1e-5, 1e-4
"""Tolerances of the golden README, float32."""


def _train_mode(network: Aria, z_coeff: float, aux_coeff: float) -> Aria:
    network.moe_z_loss_coeff, network.moe_aux_loss_coeff = z_coeff, aux_coeff
    network.zero_grad()
    return network.train()


def _backward(network: Aria, batch: Batch) -> tuple[float, dict[str, float]]:
    output = network(batch)
    loss = (output.nll * batch.target_weights).sum() / batch.normalizer
    (loss + sum(output.auxiliary.values())).backward()
    return float(loss.detach()), {name: float(value.detach()) for name, value in output.auxiliary.items()}


def _check_run(network: Aria, padded: Any, run: dict[str, Any], names: dict[str, str]) -> None:
    """One backward against one coefficient pair of a ``train_*.json``; ``names``: theirs -> ours."""
    _train_mode(network, run["z_loss_coeff"], run["aux_loss_coeff"])
    loss, auxiliary = _backward(network, padded.batch)
    assert loss == pytest.approx(run["loss"], abs=LOSS)
    if auxiliary:
        assert auxiliary["router_z_loss"] == pytest.approx(sum(run["z_loss_per_layer"]), rel=RELATIVE)
        assert auxiliary["load_balancing_loss"] == pytest.approx(
            sum(run["load_balancing_loss_per_layer"]), rel=RELATIVE
        )
    parameters = dict(network.named_parameters())
    norms = {theirs: float(parameters[ours].grad.norm()) for theirs, ours in names.items()}
    assert norms == pytest.approx(run["grad_norm"], rel=RELATIVE, abs=1e-7)
    total = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in parameters.values() if p.grad is not None))
    assert total == pytest.approx(run["global_grad_norm"], rel=RELATIVE)


@pytest.mark.parametrize("case, run", runs("train", "train_full.json"))
def test_full_recipe_gradients_at_three_strengths_of_the_router_losses(case: Case, run: str) -> None:
    expected = case.json(f"expected/{run}/train_full.json")
    network = case.network()
    network.vision.requires_grad_(False)
    names = {name: _ours(name) for name in expected["trainable"]}
    trainable = {name: list(p.shape) for name, p in network.named_parameters() if p.requires_grad}
    assert trainable == {names[name]: shape for name, shape in expected["trainable"].items()}
    for strength in expected["runs"]:
        _check_run(network, case.padded(run), strength, names)


@pytest.mark.parametrize("case, run", runs("train", "train_lora.json"))
def test_lora_recipe_gradients_at_three_strengths_of_the_router_losses(case: Case, run: str) -> None:
    expected = case.json(f"expected/{run}/train_lora.json")
    adapter = read_adapter(case.root / "adapter")
    assert sorted([*adapter.modules, *adapter.parameters]) == sorted(map(our_path, expected["resolved_target_modules"]))
    network = case.network()
    apply_adapter(network, adapter)
    names = live_names(expected["trainable"])
    trainable = {name: list(p.shape) for name, p in network.named_parameters() if p.requires_grad}
    assert trainable == {names[name]: shape for name, shape in expected["trainable"].items()}
    for strength in expected["runs"]:
        _check_run(network, case.padded(run), strength, names)


def _ours(name: str) -> str:
    """Our name of a parameter of the original's training revision."""
    ((ours, _),) = LEGACY_KEY_TABLE.to_ours([(name, None)])
    return ours


@pytest.mark.parametrize("case, run", runs("train", "train_full.json"))
def test_router_losses_layer_by_layer_count_padding_in_the_padded_layout(case: Case, run: str) -> None:
    expected = case.json(f"expected/{run}/train_full.json")["runs"][-1]
    network, padded = case.network(), case.padded(run)
    with torch.no_grad():
        output = network.language.model(
            inputs_embeds=network.fused_embeddings(padded.batch),
            attention_mask=padded.attention_mask,
            position_ids=padded.batch.position_ids,
            output_router_logits=True,
            use_cache=False,
        )
    top_k = network.native_config.text_config.moe_topk
    found = [router_losses(logits.flatten(0, -2), top_k) for logits in output.router_logits]
    z_losses = [expected["z_loss_coeff"] * float(z) for z, _ in found]
    balancing = [expected["aux_loss_coeff"] * float(loss) for _, loss in found]
    assert z_losses == pytest.approx(expected["z_loss_per_layer"], rel=RELATIVE)
    assert balancing == pytest.approx(expected["load_balancing_loss_per_layer"], rel=RELATIVE)


def test_router_losses_of_a_hand_computed_case() -> None:
    # Two tokens, two experts, top 1. Token 0: logits (0, ln 3), softmax (1/4, 3/4), expert 1; token 1: (ln 3, 0).
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    z_loss, balancing = router_losses(logits, 1)
    assert float(z_loss) == pytest.approx(math.log(4) ** 2)
    # E / k * sum_e mean softmax * load = 2 * (1/2 * 1/2 + 1/2 * 1/2)
    assert float(balancing) == pytest.approx(1.0)
    # Token 0 used by three questions, token 1 by one: softmax (3/8, 5/8), load (1/4, 3/4).
    _, weighted = router_losses(logits, 1, torch.tensor([3.0, 1.0]))
    assert float(weighted) == pytest.approx(2 * (3 / 8 * 1 / 4 + 5 / 8 * 3 / 4))
    repeated = router_losses(logits[[0, 0, 0, 1]], 1)
    assert float(weighted) == pytest.approx(float(repeated[1]))
    assert [float(loss) for loss in router_losses(logits, 1, torch.zeros(2))] == [0.0, 0.0]


def _rows_with_and_without_media(case: Case) -> list[Row]:
    return [row for run in case.runs("train") if case.config["runs"][run]["size"] == 490 for row in case.rows(run)][:5]


def test_packed_golden_rows_give_the_loss_and_gradients_of_separate_ones() -> None:
    case = max(CASES, key=lambda case: len(case.runs("train")))
    network = case.network(attention=PACKED)
    network.vision.requires_grad_(False)
    rows = _rows_with_and_without_media(case)
    total = sum(float(packed([row]).normalizer) for row in rows)

    def gradients(batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
        network.zero_grad()
        loss = 0.0
        for batch in batches:
            part = network(batch).nll.sum() / total
            part.backward()
            loss += float(part.detach())
        return loss, {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}

    separate, together = gradients([packed([row]) for row in rows]), gradients([packed(rows)])
    assert together[0] == pytest.approx(separate[0], abs=LOSS)
    for name, gradient in separate[1].items():
        assert float((together[1][name] - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-6, name


def test_checkpointing_the_decoder_keeps_gradients_and_leaves_the_frozen_tower_out_of_the_graph() -> None:
    case = CASES[0]
    batch = packed(_rows_with_and_without_media(case))
    network = _train_mode(case.network(attention=PACKED), 0.01, 0.1)
    network.vision.requires_grad_(False)
    seen: list[bool] = []
    network.vision.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    _backward(network.train(), batch)
    plain = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    network.language.gradient_checkpointing_enable({"use_reentrant": False})
    _, auxiliary = _backward(network.train(), batch)
    assert auxiliary.keys() == {"router_z_loss", "load_balancing_loss"}
    assert seen == [False, False]
    assert plain.keys() == {n for n, p in network.named_parameters() if p.grad is not None}
    for name, gradient in plain.items():
        found = network.get_parameter(name).grad
        assert float((found - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7, name


@pytest.mark.parametrize("case, table", tables("weight_decay_full_recipe"))
def test_weights_decay_and_norms_and_biases_do_not(case: Case, table: dict[str, list[str]]) -> None:
    network = case.network()
    network.vision.requires_grad_(False)
    policies = dict.fromkeys((n for n, _ in network.named_parameters()), PartPolicy(mode="full"))
    by_id = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = parameter_groups(network, policies, lr=1.0, weight_decay=0.1)
    found = {
        decay: sorted(by_id[id(p)] for group in groups if group["weight_decay"] == decay for p in group["params"])
        for decay in (0.1, 0.0)
    }
    assert found[0.1] == sorted(map(_ours, table["weight_decay_0.1"]))
    assert found[0.0] == sorted(map(_ours, table["no_weight_decay"]))


def test_router_losses_reach_the_backward_only_in_training_mode() -> None:
    network = CASES[0].network(attention=PACKED)
    batch = packed(_rows_with_and_without_media(CASES[0])[:1])
    assert network(batch).auxiliary == {}
    auxiliary = network.train()(batch).auxiliary
    assert all(value.requires_grad and float(value.detach()) > 0 for value in auxiliary.values())
    _train_mode(network, 0.0, 0.0)
    assert network(batch).auxiliary == {}


def test_no_part_that_can_train_stays_without_gradient() -> None:
    network = CASES[0].network(attention=PACKED)
    _backward(network.train(), packed(_rows_with_and_without_media(CASES[0])))
    silent = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert silent == []
    assert isinstance(network.vision.post_layernorm, nn.Module)
