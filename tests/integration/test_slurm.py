"""Several nodes: the documented commands, and a SLURM job that is preempted and queued again."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.group import free_port
from tests.helpers import ROOT, config, small_run
from tests.integration.test_readme import NODES
from tests.integration.test_train_and_evaluate import losses
from vidtune.run import slurm, train
from vidtune.run.checks import check_config
from vidtune.run.train import RUN_DIR_VARIABLE, Interrupted
from vidtune.training.strategies import num_processes

BATCH_FILE = ROOT / "docs/slurm_2x2.sbatch"
BLOCKS = re.findall(r"```(?:bash)?\n(.*?)```", (ROOT / "docs/strategies.md").read_text(), re.S)
DOCUMENTED = [block for block in BLOCKS if "train.py" in block and "resume=" not in block]


def overrides_of(command: str) -> list[str]:
    """What stands behind train.py, placeholders filled in; a plugin's own keys are left to the plugin."""
    words = shlex.split(re.sub(r"<[^>]*>", "somewhere", command.replace("\\\n", " ")).replace("$", ""))
    behind = words[words.index("train.py") + 1 :]
    kept = [w for w in behind if "=" in w and not w.startswith(("hydra", "--"))]
    names = {word.split("=")[0] for word in kept}
    fill = {"data.root": "somewhere", "++model.path": "somewhere"}
    return [*kept, *(f"{key}={value}" for key, value in fill.items() if key.lstrip("+") not in names)]


def numbers(text: str) -> dict[str, int]:
    """What a launcher is asked for, whatever it calls it."""
    found = re.findall(r"(?:--|hydra\.launcher\.)([a-z_-]+)[= ](\d+)", text)
    names = {"nnodes": "nodes", "nproc-per-node": "tasks", "ntasks-per-node": "tasks", "tasks-per-node": "tasks"}
    return {names.get(name.replace("_", "-"), name): int(number) for name, number in found}


def test_the_batch_file_is_sound_and_its_command_passes_all_checks() -> None:
    assert subprocess.run(["bash", "-n", str(BATCH_FILE)], check=False).returncode == 0
    text = BATCH_FILE.read_text()
    assert "#SBATCH --requeue" in text and "#SBATCH --signal=SIGUSR1@" in text
    (example,) = re.findall(r"sbatch docs/slurm_2x2\.sbatch (.*)", text)
    cfg = config("train", overrides_of(f"{text.split('srun ')[1]} {example}"))
    assert f"sbatch docs/slurm_2x2.sbatch {example}" in (ROOT / "docs/strategies.md").read_text()
    check_config(cfg)
    asked = numbers(text)
    assert (asked["nodes"], asked["tasks"]) == (cfg.hardware.num_nodes, cfg.hardware.devices)
    assert cfg.strategy.name == "zero3" and num_processes(cfg.hardware) == 4


@pytest.mark.parametrize("command", [*DOCUMENTED, *NODES])
def test_a_documented_command_composes_and_passes_all_checks(command: str) -> None:
    cfg = config("train", overrides_of(command))
    check_config(cfg)
    asked = numbers(command)
    assert asked.get("tasks", cfg.hardware.devices) == cfg.hardware.devices
    assert asked.get("nodes", cfg.hardware.num_nodes) == cfg.hardware.num_nodes


def test_the_readme_starts_several_nodes_with_each_launcher() -> None:
    for launcher in ("torchrun ", "srun ", "hydra/launcher=submitit_slurm"):
        assert [command for command in NODES if launcher in command], launcher


def test_one_command_composes_model_data_strategy_and_machine() -> None:
    words = ["model=aria", "data=nextqa", "strategy=zero3_offload", "hardware=h100x8"]
    cfg = config("train", [*words, "model.path=aria", "data.root=nextqa"])
    check_config(cfg)
    assert (cfg.model.name, cfg.data.name, cfg.hardware.devices) == ("aria", "nextqa", 8)
    assert cfg.strategy.strategy.offload_parameters


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf/hardware").glob("*.yaml")))
def test_a_machine_states_all_its_facts(name: str) -> None:
    hardware = config("train", [f"hardware={name}"]).hardware
    facts = (hardware.devices, hardware.num_nodes, hardware.precision, hardware.attention)
    assert all(fact is not None for fact in facts)
    assert name in ("auto", "cpu") or hardware.memory_gb > 20


JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "vidtune",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
    "SLURM_JOB_NODELIST": "localhost",
}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A SLURM job of one task; the returned file lists what ``scontrol`` was asked."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in {"scontrol": f'echo "$@" >> {tmp_path}/asked', "srun": "exit 0"}.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    yield tmp_path / "asked"
    os.environ.pop(RUN_DIR_VARIABLE, None)


def run(words: list[str]) -> dict[str, float]:
    os.environ.pop(RUN_DIR_VARIABLE, None)
    return train(config("train", words), words)


def test_a_preempted_job_queues_itself_again_and_goes_on_as_if_nothing_had_happened(
    job: Path, shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = small_run(shapes, cache_dir, tmp_path, "trainer.max_steps=4", "tuning=lora", "trainer.val_every=4")
    run([*words, "run_name=whole"])
    number = int(signal.SIGUSR1)
    stop = (
        f"+callbacks.stop={{_target_: tests.integration.test_train_and_evaluate.SignalAt, step: 2, number: {number}}}"
    )
    # Without run_name: the number of the job names the folder, the same for every process and restart.
    with pytest.raises(Interrupted):
        run([*words, stop])
    assert job.read_text().split() == ["requeue", "7"]
    [cut] = tmp_path.glob("*_7")
    assert max(losses(cut)) < 3
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run([*words, "callbacks={}"])
    assert losses(cut) == losses(tmp_path / "whole")


def test_ranks_are_torchruns_where_srun_started_torchrun(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [plugin.auto_requeue for plugin in slurm.trainer_plugins()] == [False]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert slurm.trainer_plugins() == []


def test_a_refused_requeue_says_what_to_do(job: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    scontrol = Path(os.environ["PATH"].split(":")[0]) / "scontrol"
    scontrol.write_text("#!/bin/sh\necho 'Requested operation not permitted' >&2\nexit 1\n")
    slurm.requeue()
    assert "not permitted" in caplog.text and "Submit the job again" in caplog.text


TWO_NODES = """#!/bin/sh
# Two nodes with one task each, on this machine.
for node in 0 1; do
    SLURM_NTASKS=2 SLURM_NNODES=2 SLURM_PROCID=$node SLURM_NODEID=$node "$@" > {logs}/node$node.log 2>&1 &
    eval "task$node=$!"
done
wait $task0 && wait $task1
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", ["srun", "srun torchrun"])
def test_the_batch_file_and_torchrun_train_on_two_nodes_what_one_process_trains(
    job: Path, launcher: str, shapes: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = small_run(shapes, cache_dir, tmp_path, "trainer.max_steps=2", "trainer.val_every=2", "micro_batch_size=2")
    words += ["tuning=lora", "tuning.language.dropout=0"]
    with monkeypatch.context() as alone:
        for name in JOB:
            alone.delenv(name)
        run([*words, "run_name=one"])
    words.remove("hardware=cpu")
    words += ["hardware.accelerator=cpu", "hardware.precision=32-true", "hardware.devices=1", "strategy=zero2"]
    commands = Path(os.environ["PATH"].split(":")[0])
    (commands / "srun").write_text(TWO_NODES.format(logs=tmp_path))
    (commands / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (commands / "python").chmod(0o755)
    monkeypatch.delenv(RUN_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    port = free_port()
    if launcher == "srun":
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        command = ["bash", str(BATCH_FILE), *words]
    else:
        torchrun = ["python", "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
        command = ["srun", *torchrun, "train.py", "hardware=slurm_2x2", "run_name=job_7", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    logs = "\n".join(file.read_text()[-3000:] for file in sorted(tmp_path.glob("node*.log")))
    assert result.returncode == 0, result.stderr + logs
    found, expected = ([float(loss) for loss in losses(tmp_path / name).values()] for name in ("job_7", "one"))
    assert len(expected) == 2 and found == pytest.approx(expected, rel=2e-5)
