"""Exactly these parameters train, per family and policy: a pattern that gains or loses a layer shows up here.

Record again: ``python -m tests.families.test_trainable_names`` (writes ``tests/golden_names``).
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

from tests.helpers import ROOT, config
from vidtune.run.build import build_tuned_network, prepare

FOLDER = Path(__file__).parents[1] / "golden_names"
FAMILIES = ("tiny", "aria_tiny", "internvideo25_tiny", "nvila_tiny", "video_chatgpt_tiny", "video_llama_tiny")
POLICIES = (
    "full",
    "connector",
    "lora",
    "vision_lora_language_lora",
    "vision_layernorm_language_frozen",
    "vision_layernorm_language_lora",
    "vision_full_language_lora",
    "vision_full_language_frozen",
)
SAME = {
    "vision_full_language_full": "full",
    "vision_frozen_language_lora": "lora",
    "vision_frozen_language_qlora": "lora",
    "vision_lora_language_qlora": "vision_lora_language_lora",
    "vision_layernorm_language_qlora": "vision_layernorm_language_lora",
}
"""Policies that train what another one does, at other rates or on four-bit weights."""


def trainable_names(family: str, policy: str, cache_dir: Path) -> str:
    """One line per name with its layer number left out (``*``), and the layers that have it."""
    cfg = config("train", [f"model={family}", f"tuning={policy}", "hardware=cpu", f"paths.cache_dir={cache_dir}"])
    cfg.data.prepare = None
    prepare(cfg)
    network, _ = build_tuned_network(cfg)
    layers: dict[str, list[str]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            number = re.search(r"\.(\d+)\.", name)
            layers[re.sub(r"\.\d+\.", ".*.", name, count=1)].append(number[1] if number else "")
    return "".join(f"{name} {','.join(numbers)}".rstrip() + "\n" for name, numbers in sorted(layers.items()))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_recorded_parameters_train(family: str, policy: str, cache_dir: Path) -> None:
    assert trainable_names(family, policy, cache_dir) == (FOLDER / f"{family}.{policy}.txt").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_four_bit_base_trains_what_a_plain_one_trains(family: str, cache_dir: Path) -> None:
    assert trainable_names(family, "qlora", cache_dir) == (FOLDER / f"{family}.lora.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("policy", SAME)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_trains_what_its_plain_form_trains(family: str, policy: str, cache_dir: Path) -> None:
    assert trainable_names(family, policy, cache_dir) == (FOLDER / f"{family}.{SAME[policy]}.txt").read_text()


def test_every_policy_of_the_configuration_has_its_names() -> None:
    known = {path.stem for path in (ROOT / "conf/tuning").glob("*.yaml")} - {"suited", "qlora"}
    assert known == {*POLICIES, *SAME}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        for family in FAMILIES:
            for policy in POLICIES:
                (FOLDER / f"{family}.{policy}.txt").write_text(trainable_names(family, policy, Path(cache)))
