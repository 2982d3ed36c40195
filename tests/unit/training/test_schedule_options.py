"""Options of one schedule reach it, and are refused where it has no such option."""

import pytest
import torch
from hydra.utils import instantiate

from tests.helpers import config
from vidtune.contracts import UserError
from vidtune.training.module import VideoTuner
from vidtune.training.schedules import build_schedule

RESTARTING = {"name": "restarting_cosine", "warmup_steps": 4, "min_ratio": 0.1}


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)


def test_the_restarting_warmup_starts_again_and_then_jumps_onto_the_cosine():
    schedule = build_schedule(optimizer(), 6, **RESTARTING, start_ratio=0.2, epoch_steps=3)
    rates = []
    for _ in range(6):
        rates.append(schedule.get_last_lr()[0] / 2.0)
        schedule.optimizer.step()
        schedule.step()
    # Warm-up 0.2 + 0.8 i / 4 for steps 0..3, i counted from the epoch's start; then 0.1 + 0.45 (1 + cos(pi s / 6)).
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.2, 0.325, 0.1602886], abs=1e-6)


@pytest.mark.parametrize(
    "options", [{**RESTARTING}, {"name": "cosine", "epoch_steps": 3}], ids=["lacks epoch_steps", "has no epoch_steps"]
)
def test_an_option_that_does_not_fit_the_schedule_is_named(options):
    with pytest.raises(UserError, match=r"optim\.schedule.*epoch_steps"):
        build_schedule(optimizer(), 6, **options)


def test_a_part_may_have_a_schedule_of_its_own():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 4.0, 2.0)]
    common = {"name": "restarting_cosine", "warmup_ratio": 0.5, "min_lr": 0.1, "epoch_steps": 3}
    own = [{"name": "constant", "warmup_steps": 2}, {"name": "linear", "warmup_steps": 0, "min_ratio": 0.5}, {}]
    schedule = build_schedule(torch.optim.SGD(groups), 4, own=own, **common)
    rates = []
    for _ in range(4):
        rates.append(schedule.get_last_lr())
        schedule.optimizer.step()
        schedule.step()
    constant, linear, restarting = map(list, zip(*rates))
    assert constant == [0.0, 0.5, 1.0, 1.0]
    assert linear == [4.0, 3.5, 3.0, 2.5]
    # Two warm-up steps from 0, then 0.1 + 0.95 (1 + cos(pi s / 4)) for s = 2, 3.
    assert restarting == pytest.approx([0.0, 1.0, 1.05, 0.378249], abs=1e-6)


def test_the_schedule_of_a_part_reaches_its_parameters_from_the_command_line():
    words = ["tuning=full", "optim.lr=0.5", "tuning.vision.lr_ratio=0.1", "optim.schedule.warmup_steps=4"]
    cfg = config("train", [*words, "+tuning.vision.schedule={name: constant, warmup_steps: 0}"])
    network = torch.nn.ModuleDict({"vision": torch.nn.Linear(2, 2), "language": torch.nn.Linear(2, 2)})
    module = VideoTuner(
        lambda: (network, {}),
        instantiate(cfg.optim.optimizer),
        instantiate(cfg.optim.schedule),
        lr=cfg.optim.lr,
        weight_decay=cfg.optim.weight_decay,
        rows_per_step=1,
        num_steps=8,
    )
    module.network = network
    module.policies = {name: cfg.tuning[name.split(".")[0]] for name, _ in network.named_parameters()}
    made = module.configure_optimizers()
    rates = []
    for _ in range(3):
        rates.append({group["name"].split("/")[0]: group["lr"] for group in made["optimizer"].param_groups})
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert [step["vision"] for step in rates] == pytest.approx([0.05, 0.05, 0.05])
    assert [step["language"] for step in rates] == pytest.approx([0.0, 0.125, 0.25])
