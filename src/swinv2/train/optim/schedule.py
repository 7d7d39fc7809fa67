"""How the learning rate goes over a training, step by step.

In: an optimiser and numbers. Out: a scheduler; every parameter group, with its own rate, follows the same factors.
All schedules are transformers', but for the one of SimMIM, whose rate drops at milestones.

Source: microsoft/Swin-Transformer, lr_scheduler.py (multi-step with a warm-up).
"""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler


def make_scheduler(
    optimizer: Optimizer,
    kind: str,
    options: dict[str, Any],
    milestones: Sequence[float],
    warmup_steps: int,
    total_steps: int,
) -> LRScheduler:
    """Makes a scheduler.

    Args:
        optimizer: Its rates are the highest ones.
        kind: A name of transformers' `SchedulerType`; without milestones.
        options: What the schedule itself takes.
        milestones: See `multistep_schedule`; none for a schedule of transformers.
        warmup_steps, total_steps: Of the whole training.

    Raises:
        TypeError, ValueError: The options are not the schedule's, or impossible.
    """
    if milestones:
        return multistep_schedule(optimizer, warmup_steps, total_steps, milestones, **options)
    return get_scheduler(kind, optimizer, warmup_steps, total_steps, options)


def multistep_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    milestones: Sequence[float],
    warmup_lr_rate: float = 0.0,
    gamma: float = 0.1,
) -> LambdaLR:
    """A linear warm-up, then a drop at each milestone; in the form of transformers' own schedules.

    Args:
        optimizer: Its rates are the highest ones.
        num_warmup_steps: The step after them, counted from 0, has the whole rate.
        num_training_steps: Of the whole training.
        milestones: Shares of it, each between 0 and 1; the nearest step is meant.
        warmup_lr_rate: Share of the rate that the first step of the warm-up has.
        gamma: Factor of each drop.

    Raises:
        ValueError: A milestone is no such share.
    """
    if not all(0.0 < milestone < 1.0 for milestone in milestones):
        raise ValueError(f"the milestones are {list(milestones)}; expected shares of the training between 0 and 1.")
    # Rounded: 0.07 * 100 is more than 7.
    drops_at = [round(milestone * num_training_steps) for milestone in milestones]

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return warmup_lr_rate + (1 - warmup_lr_rate) * step / num_warmup_steps
        return gamma ** sum(step >= first for first in drops_at)

    return LambdaLR(optimizer, factor)
