"""Schedules of the learning rate.

In: an optimiser and numbers. Out: a scheduler. It multiplies the rate of every parameter group by the same factor. All
schedules are transformers', except SimMIM's, whose rate drops at milestones.

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
    """Makes a scheduler: transformers' of this `kind` with further `options`, or with milestones `multistep_schedule`.

    Raises:
        TypeError, ValueError: The schedule does not have these options, or a value is invalid.
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
    """A linear warm-up, then a drop at each milestone; with arguments like those of transformers' schedules.

    Args:
        optimizer: Its groups have the highest rates.
        num_warmup_steps: Steps of the warm-up; the step after them has the full rate.
        num_training_steps: Steps of the whole training.
        milestones: Shares of the training, each between 0 and 1; the rate drops at the nearest step.
        warmup_lr_rate: Share of the full rate at the first step of the warm-up.
        gamma: Factor of each drop.
    """
    if not all(0.0 < milestone < 1.0 for milestone in milestones):
        raise ValueError(f"the milestones are {list(milestones)}; expected shares of the training between 0 and 1.")
    # Rounded, because 0.07 * 100 is slightly more than 7.
    drops_at = [round(milestone * num_training_steps) for milestone in milestones]

    def factor(step: int) -> float:
        """The factor of the learning rates at a step."""
        if step < num_warmup_steps:
            return warmup_lr_rate + (1 - warmup_lr_rate) * step / num_warmup_steps
        return gamma ** sum(step >= first for first in drops_at)

    return LambdaLR(optimizer, factor)
