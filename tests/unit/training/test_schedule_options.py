"""Options of one schedule reach it, and are refused where it has no such option."""

import pytest
import torch

from vidtune.contracts import UserError
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
