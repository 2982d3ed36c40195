"""Weights that are cut while they are read: every process keeps its part, and none ever holds them all."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import config
from vidtune.contracts import UserError
from vidtune.models.loading import load_tensors
from vidtune.models.shards import defer, held_whole, place_one_by_one, take_parts, unwritten, weights_on_meta
from vidtune.run.build import build_tuned_network, prepare

PROCESSES = 4
MODELS = ("tiny", "aria_tiny", "nvila_tiny", "internvideo25_tiny", "video_llama_tiny", "video_chatgpt_tiny")


def flat_part(rank: int):
    """As ZeRO-3 cuts, computed another way: padded first, then divided."""

    def cut(value: Tensor) -> Tensor:
        missing = -value.numel() % PROCESSES
        return torch.cat([value.flatten(), value.new_zeros(missing)]).view(PROCESSES, -1)[rank]

    return cut


def live_bytes() -> int:
    """Memory of all tensors made since ``gc.freeze``."""
    storages = {}
    for found in gc.get_objects():
        if isinstance(found, Tensor) and not found.is_meta:
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.fixture(params=MODELS)
def cfg(request, shapes: Path, cache_dir: Path):
    words = [f"model={request.param}", f"paths.cache_dir={cache_dir}", "tuning=lora", "hardware=cpu"]
    cfg = config("train", [*words, "tuning.language.mode=lora", "tuning.language.rank=4", "tuning.language.alpha=8"])
    prepare(cfg)
    return cfg


def test_the_parts_of_all_processes_make_up_the_weights_of_a_single_process(cfg) -> None:
    whole, policies = build_tuned_network(cfg)
    sharded = [build_tuned_network(cfg, cut=flat_part(rank)) for rank in range(PROCESSES)]
    parts = [take_parts(network) for network, _ in sharded]
    own = dict(sharded[0][0].named_parameters())
    assert own.keys() == dict(whole.named_parameters()).keys()
    assert sharded[0][1].keys() == policies.keys()
    for name, parameter in whole.named_parameters():
        assert (own[name].dtype, own[name].requires_grad) == (parameter.dtype, parameter.requires_grad), name
        if name in parts[0]:
            joined = torch.cat([part[name] for part in parts])[: parameter.numel()].view_as(parameter)
        else:
            joined = own[name]  # an adapter: drawn by every process, from the seed
        assert torch.equal(joined.to(parameter.dtype), parameter), name
    buffers = dict(sharded[0][0].named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in whole.named_buffers())


def test_no_process_holds_a_full_copy_at_any_time(cfg) -> None:
    whole, _ = build_tuned_network(cfg)
    total = sum(p.numel() * p.element_size() for p in whole.parameters())
    largest = max(p.numel() * p.element_size() for p in whole.parameters())
    others = sum(b.numel() * b.element_size() for b in whole.buffers())
    others += sum(p.numel() * p.element_size() for n, p in whole.named_parameters() if "lora_" in n)
    del whole
    gc.collect()
    gc.freeze()
    seen: list[int] = []
    cut = flat_part(0)

    def watched(value: Tensor) -> Tensor:
        seen.append(live_bytes())
        return cut(value)

    try:
        network, _ = build_tuned_network(cfg, cut=watched)
        parts = take_parts(network)
        for name, parameter in place_one_by_one(network, "cpu"):
            seen.append(live_bytes())
            parameter.data = parts.pop(name) if name in parts else parameter.data
    finally:
        gc.unfreeze()
    # A tensor of the file may be several of ours, or one of several: both may be held for a moment.
    assert max(seen) <= total / PROCESSES + others + 3 * largest
    assert max(seen) < total


def test_weights_that_are_tied_stay_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.table.weight
            self.register_buffer("positions", torch.arange(5))

    with weights_on_meta():
        network = Tied()
    assert network.table.weight.is_meta and network.head.weight is network.table.weight
    assert network.positions.tolist() == [0, 1, 2, 3, 4]
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_checkpoint_that_does_not_fit_gets_the_same_report_as_without_sharding() -> None:
    def report(network: nn.Module) -> str:
        tensors = {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(3), "2.weight": torch.ones(1)}
        with pytest.raises(UserError) as caught:
            load_tensors(network, tensors.items(), "folder")
        return str(caught.value)

    with weights_on_meta():
        sharded = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    defer(sharded, flat_part(0))
    expected = report(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))
    assert report(sharded) == expected
    assert "2 missing: 1.bias, 1.weight" in expected
    assert "1 unexpected: 2.weight" in expected and "0.bias (3,) for (2,)" in expected


def test_weights_that_a_family_fills_by_hand_are_cut_too() -> None:
    with weights_on_meta():
        sharded = nn.Linear(4, 2)
    defer(sharded, flat_part(1))
    with held_whole(sharded), torch.no_grad():
        sharded.weight.copy_(torch.arange(8).view(2, 4))
        sharded.bias.fill_(5)
    assert unwritten(sharded) == []
    assert {name: part.tolist() for name, part in take_parts(sharded).items()} == {"weight": [2, 3], "bias": [5]}
    assert sharded.weight.is_meta
