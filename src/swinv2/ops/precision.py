"""Where 8 or 11 bits are too few: the dtype of sums, norms and positions.

In: tensors of any floating dtype. Out: the same in fp32 or fp64.
"""

import torch
from torch import Tensor

SMALLEST_NORM = 1e-12
"""A shorter vector counts as zero, as in F.normalize."""


def precise(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or in fp64 if that is what it is in."""
    return tensor.to(precise(tensor.dtype))
