"""Warm-up and floor of the learning rate, against a published trainer's table and values computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from tests.families.golden import golden_root
from vidtune.contracts import UserError
from vidtune.training.schedules import build_schedule

TABLES = sorted(golden_root().glob("*/case_*/expected_lr_schedule.json"))


def rates(base: list[float], total_steps: int, **options) -> list[list[float]]:
    """Learning rate of every group in every step."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in base]
    optimizer = torch.optim.SGD(groups)
    scheduler = build_schedule(optimizer, total_steps, **options)
    used = []
    for _ in range(total_steps):
        used.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize("file", TABLES, ids=lambda file: f"{file.parents[1].name}-{file.parent.name}")
def test_a_trainer_that_warms_up_from_its_first_step_is_reproduced(file: Path):
    for table in json.loads(file.read_text()):
        found = rates(
            [table["vit_lr"], table["connector_lr"], table["lr"]],
            table["total_steps"],
            name="ramped_cosine",
            warmup_ratio=table["warmup_ratio"],
            warmup_rounding="down",
            min_lr=table["lr_min"],
        )
        expected = torch.tensor(table["lr_used_per_step_vit_connector_llm"], dtype=torch.float64)
        difference = (torch.tensor(found, dtype=torch.float64) - expected).abs().max()
        assert difference < 1e-12


def test_the_default_is_transformers_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 3, 10)
    for (found,) in rates([1.0], 10, name="cosine", warmup_steps=3):
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("rounding", "first"), [("up", [0.0, 0.5, 1.0]), ("down", [0.0, 1.0, 1.0])])
def test_a_share_of_the_steps_is_rounded_as_asked(rounding, first):
    found = rates([1.0], 10, name="constant", warmup_ratio=0.15, warmup_rounding=rounding)
    assert [rate for (rate,) in found[:3]] == first


def test_a_floor_in_learning_rate_is_the_same_for_every_group():
    found = rates([1.0, 0.5], 400, name="linear", min_lr=0.1)
    assert found[0] == [1.0, 0.5]
    assert found[-1] == pytest.approx([0.1, 0.1], abs=5e-3)


def test_an_unknown_rounding_names_the_known_ones():
    with pytest.raises(UserError, match=r"warmup_rounding='nearest'.*down, up"):
        rates([1.0], 10, name="cosine", warmup_ratio=0.1, warmup_rounding="nearest")
