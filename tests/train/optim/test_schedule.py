"""The schedules, against timm's and torch's own."""

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from torch import nn

from swinv2.errors import UsageError
from swinv2.train.optim.schedule import make_schedule

RATE = 0.02


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rates_of(scheduler, total: int) -> list[float]:
    """The learning rates of a scheduler of timm, step by step."""
    found = []
    for step in range(total):
        scheduler.step_update(step)
        found.append(scheduler.optimizer.param_groups[0]["lr"])
    return found


class TestAgainstOthers:
    @pytest.mark.parametrize(("total", "warmup"), [(50, 0), (50, 1), (50, 13), (7, 6)])
    @pytest.mark.parametrize(("start", "floor"), [(0.0, 0.0), (0.1, 0.05)])
    def test_cosine_as_in_timm(self, total: int, warmup: int, start: float, floor: float) -> None:
        start = start if warmup else 0.0
        timms = CosineLRScheduler(
            optimizer(RATE),
            t_initial=total - warmup,
            lr_min=floor * RATE,
            warmup_t=warmup,
            warmup_lr_init=start * RATE,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        schedule = make_schedule("cosine", total, warmup, start, floor)
        ours = [RATE * schedule(step) for step in range(total + 5)]
        assert ours == pytest.approx(rates_of(timms, total + 5), rel=1e-9, abs=1e-15)

    def test_multistep_as_in_timm(self) -> None:
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
        schedule = make_schedule("multistep", 50, 8, 0.1, milestones=[0.7, 0.9], drop=0.3)
        assert [RATE * schedule(step) for step in range(50)] == pytest.approx(rates_of(timms, 50))

    @pytest.mark.parametrize(("share", "step"), [(0.07, 7), (0.29, 29), (0.57, 57), (0.875, 88)])
    def test_a_milestone_is_the_nearest_step(self, share: float, step: int) -> None:
        torchs = torch.optim.lr_scheduler.MultiStepLR(optimizer(1.0), [step], 0.1)
        schedule = make_schedule("multistep", 100, 0, milestones=[share])
        for number in range(100):
            assert schedule(number) == pytest.approx(torchs.get_last_lr()[0])
            torchs.optimizer.step()
            torchs.step()

    def test_two_groups_keep_their_ratio(self) -> None:
        both = optimizer(1e-3, 4e-3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(both, make_schedule("cosine", 20, 5, 0.1, 0.01))
        seen = set()
        for _ in range(22):
            slow, fast = (group["lr"] for group in both.param_groups)
            assert fast == pytest.approx(4 * slow)
            seen.add(slow)
            both.step()
            scheduler.step()
        assert len(seen) > 15


class TestShapes:
    def test_linear(self) -> None:
        schedule = make_schedule("linear", 14, 4, 0.2, 0.5)
        expected = [0.2, 0.4, 0.6, 0.8, *(1 - 0.05 * step for step in range(10)), 0.5, 0.5]
        assert [schedule(step) for step in range(16)] == pytest.approx(expected)

    def test_constant(self) -> None:
        schedule = make_schedule("constant", 6, 2)
        assert [schedule(step) for step in range(8)] == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1])

    @pytest.mark.parametrize("shape", ["cosine", "linear"])
    def test_nothing_but_warm_up(self, shape: str) -> None:
        schedule = make_schedule(shape, 4, 4)
        assert [schedule(step) for step in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"shape": "cosin"}, "the schedule is 'cosin'; expected one of"),
        ({"shape": "multistep"}, "multistep needs some"),
        ({"milestones": [0.5]}, "no other schedule has any"),
        ({"shape": "multistep", "milestones": [0.5, 1.0]}, "expected shares of the training"),
        ({"shape": "multistep", "milestones": [0.0]}, "expected shares of the training"),
        ({"shape": "multistep", "milestones": [30]}, "expected shares of the training"),
        ({"shape": "multistep", "milestones": [0.5], "drop": 1.5}, "drops to 1.5 of itself"),
        ({"shape": "multistep", "milestones": [0.5], "floor": 0.1}, "no effect on the schedule 'multistep'"),
        ({"shape": "constant", "floor": 0.1}, "no effect on the schedule 'constant'"),
        ({"floor": 1.5}, "least learning rate is 1.5 of the highest"),
        ({"warmup_steps": 11}, "the warm-up has 11 steps; expected at most the training's 10"),
        ({"warmup_steps": -1}, "the warm-up has -1 steps"),
        ({"warmup_steps": 0, "start": 0.1}, "no effect without one"),
        ({"start": 2.0}, "start of the warm-up is 2.0"),
    ],
)
def test_refusals(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make_schedule(**({"shape": "cosine", "total_steps": 10, "warmup_steps": 2} | given))
