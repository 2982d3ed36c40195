"""Every strategy trains, saves, goes on, and answers like a single process; two CPU processes with gloo.

One pair of processes walks through all strategies and policies, so that imports are paid once.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.distributed.group import cut, free_port, losses, run_group
from tests.helpers import config, small_run
from vidtune.checkpoint.locate import find_checkpoint
from vidtune.contracts import UserError
from vidtune.run import evaluate, train
from vidtune.run.export import FORMS, export
from vidtune.run.train import RUN_DIR_VARIABLE

# Without dropout, whose masks depend on which process draws them.
POLICIES = {
    "full": ("tuning=full",),
    "lora": ("tuning=lora", "tuning.language.dropout=0"),
    "frozen_tower": ("tuning=vision_frozen_language_lora", "tuning.language.mode=full"),
}
STRATEGIES = ("ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp")
SHARDED = ("zero3", "fsdp")

# What the InternVideo2.5 guide ships has this shape: an idiom of the Hugging Face trainer.
DEEPSPEED_JSON = {
    "bf16": {"enabled": "auto"},
    "gradient_accumulation_steps": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "steps_per_print": 77,
    "zero_optimization": {"stage": 3, "reduce_bucket_size": 4321, "stage3_prefetch_bucket_size": "auto"},
}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def job(shapes: Path, cache_dir: Path, runs: Path):
    """Makes the overrides of a run: two steps of two micro-steps per process."""

    def make(name: str, *overrides: str) -> list[str]:
        steps = ("trainer.max_steps=2", "trainer.val_every=2", "trainer.checkpoint_every=1", "micro_batch_size=2")
        warm = "optim.schedule.warmup_steps=0"  # otherwise the second loss is that of the first weights
        return small_run(shapes, cache_dir, runs, *steps, warm, f"run_name={name}", *overrides)

    return make


@pytest.fixture(scope="module")
def mixed_job(shapes: Path, job, tmp_path_factory: pytest.TempPathFactory):
    """Makes a run on four samples, all of one step: the long text fills one row alone, video and image share the
    other."""
    folder = tmp_path_factory.mktemp("questions")
    shutil.copy(next(shapes.rglob("*.mp4")), folder / "video.mp4")
    Image.new("RGB", (64, 64), "red").save(folder / "image.png")
    rows = [
        {"id": "text", "question": "how many " * 40, "answer": "red green blue yellow red green blue"},
        {"id": "video", "video": "video.mp4", "question": "which shape ?", "answer": "circle"},
        {"id": "image", "image": "image.png", "question": "which colour ?", "answer": "red"},
        {"id": "short", "question": "count ?", "answer": "1"},
    ]
    for split in ("train", "val"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(name: str, *overrides: str) -> list[str]:
        words = [word for word in job(name) if not word.startswith(("data.root", "data.prepare"))]
        return ["data=questions", f"data.root={folder}", *words, "global_batch_size=4", "tuning=full", *overrides]

    return make


def callback(name: str, argument: str) -> str:
    return f"+callbacks.extra={{_target_: tests.distributed.callbacks.{name}, {argument}}}"


def run_here(words: list[str]) -> None:
    os.environ.pop(RUN_DIR_VARIABLE, None)
    train(config("train", words), words)
    os.environ.pop(RUN_DIR_VARIABLE, None)


@pytest.fixture(scope="module")
def walked(job, mixed_job, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs: ``single_<policy>`` of one process that accumulates, ``<strategy>_<policy>`` of two."""
    for policy, overrides in POLICIES.items():
        run_here(job(f"single_{policy}", *overrides))
    run_here(mixed_job("single_mixed"))
    deepspeed_json = runs / "deepspeed.json"
    deepspeed_json.write_text(json.dumps(DEEPSPEED_JSON))
    jobs = []
    for name in STRATEGIES:
        group = ("hardware.devices=2", f"strategy={name}")
        for policy, overrides in POLICIES.items():
            extra = []
            if name == "zero3" and policy == "frozen_tower":
                extra = [f"strategy.config={deepspeed_json}", callback("EngineSettings", f"file: {runs}/engine.json")]
            jobs.append(job(f"{name}_{policy}", *overrides, *group, *extra))
        jobs.append(["cut", f"{runs}/{name}_full", f"{runs}/{name}_cut", "1"])
        jobs.append([f"resume={runs}/{name}_cut"])
        # One target per call of the head: the rows of this step then call it 8 times and 6 times.
        jobs += [["head_chunk", "1"], mixed_job(f"{name}_mixed", *group), ["head_chunk", "512"]]
    for name in SHARDED:
        # Hardly trained: after a real step the tiny model ends every answer at once.
        answers = callback("AnswerValidation", f"folder: {runs}/answers_{name}")
        group = ("hardware.devices=2", f"strategy={name}")
        jobs.append(job(f"{name}_answers", *POLICIES["lora"], "optim.lr=1e-7", *group, answers))
        words = evaluation(runs / f"{name}_answers", "strategy=fsdp", f"output={runs}/together_{name}")
        jobs.append(["evaluate", str(free_port()), *words, "hardware.devices=2"])
    run_group(tmp_path_factory.mktemp("walk"), jobs, timeout=800)
    return runs


def evaluation(run: Path, *overrides: str) -> list[str]:
    """Overrides of an evaluation of a run on eight questions, with the same batches whatever the process."""
    return [f"run={run}", "eval.limit=8", "eval.max_new_tokens=6", "hardware=cpu", "eval.report_samples=0", *overrides]


def summary(run: Path) -> dict[str, float]:
    return json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_two_processes_lose_what_one_with_accumulation_loses(walked: Path, strategy: str, policy: str) -> None:
    found, expected = (losses(walked / f"{name}_{policy}") for name in (strategy, "single"))
    assert len(expected) == 2
    assert found == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_metrics_of_validation_are_those_of_a_single_process(walked: Path, strategy: str, policy: str) -> None:
    found, expected = (summary(walked / f"{name}_{policy}") for name in (strategy, "single"))
    assert found["val/loss"] == pytest.approx(expected["val/loss"], rel=2e-4)
    assert found["val/accuracy"] == expected["val/accuracy"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_checkpoints_hold_what_a_single_process_would_save(walked: Path, strategy: str, policy: str) -> None:
    found, expected = (
        torch.load(find_checkpoint(walked / f"{name}_{policy}", "last"), weights_only=True)["state_dict"]
        for name in (strategy, "single")
    )
    assert {name: value.shape for name, value in found.items()} == {n: value.shape for n, value in expected.items()}
    # After two steps of Adam a difference in the last bit of a gradient may be one of a share of the rate (1e-3).
    assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_that_was_cut_goes_on_bit_for_bit(walked: Path, strategy: str) -> None:
    assert losses(walked / f"{strategy}_cut") == losses(walked / f"{strategy}_full")[1:]


@pytest.mark.parametrize("strategy", SHARDED)
def test_a_run_goes_on_in_a_single_process_with_the_same_losses(walked: Path, strategy: str, tmp_path: Path) -> None:
    cut(walked / f"{strategy}_full", tmp_path / "cut", 1)
    run_here([f"resume={tmp_path / 'cut'}", "strategy=single", "hardware.devices=1"])
    assert losses(tmp_path / "cut") == pytest.approx(losses(walked / f"{strategy}_full")[1:], rel=2e-5)


def test_a_number_of_processes_that_would_change_the_samples_of_a_step_is_refused(walked: Path) -> None:
    run = walked / "ddp_full"
    before = sorted(file.name for file in run.rglob("*"))
    with pytest.raises(UserError, match=r"a step of this run holds 8 samples.*would hold 4.*Set global_batch_size=8"):
        run_here([f"resume={run}", "strategy=single", "hardware.devices=1", "global_batch_size=null", "accumulation=2"])
    assert sorted(file.name for file in run.rglob("*")) == before


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_process_with_text_alone_keeps_step_with_one_that_sees_image_and_video(walked: Path, strategy: str) -> None:
    found, expected = (losses(walked / f"{name}_mixed") for name in (strategy, "single"))
    assert found == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize(
    ("strategy", "policy"),
    [
        pytest.param(strategy, policy, marks=[] if policy == "lora" else pytest.mark.slow)
        for strategy in ("single", *STRATEGIES)
        for policy in POLICIES
    ],
)
def test_a_run_of_any_strategy_is_evaluated_without_consolidation(walked: Path, strategy: str, policy: str) -> None:
    words = evaluation(walked / f"{strategy}_{policy}")
    metrics = evaluate(config("evaluate", words), words)
    assert 0 <= metrics["accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ("single", *STRATEGIES))
@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_of_any_strategy_is_exported_in_every_form(
    walked: Path, strategy: str, policy: str, tmp_path: Path
) -> None:
    run = walked / f"{strategy}_{policy}"
    for form in FORMS:
        if form == "adapter" and policy != "lora":
            with pytest.raises(UserError, match="trained no adapter"):
                export(str(run), form, str(tmp_path / form), "last", ["hardware=cpu"])
        else:
            # Raises where the logits of the re-loaded weights are not those of the trained network.
            export(str(run), form, str(tmp_path / form), "last", ["hardware=cpu"])
    saved = torch.load(find_checkpoint(run, "last"), weights_only=True)["state_dict"]
    found = load_file(tmp_path / "fp32/trained_fp32.safetensors")
    assert {f"network.{name}" for name in found} == set(saved)
    assert all(torch.equal(tensor, saved[f"network.{name}"]) for name, tensor in found.items())


@pytest.mark.parametrize("strategy", SHARDED)
def test_answers_generated_while_sharded_are_those_of_whole_weights(
    walked: Path, strategy: str, tmp_path: Path
) -> None:
    sharded = {}
    for rank in (0, 1):
        sharded |= json.loads((walked / f"answers_{strategy}" / f"{rank}.json").read_text())
    words = [f"run={walked / f'{strategy}_answers'}", "checkpoint=last", "split=val", "eval.max_new_tokens=6"]
    words += [f"output={tmp_path}", "hardware=cpu", "eval.report_samples=0", "eval.batch_size=2"]
    evaluate(config("evaluate", words), words)
    lines = map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())
    whole = {line["sample_id"]: line["prediction"] for line in lines}
    assert len(sharded) == 8 and all(sharded.values())
    assert sharded == {name: whole[name] for name in sharded}


@pytest.mark.parametrize("strategy", SHARDED)
def test_processes_that_share_one_copy_of_the_weights_answer_like_one_with_a_copy(
    walked: Path, strategy: str, tmp_path: Path
) -> None:
    words = evaluation(walked / f"{strategy}_answers", f"output={tmp_path}")
    evaluate(config("evaluate", words), words)
    together, alone = (folder / "predictions.jsonl" for folder in (walked / f"together_{strategy}", tmp_path))
    answers = [
        [(line["sample_id"], line["prediction"]) for line in map(json.loads, file.read_text().splitlines())]
        for file in (together, alone)
    ]
    assert len(answers[0]) == 8 and all(text for _, text in answers[0])
    assert answers[0] == answers[1]


def test_a_users_deepspeed_json_reaches_the_engine(walked: Path) -> None:
    assert json.loads((walked / "engine.json").read_text()) == {"stage": 3, "bucket": 4321, "steps": 77}
