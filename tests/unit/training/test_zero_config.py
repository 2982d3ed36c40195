"""A user's DeepSpeed JSON, and strategies that do not fit the machine."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from tests.helpers import config
from vidtune.contracts import UserError
from vidtune.run.checks import check_config
from vidtune.training.strategies import build_strategy
from vidtune.training.zero_config import zero_config

# The shape of the file that the InternVideo2.5 guide ships: an idiom of the Hugging Face trainer.
GUIDE = {
    "bf16": {"enabled": "auto"},
    "gradient_accumulation_steps": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "zero_optimization": {"stage": 3, "overlap_comm": True, "reduce_bucket_size": "auto", "sub_group_size": 1e9},
}


def test_what_the_user_says_about_sharding_is_kept_and_auto_is_left_out(tmp_path, caplog):
    file = tmp_path / "zero3.json"
    file.write_text(json.dumps(GUIDE))
    with caplog.at_level("INFO", logger="vidtune"):
        found = zero_config(3, False, False, str(file))
    assert found["zero_optimization"] == {"stage": 3, "overlap_comm": True, "sub_group_size": 1e9}
    assert not {"bf16", "gradient_accumulation_steps"} & set(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [(json.dumps(GUIDE), "Choose strategy=zero3"), ("[1]", "expected a JSON object"), ("{", "cannot be read as JSON")],
)
def test_a_json_that_does_not_fit_says_why(tmp_path, text, message):
    file = tmp_path / "ds.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        zero_config(2, False, False, str(file))


@pytest.mark.parametrize(
    ("strategy", "precision", "message"),
    [("fsdp1", "32-true", "GPUs only"), ("fsdp", "16-mixed", "no loss scaling")],
)
def test_a_strategy_that_cannot_run_here_is_refused(strategy, precision, message):
    hardware = OmegaConf.create({"accelerator": "cpu", "devices": 2, "num_nodes": 1, "precision": precision})
    with pytest.raises(UserError, match=message):
        build_strategy(OmegaConf.create({"name": strategy, "config": None, "strategy": None}), hardware)


@pytest.mark.parametrize("strategy", ["zero3", "zero3_offload", "fsdp"])
def test_four_bit_weights_and_sharded_weights_are_refused_together(strategy, tmp_path):
    words = ["tuning=qlora", f"strategy={strategy}", "hardware=cpu", "global_batch_size=8", "micro_batch_size=8"]
    with pytest.raises(UserError, match=rf"qlora does not fit strategy={strategy}.*packed bytes"):
        check_config(config("train", words))


@pytest.mark.parametrize("hardware", ["rtx4090", "a100_80gb", "h100_80gb", "h100x8", "slurm_2x2"])
def test_machines_compose_with_strategies(hardware):
    cfg = config("train", [f"hardware={hardware}", "strategy=zero3_offload"])
    assert cfg.hardware.devices * cfg.hardware.num_nodes in (1, 4, 8)
    assert cfg.hardware.precision == "bf16-mixed" and cfg.hardware.memory_gb > 20


def test_a_json_of_another_stage_is_refused_at_composition(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(GUIDE))
    words = ["hardware=h100x8", "global_batch_size=8", "micro_batch_size=1", f"strategy.config={file}"]
    with pytest.raises(UserError, match="Choose strategy=zero3"):
        check_config(config("train", [*words, "strategy=zero2"]))
    check_config(config("train", [*words, "strategy=zero3"]))
    with pytest.raises(UserError, match=r"is a DeepSpeed configuration, but strategy=ddp"):
        check_config(config("train", [*words[:3], "strategy=ddp", f"strategy.config={file}"]))
