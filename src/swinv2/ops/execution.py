"""How a call is run: eager, compiled, exported or intercepted. This limits the implementations that it may use.

In: a tensor of the call. Out: an `Execution`. `backends` checks devices, dtypes and sizes; `layers.fusion` checks
modules.
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
    """How the call with this tensor is run."""
    # Not torch.compiler.is_exporting(): when torch 2.11 traces, it takes that function for True.
    if torch.compiler._is_exporting_flag or torch.jit.is_tracing():
        return Execution.EXPORTED
    if is_transformed() or type(tensor) not in (Tensor, nn.Parameter):
        return Execution.INTERCEPTED
    if torch.compiler.is_dynamo_compiling():
        return Execution.COMPILED
    if torch.compiler.is_compiling():
        return Execution.EXPORTED
    # `is_legacy_batchedtensor` is for torch.autograd.grad with is_grads_batched, which does not use torch.func.
    if torch._C._len_torch_dispatch_stack() or is_legacy_batchedtensor(tensor):
        return Execution.INTERCEPTED
    return Execution.EAGER


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
