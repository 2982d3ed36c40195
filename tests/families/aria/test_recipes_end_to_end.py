"""Both recipes from data to table on the tiny variant, under every strategy that the guide's commands name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AriaForConditionalGeneration

from tests.distributed.group import losses, run_group
from tests.helpers import config
from tests.integration.test_recipes import nextqa
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.run import evaluate
from vidtune.run.export import export

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPES = ("lora", "full")
STRATEGIES = ("zero2", "zero3", "zero3_offload")
STEPS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def job(shapes: Path, cache_dir: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Overrides of a short run of a recipe on generated multiple-choice videos."""
    clips = sorted(shapes.rglob("*.mp4"))[:4]
    data = nextqa(tmp_path_factory.mktemp("set") / "nextqa", clips)

    def make(recipe: str, name: str, *overrides: str) -> list[str]:
        return [
            f"experiment=aria_nextqa_{recipe}",
            "model=aria_tiny",
            "hardware=cpu",
            *data,
            "data.num_workers=0",
            "global_batch_size=4",
            "micro_batch_size=1",
            f"trainer.max_steps={STEPS}",
            "trainer.val_every=2",
            "trainer.val_samples=4",
            "optim.schedule.warmup_ratio=0",
            f"paths.runs_dir={runs}",
            f"paths.cache_dir={cache_dir}",
            f"run_name={name}",
            *overrides,
        ]

    return make


# Dropout masks depend on which process draws them: compared without, resumed with it.
NO_DROPOUT = {"lora": ("tuning.language.dropout=0",), "full": ()}


def _walk(job: Any, runs: Path, name: str, group: tuple[str, ...]) -> list[list[str]]:
    """Both recipes, and of each a run as the recipe stands that was cut after two steps and goes on."""
    jobs = []
    for recipe in RECIPES:
        whole = runs / f"{name}_{recipe}_whole"
        jobs += [
            job(recipe, f"{name}_{recipe}", *NO_DROPOUT[recipe], *group),
            job(recipe, whole.name, *group),
            ["cut", str(whole), str(runs / f"{name}_{recipe}_resumed"), "2"],
            [f"resume={runs / f'{name}_{recipe}_resumed'}"],
        ]
    return jobs


@pytest.fixture(scope="module")
def single(job: Any, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    run_group(tmp_path_factory.mktemp("group"), _walk(job, runs, "single", ("strategy=single",)), processes=1)
    return "single"


@pytest.fixture(scope="module", params=["single", *STRATEGIES])
def walked(request: pytest.FixtureRequest, single: str, job: Any, runs: Path, tmp_path_factory: Any) -> str:
    """The name of a strategy under which both recipes were trained, cut and resumed."""
    name = request.param
    if name != single:
        group = ("hardware.devices=2", f"strategy={name}")
        run_group(tmp_path_factory.mktemp("group"), _walk(job, runs, name, group), timeout=600)
    return name


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_loses_under_every_strategy_what_one_process_loses(walked: str, runs: Path, recipe: str) -> None:
    found, expected = losses(runs / f"{walked}_{recipe}"), losses(runs / f"single_{recipe}")
    assert len(found) == STEPS
    assert found == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_router_losses_are_logged_apart_from_the_task_loss(walked: str, runs: Path, recipe: str) -> None:
    with (runs / f"{walked}_{recipe}/metrics.csv").open() as handle:
        rows = [row for row in csv.DictReader(handle) if row.get("train/loss")]
    for name in ("train/router_z_loss", "train/load_balancing_loss"):
        assert len(rows) == STEPS and all(0 < float(row[name]) < 0.01 * float(row["train/loss"]) for row in rows), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_that_was_cut_goes_on_bit_for_bit(walked: str, runs: Path, recipe: str) -> None:
    assert losses(runs / f"{walked}_{recipe}_resumed") == losses(runs / f"{walked}_{recipe}_whole")[2:]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_saved_under_zero3_is_whole_and_moved(walked: str, runs: Path, recipe: str) -> None:
    """Plain PEFT saves empty tensors under ZeRO-3."""
    saved = torch.load(find_checkpoint(runs / f"{walked}_{recipe}", "last"), weights_only=True)["state_dict"]
    expected = torch.load(find_checkpoint(runs / f"single_{recipe}", "last"), weights_only=True)["state_dict"]
    assert {name: tensor.shape for name, tensor in saved.items()} == {n: t.shape for n, t in expected.items()}
    assert all(tensor.numel() and tensor.dtype == torch.float32 for tensor in saved.values())
    if recipe == "lora":
        pairs = [name for name in saved if ".lora_B" in name]
        # Two layers: four of attention, three of the shared experts, two fused ones of the experts; and the head.
        assert len(pairs) == 2 * (4 + 3 + 2) + 1 and len(saved) == 2 * len(pairs)
        assert all(saved[name].abs().sum() > 0 for name in pairs)
        assert sum(".expert_lora." in name for name in pairs) == 4
    else:
        assert not any(name.startswith("network.vision.") for name in saved)
        assert any(name.startswith("network.connector.") for name in saved)
    assert all(torch.allclose(saved[name], expected[name], atol=1e-4) for name in saved)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_native_class_opens_the_merged_export(walked: str, runs: Path, recipe: str, tmp_path: Path) -> None:
    # export() compares the logits of the re-loaded weights with the trained network's.
    folder = export(str(runs / f"{walked}_{recipe}"), "merged", str(tmp_path / "out"), "last", ["hardware=cpu"])
    _, report = AriaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert not any("lora" in name for name in load_file(folder / "model.safetensors"))


def test_the_exported_adapter_opens_in_plain_peft_and_answers_as_the_run_does(
    walked: str, runs: Path, cache_dir: Path, tmp_path: Path
) -> None:
    run, folder = runs / f"{walked}_lora", tmp_path / "mine"
    export(str(run), "adapter", str(folder), "last", ["hardware=cpu"])
    base = AriaForConditionalGeneration.from_pretrained(cache_dir / "tiny/aria")
    opened = PeftModel.from_pretrained(base, folder)
    assert sum("lora_B" in name for name, _ in opened.named_parameters()) == 2 * (4 + 3 + 2) + 1
    answers = []
    for name, words in (("run", []), ("both", [f"adapter={folder}"])):
        words += [f"run={run}", "checkpoint=last", "hardware=cpu", f"output={tmp_path / name}"]
        evaluate(config("evaluate", words), words)
        files = sorted((tmp_path / name).rglob("predictions.jsonl"))
        answers += [[json.loads(line)["prediction"] for line in file.read_text().splitlines()] for file in files]
    assert len(answers) == 3 and answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_of_a_recipe_is_evaluated_by_type(walked: str, runs: Path, recipe: str) -> None:
    run = runs / f"{walked}_{recipe}"
    words = [f"run={run}", "hardware=cpu", "checkpoint=last"]
    metrics = evaluate(config("evaluate", words), words)
    assert 0 <= metrics["accuracy"] <= 1 and "accuracy/CW" in metrics and "unparsed" in metrics
    (folder,) = (run / "evaluation").iterdir()
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 8
    made_by = json.loads((folder / "predictions.meta.json").read_text())["made_by"]
    assert made_by["split"] == "val"
