"""Copies of a map to windows and back, on a CPU, the cyclic shift included.

In: maps of whole windows (B, H, W, heads, head_dim). Out: windows (N, heads, T, head_dim), kind by kind, then image by
image; and the other way round. Each copy is the other's gradient. On the way, vectors are scaled to a length.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.cpu import pieces
from swinv2.ops.cpu.opaque import opaque
from swinv2.ops.precision import SMALLEST_NORM, precise
from swinv2.ops.windows import Span, WindowPlan


def _rectangles(feature_map: Tensor, windows: Tensor, plan: WindowPlan) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of views, into a map (B, H, W, heads, head_dim) and its windows (N, heads, T, head_dim), of equal tokens.

    An edge of the shifted map lies in two places of the map itself.
    """
    batch, heads, head_dim = feature_map.shape[0], feature_map.shape[3], feature_map.shape[4]
    start = 0
    for kind in plan.kinds:
        rows, columns = kind.rows.stop - kind.rows.start, kind.columns.stop - kind.columns.start
        count = batch * rows * columns
        tiles = windows[start : start + count].view(batch, rows, columns, heads, *plan.window, head_dim)
        start += count
        for down, row, height in _torn_spans(plan, 0, kind.rows):
            for across, column, width in _torn_spans(plan, 1, kind.columns):
                area = feature_map[:, down : down + rows * height, across : across + columns * width]
                area = area.view(batch, rows, height, columns, width, heads, head_dim).permute(0, 1, 3, 5, 2, 4, 6)
                yield area, tiles[:, :, :, :, row : row + height, column : column + width]


def _torn_spans(plan: WindowPlan, axis: int, span: Span) -> list[tuple[int, int, int]]:
    """Where the windows of a span lie along an axis of the unshifted map: (first token, first token of the window,
    length in each window). Only the last window is torn in two."""
    window, shift = plan.window[axis], plan.shift[axis]
    first = span.start * window + shift
    if shift and span.stop == plan.counts[axis]:
        return [(first, 0, window - shift), (0, window - shift, shift)]
    return [(first, 0, window)]


def _empty_windows(feature_map: Tensor, plan: WindowPlan) -> Tensor:
    batch, _, _, heads, head_dim = feature_map.shape
    return feature_map.new_empty(batch * plan.counts[0] * plan.counts[1], heads, plan.tokens, head_dim)


def _empty_map(windows: Tensor, plan: WindowPlan) -> Tensor:
    count, heads, _, head_dim = windows.shape
    return windows.new_empty(count // (plan.counts[0] * plan.counts[1]), *plan.padded_grid, heads, head_dim)


@opaque(_empty_windows)
def to_windows(feature_map: Tensor, plan: WindowPlan) -> Tensor:
    """Copies a map to its windows."""
    windows = _empty_windows(feature_map, plan)
    _fill_windows(windows, feature_map, plan)
    return windows


def _fill_windows(windows: Tensor, feature_map: Tensor, plan: WindowPlan) -> None:
    for area, tiles in _rectangles(feature_map, windows, plan):
        tiles.copy_(area)


@opaque(_empty_map)
def to_map(windows: Tensor, plan: WindowPlan) -> Tensor:
    """Copies windows to their map."""
    feature_map = _empty_map(windows, plan)
    for area, tiles in _rectangles(feature_map, windows, plan):
        area.copy_(tiles)
    return feature_map


def _empty_scaled(feature_map: Tensor, length: Tensor, plan: WindowPlan) -> tuple[Tensor, Tensor, Tensor]:
    vectors = _empty_windows(feature_map, plan)
    factors = length.new_empty(*vectors.shape[:-1], 1)
    return vectors, factors, torch.empty_like(factors)


@opaque(_empty_scaled)
def to_scaled_windows(feature_map: Tensor, length: Tensor, plan: WindowPlan) -> tuple[Tensor, Tensor, Tensor]:
    """Copies a map to its windows and scales every vector to the length of its head (heads, 1, 1).

    Returns:
        The scaled vectors; the factors; and the factors again, zero where a vector counts as zero.
    """
    vectors, factors, turning = _empty_scaled(feature_map, length, plan)
    _fill_windows(vectors, feature_map, plan)
    for some in _precise_pieces(vectors):
        norms = torch.linalg.vector_norm(vectors[some], dim=-1, keepdim=True, dtype=length.dtype)
        torch.div(length, norms.clamp_min(SMALLEST_NORM), out=factors[some])
        # A vector that counts as zero has no direction that could turn.
        torch.mul(factors[some], norms > SMALLEST_NORM, out=turning[some])
        _times(vectors[some], factors[some], out=vectors[some])
    return vectors, factors, turning


def _empty_gradients(
    grad: Tensor,
    vectors: Tensor,
    length: Tensor,
    factors: Tensor,
    turning: Tensor,
    wants_length: bool,
    plan: WindowPlan,
) -> tuple[Tensor, Tensor]:
    return _empty_map(grad, plan), length.new_empty(length.shape if wants_length else 0)


@opaque(_empty_gradients)
def scaled_windows_backward(
    grad: Tensor,
    vectors: Tensor,
    length: Tensor,
    factors: Tensor,
    turning: Tensor,
    wants_length: bool,
    plan: WindowPlan,
) -> tuple[Tensor, Tensor]:
    """The gradients of `to_scaled_windows`.

    Args:
        grad: Of the scaled vectors.
        vectors, factors, turning: What `to_scaled_windows` returned.
        length, plan: What it was given.
        wants_length: Whether the length has a gradient.

    Returns:
        The gradients of the map and of the length; the second is empty unless it is wanted.
    """
    # The length's gradient sums up what cancels: the products must not be rounded before. fp16 could overflow.
    unrounded = wants_length or vectors.dtype == torch.float16
    turned, along = torch.empty_like(grad), torch.empty_like(factors)
    for some in _precise_pieces(vectors):
        product = (vectors[some].to(length.dtype) if unrounded else vectors[some]) * grad[some]
        torch.sum(product, -1, keepdim=True, dtype=length.dtype, out=along[some])
        _times(grad[some], factors[some], out=turned[some])
        turned[some] -= _times(vectors[some], turning[some] * along[some] / length**2)
    grad_length = along.sum((0, 2), keepdim=True)[0] / length if wants_length else length.new_empty(0)
    return to_map(turned, plan), grad_length


class ToWindows(torch.autograd.Function):
    """Copies a map of whole windows (B, H, W, heads, head_dim) to its windows (N, heads, T, head_dim). If a length for
    each head is given (heads, 1, 1), fp32 at least, every vector is scaled to it, and a zero vector stays zero:

    y = L x / n with n = max(|x|, SMALLEST_NORM); dx = L / n (dy - y (y dy) / L^2); dL = sum of y dy / L.
    """

    @staticmethod
    def forward(ctx: Any, feature_map: Tensor, length: Tensor | None, plan: WindowPlan) -> Tensor:
        ctx.plan = plan
        if length is None:
            return to_windows(feature_map, plan)
        length = length.to(torch.promote_types(length.dtype, precise(feature_map.dtype)))
        vectors, factors, turning = to_scaled_windows(feature_map, length, plan)
        ctx.save_for_backward(vectors, length, factors, turning)
        return vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        # Asked for once: torch's checkpointing hands saved tensors out a single time.
        grad, saved = grad.contiguous(), ctx.saved_tensors
        if not saved:
            return to_map(grad, ctx.plan), None, None
        vectors, length, factors, turning = saved
        wants_length = ctx.needs_input_grad[1]
        grad_map, grad_length = scaled_windows_backward(grad, vectors, length, factors, turning, wants_length, ctx.plan)
        return grad_map, grad_length if wants_length else None, None


def _precise_pieces(vectors: Tensor) -> list[slice]:
    """Cuts windows of vectors (N, heads, T, head_dim) so that what is computed of them in fp32 fits the cache."""
    return pieces.pieces(len(vectors), 4 * 4 * math.prod(vectors.shape[1:]))


def _times(vectors: Tensor, factors: Tensor, out: Tensor | None = None) -> Tensor:
    """The product in the vectors' dtype. bf16 has fp32's range, so factors may be rounded to it; in fp16 the factor of
    a vector of zeros would be infinite, so there the product is taken in fp32."""
    if vectors.dtype != torch.float16:
        return torch.mul(vectors, factors.to(vectors.dtype), out=out)
    product = (vectors * factors).to(vectors.dtype)
    return product if out is None else out.copy_(product)


class ToMap(torch.autograd.Function):
    """Copies windows to their map."""

    @staticmethod
    def forward(ctx: Any, windows: Tensor, plan: WindowPlan) -> Tensor:
        ctx.plan = plan
        return to_map(windows, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return to_windows(grad, ctx.plan), None
