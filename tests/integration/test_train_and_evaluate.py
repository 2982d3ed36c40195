"""What a user does: train, look at the run folder, evaluate, stop and go on."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import lightning as L
import pytest
import torch

from tests.distributed.group import cut
from tests.helpers import config, small_run
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.contracts import UserError
from vidtune.run import evaluate, train
from vidtune.run.train import RUN_DIR_VARIABLE, Interrupted


class SignalAt(L.Callback):
    """Sends this process a signal in the middle of an optimizer step."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step and batch_idx % trainer.accumulate_grad_batches:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def own_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of one test process choose their own folders."""
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    yield
    os.environ.pop(RUN_DIR_VARIABLE, None)


def run(overrides: list[str]) -> dict[str, float]:
    os.environ.pop(RUN_DIR_VARIABLE, None)
    return train(config("train", overrides), overrides)


def losses(run_dir: Path) -> dict[int, str]:
    with (run_dir / "metrics.csv").open() as handle:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(handle) if row.get("train/loss")}


def trained_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    file = find_checkpoint(run_dir, "last")
    return torch.load(file, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def finished(shapes: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    run(small_run(shapes, cache_dir, runs, "run_name=whole"))
    return runs / "whole"


def test_a_run_folder_holds_curve_log_summary_recipe_and_checkpoints(finished: Path) -> None:
    for name in ("config.yaml", "config.resolved.yaml", "log.txt", "metrics.csv", "summary.json", "loss_curve.png"):
        assert (finished / name).stat().st_size > 0, name
    assert (finished / "tokenizer" / "tokenizer.json").is_file()
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert "step_000006.ckpt" in names and any(name.startswith("best_") for name in names)
    assert not [name for name in names if set(name) & set("=,[]")]
    assert json.loads((finished / "summary.json").read_text())["step"] == 6
    log = (finished / "log.txt").read_text()
    assert "What trains" in log
    [last] = [line for line in log.splitlines() if "step 6/6" in line]
    assert all(name in last for name in ("train/loss", "samples_per_s", "tokens_per_s", "data_wait_percent", "eta"))


def test_the_loss_of_the_small_run_falls(finished: Path) -> None:
    values = [float(value) for _, value in sorted(losses(finished).items())]
    assert len(values) == 6 and values[-1] < values[0]


def test_a_run_is_evaluated_from_its_folder_alone(finished: Path) -> None:
    metrics = evaluate(config("evaluate", [f"run={finished}", "hardware=cpu"]), [f"run={finished}", "hardware=cpu"])
    assert 0 <= metrics["accuracy"] <= 1
    assert {"accuracy/shape", "accuracy/direction", "accuracy/count", "accuracy/order"} <= metrics.keys()
    folder = next((finished / "evaluation").iterdir())
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 32
    assert "| total" in (folder / "accuracy.md").read_text()


@pytest.mark.parametrize("scoring", ["generate", "likelihood"])
def test_overrides_reach_the_processor_of_an_evaluated_run(finished: Path, scoring: str, tmp_path: Path) -> None:
    overrides = [f"run={finished}", "checkpoint=last", "data.num_frames=2", f"eval.scoring={scoring}"]
    overrides += [f"output={tmp_path}", "split=val"]
    metrics = evaluate(config("evaluate", overrides), overrides)
    assert "accuracy" in metrics
    made_by = json.loads((tmp_path / "predictions.meta.json").read_text())["made_by"]
    assert made_by["num_frames"] == 2 and made_by["split"] == "val" and made_by["checkpoint"] == "step_000006.ckpt"


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    common = ["tuning=lora", "tuning.vision.mode=full", "tuning.language.dropout=0.1"]
    run(small_run(shapes, cache_dir, tmp_path, "run_name=whole", *common))
    stop = "+callbacks.stop={_target_: tests.integration.test_train_and_evaluate.SignalAt, step: 4}"
    with pytest.raises(Interrupted) as caught:
        run(small_run(shapes, cache_dir, tmp_path, "run_name=cut", *common, stop))
    assert caught.value.code == 143
    assert max(losses(tmp_path / "cut")) < 5
    run(small_run(shapes, cache_dir, tmp_path, f"resume={tmp_path / 'cut'}", "callbacks={}"))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    whole, resumed = trained_weights(tmp_path / "whole"), trained_weights(tmp_path / "cut")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_accumulation_gives_the_losses_of_one_big_batch(shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    for micro in (8, 2):
        run(small_run(shapes, cache_dir, tmp_path, f"micro_batch_size={micro}", f"run_name=micro{micro}"))
    big, small = losses(tmp_path / "micro8"), losses(tmp_path / "micro2")
    assert [float(big[s]) for s in big] == pytest.approx([float(small[s]) for s in small], rel=2e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(
    shapes: Path, cache_dir: Path, tmp_path: Path
) -> None:
    from vidtune.training.module import NonFiniteError

    with pytest.raises(NonFiniteError, match=r"step \d.*train-"):
        run(small_run(shapes, cache_dir, tmp_path, "run_name=boom", "optim.lr=1e30", "trainer.grad_clip=null"))


def test_a_run_shorter_than_the_logging_interval_ends_well(shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    words = small_run(shapes, cache_dir, tmp_path, "run_name=short")
    words = [w for w in words if not w.startswith(("trainer.max_steps", "trainer.log_every"))]
    run([*words, "trainer.max_steps=2", "trainer.log_every=50", "trainer.checkpoint_every=1"])
    assert len(losses(tmp_path / "short")) == 1
    cut(tmp_path / "short", tmp_path / "resumed", 1)
    run([f"resume={tmp_path / 'resumed'}"])
    assert json.loads((tmp_path / "resumed" / "summary.json").read_text())["step"] == 2


class NoMemoryAt(L.Callback):
    """A device that runs out of memory."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == self.step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none left.")


def test_running_out_of_memory_names_the_row_and_what_to_change(shapes: Path, cache_dir: Path, tmp_path: Path) -> None:
    stop = "+callbacks.stop={_target_: tests.integration.test_train_and_evaluate.NoMemoryAt, step: 0}"
    with pytest.raises(UserError) as caught:
        run(small_run(shapes, cache_dir, tmp_path, "run_name=full", stop))
    message = str(caught.value)
    assert "CUDA out of memory" in message and "visual" in message and ".mp4" in message and "train-" in message
    assert "(1) micro_batch_size=2" in message and "(2) hardware.activation_checkpointing=true" in message
    assert "(3) " in message and "(4)" not in message
