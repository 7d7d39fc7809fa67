"""The schedule with milestones, against timm's and torch's own; and what all schedules have in common."""

from typing import Any

import pytest
import torch
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from torch import nn
from transformers.trainer_utils import SchedulerType

from swinv2.train.optim.schedule import make_scheduler, multistep_schedule

RATE = 0.02


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], RATE)


def rates_of(scheduler: Any, total: int) -> list[list[float]]:
    """The learning rates of all groups, step by step."""
    found = []
    for _ in range(total):
        found.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return found


class TestMilestones:
    def test_as_in_timm(self) -> None:
        # timm compares its milestones with the step after; the authors' code does not.
        timms = MultiStepLRScheduler(
            optimizer(RATE),
            decay_t=[36, 46],
            decay_rate=0.3,
            warmup_t=8,
            warmup_lr_init=0.1 * RATE,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        expected = []
        for step in range(50):
            timms.step_update(step)
            expected.append([timms.optimizer.param_groups[0]["lr"]])
        scheduler = multistep_schedule(optimizer(RATE), 8, 50, [0.7, 0.9], warmup_lr_rate=0.1, gamma=0.3)
        assert rates_of(scheduler, 50) == [pytest.approx(rates) for rates in expected]

    @pytest.mark.parametrize(("share", "step"), [(0.07, 7), (0.29, 29), (0.57, 57), (0.875, 88)])
    def test_a_milestone_is_the_nearest_step(self, share: float, step: int) -> None:
        torchs = torch.optim.lr_scheduler.MultiStepLR(optimizer(1.0), [step], 0.1)
        found = rates_of(multistep_schedule(optimizer(1.0), 0, 100, [share]), 100)
        assert found == [pytest.approx(rates) for rates in rates_of(torchs, 100)]

    @pytest.mark.parametrize("milestone", [0.0, 1.0, 30])
    def test_what_is_no_share_is_refused(self, milestone: float) -> None:
        with pytest.raises(ValueError, match="expected shares of the training between 0 and 1"):
            multistep_schedule(optimizer(1.0), 0, 100, [0.5, milestone])


@pytest.mark.parametrize(
    ("kind", "options", "milestones"),
    [
        ("linear", {}, []),
        ("constant_with_warmup", {}, []),
        ("cosine_warmup_with_min_lr", {"min_lr": 0.1 * RATE, "warmup_lr_rate": 0.1}, []),
        ("linear", {"warmup_lr_rate": 0.1}, [0.5, 0.75]),
    ],
)
def test_groups_keep_their_ratio(kind: str, options: dict[str, Any], milestones: list[float]) -> None:
    """A least rate too is that of the highest group; the others' are smaller, as their rates are."""
    scheduler = make_scheduler(optimizer(RATE / 4, RATE), kind, options, milestones, 5, 20)
    found = rates_of(scheduler, 21)
    assert all(fast == pytest.approx(4 * slow) for slow, fast in found)
    assert max(fast for _, fast in found) == RATE
    if "min_lr" in options:
        assert min(fast for _, fast in found[5:]) == pytest.approx(0.1 * RATE)


@pytest.mark.parametrize("kind", SchedulerType)
def test_every_schedule_of_transformers_is_there(kind: SchedulerType) -> None:
    options = {"cosine_with_min_lr": {"min_lr": 0.0}, "cosine_warmup_with_min_lr": {"min_lr": 0.0}}
    options["warmup_stable_decay"] = {"num_decay_steps": 3}
    scheduler = make_scheduler(optimizer(RATE), kind, options.get(kind.value, {}), [], 2, 10)
    assert scheduler.optimizer.param_groups[0]["lr"] <= RATE
