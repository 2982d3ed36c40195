"""Every command of the README, on tiny models."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, SMALL_SHAPES, config, small_run
from vidtune.commands.main import main as vidtune
from vidtune.entry import run_task
from vidtune.run import evaluate, train
from vidtune.run.sweep import expand
from vidtune.run.train import RUN_DIR_VARIABLE

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
NODES = [command for command in COMMANDS if "hardware=slurm_2x2" in command]
"""Composed and checked in ``test_slurm.py``."""
TRAIN = [command for command in COMMANDS if command.startswith("python train.py") and " -m " not in command]
EVALUATE = [command for command in COMMANDS if command.startswith("python evaluate.py")]
SWEEPS = [command for command in COMMANDS if command.startswith("python train.py -m") and command not in NODES]
VERBS = [command for command in COMMANDS if command.startswith("vidtune ")]
OTHERS = ["make demo", "make test"]


def test_no_command_of_the_readme_is_untested() -> None:
    assert sorted(COMMANDS) == sorted([*TRAIN, *EVALUATE, *SWEEPS, *NODES, *VERBS, *OTHERS])


@pytest.fixture(scope="module")
def place(shapes: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs, a folder per class, and a folder of questions, all made of the small shapes."""
    root = tmp_path_factory.mktemp("readme")
    rows = [json.loads(line) for line in (shapes / "train.jsonl").read_text().splitlines()]
    for row in rows:
        if row["question_type"] == "shape":
            target = root / "classes" / row["answer"] / Path(row["video"]).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(shapes / row["video"], target)
    return {"runs": root / "runs", "<root>": root / "classes", "<folder>": shapes, "shapes": shapes, "cache": cache_dir}


@pytest.fixture
def type_command(monkeypatch: pytest.MonkeyPatch, place: dict[str, Path]):
    """Types a command of the README, with further overrides that make it small."""

    def run(command: str, *overrides: str) -> dict[str, float] | None:
        for name in ("<root>", "<folder>"):
            command = command.replace(name, str(place[name]))
        _, script, *arguments = shlex.split(command)
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments, *overrides])
        task, name = (train, "train") if script == "train.py" else (evaluate, "evaluate")
        os.environ.pop(RUN_DIR_VARIABLE, None)
        try:
            return run_task(task, str(ROOT / "conf"), name)
        finally:
            os.environ.pop(RUN_DIR_VARIABLE, None)

    return run


def small(place: dict[str, Path], command: str) -> list[str]:
    """Overrides of a small run, without those that the command sets itself."""
    own = {argument.split("=")[0] for argument in shlex.split(command)}
    overrides = small_run(place["shapes"], place["cache"], place["runs"], "trainer.max_steps=1", "trainer.val_every=1")
    if "data" in own:
        overrides = [o for o in overrides if not o.startswith("data.prepare")]
    return [o for o in overrides if o.split("=")[0] not in own]


@pytest.fixture(scope="module")
def demo(place: dict[str, Path]) -> Path:
    os.environ.pop(RUN_DIR_VARIABLE, None)
    overrides = [*small(place, ""), "run_name=demo"]
    train(config("train", overrides), overrides)
    os.environ.pop(RUN_DIR_VARIABLE, None)
    return place["runs"] / "demo"


@pytest.mark.parametrize("command", TRAIN)
def test_training_commands(command: str, type_command, place: dict[str, Path], demo: Path, capsys) -> None:
    if "model=aria" in command:
        with pytest.raises(SystemExit):
            type_command(command)
        assert re.search(r"(data\.root|model\.path|hardware)", capsys.readouterr().err)
    elif "resume" in command:
        overrides = [f"paths.runs_dir={place['runs']}", "trainer.max_steps=2"]
        assert type_command(command, *overrides) is not None
    else:
        assert type_command(command, *small(place, command)) is not None


@pytest.mark.parametrize("command", EVALUATE)
def test_evaluation_commands(command: str, type_command, place: dict[str, Path], demo: Path, tmp_path: Path) -> None:
    other = demo.with_name("other")
    if not other.exists():
        shutil.copytree(demo, other)
    command = command.replace("runs/demo", str(demo)).replace("runs/other", str(other))
    overrides = ["hardware=cpu", f"output={tmp_path}", "eval.limit=8"]
    if "model=" in command:
        overrides += [o for o in small(place, command) if o.startswith(("data.", "paths."))]
        overrides += [f"data.prepare.{key}={value}" for key, value in SMALL_SHAPES.items()]
    metrics = type_command(command, *overrides)
    assert metrics is not None
    accuracies = [value for key, value in metrics.items() if key.split("/")[-1] == "accuracy"]
    assert len(accuracies) == (3 if "runs/other" in command or "untuned" in command else 1)
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)


@pytest.mark.parametrize("command", SWEEPS)
def test_sweep_commands_compose_every_job(command: str, tmp_path: Path) -> None:
    jobs = expand([argument for argument in shlex.split(command)[2:] if argument != "-m"], tmp_path)
    assert len(jobs) == 6 and len({job.folder for job in jobs}) == 6
    for job in jobs:
        cfg = config("train", job.overrides)
        assert str(cfg.tuning.language.rank) in job.folder.name


@pytest.mark.parametrize("command", VERBS)
def test_verbs(command: str, place: dict[str, Path], demo: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "clips").mkdir()
    video = shutil.copy(next(place["shapes"].rglob("*.mp4")), tmp_path / "clips/clip.mp4")
    words = shlex.split(command)[1:]
    names = {"runs/demo": str(demo), "clip.mp4": str(video), "clips": str(tmp_path / "clips")}
    words = [names.get(word, word) for word in words]
    if words[0] == "check":
        words += small(place, "")
    elif words[0] != "doctor":
        words += ["hardware=cpu"]
    # 1 is what the doctor says of a machine, and the check of data, that have faults.
    assert vidtune(words) in ((0, 1) if words[0] == "doctor" else (0,))
    out = capsys.readouterr().out
    expected = {"doctor": "Python", "check": "Rows and their token lengths", "export": "merged"}
    assert out.strip() and expected.get(words[0], "") in out
