"""Checkpoints in and out, both on-disk layouts, sizes of the real network."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AriaForConditionalGeneration

from tests.families.aria.case import CASES, Case, tables
from tests.helpers import config
from vidtune.contracts import UserError
from vidtune.models.aria.adapter import our_path
from vidtune.models.aria.config import RELEASED, read_config
from vidtune.models.aria.network import Aria
from vidtune.models.aria.weights import LEGACY_KEY_TABLE, build_network, export_weights, load_weights
from vidtune.models.blocks.expert_lora import adapted_experts, attach_expert_lora
from vidtune.run.build import build_tuned_network, prepare
from vidtune.tuning.policy import apply_tuning

CONFIG = OmegaConf.load(Path(__file__).parents[3] / "conf/model/aria.yaml")
EACH = pytest.mark.parametrize("case", [pytest.param(case, id=case.root.name) for case in CASES])


def _released(case: Case) -> dict[str, Tensor]:
    return load_file(case.root / "model.safetensors")


@EACH
def test_export_gives_back_the_released_checkpoint_tensor_for_tensor(case: Case, tmp_path: Path) -> None:
    export_weights(case.network(), tmp_path)
    found, expected = load_file(tmp_path / "model.safetensors"), _released(case)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@EACH
def test_native_class_opens_an_export_without_help(case: Case, tmp_path: Path) -> None:
    network = case.network(attention="sdpa")
    export_weights(network, tmp_path)
    native, report = AriaForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        theirs = native.eval()(input_ids=ids, use_cache=False).logits
        ours = network.language(input_ids=ids, use_cache=False).logits
    assert (ours - theirs).abs().max() <= 2e-4


@EACH
def test_legacy_names_load_and_the_norm_they_lack_becomes_zero(case: Case, tmp_path: Path) -> None:
    names = case.json("training_revision_names.json")
    legacy = {names[name]: tensor for name, tensor in _released(case).items() if name in names}
    assert not any("post_layernorm" in name for name in legacy)
    (tmp_path / "config.json").write_text(json.dumps(case.config["model"]))
    half = len(legacy) // 2
    shards = {
        "model-00001-of-00002.safetensors": list(legacy)[:half],
        "model-00002-of-00002.safetensors": list(legacy)[half:],
    }
    for file, members in shards.items():
        save_file({name: legacy[name] for name in members}, tmp_path / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    network = build_network(str(tmp_path))
    network.vision.post_layernorm.weight.fill_(float("nan"))
    load_weights(network, str(tmp_path))
    expected = case.network().state_dict()
    for name, tensor in network.state_dict().items():
        wanted = torch.zeros_like(tensor) if "post_layernorm" in name else expected[name]
        assert torch.equal(tensor, wanted), name


@EACH
def test_every_name_of_the_training_revision_has_a_place(case: Case) -> None:
    own = case.network().state_dict().keys()
    theirs = case.json("training_revision_names.json").values()
    ours = {name for name, _ in LEGACY_KEY_TABLE.to_ours((name, torch.empty(0)) for name in theirs)}
    assert own - ours <= {"vision.post_layernorm.weight", "vision.post_layernorm.bias"}
    assert ours <= own


def test_the_width_of_an_expert_is_read_from_either_configuration(tmp_path: Path) -> None:
    legacy = json.loads(json.dumps(RELEASED))
    legacy["text_config"] |= {"model_type": "aria_moe_lm", "intermediate_size": 13568, "moe_intermediate_size": 1664}
    legacy["vision_config"]["model_type"] = "aria_vision_model"
    for raw in (RELEASED, legacy):
        (tmp_path / "config.json").write_text(json.dumps(raw))
        config = read_config(tmp_path)
        assert config.text_config.intermediate_size == 1664
        assert config.text_config.rope_parameters["rope_theta"] == 5e6
        assert config.vision_config.model_type == "idefics3_vision"


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        build_network(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UserError, match="model_type is 'qwen2', expected 'aria'"):
        build_network(str(tmp_path))


def test_a_missing_expert_weight_is_reported_by_our_name(tmp_path: Path) -> None:
    case = CASES[0]
    tensors = _released(case)
    del tensors["language_model.model.layers.0.mlp.experts.fc2.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing: language\.model\.layers\.0\.mlp\.experts\.down_proj"):
        load_weights(case.network(), str(tmp_path))


# ------------------------------------------------------------------------------------------------ full size


@cache
def full_size() -> Aria:
    """The released network on the meta device."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(RELEASED))
        with torch.device("meta"):
            return build_network(folder, dtype="bfloat16")


def test_the_released_network_has_the_measured_number_of_weights() -> None:
    sizes = {name: tensor.numel() for name, tensor in full_size().state_dict().items()}
    parts = {
        r"language\..*\.experts\.(gate_up|down)_proj": 22_900_899_840,
        r"language\..*\.self_attn\..*": 734_003_200,
        r"language\..*\.shared_experts\..*": 715_653_120,
        r"vision\..*": 417_792_240,
        r"language\.model\.embed_tokens\.weight": 256_901_120,
        r"language\.lm_head\.weight": 256_901_120,
        r"connector\..*": 20_427_136,
        r"language\..*\.router\.weight": 4_587_520,
        r"language\..*norm\.weight": 145_920,
    }
    for pattern, count in parts.items():
        assert sum(size for name, size in sizes.items() if re.fullmatch(pattern, name)) == count, pattern
    assert sum(sizes.values()) == 25_307_311_216 == sum(parts.values())
    assert CONFIG.num_parameters == pytest.approx(25.307311216, abs=0.01)


def _lora_names(network: Aria, roles: tuple[str, ...] = ("language",)) -> tuple[list[str], list[str]]:
    """Linear modules and fused parameters that the family's own patterns match."""
    linear = [
        name
        for name, module in network.named_modules()
        for role in roles
        if isinstance(module, torch.nn.Linear) and re.fullmatch(CONFIG.lora_targets[role], name)
    ]
    fused = [
        name
        for name, _ in network.named_parameters()
        if "language" in roles and re.fullmatch(CONFIG.lora_parameters["language"], name)
    ]
    return linear, fused


def test_lora_reaches_the_originals_253_names_and_154_333_184_weights_at_full_size() -> None:
    expected = CASES[0].json("tables/lora_full_size.json")
    network = full_size()
    linear, fused = _lora_names(network)
    assert (len(linear), len(fused), len(linear) + len(fused)) == (197, 56, expected["modules"])
    rank, kinds = expected["lora_r"], dict.fromkeys(expected["parameters_by_kind"], 0)
    for name in linear:
        module = network.get_submodule(name)
        kind = "attention" if "self_attn" in name else "shared experts" if "shared_experts" in name else "lm_head"
        kinds[kind] += rank * (module.in_features + module.out_features)
    with torch.device("meta"):
        assert attach_expert_lora(network, CONFIG.lora_parameters["language"], rank=rank, alpha=32) == fused
    kinds["routed experts"] = sum(p.numel() for n, p in network.named_parameters() if ".expert_lora." in n)
    assert kinds == expected["parameters_by_kind"]
    assert sum(kinds.values()) == expected["parameters"] == 154_333_184


@pytest.mark.parametrize("case, table", tables("lora_targets"))
def test_frozen_parts_and_layers_leave_the_originals_targets(case: Case, table: list[dict]) -> None:
    network = case.network()
    for row in table:
        override = dict(row["override"])
        frozen = [f"language.model.layers.{layer}." for layer in override.pop("freeze_llm_layers", [])]
        flags = {"freeze_vit": "vision", "freeze_projector": "connector", "freeze_llm": "language"}
        recipe = {name: case.config["lora_recipe"][name] for name in flags} | override
        assert recipe.keys() == flags.keys(), f"a setting this test does not know: {override}"
        linear, fused = _lora_names(network, tuple(role for flag, role in flags.items() if not recipe[flag]))
        found = {name for name in [*linear, *fused] if not name.startswith(tuple(frozen))}
        expected = {our_path(name) for name in row["resolved"]}
        # torch reads this weight without calling the module: the original's adapter on it never learns.
        assert expected - found <= {"connector.cross_attn.multihead_attn.out_proj"}, override
        assert found <= expected, override


@pytest.mark.parametrize(
    ("recipe", "overrides", "count", "modules"),
    [
        ("lora", [], 154_333_184, 253),
        ("lora", ["tuning.language.freeze_layers=0..20"], 823_296 + 153_509_888 // 4, 1 + 7 * 9),
        ("full", [], 25_307_311_216 - 417_792_240, 0),
    ],
)
def test_a_recipe_trains_at_full_size_what_the_original_trains(
    tmp_path: Path, recipe: str, overrides: list[str], count: int, modules: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    cfg = config("train", [f"experiment=aria_nextqa_{recipe}", f"model.path={tmp_path}", *overrides])
    with torch.device("meta"):
        network = instantiate(cfg.model.network)
        policies = apply_tuning(network, cfg.tuning, cfg.model.lora_targets, cfg.model.lora_parameters)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained.keys() == policies.keys()
    assert sum(parameter.numel() for parameter in trained.values()) == count
    assert sum(".lora_A" in name for name in trained) == modules
    assert not any(name.startswith("vision.") for name in trained)
    assert any(name.startswith("connector.") for name in trained) == (recipe == "full")


def test_the_configured_number_of_embeddings_is_the_checkpoints(tmp_path: Path) -> None:
    assert CONFIG.processor.num_embeddings == RELEASED["text_config"]["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    with pytest.raises(UserError, match=r"Set model\.processor\.num_embeddings=100352"), torch.device("meta"):
        build_network(str(tmp_path), num_embeddings=100000)


def test_dropout_and_checkpointing_of_the_lora_recipe_are_in_force(tmp_path: Path) -> None:
    cfg = config("train", ["experiment=aria_nextqa_lora", "model=aria_tiny", f"paths.cache_dir={tmp_path}"])
    prepare(cfg)
    network, _ = build_tuned_network(cfg)
    fused = [adapter for _, _, adapters in adapted_experts(network) for adapter in adapters.values()]
    linear = [module for module in network.modules() if isinstance(module, LoraLayer)]
    assert [adapter.dropout.p for adapter in fused] == [0.05] * 4
    assert [layer.lora_dropout["default"].p for layer in linear] == [0.05] * (2 * 7 + 1)
    assert network.language.is_gradient_checkpointing
    # Its switch lies in every layer: none of the frozen tower's may be on, or its embeddings would ask for gradients.
    assert not any(getattr(module, "gradient_checkpointing", False) for module in network.vision.modules())
