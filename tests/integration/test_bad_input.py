"""Mistakes of a user: one clear message, exit code 1, no traceback, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, small_run
from vidtune.entry import run_task
from vidtune.models.tiny.tiny import build_tokenizer
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command line that must fail, and gives its message."""

    def run(script: str, *arguments: str) -> str:
        monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
        monkeypatch.setattr(sys, "argv", [str(ROOT / f"{script}.py"), *arguments])
        with pytest.raises(SystemExit) as caught:
            run_task({"train": train, "evaluate": evaluate}[script], str(ROOT / "conf"), script)
        os.environ.pop(RUN_DIR_VARIABLE, None)
        error = capsys.readouterr().err
        assert caught.value.code == 1
        assert "Traceback" not in error
        return " ".join(error.split("vidtune: error: ")[-1].split())

    return run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_step=3"], "Did you mean 'max_steps'"),
        (["optim.learning_rate=1e-3"], "learning_rate"),
        (["model=tinny"], "tiny"),
        (["trainer.max_steps=many"], "many"),
        (["data.num_frames=0"], "data.num_frames=0; expected at least 1"),
        (["model=internvideo25_tiny", "data.num_frames=6"], "multiple of 4, for instance 8"),
        (["model=video_llama_tiny", "data.num_frames=40"], "at most 32"),
        (["model=aria_tiny", "data.num_frames=4000"], "leave no room for a question in model.max_length"),
        (["model=nvila_tiny", "data.num_frames=4000"], "leave no room for a question in model.max_length"),
        (["media.backend=pyaw"], "Did you mean 'pyav'"),
        (["model.processor.imagesize=3"], "Did you mean 'image_size'"),
        (["global_batch_size=10", "micro_batch_size=4"], "10 is not a multiple"),
        (["hardware.devices=2", "strategy=single"], "strategy=single runs on one device"),
        (["data=questions"], "data.root is not set"),
        (["tuning.vison.mode=full"], "Did you mean 'vision'"),
        (["tuning=lora", "tuning.language.alpha=null"], "LoRA needs rank (>= 1) and alpha"),
        (["optim.schedule.name=cosin"], "Did you mean 'cosine'"),
        (["optim.schedule.warmup_steps=5", "optim.schedule.warmup_ratio=0.1"], "set warmup_steps or warmup_ratio"),
        (["+tuning.vision.schedule={name: cosine, rounds: 3}"], "'cosine' and its options ['rounds'] do not fit"),
        (["run_name='a=b'"], "run_name='a=b'"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    fail, overrides: list[str], message: str, shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    common = [] if any(o.startswith("data=") for o in overrides) else small_run(shapes, cache_dir, runs)
    kept = [o for o in common if o.split("=")[0] not in {x.lstrip("+").split("=")[0] for x in overrides}]
    if any(override.startswith("global_batch_size") for override in overrides):
        kept = [o for o in kept if not o.startswith("micro_batch_size")]
    assert message in fail("train", *kept, f"paths.runs_dir={runs}", *overrides)
    assert not runs.exists()


def test_all_faults_come_in_one_message(fail, shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    message = fail("train", *small_run(shapes, cache_dir, tmp_path), "media.backend=x", "hardware.precision=y")
    assert "2 faults" in message and "media.backend" in message and "hardware.precision" in message


def questions(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "val", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def on_questions(folder: Path, cache_dir: Path, runs: Path) -> list[str]:
    run = [o for o in small_run(folder, cache_dir, runs) if not o.startswith("data.prepare")]
    return ["data=questions", *run]


def test_missing_and_empty_annotations_name_the_file(fail, cache_dir: Path, tmp_path: Path) -> None:
    assert "there is no such annotation" in fail("train", *on_questions(tmp_path / "no", cache_dir, tmp_path / "runs"))
    empty = questions(tmp_path / "empty", [])
    assert "no rows" in fail("train", *on_questions(empty, cache_dir, tmp_path / "runs"))


def test_a_video_that_is_text_is_named_with_its_reason(fail, cache_dir: Path, tmp_path: Path) -> None:
    rows = [
        {"id": i, "video": "clip.mp4", "question": "what ?", "answer": "a", "options": ["a", "b"]} for i in range(8)
    ]
    folder = questions(tmp_path / "set", rows)
    (folder / "clip.mp4").write_text("this is no video")
    message = fail("train", *on_questions(folder, cache_dir, tmp_path / "runs"))
    assert "clip.mp4" in message and "media.max_bad_fraction" in message


def test_a_checkpoint_of_another_family_is_refused(fail, shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "stranger"}')
    build_tokenizer().save_pretrained(str(other))
    overrides = [*small_run(shapes, cache_dir, tmp_path / "runs"), f"model.path={other}", "model.prepare=null"]
    message = fail("train", *overrides)
    assert "stranger" in message and "model.path" in message


def test_rows_longer_than_the_language_model_reads_are_refused(
    fail, shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    message = fail("train", *small_run(shapes, cache_dir, tmp_path), "model.max_length=4096")
    assert "model.max_length=4096" in message and "reads 2048 tokens" in message


def test_run_folders_without_checkpoint_or_at_all_are_refused(fail, tmp_path: Path) -> None:
    assert "does not exist" in fail("evaluate", f"run={tmp_path / 'none'}")
    (tmp_path / "runs").mkdir()
    assert "no run below" in fail("train", "resume=last", f"paths.runs_dir={tmp_path / 'runs'}")


def test_a_second_run_never_overwrites_the_first(fail, shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    taken = tmp_path / "mine"
    (taken / "checkpoints").mkdir(parents=True)
    (taken / "config.yaml").write_text("{}")
    (taken / "checkpoints" / "step_000001.ckpt").touch()
    message = fail("train", *small_run(shapes, cache_dir, tmp_path, "run_name=mine"))
    assert "holds a run already" in message and "resume=" in message


def test_help_and_cfg_print_without_running(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in (["--cfg", "job"], ["--help"]):
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *flag])
        with contextlib.suppress(SystemExit):  # Hydra leaves after --help
            run_task(train, str(ROOT / "conf"), "train")
        out = capsys.readouterr().out
        assert "global_batch_size" in out and "model:" in out
