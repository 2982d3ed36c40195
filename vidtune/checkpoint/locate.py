"""Which file a checkpoint's name means."""

from __future__ import annotations

import re
from pathlib import Path

from vidtune.contracts import UserError

_STEP = re.compile(r"(best|step)_(\d+)\.ckpt")


def checkpoint_folder(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def find_checkpoint(run_dir: Path, name: str) -> Path:
    """``best``, ``last`` or ``step_000200`` of a run; ``best`` falls back to ``last`` where nothing was validated.

    Raises:
        UserError: the run has no such checkpoint, or none at all; lists those it has.
    """
    found: dict[tuple[str, int], Path] = {}
    for path in checkpoint_folder(run_dir).glob("*.ckpt"):
        if match := _STEP.fullmatch(path.name):
            found[match[1], int(match[2])] = path
    if not found:
        raise UserError(f"{run_dir}: the run folder holds no checkpoint yet (checkpoints/step_*.ckpt). Train it first.")
    best = {key: path for key, path in found.items() if key[0] == "best"}
    if name == "best" and best:
        return best[max(best)]
    if name in ("best", "last"):
        # Of two of one step the regular one: the best one is saved within a validation, where counters lag behind.
        return found[max(found, key=lambda key: (key[1], key[0] == "step"))]
    if match := _STEP.fullmatch(f"{name}.ckpt"):
        key = (match[1], int(match[2]))
        if key in found:
            return found[key]
    names = ", ".join(sorted(path.stem for path in found.values()))
    raise UserError(f"checkpoint={name!r}: {run_dir} has no such checkpoint. It has: best, last, {names}.")


def find_run(resume: str, runs_dir: Path) -> Path:
    """The run folder that ``resume`` names; ``last`` is the newest one with a checkpoint.

    Raises:
        UserError: no such run.
    """
    if resume != "last":
        return Path(resume)
    runs = [path.parent for path in runs_dir.glob("*/checkpoints") if any(path.glob("*.ckpt"))]
    if not runs:
        raise UserError(f"resume=last: no run below {runs_dir} holds a checkpoint. Name the run folder.")
    return max(runs, key=lambda run: max(file.stat().st_mtime for file in checkpoint_folder(run).glob("*.ckpt")))
