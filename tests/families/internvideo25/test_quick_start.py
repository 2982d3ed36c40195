"""The guide's quick start as one command, and its evaluation: report, measures and result file."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel, BertTokenizer

from tests.helpers import config
from tests.integration.test_recipes import qevd
from vidtune.commands.main import main
from vidtune.evaluation.text_metrics import why_no_meteor
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE


@dataclass(frozen=True)
class Started:
    """What `vidtune start` did.

    Args:
        code: exit code.
        out: what it printed.
        words: its command line.
    """

    folder: Path
    code: int
    out: str
    words: list[str]


def settings(folder: Path, clips: list[Path], cache_dir: Path) -> list[str]:
    return [
        *("experiment=internvideo25_qevd_qlora", "model=internvideo25_tiny", "hardware=cpu", "data.num_workers=0"),
        *qevd(folder / "qevd", clips),
        *("global_batch_size=2", "trainer.max_steps=2", "trainer.val_samples=2", "run_name=run"),
        *(f"paths.runs_dir={folder}", f"paths.cache_dir={cache_dir}"),
    ]


@pytest.fixture(scope="module")
def clips(shapes: Path) -> list[Path]:
    return sorted(shapes.rglob("*.mp4"))[:10]  # each once: clips that recur on both sides of a split would harm


@pytest.fixture(scope="module")
def started(clips: list[Path], cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Started:
    folder = tmp_path_factory.mktemp("quick_start")
    words = settings(folder, clips, cache_dir)
    before = os.environ.pop(RUN_DIR_VARIABLE, None)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(["start", *words])
    os.environ.pop(RUN_DIR_VARIABLE, None)  # training sets it for the processes that it starts
    if before is not None:
        os.environ[RUN_DIR_VARIABLE] = before
    return Started(folder, code, out.getvalue(), words)


def test_one_command_looks_at_the_machine_and_the_data_and_trains(started: Started) -> None:
    assert started.code == 0, started.out[-3000:]
    order = [
        "This machine",
        "Nothing is broken",
        "Rows and their token lengths",
        "Nothing found that would harm a run.",
    ]
    places = [started.out.index(line) for line in (*order, "What trains")]
    assert places == sorted(places)
    run = started.folder / "run"
    assert json.loads((run / "summary.json").read_text())["step"] == 2
    assert {"loss_curve.png", "log.txt", "metrics.csv"} <= {file.name for file in run.iterdir()}
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert any(row.get("val/loss") for row in rows), "the guide advises to watch the validation loss"
    assert list((run / "checkpoints").glob("step_000002.ckpt"))


# ------------------------------------------------------------------------------------------------- evaluation


def asked(started: Started, *overrides: str) -> dict[str, float]:
    """The tuned run beside the untuned model on the test split, as in the docs."""
    words = [f"run={started.folder}/run", "untuned=true", "hardware=cpu", f"output={started.folder}/answers"]
    words += ["eval.max_new_tokens=6", "checkpoint=last", *overrides]
    return evaluate(config("evaluate", words), words)


@pytest.fixture(scope="module")
def metrics(started: Started) -> dict[str, float]:
    return asked(started)


def test_the_report_has_the_guides_measures_by_exercise_against_the_majority(metrics, started: Started) -> None:
    answers = started.folder / "answers"
    assert {"run/accuracy", "run/rouge_l", "run/exercise_match", "untuned_internvideo25_tiny/rouge_l"} <= metrics.keys()
    table = list(csv.DictReader((answers / "run/accuracy.csv").open()))
    assert {"question type", "n", "accuracy", "majority"} <= table[0].keys()
    page = (answers / "report.html").read_text()
    assert page.count("<article") == 2 and page.count("data:image/jpeg") == 2  # 10 clips, a fifth of them in the test
    for line in ("rouge_l", "exercise_match", "squats", "tokens per second", "majority"):
        assert line in page, line
    # What this machine lacks is reported as not computed, with the remedy, and is in no table of numbers.
    assert "bert_score: not computed: no model is named (++data.task.bert_model=" in page
    assert "sentence_cosine: not computed: no model is named (++data.task.sentence_model=" in page
    why = why_no_meteor()
    assert (f"meteor: not computed: {why}" in page) == (why is not None)
    missing = {"bert_score", "sentence_cosine", *(["meteor"] if why else [])}
    assert not [name for name in metrics if name.split("/")[-1] in missing]


def test_the_result_file_is_the_guides(metrics, started: Started) -> None:
    rows = json.loads((started.folder / "answers/run/results.json").read_text())
    truth = [json.loads(line) for line in _annotation(started).read_text().splitlines()]
    assert [Path(row["video_path"]).name for row in rows] == [Path(row["video"]).name for row in truth]
    for row in rows:
        assert list(row) == [
            *("video_path", "prompt", "ground_truth", "prediction"),
            *("generated_tokens", "generation_time", "tokens_per_second", "status"),
        ]
        assert row["prompt"].startswith("Please evaluate the exercise form shown.")
        assert row["ground_truth"] == "squats - average" and row["status"] in ("ok", "unparsed")
        assert (
            row["generation_time"] > 0 and row["tokens_per_second"] == row["generated_tokens"] / row["generation_time"]
        )


def _annotation(started: Started) -> Path:
    (file,) = (started.folder / "qevd/annotations").glob("*_test.jsonl")
    return file


def test_models_that_are_there_are_used_on_the_stored_answers(metrics, started: Started, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "squats", "average", "-"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    models = (f"++data.task.sentence_model={tmp_path}", f"++data.task.bert_model={tmp_path}")
    again = asked(started, "rescore=true", *models)
    assert -1 <= again["run/sentence_cosine"] <= 1 and -1 <= again["run/bert_score"] <= 1
    page = (started.folder / "answers/report.html").read_text()
    assert "no BERTScore" in page and "sentence_cosine: not computed" not in page


# ------------------------------------------------------------------------------------------------- cut answers


def test_a_row_whose_answer_is_cut_off_is_left_out_and_the_loss_stays_finite(
    clips: list[Path], cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mean over no labels would be NaN."""
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")
    words = settings(tmp_path, clips, cache_dir)
    file = tmp_path / "qevd/annotations/qevd_fit_300k_train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["conversations"][0]["value"] = "Why so? " * 1000
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words += ["tuning=lora", "trainer.max_steps=1", "model.max_length=1024"]
    found = train(config("train", words), words)
    assert 0 < found["train/loss"] < 100
    log = (tmp_path / "run/log.txt").read_text()
    assert f"1 of {len(rows)} samples have no supervised token and are left out." in log
