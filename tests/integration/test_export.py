"""What a run trained, in the forms that others open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import config, small_run
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.checkpoint.probe import compare_logits
from vidtune.commands.main import main as vidtune
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


class FakeHub:
    """Takes the place of the hub's client, and keeps what it is asked."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.asked = fault, []

    def create_repo(self, name, **options):
        self.asked.append(("create_repo", name, options))
        return f"hub/{name}"

    def upload_folder(self, **options):
        self.asked.append(
            ("upload_folder", options["repo_id"], sorted(p.name for p in Path(options["folder_path"]).iterdir()))
        )
        if self.fault:
            raise self.fault


def test_push_uploads_the_export_with_a_card_of_the_run(run, tmp_path, monkeypatch, capsys):
    hub = FakeHub()
    monkeypatch.setattr("vidtune.run.publish.HfApi", lambda: hub)
    results = run / "evaluation/shapes_test/metrics.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps({"accuracy": 0.75, "unparsed": 0}))
    words = ["export", "--run", str(run), "--to", "adapter", "--checkpoint", "last", "--output", str(tmp_path / "out")]
    assert vidtune([*words, "--push", "user/shapes-lora", "hardware=cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "hub/user/shapes-lora"
    create, upload = hub.asked
    assert create == ("create_repo", "user/shapes-lora", {"private": True, "exist_ok": True})
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(upload[2])
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    for fact in ("on `shapes` (split `train`)", "global batch 8", "rank: 16", "| shapes_test: accuracy | 0.75 |"):
        assert fact in card, fact


def test_a_refused_upload_keeps_the_export(run, tmp_path, monkeypatch):
    monkeypatch.setattr("vidtune.run.publish.HfApi", lambda: FakeHub(PermissionError("no token")))
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(UserError, match=r"--push user/name: the upload failed \(no token\)"):
        publish(tmp_path, "user/name", str(run), "adapter")


def test_the_model_card_tells_recipe_and_metrics(run):
    card = model_card(run, "user/name", "adapter")
    assert "library_name: peft" in card and "train/loss" in card and "rank: 16" in card
    with pytest.raises(UserError, match="expected user/name"):
        publish(run, "name", str(run), "adapter")
