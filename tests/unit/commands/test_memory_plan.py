"""Memory estimates against the figures worked out by hand for each original (GB, before activations)."""

import pytest

from vidtune.commands.machine import Gpu
from vidtune.commands.memory_plan import ACTIVATIONS_GB, STRATEGIES, best_fit, estimate, load_model_memory, plan

MODELS = {model.name: model for model in load_model_memory()}
STRATEGY = {strategy.name: strategy for strategy in STRATEGIES}
RTX4090 = Gpu("RTX 4090", 25.8, bf16=True)
A100 = Gpu("A100 80GB", 85.0, bf16=True)


@pytest.mark.parametrize(
    ("family", "strategy", "tuning", "devices", "device_gb", "host_gb"),
    [
        # A 50.6 GB model in full on 8 devices: 94 each under ZeRO-2, 50 under ZeRO-3, 400 to 450 of host with offload.
        ("aria", "zero2", "full", 8, 94, 0),
        ("aria", "zero3", "full", 8, 50, 0),
        ("aria", "zero3_offload", "full", 8, 0, 405),
        # An 8 B model in full: 129 on one device, 16 each on 8; on one device with the optimizer on the host.
        ("internvideo25", "single", "full", 1, 129, 0),
        ("nvila", "zero3", "full", 8, 16, 0),
        ("nvila", "zero2_offload", "full", 1, 16, 113),
        ("nvila", "single", "lora", 1, 17.8, 0),
        ("internvideo25", "single", "qlora", 1, 7.4, 0),
    ],
)
def test_estimates_agree_with_the_worked_out_cases(family, strategy, tuning, devices, device_gb, host_gb):
    need = estimate(MODELS[family], STRATEGY[strategy], tuning, devices)
    assert need is not None
    assert need.device_gb - ACTIVATIONS_GB == pytest.approx(device_gb, rel=0.02, abs=0.7)
    assert need.host_gb == pytest.approx(host_gb, rel=0.02)


def test_quantised_weights_are_not_offered_where_they_cannot_work():
    assert estimate(MODELS["nvila"], STRATEGY["zero3"], "qlora", 8) is None
    assert estimate(MODELS["aria"], STRATEGY["single"], "qlora", 1) is None


def test_one_24_gb_card_gets_lora_for_8_b_models_and_a_reason_for_the_largest(machine):
    laptop = machine(gpus=(RTX4090,))
    assert best_fit(MODELS["nvila"], STRATEGY["single"], laptop).startswith("lora 22")
    assert best_fit(MODELS["aria"], STRATEGY["single"], laptop) == "no: lora 60 GB"


def test_host_memory_and_a_missing_deepspeed_limit_offloading(machine):
    aria, offload = MODELS["aria"], STRATEGY["zero3_offload"]
    assert best_fit(aria, offload, machine(gpus=(A100,) * 8, ram_gb=1000.0)) == "full 4 + 405 RAM GB"
    # Adapters are counted whole on each device: 5.1 + 4.
    assert best_fit(aria, offload, machine(gpus=(A100,) * 8, ram_gb=128.0)) == "lora 9 + 51 RAM GB"
    assert best_fit(aria, offload, machine(gpus=(A100,) * 8, ram_gb=32.0)) == "no: lora 51 GB RAM"
    assert best_fit(aria, offload, machine(gpus=(A100,), versions={})) == "no DeepSpeed"


def test_the_smallest_gpu_and_only_one_under_single_count(machine):
    mixed = machine(gpus=(A100, RTX4090, A100, A100))
    assert best_fit(MODELS["aria"], STRATEGY["fsdp"], mixed) == "lora 22 GB"  # 50.6 / 4 + 5.1 + 4
    assert best_fit(MODELS["aria"], STRATEGY["single"], mixed) == "no: lora 60 GB"


def test_every_strategy_and_family_has_a_cell(machine):
    rows = plan(list(MODELS.values()), machine(gpus=(A100,) * 8))
    assert len(rows) == len(STRATEGIES) and all(len(row) == 1 + len(MODELS) and all(row) for row in rows)
    assert {cell for row in plan(list(MODELS.values()), machine()) for cell in row[1:]} == {"no GPU"}
