"""The network of the position bias on a CPU, a few hundred positions at a time.

In: coordinates of relative positions (..., 2) and the network's weights. Out: the field (..., heads). The 512 hidden
features of every position would be the largest tensor of a block at large windows; here they exist for a piece at a
time, and are computed again for the gradients. There is no gradient of the gradient: for that, load the model with
attn_implementation="eager".
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.custom_op import custom_op
from swinv2.ops.precision import without_autocast

POSITIONS_AT_ONCE = 256
"""Their hidden features take half a MiB in fp32: they stay in a core's own cache."""


def bias_field(coordinates: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
    """w2 relu(w1 x + b1) for every position x.

    Args:
        coordinates: (..., 2), fp32.
        w1, b1, w2: (hidden, 2), (hidden), (heads, hidden), in fp32 at least, all in one dtype.

    Returns:
        (..., heads), in the weights' dtype.
    """
    positions = coordinates.flatten(0, -2).to(w1.dtype)
    return _Field.apply(positions, w1, b1, w2).view(*coordinates.shape[:-1], len(w2))


class _Field(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
        ctx.save_for_backward(positions, w1, b1, w2)
        return evaluate_field(positions, w1, b1, w2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        positions, w1, b1, w2 = ctx.saved_tensors
        gradients = evaluate_field_backward(grad.contiguous(), positions, w1, b1, w2)
        wants = ctx.needs_input_grad[1:]
        return None, *(each if wanted else None for each, wanted in zip(gradients, wants, strict=True))


def _empty_field(positions: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
    return positions.new_empty(positions.shape[0], len(w2))


@custom_op(_empty_field)
@without_autocast
def evaluate_field(positions: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
    """The field of positions (N, 2)."""
    field = _empty_field(positions, w1, b1, w2)
    for some, out in zip(_pieces(positions), _pieces(field), strict=True):
        torch.mm(_hidden(some, w1, b1), w2.T, out=out)
    return field


def _empty_gradients(
    grad: Tensor, positions: Tensor, w1: Tensor, b1: Tensor, w2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return w1.new_empty(w1.shape), b1.new_empty(b1.shape), w2.new_empty(w2.shape)


@custom_op(_empty_gradients)
@without_autocast
def evaluate_field_backward(
    grad: Tensor, positions: Tensor, w1: Tensor, b1: Tensor, w2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of w1, b1 and w2.

    Args:
        grad: Of the field.
        positions, w1, b1, w2: What `evaluate_field` was given.
    """
    grad_w1, grad_b1, grad_w2 = (each.zero_() for each in _empty_gradients(grad, positions, w1, b1, w2))
    for some, some_grad in zip(_pieces(positions), _pieces(grad), strict=True):
        hidden = _hidden(some, w1, b1)
        grad_w2.addmm_(some_grad.T, hidden)
        grad_hidden = torch.ops.aten.threshold_backward(some_grad @ w2, hidden, 0)
        grad_w1.addmm_(grad_hidden.T, some)
        grad_b1 += grad_hidden.sum(0)
    return grad_w1, grad_b1, grad_w2


def _hidden(positions: Tensor, w1: Tensor, b1: Tensor) -> Tensor:
    return torch.addmm(b1, positions, w1.T).relu_()


def _pieces(rows: Tensor) -> Sequence[Tensor]:
    return rows.split(POSITIONS_AT_ONCE)
