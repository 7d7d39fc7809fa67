"""How a call is run: the first thing that decides which implementations may serve it.

In: a tensor of the call. Out: one word. Devices, dtypes and sizes are the business of `backends`, modules that of
`layers.fusion`.
"""

from enum import Enum

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor


class Execution(Enum):
    """How a call is run."""

    EAGER = "in eager mode"
    COMPILED = "by torch.compile, which takes custom operators into its graph"
    EXPORTED = "by an exporter: the graph must run where this package is not"
    INTERCEPTED = "under torch.func, forward-mode differentiation, a dispatch mode, or with a tensor subclass"


ORDINARY = (Execution.EAGER, Execution.COMPILED)
"""Where custom operators with hand-written gradients may run."""


def execution(tensor: Tensor) -> Execution:
    """How the call that has this tensor is run."""
    # torch.compiler.is_exporting() returns the flag; torch 2.11, tracing, takes that function for True.
    if torch.compiler._is_exporting_flag or torch.jit.is_tracing():
        return Execution.EXPORTED
    if is_transformed() or type(tensor) not in (Tensor, nn.Parameter):
        return Execution.INTERCEPTED
    if torch.compiler.is_dynamo_compiling():
        return Execution.COMPILED
    if torch.compiler.is_compiling():
        return Execution.EXPORTED
    # The last: torch.autograd.grad with is_grads_batched, which is no transform of torch.func.
    if torch._C._len_torch_dispatch_stack() or is_legacy_batchedtensor(tensor):
        return Execution.INTERCEPTED
    return Execution.EAGER


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
