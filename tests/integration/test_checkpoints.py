"""What a run leaves on disk: how often, how much, and that trouble with it loses nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.distributed.group import cut
from tests.helpers import config, small_run
from tests.integration.test_train_and_evaluate import losses
from vidtune.checkpoint import storage
from vidtune.contracts import UserError
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE


@pytest.fixture(autouse=True)
def own_run_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs of one test process choose their own folders."""
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    yield
    os.environ.pop(RUN_DIR_VARIABLE, None)


def run(overrides: list[str]) -> dict[str, float]:
    os.environ.pop(RUN_DIR_VARIABLE, None)
    return train(config("train", overrides), overrides)


def names(run_dir: Path) -> list[str]:
    return sorted(file.stem for file in (run_dir / "checkpoints").iterdir())


CADENCE = ("trainer.checkpoint_every_epochs=0.25", "trainer.keep_checkpoints=3")


@pytest.fixture(scope="module")
def finished(shapes: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps; an epoch has eight, so that a checkpoint comes every second step."""
    runs = tmp_path_factory.mktemp("runs")
    run(small_run(shapes, cache_dir, runs, "run_name=whole", *CADENCE))
    return runs / "whole"


def test_checkpoints_come_with_each_quarter_of_an_epoch(finished: Path) -> None:
    found = names(finished)
    assert [name for name in found if name.startswith("step")] == ["step_000002", "step_000004", "step_000006"]
    assert [name for name in found if name.startswith("best")] and len(found) == 4


def test_a_damaged_checkpoint_is_named_and_without_it_the_run_goes_on_to_the_same_losses(
    finished: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    newest = copy / "checkpoints/step_000006.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.raises(UserError, match=r"step_000006\.ckpt: the checkpoint is damaged"):
        run([f"resume={copy}"])
    words = [f"run={copy}", "checkpoint=last", "hardware=cpu", "eval.limit=4"]
    with pytest.raises(UserError, match=r"step_000006\.ckpt: the checkpoint is damaged"):
        evaluate(config("evaluate", words), words)
    newest.unlink()
    run([f"resume={copy}"])
    assert losses(copy) == losses(finished)


def test_a_full_disk_loses_nothing_that_was_saved(
    finished: Path, shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = storage.torch.save, []

    def second_time_full(checkpoint: object, file: object) -> None:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(checkpoint, file)

    monkeypatch.setattr(storage.torch, "save", second_time_full)
    words = small_run(shapes, cache_dir, tmp_path, "run_name=full", "trainer.val_every=6", *CADENCE)
    with pytest.raises(UserError, match=r"No space left.*resume="):
        run(words)
    assert names(tmp_path / "full") == ["step_000002"]
    run([f"resume={tmp_path / 'full'}"])
    assert losses(tmp_path / "full") == losses(finished)


def test_a_run_that_is_older_than_a_setting_goes_on_with_its_default(finished: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    cut(finished, old, 4)
    for name in ("config.yaml", "config.resolved.yaml"):
        cfg = OmegaConf.load(old / name)
        for role in ("vision", "connector", "language", "new_tokens"):
            del cfg.tuning[role]["schedule"]
        for group, key in {
            "trainer": "keep_gb",
            "hardware": "attention",
            "media": "deadline_s",
            "eval": "limit",
        }.items():
            del cfg[group][key]
        OmegaConf.save(cfg, old / name)
    run([f"resume={old}"])
    assert losses(old).items() >= {step: loss for step, loss in losses(finished).items() if step >= 4}.items()
    words = [f"run={old}", "checkpoint=last", "hardware=cpu", "eval.limit=4"]
    assert "accuracy" in evaluate(config("evaluate", words), words)
