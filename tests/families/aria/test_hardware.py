"""Which machines the full-size model is refused on before anything is loaded, and what the refusal offers."""

from __future__ import annotations

import pytest

from tests.helpers import config
from vidtune.contracts import UserError
from vidtune.run.checks import check_config

WHERE = ["model=aria", "model.path=weights", "data=nextqa", "data.root=data"]
LORA, FULL = "experiment=aria_nextqa_lora", "experiment=aria_nextqa_full"
LARGER = "hardware=a100_80gb; hardware=h100_80gb; hardware=h100x8"


@pytest.mark.parametrize("name", ["train", "evaluate"])
@pytest.mark.parametrize("strategy", ["single", "ddp", "zero2"])
def test_a_24_gb_card_is_refused_in_bf16_with_what_would_fit(name: str, strategy: str) -> None:
    cfg = config(name, [*WHERE, "hardware=rtx4090", f"strategy={strategy}"])
    with pytest.raises(
        UserError, match=r"needs 50\.6 GB for its weights in bfloat16, but a device has 25\.7 GB"
    ) as error:
        check_config(cfg)
    assert LARGER in str(error.value)
    assert "zero3 or fsdp on 2 devices or more" in str(error.value) and "zero3_offload" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([FULL, "hardware=a100_80gb"], r"needs 405\.0 GB for its float32 weights, gradients and AdamW states"),
        ([FULL, "hardware=h100x8", "strategy=zero2"], r"needs 101\.2 GB for its float32 weights, which this strategy"),
    ],
)
def test_full_tuning_is_refused_where_it_cannot_fit(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_config(config("train", [*WHERE, *overrides]))
    assert "strategy=zero3" in str(error.value) and "tuning=lora" in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [LORA, "hardware=a100_80gb"],
        [FULL, "hardware=h100x8", "strategy=zero3_offload"],
        ["hardware=h100x8", "strategy=zero3_offload"],
        ["hardware=rtx4090", "strategy=zero3_offload"],
    ],
)
def test_the_guides_machines_are_accepted(overrides: list[str]) -> None:
    check_config(config("train", [*WHERE, *overrides]))
