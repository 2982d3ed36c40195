"""Whatever ended a run of several processes: from its newest checkpoint it goes on bit for bit.

The runs have dropout where they have adapters, and two micro-steps per process and step.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.distributed.group import losses, run_group
from tests.helpers import small_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

POLICIES = {
    "lora": ("tuning=lora", "tuning.language.dropout=0.2"),
    "full": ("tuning=full",),
    "frozen_tower": ("tuning=vision_frozen_language_lora", "tuning.language.mode=full"),
}
GROUPS = {"single": 1} | dict.fromkeys(("ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp"), 2)


def signal_at(step: int, number: int, rank: int) -> str:
    target = "tests.distributed.callbacks.SignalAt"
    return f"+callbacks.stop={{_target_: {target}, step: {step}, number: {int(number)}, rank: {rank}}}"


@pytest.fixture(scope="module", params=GROUPS)
def walked(request, shapes: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs under one strategy: whole ones, and ones that were ended in several ways and resumed."""
    strategy, processes = request.param, GROUPS[request.param]
    runs = tmp_path_factory.mktemp(f"resume_{strategy}")
    kept = ("trainer.max_steps=4", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=9", "micro_batch_size=2")
    group = (f"strategy={strategy}", f"hardware.devices={processes}")

    def job(name: str, *overrides: str) -> list[str]:
        return small_run(shapes, cache_dir, runs, *kept, *group, f"run_name={name}", *overrides)

    def resume(name: str, *overrides: str) -> list[str]:
        return [f"resume={runs / name}", "callbacks={}", *overrides]

    jobs = []
    for policy, overrides in POLICIES.items():
        jobs.append(job(policy, *overrides))
        jobs.append(["cut", str(runs / policy), str(runs / f"{policy}_cut"), "2"])
        jobs.append(resume(f"{policy}_cut", "data.num_workers=2"))
        jobs.append(job(f"{policy}_sigterm", *overrides, signal_at(2, signal.SIGTERM, processes - 1)))
        jobs.append(resume(f"{policy}_sigterm"))
    run_group(tmp_path_factory.mktemp("walk"), jobs, processes, timeout=800)
    full = [job("full_disk", *POLICIES["full"], "+callbacks.disk={_target_: tests.distributed.callbacks.FullDisk}")]
    (runs / "full_disk.txt").write_text(run_group(tmp_path_factory.mktemp("disk"), full, processes, ends=1))
    killed = job("lora_killed", *POLICIES["lora"], signal_at(3, signal.SIGKILL, processes - 1))
    run_group(tmp_path_factory.mktemp("killed"), [killed], processes, ends=-signal.SIGKILL)
    run_group(tmp_path_factory.mktemp("again"), [resume("lora_killed"), resume("full_disk")], processes)
    return runs


@pytest.mark.parametrize("policy", POLICIES)
def test_a_copy_of_the_folder_taken_after_step_2_goes_on_with_other_data_workers(walked: Path, policy: str) -> None:
    whole = losses(walked / policy)
    assert len(whole) == 4
    assert losses(walked / f"{policy}_cut") == whole[2:]


@pytest.mark.parametrize("policy", POLICIES)
def test_sigterm_to_one_process_in_mid_accumulation_loses_nothing(walked: Path, policy: str) -> None:
    assert losses(walked / f"{policy}_sigterm") == losses(walked / policy)


def test_kill_9_in_mid_accumulation_loses_the_step_under_way(walked: Path) -> None:
    assert losses(walked / "lora_killed") == losses(walked / "lora")
    assert (walked / "lora_killed" / "summary.json").is_file()


def test_a_full_disk_ends_the_run_and_the_checkpoint_before_is_whole(walked: Path) -> None:
    assert "Earlier checkpoints are whole. Free some" in " ".join((walked / "full_disk.txt").read_text().split())
    assert losses(walked / "full_disk") == losses(walked / "full")
