"""What trains under the recipe and under LoRA."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import config
from vidtune.models.video_chatgpt.tiny import write_tiny_checkpoint
from vidtune.models.video_chatgpt.weights import build_network
from vidtune.tuning.policy import apply_tuning

RECIPE = {"connector.projection.weight", "connector.projection.bias", "new_tokens.weight"}


@pytest.fixture
def network(tmp_path):
    write_tiny_checkpoint(tmp_path)
    return build_network(str(tmp_path), str(tmp_path / "clip"), dtype="bfloat16")


def tuned(network, policy):
    """With the policy and the patterns of the full-size configuration."""
    cfg = config("train", ["model=video_chatgpt", "model.path=unused", f"tuning={policy}"])
    return set(apply_tuning(network, cfg.tuning, cfg.model.lora_targets))


def test_the_recipe_trains_projector_and_markers_alone_in_full_precision(network):
    assert tuned(network, "suited") == RECIPE
    trained = {name: p.dtype for name, p in network.named_parameters() if p.requires_grad}
    assert trained == dict.fromkeys(RECIPE, torch.float32)


def test_lora_reaches_all_seven_projections_of_every_layer_and_nothing_else(network):
    layers = network.language.config.num_hidden_layers
    adapters = tuned(network, "lora") - RECIPE
    assert len(adapters) == 2 * 7 * layers
    assert all(name.startswith("language.model.layers.") and "lora_" in name for name in adapters)
