"""What trains in each row of the guide's tuning grid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from tests.families.nvila.cases import cases_with, ours
from tests.families.nvila.test_weights import full_size
from vidtune.config.schema import PartPolicy, TuningConfig
from vidtune.models.nvila.network import NVILA
from vidtune.tuning.policy import apply_tuning
from vidtune.tuning.unrun import unrun_notes, unrun_weights

LORA_TARGETS = OmegaConf.load(Path(__file__).parents[3] / "conf/model/nvila.yaml").lora_targets
_MODES = {"FT": "full", "F": "frozen", "LoRA": "lora", "LN": "layernorm"}
UNRUN_TOWER_NORMS = 3 * 2 * 1152
"""Weights of the three LayerNorms of Lite-8B's tower that influence nothing: two of the last layer, one after it."""


def row_tuning(vision: str, language: str) -> DictConfig:
    """A row of the grid, adapters of rank 16."""
    policy = {
        role: PartPolicy(mode=_MODES[mode], rank=16, alpha=32.0, dropout=0.05)
        for role, mode in (("vision", vision), ("language", language))
    }
    return OmegaConf.structured(TuningConfig(name="grid", connector=PartPolicy(mode="full"), **policy))


def trainable(network: NVILA, vision: str, language: str) -> dict[str, torch.Size]:
    """Names and shapes of what trains in a row of the grid."""
    apply_tuning(network, row_tuning(vision, language), LORA_TARGETS)
    return {name: p.shape for name, p in network.named_parameters() if p.requires_grad}


@cases_with("trainable_grid.json")
def test_each_row_of_the_grid_trains_what_the_original_trains_minus_what_it_never_runs(case):
    for row, expected in json.loads((case.folder / "trainable_grid.json").read_text()).items():
        vision, language = row.split()[-1].split("/")
        network = case.build_network()
        theirs = {
            ours(name.removeprefix("base_model.model.")): torch.Size(shape)
            for name, shape in expected["trainable"].items()
        }
        last = network.config.num_run_layers
        unrun = {name for name in theirs if re.match(rf"vision\.(encoder\.layers\.{last}\.|post_layernorm)", name)}
        assert bool(unrun) == (vision != "F"), row
        found = trainable(network, vision, language)
        assert found == {name: shape for name, shape in theirs.items() if name not in unrun}, row
        left_out = sum(theirs[name].numel() for name in unrun)
        assert sum(shape.numel() for shape in found.values()) + left_out == expected["num_trainable_elements"], row


def test_a_run_says_what_the_original_would_count_more():
    network = full_size("lite_8b")
    tuning = row_tuning("LN", "LoRA")
    with torch.device("meta"):
        trainable(network, "LN", "LoRA")
    assert unrun_weights(network, tuning, LORA_TARGETS) == {"vision": UNRUN_TOWER_NORMS}
    (note,) = unrun_notes(network, tuning, LORA_TARGETS)
    assert "119,808 weights train; the original counts 126,720" in note
