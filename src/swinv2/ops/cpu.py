"""Window attention on a CPU, a cacheful of windows at a time.

In: maps of whole windows, queries and keys already normalised and scaled, and one bias for all windows. Out: the
attended map. Nothing is known here of cosines, scales or padding. `in_pieces` does the same service to the MLP.

Torch's own CPU attention has no gradient for a learned bias, so it falls back to keeping all T x T weights, and in
bf16 its tiles are slower than plain matrix products. Here the weights of a few windows are computed, used and
forgotten while they are in the cache; the backward pass computes them again. Memory is linear in the tokens. A map is
copied to windows and back once, each kind of window after the other, the cyclic shift included; each copy is the
other's gradient. There is no gradient of the gradient: for that, load the model with attn_implementation="eager".
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.windows import Span, WindowPlan

CACHE_BYTES = 2**23
"""What the tensors in work may take: less than the last-level cache. With much less, calls become so small that calling
costs more than it saves."""

SMALLEST_PIECE = 256
"""Tokens below which a matrix product is too thin to be fast."""


def can_run(tensor: Tensor) -> bool:
    """Whether this form is for a tensor: on a CPU, and seen by no tracer and no function transform, which could not
    follow the writes into place and the hand-written gradients."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )


def to_windows(
    feature_map: Float[Tensor, "B H W heads head_dim"], plan: WindowPlan
) -> Float[Tensor, "N heads tokens head_dim"]:
    """Copies a map of whole windows to its windows: kind by kind, then image by image."""
    return _ToWindows.apply(feature_map, plan)


def to_map(
    windows: Float[Tensor, "N heads tokens head_dim"], plan: WindowPlan
) -> Float[Tensor, "B H W heads head_dim"]:
    """Undoes `to_windows`."""
    return _ToMap.apply(windows, plan)


def attend(
    query: Float[Tensor, "N heads tokens head_dim"],
    key: Float[Tensor, "N heads tokens head_dim"],
    value: Float[Tensor, "N heads tokens head_dim"],
    bias: Float[Tensor, "heads tokens tokens"],
    plan: WindowPlan,
) -> Float[Tensor, "N heads tokens head_dim"]:
    """softmax(query @ key^T + bias) @ value, for every window and head.

    Args:
        query, key, value: What `to_windows` returned.
        bias: What is added to the logits of every window.
        plan: Windows, shift and regions.
    """
    return _Attend.apply(query, key, value, bias, plan)


def in_pieces(function: Callable[[Tensor], Tensor], feature_map: Tensor, features: int) -> Tensor:
    """Applies a function of single tokens to a map, a cacheful of tokens at a time.

    It pays where something wide between two layers would be written to memory and read again, and nothing of it must
    be kept: on a CPU, without gradients, outside torch.compile. Elsewhere the function is applied at once.

    Args:
        function: Takes and returns (tokens, C).
        feature_map: The map (B, H, W, C).
        features: Features a token has at its widest inside the function.
    """
    tokens = feature_map.flatten(0, 2)
    piece = max(CACHE_BYTES // (features * feature_map.element_size()), SMALLEST_PIECE)
    if torch.is_grad_enabled() or not can_run(feature_map) or tokens.shape[0] <= piece:
        return function(feature_map)
    first = function(tokens[:piece])
    output = first.new_empty(tokens.shape)
    output[:piece] = first
    for start in range(piece, tokens.shape[0], piece):
        output[start : start + piece] = function(tokens[start : start + piece])
    return output.view(feature_map.shape)


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
        for down, row, height in _pieces(plan, 0, kind.rows):
            for across, column, width in _pieces(plan, 1, kind.columns):
                area = feature_map[:, down : down + rows * height, across : across + columns * width]
                area = area.view(batch, rows, height, columns, width, heads, head_dim).permute(0, 1, 3, 5, 2, 4, 6)
                yield area, tiles[:, :, :, :, row : row + height, column : column + width]


def _pieces(plan: WindowPlan, axis: int, span: Span) -> list[tuple[int, int, int]]:
    """Where the windows of a span lie along an axis of the unshifted map: (first token, first token of the window,
    length in each window). Only the last window is torn in two."""
    window, shift = plan.window[axis], plan.shift[axis]
    first = span.start * window + shift
    if shift and span.stop == plan.counts[axis]:
        return [(first, 0, window - shift), (0, window - shift, shift)]
    return [(first, 0, window)]


def _to_windows(feature_map: Tensor, plan: WindowPlan) -> Tensor:
    batch, _, _, heads, head_dim = feature_map.shape
    count = batch * plan.counts[0] * plan.counts[1]
    windows = feature_map.new_empty(count, heads, plan.tokens, head_dim)
    for area, tiles in _rectangles(feature_map, windows, plan):
        tiles.copy_(area)
    return windows


def _to_map(windows: Tensor, plan: WindowPlan) -> Tensor:
    count, heads, _, head_dim = windows.shape
    batch = count // (plan.counts[0] * plan.counts[1])
    feature_map = windows.new_empty(batch, *plan.padded_grid, heads, head_dim)
    for area, tiles in _rectangles(feature_map, windows, plan):
        area.copy_(tiles)
    return feature_map


class _ToWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature_map: Tensor, plan: WindowPlan) -> Tensor:
        ctx.plan = plan
        return _to_windows(feature_map, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _to_map(grad.contiguous(), ctx.plan), None


class _ToMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, windows: Tensor, plan: WindowPlan) -> Tensor:
        ctx.plan = plan
        return _to_map(windows, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _to_windows(grad, ctx.plan), None


def _groups(query: Tensor, bias: Tensor, plan: WindowPlan) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Cuts windows and heads into groups whose weights fit the cache, each with its bias, hidden pairs included."""
    windows, heads, tokens, _ = query.shape
    batch = windows // (plan.counts[0] * plan.counts[1])
    fitting = max(CACHE_BYTES // (tokens * tokens * query.element_size()), torch.get_num_threads())
    step_windows, step_heads = max(fitting // heads, 1), min(fitting, heads)
    stop = 0
    for kind in plan.kinds:
        start, stop = stop, stop + batch * (kind.rows.stop - kind.rows.start) * (kind.columns.stop - kind.columns.start)
        mask = bias
        if not kind.is_single_region:
            mask = bias.masked_fill(kind.hidden_pairs(bias.device), float("-inf"))
        for window in range(start, stop, step_windows):
            for head in range(0, heads, step_heads):
                some_heads = slice(head, head + step_heads)
                yield (slice(window, min(window + step_windows, stop)), some_heads), mask[some_heads]


def _weights(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    return torch.softmax((query @ key.transpose(-2, -1)).add_(bias), dim=-1)


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """left @ right of every window and head of a group, straight into its place."""
    torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out=out.view(-1, *out.shape[2:]))


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, plan: WindowPlan) -> Tensor:
        ctx.save_for_backward(query, key, value, bias)
        ctx.plan = plan
        attended = torch.empty_like(value)
        for group, mask in _groups(query, bias, plan):
            _product(_weights(query[group], key[group], mask), value[group], attended[group])
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        query, key, value, bias = ctx.saved_tensors
        grad = grad.contiguous()
        wants_bias = ctx.needs_input_grad[3]
        grad_query, grad_key, grad_value = (torch.empty_like(t) for t in (query, key, value))
        grad_bias = torch.zeros(bias.shape, dtype=torch.promote_types(bias.dtype, torch.float32))
        for group, mask in _groups(query, bias, ctx.plan):
            weights = _weights(query[group], key[group], mask)
            _product(weights.transpose(-2, -1), grad[group], grad_value[group])
            grad_weights = grad[group] @ value[group].transpose(-2, -1)
            grad_logits = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            _product(grad_logits, key[group], grad_query[group])
            _product(grad_logits.transpose(-2, -1), query[group], grad_key[group])
            if wants_bias:
                grad_bias[group[1]] += grad_logits.sum(0, dtype=grad_bias.dtype)
        return grad_query, grad_key, grad_value, grad_bias.to(bias.dtype) if wants_bias else None, None
