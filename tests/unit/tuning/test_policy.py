"""What each tuning policy trains."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.helpers import config
from vidtune.config.schema import PartPolicy, TuningConfig
from vidtune.contracts import UserError
from vidtune.models.tiny.tiny import write_tiny_checkpoint
from vidtune.models.tiny.weights import build_network, load_weights
from vidtune.run.build import build_tuned_network
from vidtune.run.checks import check_config
from vidtune.tuning.groups import parameter_groups, tuning_table
from vidtune.tuning.policy import apply_tuning

LORA = {"rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture
def network(folder):
    network = build_network(str(folder))
    load_weights(network, str(folder))
    return network


def tune(network, parts=None, **roles):
    tuning = TuningConfig(name="test", **{role: PartPolicy(**policy) for role, policy in roles.items()})
    tuning.parts = {path: PartPolicy(**policy) for path, policy in (parts or {}).items()}
    targets = config("train").model.lora_targets
    return apply_tuning(network, OmegaConf.structured(tuning), targets)


def trained(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_layernorm_trains_norms_and_nothing_else(network):
    policies = tune(network, vision={"mode": "layernorm"}, language={"mode": "layernorm"})
    layer = "vision.vit.encoder.layers.0.layer_norm"
    assert {name for name in trained(network) if name.startswith("vision.vit.encoder")} == {
        f"{layer}{k}.{leaf}" for k in (1, 2) for leaf in ("weight", "bias")
    }
    norms = {n for n in trained(network) if n.startswith("language")}
    assert norms == {
        "language.model.norm.weight",
        *(f"language.model.layers.{k}.{n}_layernorm.weight" for k in range(3) for n in ("input", "post_attention")),
    }
    assert set(policies) == trained(network)


def test_layernorm_of_a_part_without_norms_is_an_error(network):
    with pytest.raises(UserError, match=r"tuning.connector.mode=layernorm: there is no LayerNorm"):
        tune(network, connector={"mode": "layernorm"})


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_frozen_layers_of_a_range_do_not_train(network, mode):
    tune(network, language={"mode": mode, "freeze_layers": "0..1", **LORA})
    layers = {name.split(".")[3] for name in trained(network) if name.startswith("language.model.layers")}
    assert layers == {"2"}


@pytest.mark.parametrize("ranges", ["0..3", "2..1", "first"])
def test_a_range_of_layers_that_are_not_there_is_an_error(network, ranges):
    with pytest.raises(UserError, match=r"tuning.language.freeze_layers"):
        tune(network, language={"mode": "full", "freeze_layers": ranges})


def test_lora_learns_where_the_pattern_matches_and_keeps_other_policies(network):
    tune(network, connector={"mode": "full"}, vision={"mode": "lora", **LORA}, language={"mode": "lora", **LORA})
    names = trained(network)
    assert sum("lora_A" in name and name.startswith("language") for name in names) == 3 * 7
    assert sum("lora_A" in name and name.startswith("vision") for name in names) == 6
    assert {name for name in names if name.startswith("connector")} == {
        f"connector.{k}.{leaf}" for k in (0, 2) for leaf in ("weight", "bias")
    }
    assert not [name for name in names if "lora_" not in name and not name.startswith("connector")]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"mode": "lora", "alpha": 8.0}, "LoRA needs rank"),
        ({"mode": "lora", "rank": 4}, "LoRA needs rank"),
        ({"mode": "lora", "targets": "q_proj", **LORA}, "matches no linear module"),
        ({"mode": "lora", "rank": 0, "alpha": 8.0}, "LoRA needs rank"),
        ({"mode": "lora", "targets": "(q_proj", **LORA}, "is no regular expression"),
        ({"mode": "lora", "dropout": 1.5, **LORA}, "expected a probability below 1"),
        ({"mode": "adapters"}, "mode 'adapters' of language is unknown"),
    ],
)
def test_a_policy_that_cannot_work_says_why(network, policy, message):
    with pytest.raises(UserError, match=message):
        tune(network, language=policy)


def test_a_part_that_is_not_there_is_named_with_those_that_are(network):
    with pytest.raises(UserError, match=r"no part 'vision\.tower'.*vision\.vit"):
        tune(network, {"vision.tower": {"mode": "full"}}, language={"mode": "full"})


def test_a_network_in_which_nothing_trains_is_refused(network):
    with pytest.raises(UserError, match="every part is frozen"):
        tune(network, language={"mode": "frozen"})


def test_faults_of_policies_are_found_before_any_weight_is_loaded():
    words = ["model=aria", "model.path=none", "data.root=none", "global_batch_size=8", "micro_batch_size=4"]
    words += ["tuning=lora", "hardware=h100x8", "strategy=zero3", "tuning.vision.mode=ful", "tuning.language.rank=null"]
    cfg = config("train", [*words, "tuning.connector.freeze_layers=4..2", "data.num_frames=4"])
    with pytest.raises(UserError, match=r"(?s)mode 'ful' of vision.*freeze_layers='4\.\.2'.*language: LoRA needs rank"):
        check_config(cfg)


def test_groups_carry_the_schedule_of_their_part(network):
    own = {"mode": "full", "schedule": {"name": "constant"}}
    policies = tune(network, vision=own, connector={"mode": "full"})
    groups = parameter_groups(network, policies, lr=1e-3, weight_decay=0.1)
    found = {group["name"]: group["schedule"] for group in groups}
    assert found["vision"] == found["vision/no_decay"] == {"name": "constant"} and found["connector"] == {}


def test_a_part_overrides_its_role(network):
    tune(network, {"language.lm_head": {"mode": "full"}}, language={"mode": "lora", **LORA})
    assert "language.lm_head.weight" in trained(network)


def test_qlora_stores_adapted_layers_in_four_bits_and_nothing_else(network):
    from bitsandbytes.nn import Linear4bit

    network.to(torch.bfloat16)
    tune(network, connector={"mode": "full"}, language={"mode": "qlora", **LORA})
    four_bit = {name for name, module in network.named_modules() if isinstance(module, Linear4bit)}
    assert len(four_bit) == 3 * 7 and all(".layers." in name for name in four_bit)
    kept = ("language.lm_head", "language.model.embed_tokens", "vision.vit.embeddings.patch_embedding")
    # Frozen weights are not made larger either.
    assert {network.get_submodule(name).weight.dtype for name in kept} == {torch.bfloat16}
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}
    weight = network.get_submodule(sorted(four_bit)[0]).weight
    assert weight.dtype == torch.uint8 and weight.quant_state.nested


def test_the_table_counts_weights_in_four_bits_and_not_the_bytes_they_are_packed_into(network):
    network.to(torch.bfloat16)
    before = sum(parameter.numel() for parameter in network.language.parameters())
    policies = tune(network, language={"mode": "qlora", **LORA})
    adapters = sum(parameter.numel() for parameter in network.language.parameters() if parameter.requires_grad)
    [facts] = [
        column.cells for column in tuning_table(network, policies, lr=1e-4).columns if column.header == "language"
    ]
    _, weights, trainable, _, _, precision, _ = facts
    assert (weights, trainable) == (f"{before + adapters:,}", f"{adapters:,}")
    assert precision == "bfloat16+float32+nf4"


def test_qlora_gradients_reach_every_adapter(network):
    network.to(torch.bfloat16)
    tune(network, language={"mode": "qlora", **LORA})
    ids = torch.arange(6)[None]
    with torch.autocast("cpu", torch.bfloat16):
        network.language(input_ids=ids, labels=ids).loss.backward()
    gradients = [p.grad for n, p in network.named_parameters() if "lora_B" in n]
    assert len(gradients) == 21 and all(g is not None and g.abs().sum() > 0 for g in gradients)


def test_groups_scale_rates_by_role_and_spare_norms_and_biases_from_decay(network):
    policies = tune(network, vision={"mode": "full", "lr_ratio": 0.1}, connector={"mode": "full", "weight_decay": 0.3})
    groups = {group["name"]: group for group in parameter_groups(network, policies, lr=1e-3, weight_decay=0.1)}
    rates = {name: (round(group["lr"], 8), group["weight_decay"]) for name, group in groups.items()}
    assert rates == {
        "vision": (1e-4, 0.1),
        "vision/no_decay": (1e-4, 0.0),
        "connector": (1e-3, 0.3),
        "connector/no_decay": (1e-3, 0.0),
    }
    assert all(parameter.ndim < 2 for parameter in groups["vision/no_decay"]["params"])
    assert isinstance(network.connector[0], nn.Linear)


def test_the_table_states_numbers_share_rate_precision_and_optimizer_memory_per_role(network):
    network.to(torch.bfloat16)
    policies = tune(network, vision={"mode": "layernorm", "lr_ratio": 0.1}, language={"mode": "lora", **LORA})
    table = tuning_table(network, policies, lr=2e-4)
    rows = {column.header: list(column.cells) for column in table.columns[1:]}
    assert list(rows) == ["vision", "connector", "language"]
    # One layer and a final norm of width 64: three norms with weight and bias, 8 bytes of AdamW each.
    norms = sum(p.numel() for n, p in network.named_parameters() if n.startswith("vision") and p.requires_grad)
    assert norms == 3 * 2 * network.vision.vit.config.hidden_size
    mode, weights, trainable, share, rate, precision, megabytes = rows["vision"]
    total = sum(p.numel() for p in network.vision.parameters())
    assert (mode, weights, trainable, rate) == ("layernorm", f"{total:,}", f"{norms:,}", "2.00e-05")
    assert share == f"{100 * norms / total:.2f} %" and precision == "bfloat16+float32"
    assert megabytes == f"{norms * 8 / 1e6:.1f}"
    assert rows["connector"][0] == "frozen" and rows["connector"][2] == "0" and rows["connector"][5] == "bfloat16"
    assert rows["language"][0] == "lora" and rows["language"][4] == "2.00e-04"


def no_weights(network, path):
    """Stands for the family's loader."""
    pytest.fail("weights were read before the policies were checked")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("tuning.language.freeze_layers=0..99", r"there is no layer 99; the longest stack below language has 3"),
        ("tuning.language.targets=q_proj", "matches no linear module below language"),
        ("tuning.connector.mode=layernorm", "there is no LayerNorm or RMSNorm below connector"),
        ("+tuning.parts={vision.tower: {mode: full}}", r"no part 'vision\.tower'"),
    ],
)
def test_a_policy_that_fits_nothing_is_refused_before_weights_are_read(folder, word, message):
    cfg = config("train", [f"model.path={folder}", "tuning=lora", "hardware=cpu", word])
    cfg.model.weights["_target_"] = f"{__name__}.no_weights"
    with pytest.raises(UserError, match=message):
        build_tuned_network(cfg)
