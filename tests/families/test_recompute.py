"""``hardware.selective_recompute`` selects, in every family: so many layers run twice, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from math import ceil
from pathlib import Path

import pytest
import torch

from tests.families.test_contract import Family, assert_same, family  # noqa: F401
from tests.helpers import config
from vidtune.contracts import UserError
from vidtune.models.recompute import recompute_activations, recomputing_layers
from vidtune.run.build import build_tuned_network
from vidtune.run.checks import check_config


def runs_per_layer(family: Family) -> tuple[Counter[int], tuple]:  # noqa: F811
    """How often each decoder layer began in a forward and a backward pass, loss and gradients."""
    counts: Counter[int] = Counter()
    layers = family.network.language.model.layers
    hooks = [
        layer.input_layernorm.register_forward_hook(lambda *_, number=number: counts.update([number]))
        for number, layer in enumerate(layers)
    ]
    found = family.gradients(family.row((0, 1), (4,)))
    for hook in hooks:
        hook.remove()
    return counts, found


def test_so_many_layers_run_again_as_the_share_says_and_the_gradients_are_the_same(
    family: Family,  # noqa: F811
) -> None:
    language = family.network.language
    number = len(language.model.layers)
    dropouts = [module for module in family.network.modules() if isinstance(module, torch.nn.Dropout)]
    assert not any(module.p for module in dropouts)  # else train mode would not be eval mode
    family.network.train()
    try:
        counts, plain = runs_per_layer(family)
        assert counts == dict.fromkeys(range(number), 1)
        for share in (0.0, 0.3, 0.5, 1.0):
            names = recompute_activations(language, share)
            counts, found = runs_per_layer(family)
            again = ceil(share * number)
            assert names == recomputing_layers(language) and len(names) == again, share
            assert counts == {layer: 2 if layer < again else 1 for layer in range(number)}, share
            assert_same(found, plain, relative=1e-5)  # a last layer that recomputes is not narrowed
    finally:
        language.gradient_checkpointing_disable()
        family.network.eval()


@pytest.mark.parametrize("model", ["internvideo25_tiny", "nvila_tiny"])
def test_the_setting_reaches_the_network_of_a_run(model: str, cache_dir: Path) -> None:
    words = [f"model={model}", "hardware=cpu", f"paths.cache_dir={cache_dir}", "hardware.activation_checkpointing=true"]
    for share, expected in (("0.5", {"internvideo25_tiny": 1, "nvila_tiny": 2}[model]), ("0", 0)):
        cfg = config("train", [*words, f"hardware.selective_recompute={share}"])
        network, _ = build_tuned_network(cfg)
        assert len(recomputing_layers(network.language)) == expected, share
    with pytest.raises(UserError, match=r"selective_recompute=1\.5; expected a share from 0 to 1"):
        check_config(config("train", [*words, "hardware.selective_recompute=1.5"]))
