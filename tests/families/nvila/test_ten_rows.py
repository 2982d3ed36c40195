"""The guide's ten rows in one command on its sample sets, and all of them side by side afterwards."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest
import torch

from tests.families.nvila.guide import write_samples
from tests.guide_tables import code_commands, words
from tests.helpers import config, python
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.run import evaluate
from vidtune.run.train import RUN_DIR_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STEPS = 2


@pytest.fixture(scope="module")
def rows(shapes: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the sweep: the command of the docs with the tiny variant, a CPU and two steps."""
    folder = tmp_path_factory.mktemp("rows")
    (command,) = [line for line in code_commands("nvila") if line.startswith("python train.py -m ")]
    mine = ("hardware=", "strategy=", "model.path=", "data.registry=", "data.sets=")
    given = [word for word in words(command)[2:] if not word.startswith(mine)]
    more = [
        *("model=nvila_tiny", "hardware=cpu", "strategy=single", "data.num_workers=0"),
        *write_samples(folder / "sets", next(shapes.rglob("*.mp4"))),
        *("global_batch_size=4", "accumulation=2", f"trainer.max_steps={STEPS}", "trainer.checkpoint_every=2"),
        *(f"paths.runs_dir={folder}", f"paths.cache_dir={cache_dir}"),
    ]
    environment = {name: os.environ.pop(name) for name in (RUN_DIR_VARIABLE,) if name in os.environ}
    process = python("train.py", *given, *more, timeout=1400)
    os.environ.update(environment)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return folder / "finetune_all_ft"


def jobs(rows: Path) -> dict[tuple[str, str], Path]:
    """Modes of tower and language model, and the run."""
    found = {}
    for folder in rows.iterdir():
        if match := re.fullmatch(r"tuning-vision_(\w+)_language_(\w+)", folder.name):
            found[match[1], match[2]] = folder
    return found


def test_all_ten_rows_train_two_steps_and_stand_in_one_table(rows: Path) -> None:
    assert len(jobs(rows)) == 10
    for folder in jobs(rows).values():
        assert json.loads((folder / "summary.json").read_text())["step"] == STEPS, folder
    table = list(csv.DictReader((rows / "sweep.csv").open()))
    assert len(table) == 10 and {row["status"] for row in table} == {"done"}
    assert all(float(row["train/loss"]) > 0 for row in table)


def test_each_row_saves_what_it_trains_and_the_projector_always(rows: Path) -> None:
    for (vision, language), folder in jobs(rows).items():
        saved = torch.load(find_checkpoint(folder, "last"), weights_only=True)["state_dict"]
        names = {role: [n for n in saved if n.startswith(f"network.{role}.")] for role in ("vision", "language")}
        assert any(name.startswith("network.connector.") for name in saved), folder
        assert all("lora_" in name for name in names["language"]) == (language in ("lora", "qlora", "frozen"))
        assert bool(names["language"]) == (language != "frozen")
        assert bool(names["vision"]) == (vision != "frozen")
        if vision == "layernorm":
            assert all(re.search(r"layer_norm[12]\.(weight|bias)$", name) for name in names["vision"])
        if language == "qlora":
            assert {name: t.shape for name, t in saved.items() if "language" in name} == {
                name: t.shape
                for name, t in torch.load(find_checkpoint(jobs(rows)[vision, "lora"], "last"), weights_only=True)[
                    "state_dict"
                ].items()
                if "language" in name
            }


def test_both_counts_of_a_tower_whose_last_layer_is_not_run_are_printed(rows: Path) -> None:
    log = (jobs(rows)["layernorm", "lora"] / "log.txt").read_text()
    # Width 48: four norms of two layers train; the original adds those of its third layer and the last norm.
    assert "vision: 384 weights train; the original counts 672, with 288" in log
    assert "the original counts" not in (jobs(rows)["frozen", "lora"] / "log.txt").read_text()


def test_baseline_and_rows_are_evaluated_by_set_and_in_total(rows: Path, cache_dir: Path, tmp_path: Path) -> None:
    runs = [jobs(rows)[pair] for pair in (("layernorm", "qlora"), ("full", "full"))]
    overrides = [
        *(f"run=[{','.join(map(str, runs))}]", "untuned=true", "split=train", "data.mixing=weights"),
        *("checkpoint=last", "hardware=cpu"),
        *(f"output={tmp_path}", "eval.max_new_tokens=4", "eval.report_samples=2"),
    ]
    metrics = evaluate(config("evaluate", overrides), overrides)
    table = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert [row["run"] for row in table] == ["untuned_nvila_tiny", *(run.name for run in runs)]
    assert {"SampleQA", "SampleVideo", "SampleText", "rouge_l", "difference"} <= table[0].keys()
    assert f"{runs[0].name}/accuracy/SampleQA" in metrics and f"{runs[0].name}/accuracy" in metrics
    speed = list(csv.DictReader((tmp_path / "speed.csv").open()))
    assert len(speed) == 3 and all(float(row["tokens per second"]) > 0 for row in speed)
    report = (tmp_path / "report.html").read_text()
    assert "tokens per second" in report
    results = json.loads((tmp_path / runs[0].name / "results.json").read_text())
    assert {"video_path", "prompt", "ground_truth", "prediction", "generation_time", "status"} <= results[0].keys()


def test_multiple_choice_answers_are_evaluated_by_set_beside_the_baseline(
    rows: Path, shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    """A registered set with options, whose replies are letters, and one that writes the option's text."""
    clip = str(next(shapes.rglob("*.mp4")))
    for name, reply in (("Letters", "B"), ("Texts", "blue")):
        turns = [{"from": "human", "value": "Which?\nA. red\nB. blue"}, {"from": "gpt", "value": reply}]
        (tmp_path / f"{name}.json").write_text(
            json.dumps([{"video": clip, "options": ["red", "blue"], "conversations": turns}])
        )
    sets = "".join(
        f"{name}: {{_target_: llava.data.LLaVADataset, data_path: {tmp_path}/{name}.json, is_video: true}}\n"
        for name in ("Letters", "Texts")
    )
    (tmp_path / "sets.yaml").write_text(sets)
    overrides = [
        *(f"run={jobs(rows)['layernorm', 'lora']}", "untuned=true", "split=train", "data.mixing=weights"),
        *(f"data.registry={tmp_path}/sets.yaml", "data.sets=Letters+Texts", "data.task.name=multiple_choice"),
        *(
            "checkpoint=last",
            "hardware=cpu",
            f"output={tmp_path}/out",
            "eval.max_new_tokens=2",
            "eval.report_samples=0",
        ),
    ]
    metrics = evaluate(config("evaluate", overrides), overrides)
    table = list(csv.DictReader((tmp_path / "out/runs.csv").open()))
    assert len(table) == 2 and {"Letters", "Texts", "difference"} <= table[0].keys()
    name = table[1]["run"]
    assert {f"{name}/accuracy/{part}" for part in ("Letters", "Texts")} | {f"{name}/unparsed"} <= metrics.keys()
    # Likelihood compares the set's own wordings, here of one set the options' texts.
    overrides += ["eval.scoring=likelihood", "+data.task.accept_option_text=true", f"output={tmp_path}/likely"]
    assert evaluate(config("evaluate", overrides), overrides)[f"{name}/unparsed"] == 0
