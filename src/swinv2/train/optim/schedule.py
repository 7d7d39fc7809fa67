"""How the learning rate goes over a training, step by step.

In: numbers. Out: a factor of the learning rate for each step; every parameter group, with its own rate, follows the
same factors. transformers' own schedules remain available in training; these are the authors', with a floor below and
a start above zero.

Source: microsoft/Swin-Transformer, lr_scheduler.py (timm's cosine with `warmup_prefix`, multi-step with a warm-up).
"""

import math
from collections.abc import Callable, Sequence

from swinv2.errors import UsageError

CONSTANT, COSINE, LINEAR, MULTISTEP = "constant", "cosine", "linear", "multistep"
SHAPES = (COSINE, LINEAR, MULTISTEP, CONSTANT)


def make_schedule(
    shape: str,
    total_steps: int,
    warmup_steps: int,
    start: float = 0.0,
    floor: float = 0.0,
    milestones: Sequence[float] = (),
    drop: float = 0.1,
) -> Callable[[int], float]:
    """Makes a schedule.

    Args:
        shape: "cosine" or "linear" from 1 to `floor`, "multistep" with a drop at each milestone, or "constant"; each
            after a linear warm-up.
        total_steps: Steps of the whole training.
        warmup_steps: Steps of the warm-up; the step after them has the factor 1.
        start: Factor of the first step, if there is a warm-up.
        floor: Factor that the cosine and the line would reach one step after the last.
        milestones: For "multistep": when the rate drops, each as a share of the training from 0 to 1; the nearest step
            is meant.
        drop: For "multistep": factor of each drop, from 0 to 1.

    Returns:
        A function from the number of a step, from 0, to a factor.

    Raises:
        UsageError: There is no such shape, a number is impossible, or a setting would have no effect.

    Example:

        >>> schedule = make_schedule("cosine", total_steps=100, warmup_steps=20, start=0.1)
        >>> [round(schedule(step), 3) for step in (0, 10, 20, 60, 100)]
        [0.1, 0.55, 1.0, 0.5, 0.0]
    """
    if shape not in SHAPES:
        raise UsageError(f"the schedule is {shape!r}; expected one of {', '.join(SHAPES)}.")
    if bool(milestones) != (shape == MULTISTEP):
        raise UsageError(
            f"the schedule is {shape!r} and its milestones are {list(milestones)}; multistep needs some, and no other "
            "schedule has any."
        )
    if not all(0.0 < milestone < 1.0 for milestone in milestones):
        raise UsageError(f"the milestones are {list(milestones)}; expected shares of the training between 0 and 1.")
    if not 0 <= warmup_steps <= total_steps:
        raise UsageError(f"the warm-up has {warmup_steps} steps; expected at most the training's {total_steps}.")
    if floor and shape not in (COSINE, LINEAR):
        raise UsageError(f"a least learning rate has no effect on the schedule {shape!r}; leave it out.")
    if not 0.0 <= floor <= 1.0:
        raise UsageError(f"the least learning rate is {floor} of the highest; expected from 0 to 1.")
    if start and not warmup_steps:
        raise UsageError("a learning rate at the start of the warm-up has no effect without one; set warmup_steps.")
    if not 0.0 <= start <= 1.0:
        raise UsageError(f"the learning rate at the start of the warm-up is {start} of the highest; expected 0 to 1.")
    if not 0.0 <= drop <= 1.0:
        raise UsageError(f"the learning rate drops to {drop} of itself at a milestone; expected from 0 to 1.")
    # Rounded: 0.07 * 100 is more than 7.
    drops_at = [round(milestone * total_steps) for milestone in milestones]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return start + (1 - start) * step / warmup_steps
        done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        if shape == COSINE:
            return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
        if shape == LINEAR:
            return floor + (1 - floor) * (1 - done)
        return drop ** sum(step >= first for first in drops_at)

    return factor
