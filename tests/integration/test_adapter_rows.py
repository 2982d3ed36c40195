"""Adapters trained elsewhere stand in the table beside the run they came from."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from tests.helpers import config, small_run
from vidtune.contracts import UserError
from vidtune.evaluation.records import read_predictions
from vidtune.run import evaluate, train
from vidtune.run.export import export
from vidtune.run.train import RUN_DIR_VARIABLE


@pytest.fixture(scope="module")
def lora(shapes: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that trained adapters, and its PEFT folder."""
    runs = tmp_path_factory.mktemp("runs")
    words = small_run(shapes, cache_dir, runs, "run_name=lora", "tuning=lora", "trainer.max_steps=3", "optim.lr=0.01")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(RUN_DIR_VARIABLE, raising=False)
        train(config("train", words), words)
    return runs / "lora", export(str(runs / "lora"), "adapter", str(runs / "peft"), "best", ["hardware=cpu"])


def run(*overrides: str) -> dict[str, float]:
    words = ["hardware=cpu", "eval.limit=8", "eval.report_samples=0", *overrides]
    return evaluate(config("evaluate", words), words)


def test_an_adapter_answers_as_the_run_that_trained_it(lora: tuple[Path, Path], tmp_path: Path) -> None:
    folder, peft = lora
    run(f"run={folder}", f"adapter={peft}", "untuned=true", f"output={tmp_path}")
    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert [(row["run"], row["checkpoint"]) for row in rows] == [
        ("untuned_tiny", "untuned"),
        ("lora", "best_000003"),
        ("peft", "adapter"),
    ]
    untuned, trained, adapter = (
        [p.prediction for p in read_predictions(tmp_path / row["run"] / "predictions.jsonl")] for row in rows
    )
    assert adapter == trained != untuned
    for row in rows:
        assert row["frames"] and row["resolution"] and row["prompt"] and row["decoder"] and row["precision"]
        assert row["seed"] and row["scoring"] == "generate" and row["prompt"] == rows[0]["prompt"]


def test_adapters_alone_take_model_and_data_from_the_command(
    lora: tuple[Path, Path], shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    data = [f"data.root={shapes}", "data.prepare=null", f"paths.cache_dir={cache_dir}", "data.num_workers=0"]
    common = ["model=tiny", *data, f"paths.runs_dir={tmp_path}"]
    shutil.copytree(lora[1], tmp_path / "other/peft")
    metrics = run(*common, f"adapter=[{lora[1]},{tmp_path}/other/peft]")
    assert sorted(name for name in metrics if name.endswith("peft/accuracy")) == sorted(
        [f"{lora[1]}/accuracy", f"{tmp_path}/other/peft/accuracy"]
    ), "folders of one name are named by their paths"
    with pytest.raises(UserError, match=r"adapter=.*nowhere: no PEFT adapter can be read there"):
        run(*common, f"adapter={tmp_path}/nowhere")
    common[0] = "model=aria_tiny"
    with pytest.raises(UserError, match=r"adapter=.*peft: it was made for another model.*Set model="):
        run(*common, f"adapter={lora[1]}")
