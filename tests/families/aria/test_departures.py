"""What the start of a run says about the ways in which a recipe is not the original's job."""

from __future__ import annotations

import pytest

from tests.helpers import config
from vidtune.run.checks import check_config
from vidtune.run.departures import describe_departures, in_force

COMMANDS = {
    "aria_nextqa_lora": ["experiment=aria_nextqa_lora", "hardware=a100_80gb"],
    "aria_nextqa_full": ["experiment=aria_nextqa_full", "hardware=h100x8", "strategy=zero3_offload"],
}


def _compose(recipe: str, *overrides: str):
    return config("train", [*COMMANDS[recipe], "model.path=weights", "data.root=data", *overrides])


@pytest.mark.parametrize("recipe", COMMANDS)
def test_the_start_log_names_every_departure_and_the_key_that_restores_it(recipe: str) -> None:
    cfg = _compose(recipe)
    text = describe_departures(cfg)
    assert f"in {len(in_force(cfg))} points" in text and len(text.splitlines()) == len(in_force(cfg)) + 1
    assert "490 px" in text and "restored by model.processor.max_image_size=980" in text
    steps = {"aria_nextqa_lora": 2133, "aria_nextqa_full": 266}[recipe]
    assert f"restored by trainer.max_steps={steps}" in text
    assert ("adapters are float32" in text) == (recipe == "aria_nextqa_lora")


@pytest.mark.parametrize("recipe", COMMANDS)
def test_a_restoring_key_is_accepted_and_takes_its_departure_off_the_list(recipe: str) -> None:
    before = in_force(_compose(recipe))
    keys = {name: departure.restore for name, departure in before.items() if departure.restore}
    assert {"image_size", "validation", "last_step"} <= keys.keys()
    for name, restore in keys.items():
        cfg = _compose(recipe, *(f"{key}={value}" for key, value in restore.items()))
        check_config(cfg)
        assert in_force(cfg).keys() == before.keys() - {name}


def test_other_runs_say_nothing() -> None:
    assert describe_departures(config("train")) == ""
