"""The position bias network on a CPU, in chunks of a few hundred positions.

In: window sizes, and the network's weights. Out: the bias table. For a large window, the 512 hidden features of every
position would be the largest tensor of a block. Here they exist for one chunk at a time, and the backward pass computes
them again. Second derivatives are not supported: for them, load the model with attn_implementation="eager".
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.lengths import Lengths
from swinv2.ops.coordinates import LARGEST_BIAS, relative_coordinates
from swinv2.ops.custom_op import custom_op
from swinv2.ops.precision import without_autocast

POSITIONS_AT_ONCE = 256
"""Their hidden features take half a MiB in fp32, which fits a core's own cache."""


def bias_table(window: Lengths, pretrained_window: Lengths, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
    """16 sigmoid(w2 relu(w1 x + b1)), for the coordinates x of every relative position of a window.

    Args:
        window, pretrained_window: See `coordinates.relative_coordinates`.
        w1, b1, w2: (hidden, axes), (hidden), (heads, hidden), in fp32 at least, all in one dtype.

    Returns:
        The table, (heads, 2 Wh - 1, 2 Ww - 1) for images, in the weights' dtype.
    """
    return _BiasTable.apply(w1, b1, w2, [*window, *pretrained_window])


class _BiasTable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w1: Tensor, b1: Tensor, w2: Tensor, sizes: Sequence[int]) -> Tensor:
        """Computes the bias table, and saves it for the backward pass."""
        table = evaluate_table(w1, b1, w2, sizes)
        ctx.sizes = sizes
        ctx.save_for_backward(w1, b1, w2, table)
        return table

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the weights of the position bias network."""
        w1, b1, w2, table = ctx.saved_tensors
        gradients = evaluate_table_backward(grad.contiguous(), w1, b1, w2, table, ctx.sizes)
        wants = ctx.needs_input_grad
        return *(each if wanted else None for each, wanted in zip(gradients, wants, strict=False)), None


def _empty_bias_table(w1: Tensor, b1: Tensor, w2: Tensor, sizes: Sequence[int]) -> Tensor:
    """For compiled graphs: the shape of the bias table."""
    return w1.new_empty(len(w2), *(2 * length - 1 for length in sizes[: w1.shape[1]]))


@custom_op(_empty_bias_table)
@without_autocast
def evaluate_table(w1: Tensor, b1: Tensor, w2: Tensor, sizes: Sequence[int]) -> Tensor:
    """`bias_table` without gradients; `sizes` are those of `window` and `pretrained_window`."""
    table = _empty_bias_table(w1, b1, w2, sizes)
    for chunk, out in zip(
        _bias_chunks(_positions(tuple(sizes), w1.dtype)), _bias_chunks(table.flatten(1).T), strict=True
    ):
        out.copy_(_hidden_features(chunk, w1, b1) @ w2.T)
    return table.sigmoid_().mul_(LARGEST_BIAS)


def _empty_gradients(grad: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """For compiled graphs: the shapes of the gradients of the position bias network."""
    return w1.new_empty(w1.shape), b1.new_empty(b1.shape), w2.new_empty(w2.shape)


@custom_op(_empty_gradients)
@without_autocast
def evaluate_table_backward(
    grad: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, table: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of w1, b1 and w2.

    Args:
        grad: The gradient of the table.
        w1, b1, w2, sizes: The arguments of `evaluate_table`.
        table: Its result.
    """
    grad_w1, grad_b1, grad_w2 = (each.zero_() for each in _empty_gradients(grad, w1, b1, w2))
    # The derivative of t = 16 s, where s is a sigmoid: 16 s (1 - s) = t (1 - t / 16).
    grad_field = (grad * table * (1 - table / LARGEST_BIAS)).to(w1.dtype).flatten(1).T
    for chunk, chunk_grad in zip(
        _bias_chunks(_positions(tuple(sizes), w1.dtype)), _bias_chunks(grad_field), strict=True
    ):
        hidden = _hidden_features(chunk, w1, b1)
        grad_w2.addmm_(chunk_grad.T, hidden)
        grad_hidden = torch.ops.aten.threshold_backward(chunk_grad @ w2, hidden, 0)
        grad_w1.addmm_(grad_hidden.T, chunk)
        grad_b1 += grad_hidden.sum(0)
    return grad_w1, grad_b1, grad_w2


# Cached: they depend only on the window. A window of 24 has 2209 positions of two coordinates.
@lru_cache(maxsize=64)
def _positions(sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Coordinates of every relative position, the inputs of the position bias network."""
    axes = len(sizes) // 2
    with torch.inference_mode(False):
        coordinates = relative_coordinates(sizes[:axes], sizes[axes:], torch.device("cpu"))
        return coordinates.flatten(0, -2).to(dtype)


def _hidden_features(positions: Tensor, w1: Tensor, b1: Tensor) -> Tensor:
    """The hidden features of the position bias network, for some positions."""
    return torch.addmm(b1, positions, w1.T).relu_()


def _bias_chunks(rows: Tensor) -> Sequence[Tensor]:
    """Divides positions, or other rows with one for each position, into chunks that fit a core's own cache."""
    return rows.split(POSITIONS_AT_ONCE)
