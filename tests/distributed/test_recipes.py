"""Recipes from data to table on their tiny variants, alone and on two processes with ZeRO 2, as a user starts them.

A recipe whose original names further strategies has a file of its own below ``tests/families``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed.group import losses, run_group
from tests.helpers import ROOT, config
from tests.integration.test_recipes import actions, video_instruct
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.run import evaluate
from vidtune.run.export import export

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DATA: dict[str, Callable[[Path, list[Path]], list[str]]] = {
    "video_chatgpt_100k_connector": video_instruct,
    "video_llama_actions_connector": actions,
}
MODELS = {recipe: recipe.split("_")[0] + "_" + recipe.split("_")[1] for recipe in DATA}
SPLITS = {"video_chatgpt_100k_connector": "train", "video_llama_actions_connector": "test"}
"""What is asked after training; VideoInstruct has no test split."""
STEPS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def job(shapes: Path, cache_dir: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory):
    """Makes the overrides of a short run of a recipe: two rows of two samples per step."""
    clips = sorted(shapes.rglob("*.mp4"))[:4]
    data = {recipe: write(tmp_path_factory.mktemp("set") / "data", clips) for recipe, write in DATA.items()}

    def make(recipe: str, name: str, rows_per_process: int, *overrides: str) -> list[str]:
        return [
            f"experiment={recipe}",
            f"model={MODELS[recipe]}_tiny",
            "hardware=cpu",
            *data[recipe],
            "data.num_workers=0",
            "global_batch_size=null",
            "micro_batch_size=2",
            f"accumulation={rows_per_process}",
            f"trainer.max_steps={STEPS}",
            "trainer.checkpoint_every=2",
            "trainer.keep_checkpoints=3",
            "trainer.log_every=1",
            f"paths.runs_dir={runs}",
            f"paths.cache_dir={cache_dir}",
            f"run_name={name}",
            *overrides,
        ]

    return make


def walk(job, runs: Path, name: str, rows_per_process: int, *group: str) -> list[list[str]]:
    """Every recipe, then a copy of its run that ended after two steps and goes on."""
    jobs = []
    for recipe in DATA:
        whole = f"{name}_{recipe}"
        jobs += [
            job(recipe, whole, rows_per_process, *group),
            ["cut", f"{runs}/{whole}", f"{runs}/{whole}_cut", "2"],
            [f"resume={runs}/{whole}_cut"],
        ]
    return jobs


@pytest.fixture(scope="module")
def single(job, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    run_group(tmp_path_factory.mktemp("group"), walk(job, runs, "single", 2, "strategy=single"), processes=1)
    return "single"


@pytest.fixture(scope="module", params=["single", "zero2"])
def walked(request: pytest.FixtureRequest, single: str, job, runs: Path, tmp_path_factory) -> str:
    """Name of a strategy under which every recipe was trained, cut and resumed."""
    if request.param != single:
        group = ("hardware.devices=2", f"strategy={request.param}")
        run_group(tmp_path_factory.mktemp("group"), walk(job, runs, request.param, 1, *group), timeout=600)
    return request.param


@pytest.mark.parametrize("recipe", DATA)
def test_a_recipe_loses_what_a_single_process_loses(walked: str, runs: Path, recipe: str) -> None:
    found, expected = losses(runs / f"{walked}_{recipe}"), losses(runs / f"single_{recipe}")
    assert len(found) == STEPS and all(loss > 0 for loss in found)
    assert found == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("recipe", DATA)
def test_a_recipe_that_was_cut_goes_on_bit_for_bit(walked: str, runs: Path, recipe: str) -> None:
    assert losses(runs / f"{walked}_{recipe}_cut") == losses(runs / f"{walked}_{recipe}")[2:]


@pytest.mark.parametrize("recipe", DATA)
def test_what_is_saved_is_what_the_recipe_trains_and_it_has_moved(walked: str, runs: Path, recipe: str) -> None:
    first, last = (
        torch.load(find_checkpoint(runs / f"{walked}_{recipe}", name), weights_only=True)["state_dict"]
        for name in ("step_000002", "last")
    )
    roles = {name.split(".")[1] for name in last}
    assert roles == ({"connector", "new_tokens"} if "chatgpt" in recipe else {"connector"})
    assert all(tensor.dtype == torch.float32 for tensor in last.values())
    assert all(not torch.equal(first[role_name], last[role_name]) for role_name in last if "weight" in role_name)


@pytest.mark.parametrize("recipe", DATA)
def test_a_run_of_a_recipe_is_exported_and_evaluated(walked: str, runs: Path, recipe: str, tmp_path: Path) -> None:
    run = runs / f"{walked}_{recipe}"
    # export() compares the logits of the re-loaded weights with the trained network's.
    export(str(run), "original", str(tmp_path / "out"), "last", ["hardware=cpu", "strategy=single"])
    words = [f"run={run}", "checkpoint=last", "hardware=cpu", f"output={tmp_path / 'answers'}"]
    words += [f"split={SPLITS[recipe]}", "eval.limit=4", "eval.max_new_tokens=4", "strategy=single"]
    metrics = evaluate(config("evaluate", words), words)
    assert 0 <= metrics["accuracy"] <= 1
    assert (tmp_path / "answers/confusion.png").is_file() == ("actions" in recipe)


def test_the_guides_torchrun_command_on_two_cpu_processes_loses_what_one_loses(single: str, job, runs: Path) -> None:
    recipe = "video_llama_actions_connector"
    words = job(recipe, "torchrun", 1, "hardware.devices=2", "trainer.max_steps=2")
    words.remove(f"trainer.max_steps={STEPS}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py", *words]
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(runs / "torchrun") == pytest.approx(losses(runs / f"{single}_{recipe}")[:2], rel=2e-5)
