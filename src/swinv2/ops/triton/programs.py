"""Launches kernels on the device of their tensors, with a number of programs.

In: a kernel and its arguments. Out: nothing; it writes to its tensors.
"""

from typing import Any

import torch
from torch import Tensor

PROGRAMS_PER_PROCESSOR = 4
"""For kernels in which each program computes several parts of the work and its own part of a sum."""


def start(kernel: Any, programs: int, tensor: Tensor, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Launches programs of a kernel on the device of a tensor, which need not be the current device."""
    with torch.cuda.device_of(tensor):
        kernel[(programs,)](*arguments, **options)


def most_programs(device: torch.device) -> int:
    """The largest useful number of programs; more would only increase the number of parts of the sums."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return PROGRAMS_PER_PROCESSOR * processors
