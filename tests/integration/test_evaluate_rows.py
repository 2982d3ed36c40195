"""Several models in one table, controls, several processes, interruption, and scoring again."""

import csv
import json
import multiprocessing
import os
import shutil
import socket
import time
from pathlib import Path

import av
import pytest

from tests.browser import BROWSER, opened
from tests.helpers import config
from vidtune.checkpoint.locate import checkpoint_folder
from vidtune.contracts import UserError
from vidtune.run import evaluate


def run(*overrides: str) -> dict[str, float]:
    words = ["hardware=cpu", *overrides]
    return evaluate(config("evaluate", words), words)


@pytest.fixture
def two_runs(tiny_run: Path, tmp_path: Path) -> Path:
    """A sweep folder with the run twice."""
    for name in ("one", "two"):
        shutil.copytree(tiny_run, tmp_path / "sweep" / name, ignore=shutil.ignore_patterns("evaluation"))
    return tmp_path / "sweep"


def test_a_pattern_with_the_untuned_model_makes_one_table(two_runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    metrics = run(f"run={two_runs}/*", "untuned=true", "eval.limit=8", "eval.controls=true", f"output={out}")
    assert {"untuned_tiny/accuracy", "one/accuracy", "two/accuracy"} <= metrics.keys()
    [untuned, one, two] = csv.DictReader((out / "runs.csv").open())
    assert [untuned["run"], one["run"], two["run"]] == ["untuned_tiny", "one", "two"]
    assert untuned["difference"] == "" and one["difference"] == two["difference"] != ""
    for row in (one, two):
        assert (row["n"], row["frames"], row["resolution"], row["decoder"]) == (
            "8",
            "8",
            "64x64",
            f"pyav {av.__version__}",
        )
        assert row["prompt"] == untuned["prompt"] and row["checkpoint"].startswith("best_") and row["seed"] == "42"
        assert row["shuffled frames"] and row["video gain"]
    assert untuned["checkpoint"] == "untuned"
    assert "Does it watch the video?" in (out / "controls.md").read_text()
    page = (out / "report.html").read_text()
    assert page.count("<article") == 8 and page.count("data:image/jpeg") == 8 and "&lt;visual×8&gt;" in page


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_the_report_of_an_evaluation_opens_from_disk_in_a_browser(tiny_run: Path, tmp_path: Path) -> None:
    run(f"run={tiny_run}", f"output={tmp_path}", "eval.limit=8", "untuned=true")
    choose = "type.value = 'count'; type.dispatchEvent(new Event('input'))"
    count_pixels = "document.title = [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    page = opened(tmp_path / "report.html", f"window.onload = () => {{ {choose}; {count_pixels}; }}")
    assert "<title>true</title>" in page, "charts and frame strips are drawn"
    assert "2 of 8 samples" in page and page.count('hidden=""') == 6


def test_a_data_set_that_does_not_fit_is_refused_before_any_model_is_loaded(
    tiny_run: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows without options under the run's closed task, and rows without answers under any."""
    monkeypatch.setattr("vidtune.run.answer_set.load_answerer", lambda *_: pytest.fail("a model was loaded"))
    video = next(shapes.rglob("*.mp4"))
    rows = {"options": {"answer": "a circle"}, "answers": {}}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"video": str(video), "question": "what ?", **row}) + "\n")
    common = [f"run={tiny_run}", "data=questions", f"data.root={tmp_path}", f"output={tmp_path}/out"]
    with pytest.raises(UserError, match=r"answer 'a circle' is none of the 0 possible ones.*data\.task\.labels"):
        run(*common, "split=options")
    with pytest.raises(UserError, match="has no reference answer"):
        run(*common, "split=answers", "data.task.name=open_answer")
    with pytest.raises(UserError, match=r"none\.jsonl: there is no such annotation file"):
        run(*common, "split=none")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scoring", ["generate", "likelihood"])
def test_a_question_longer_than_the_model_reads_is_named_and_refused_before_any_model_is_loaded(
    scoring: str, tiny_run: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidtune.run.answer_set.load_answerer", lambda *_: pytest.fail("a model was loaded"))
    row = {"video": str(next(shapes.rglob("*.mp4"))), "question": "what ?", "answer": "yes", "options": ["yes", "no"]}
    rows = [{"id": "short", **row}, {"id": "endless", **row, "question": "which colour moves " * 300}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"run={tiny_run}", "data=questions", f"data.root={tmp_path}", f"output={tmp_path}/out"]
    with pytest.raises(UserError, match=r"endless: the question takes 9\d\d tokens, .*model\.max_length is 512"):
        run(*words, f"eval.scoring={scoring}")


def test_rows_with_other_questions_are_refused_before_any_model_is_asked(two_runs: Path, tmp_path: Path) -> None:
    recipe = two_runs / "two" / "config.yaml"
    recipe.write_text(recipe.read_text().replace("test_split: test", "test_split: val"))
    before = set(tmp_path.rglob("predictions.jsonl"))
    with pytest.raises(UserError, match=r"one and two would answer different questions \(shapes: 32, shapes: 24\)"):
        run(f"run={two_runs}/*", f"output={tmp_path}/table")
    assert set(tmp_path.rglob("predictions.jsonl")) == before


def test_a_run_without_checkpoint_is_named(two_runs: Path) -> None:
    shutil.rmtree(checkpoint_folder(two_runs / "two"))
    with pytest.raises(UserError, match=r"two: the run folder holds no checkpoint"):
        run(f"run=[{two_runs}/one,{two_runs}/two]")
    with pytest.raises(UserError, match="no run folder"):
        run(f"run={two_runs}/x*")


def test_answers_are_scored_again_without_a_model(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = [f"run={tiny_run}", f"output={tmp_path}", "eval.limit=6"]
    with pytest.raises(UserError, match="6 of 6 questions have no answer yet"):
        run(*common, "rescore=true")
    run(*common)
    before = (tmp_path / "predictions.jsonl").read_text()
    monkeypatch.setattr("vidtune.run.answer_set.load_answerer", lambda *_: pytest.fail("a model was loaded"))
    metrics = run(*common, "rescore=true", "data.task.name=open_answer")
    assert "rouge_l" in metrics
    run(*common)
    assert (tmp_path / "predictions.jsonl").read_text() == before


def start_processes(*overrides: str) -> list[multiprocessing.Process]:
    """Two processes as torchrun starts them; forked, so that they need not import everything again."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [
        multiprocessing.get_context("fork").Process(target=run_as, args=(rank, port, overrides)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    return processes


def run_as(rank: int, port: int, overrides: tuple[str, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    run(*overrides)


@pytest.mark.slow  # it must catch two processes between two answers, which a busy machine may not allow
def test_two_processes_and_a_kill_give_the_file_of_one_process(tiny_run: Path, tmp_path: Path) -> None:
    common = [f"run={tiny_run}", "data.num_workers=0", "eval.batch_size=1", "eval.report_samples=0"]
    run(*common, f"output={tmp_path}/one")
    parts = [tmp_path / "two" / name for name in ("predictions.jsonl", "predictions.part1.jsonl")]
    processes = start_processes(*common, f"output={tmp_path}/two")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and any(process.is_alive() for process in processes):
        if all(part.exists() and part.read_text().count("\n") >= 2 for part in parts):
            break
        time.sleep(0.005)
    for process in processes:
        process.kill()
        process.join()
    answered = sum(part.read_text().count("\n") for part in parts)
    assert 4 <= answered < 32, "it was to be killed in the middle"

    processes = start_processes(*common, f"output={tmp_path}/two")
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert not parts[1].exists()
    one, two = (tmp_path / name / "predictions.jsonl" for name in ("one", "two"))
    assert two.read_text() == one.read_text()
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert metrics[0] == metrics[1]


@pytest.mark.slow  # two processes for each strategy
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero2_offload"])
def test_every_strategy_may_stand_on_the_command_line_of_an_evaluation(
    strategy: str, tiny_run: Path, tmp_path: Path
) -> None:
    """Whichever strategy a machine's settings name, the answers are those of one process; tests/distributed holds the
    strategies that share one copy of the weights."""
    common = [f"run={tiny_run}", "data.num_workers=0", "eval.limit=6", "eval.report_samples=0"]
    run(*common, f"output={tmp_path}/one")
    processes = start_processes(*common, f"strategy={strategy}", "hardware.devices=2", f"output={tmp_path}/two")
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    one, two = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("one", "two"))
    assert one == two


def test_perplexity_of_the_answers_and_likelihood_of_the_options(tiny_run: Path, tmp_path: Path) -> None:
    common = [f"run={tiny_run}", "eval.limit=4", "eval.report_samples=0"]
    with pytest.raises(UserError, match="set both or neither to perplexity"):
        run(*common, "eval.scoring=perplexity")
    metrics = run(*common, f"output={tmp_path}/p", "eval.scoring=perplexity", "data.task={name: perplexity}")
    assert metrics["perplexity"] > 1 and 0 <= metrics["token_accuracy"] <= 1
    assert run(*common, f"output={tmp_path}/l", "eval.scoring=likelihood")["unparsed"] == 0
