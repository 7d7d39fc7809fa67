"""Where 8 or 11 bits are too few: the dtype of sums, norms and positions.

In: tensors of any floating dtype. Out: the same in fp32 or fp64.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

SMALLEST_NORM = 1e-12
"""A shorter vector counts as zero, as in F.normalize."""


def precise(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or in fp64 if that is what it is in."""
    return tensor.to(precise(tensor.dtype))


def without_autocast(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function on a CPU whose operations keep the dtype of their arguments: autocast would change some of them and
    not others."""

    @wraps(function)
    def run(*arguments: Arguments.args, **rest: Arguments.kwargs) -> Result:
        if not torch.is_autocast_enabled("cpu"):
            return function(*arguments, **rest)
        with torch.autocast("cpu", enabled=False):
            return function(*arguments, **rest)

    return run
