"""When checkpoints are written and which stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import config
from vidtune.contracts import UserError
from vidtune.run.checks import check_config
from vidtune.training.callbacks import StepCheckpoints


@pytest.mark.parametrize(
    ("every", "steps"),
    [(4, [4, 8, 12]), (2.5, [3, 5, 8, 10]), (0.1 * 30, [3, 6, 9, 12]), (0.4, list(range(1, 13)))],
)
def test_a_fraction_of_an_epoch_is_reached_at_its_first_step(every: float, steps: list[int]) -> None:
    callback = StepCheckpoints(Path(), every, keep=1)
    assert [step for step in range(1, 13) if callback.due(step)] == steps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("step_000002", "step_000010", "step_000006", "best_000006"):
        (tmp_path / f"{name}.ckpt").write_bytes(bytes(1000))
    return tmp_path


@pytest.mark.parametrize(
    ("keep", "keep_bytes", "left"),
    [
        (2, None, ["best_000006", "step_000006", "step_000010"]),
        (9, 3000, ["best_000006", "step_000006", "step_000010"]),
        (9, 2999, ["best_000006", "step_000010"]),
        (9, 10, ["best_000006", "step_000010"]),  # the newest and the best stay in any case
    ],
)
def test_the_newest_stay_by_number_and_by_bytes(
    folder: Path, keep: int, keep_bytes: int | None, left: list[str]
) -> None:
    StepCheckpoints(folder, 1, keep, keep_bytes).prune()
    assert sorted(file.stem for file in folder.iterdir()) == left


def test_two_cadences_at_once_and_none_kept_are_refused_together() -> None:
    words = ["hardware=cpu", "global_batch_size=8", "micro_batch_size=4", "trainer.keep_checkpoints=0"]
    cfg = config("train", [*words, "trainer.checkpoint_every=5", "trainer.checkpoint_every_epochs=0.25"])
    with pytest.raises(UserError, match=r"(?s)exclude each other.*keep_checkpoints=0; expected more than 0"):
        check_config(cfg)
