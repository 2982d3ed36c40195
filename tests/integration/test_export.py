"""What a run trained, in the forms that others open."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import config, small_run
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.checkpoint.probe import compare_logits
from vidtune.contracts import UserError
from vidtune.run import train
from vidtune.run.export import export
from vidtune.run.publish import model_card, publish
from vidtune.run.train import RUN_DIR_VARIABLE


@pytest.fixture(scope="module")
def run(shapes, cache_dir, tmp_path_factory):
    """A run of three steps with adapters and a fully trained connector."""
    runs = tmp_path_factory.mktemp("runs")
    words = small_run(shapes, cache_dir, runs, "run_name=lora", "tuning=lora", "trainer.max_steps=3", "optim.lr=0.01")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(RUN_DIR_VARIABLE, raising=False)
        train(config("train", words), words)
    return runs / "lora"


@pytest.mark.parametrize("form", ["adapter", "merged", "fp32"])
def test_an_export_computes_what_the_run_computes(run, form, tmp_path):
    # export() raises where the logits of the re-loaded weights differ.
    folder = export(str(run), form, str(tmp_path / form), "last", ["hardware=cpu"])
    if form == "adapter":
        names = set(load_file(folder / "adapter_model.safetensors"))
        assert "base_model.model.connector.0.weight" in names
        assert sum("lora_A" in name for name in names) == 3 * 7
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 16
    if form == "fp32":
        saved = torch.load(find_checkpoint(run, "last"), weights_only=True)["state_dict"]
        found = load_file(folder / "trained_fp32.safetensors")
        assert {f"network.{name}" for name in found} == set(saved)
        assert all(torch.equal(saved[f"network.{name}"], tensor) for name, tensor in found.items())


def test_an_export_never_overwrites(run, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        export(str(run), "fp32", str(tmp_path), "last", ["hardware=cpu"])


def test_logits_that_differ_by_more_than_rounding_are_an_error():
    logits = torch.randn(4, 8)
    assert compare_logits(logits, logits.clone(), torch.float32, "same") == 0
    with pytest.raises(UserError, match=r"logits differ .* Do not use this export"):
        compare_logits(logits, logits + 0.1, torch.float32, "other")
    with pytest.raises(UserError, match="logits differ"):
        compare_logits(logits, torch.full_like(logits, torch.nan), torch.float32, "broken")


def test_the_model_card_tells_recipe_and_metrics(run):
    card = model_card(run, "user/name", "adapter")
    assert "library_name: peft" in card and "train/loss" in card and "rank: 16" in card
    with pytest.raises(UserError, match="expected user/name"):
        publish(run, "name", str(run), "adapter")
