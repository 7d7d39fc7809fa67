"""The precision of sums, norms and positions, for which 16-bit dtypes are too imprecise.

In: tensors of any floating dtype. Out: the same tensors in fp32 or fp64.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

SMALLEST_NORM = 1e-12
"""A vector of a smaller norm counts as zero, as in F.normalize."""


def precise(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and statistics for maps of a dtype: fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor in fp32; unchanged if it is in fp64."""
    return tensor.to(precise(tensor.dtype))


def without_autocast(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Disables autocast inside a function on a CPU; autocast would change the dtype of some operations."""

    @wraps(function)
    def run(*arguments: Arguments.args, **rest: Arguments.kwargs) -> Result:
        if not torch.is_autocast_enabled("cpu"):
            return function(*arguments, **rest)
        with torch.autocast("cpu", enabled=False):
            return function(*arguments, **rest)

    return run
