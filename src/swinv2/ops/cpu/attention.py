"""Window attention on a CPU, a cacheful of windows at a time.

In and out: as `reference.py`, without the weights.

Torch's own CPU attention has no gradient for a learned bias, so it falls back to keeping all T x T weights, and in
bf16 its tiles are slower than plain matrix products. Here the weights of a few windows are computed, used and
forgotten while they are in the cache; the backward pass computes them again. Memory is linear in the tokens. A map is
copied to windows and back once, each kind of window after the other, the cyclic shift included; each copy is the
other's gradient. There is no gradient of the gradient: for that, load the model with attn_implementation="eager".
"""

import math
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.bias import collect_bias, expand_bias
from swinv2.ops.cpu import pieces
from swinv2.ops.precision import SMALLEST_NORM, precise
from swinv2.ops.windows import Span, WindowPlan, crop, pad

WEIGHTS_BYTES = 2**22
"""What the attention weights at work may take: less than all of the cache, since several operations in a row read and
write them."""


def window_attention(
    q: Float[Tensor, "B H W heads head_dim"],
    k: Float[Tensor, "B H W heads head_dim"],
    v: Float[Tensor, "B H W heads head_dim"],
    bias_table: Float[Tensor, "heads table_height table_width"],
    scale: Float[Tensor, " heads"],
    plan: WindowPlan,
    padded_value: Float[Tensor, "heads head_dim"] | None = None,
) -> Float[Tensor, "B H W heads head_dim"]:
    """Cosine attention inside every window of a map; arguments as in `reference.window_attention`."""
    # One after the other, so that no map is kept longer than it is needed.
    scale = scale[:, None, None]
    query = _ToWindows.apply(pad(q.to(v.dtype), plan), scale, plan)
    key = _ToWindows.apply(pad(k.to(v.dtype), plan), torch.ones_like(scale, requires_grad=False), plan)
    value = _ToWindows.apply(pad(v, plan, padded_value), None, plan)
    return crop(_ToMap.apply(_Attend.apply(query, key, value, bias_table, plan), plan), plan)


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
    """Copies a map of whole windows (B, H, W, heads, head_dim) to its windows (N, heads, T, head_dim), kind by kind,
    then image by image. If a length for each head is given (heads, 1, 1), fp32 at least, every vector is scaled to it,
    and a zero vector stays zero:

    y = L x / n with n = max(|x|, SMALLEST_NORM); dx = L / n (dy - y (y dy) / L^2); dL = sum of y dy / L.
    """

    @staticmethod
    def forward(ctx: Any, feature_map: Tensor, length: Tensor | None, plan: WindowPlan) -> Tensor:
        ctx.plan = plan
        vectors = _to_windows(feature_map, plan)
        if length is None:
            return vectors
        length = length.to(torch.promote_types(length.dtype, precise(vectors.dtype)))
        factors = length.new_empty(*vectors.shape[:-1], 1)
        turning = torch.empty_like(factors)
        for some in _precise_pieces(vectors):
            norms = torch.linalg.vector_norm(vectors[some], dim=-1, keepdim=True, dtype=length.dtype)
            torch.div(length, norms.clamp_min(SMALLEST_NORM), out=factors[some])
            # A vector that counts as zero has no direction that could turn.
            torch.mul(factors[some], norms > SMALLEST_NORM, out=turning[some])
            _times(vectors[some], factors[some], out=vectors[some])
        ctx.save_for_backward(vectors, length, factors, turning)
        return vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad = grad.contiguous()
        saved = ctx.saved_tensors
        if not saved:
            return _to_map(grad, ctx.plan), None, None
        vectors, length, factors, turning = saved
        wants_length = ctx.needs_input_grad[1]
        # The length's gradient sums up what cancels: the products must not be rounded before. fp16 could overflow.
        unrounded = wants_length or vectors.dtype == torch.float16
        turned, along = torch.empty_like(grad), torch.empty_like(factors)
        for some in _precise_pieces(vectors):
            product = (vectors[some].to(length.dtype) if unrounded else vectors[some]) * grad[some]
            torch.sum(product, -1, keepdim=True, dtype=length.dtype, out=along[some])
            _times(grad[some], factors[some], out=turned[some])
            turned[some] -= _times(vectors[some], turning[some] * along[some] / length**2)
        grad_length = along.sum((0, 2), keepdim=True)[0] / length if wants_length else None
        return _to_map(turned, ctx.plan), grad_length, None


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


class _ToMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, windows: Tensor, plan: WindowPlan) -> Tensor:
        ctx.plan = plan
        return _to_map(windows, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _to_windows(grad, ctx.plan), None


def _group_size(query: Tensor) -> tuple[int, int]:
    """How many windows, and how many heads of them, have weights that fit the cache together. Heads of one window are
    parted if they must be, evenly among the threads."""
    heads, threads = query.shape[1], torch.get_num_threads()
    fitting = WEIGHTS_BYTES // (query.shape[2] ** 2 * query.element_size())
    if fitting >= heads:
        return fitting // heads, heads
    return 1, min(max(fitting // threads * threads, threads), heads)


def _room(query: Tensor) -> Tensor:
    """Memory for the weights of a group, which one group after the other overwrites: it stays in the cache."""
    windows, heads = _group_size(query)
    return query.new_empty(min(windows, len(query)) * heads * query.shape[2] ** 2)


def _head_groups(query: Tensor) -> list[slice]:
    heads, step = query.shape[1], _group_size(query)[1]
    return [slice(start, min(start + step, heads)) for start in range(0, heads, step)]


def _window_groups(query: Tensor, bias: Tensor, plan: WindowPlan) -> Iterator[tuple[slice, Tensor]]:
    """Groups of windows, each with what is added to its logits: the bias, hidden pairs included."""
    batch, step = len(query) // (plan.counts[0] * plan.counts[1]), _group_size(query)[0]
    stop = 0
    for kind in plan.kinds:
        start, stop = stop, stop + batch * (kind.rows.stop - kind.rows.start) * (kind.columns.stop - kind.columns.start)
        mask = bias
        if not kind.is_single_region:
            mask = bias.masked_fill(kind.hidden_pairs(bias.device), float("-inf"))
        for window in range(start, stop, step):
            yield slice(window, min(window + step, stop)), mask


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Everything has the dtype of the values; autocast would change some of the operations and not others."""

    @wraps(function)
    def run(*args: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return function(*args)

    return run


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """left @ right of every window and head of a group, straight into its place. If `out` is flat memory, what it
    begins with is taken."""
    if out.ndim == 1:
        out = out[: left[..., 0].numel() * right.shape[-1]].view(*left.shape[:-1], right.shape[-1])
    torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out=out.view(-1, *out.shape[2:]))
    return out


def _weights(query: Tensor, key: Tensor, bias: Tensor, room: Tensor) -> Tensor:
    logits = _product(query, key.transpose(-2, -1), room)
    logits += bias
    # In its own place: half the memory, so twice as much of it in the cache.
    return torch.softmax(logits, -1, out=logits)


class _Attend(torch.autograd.Function):
    """The bias of the pairs (heads, T, T) is looked up for a group of heads at a time, and again in the backward pass:
    for all heads it would be larger than the maps."""

    @staticmethod
    @_without_autocast
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias_table: Tensor, plan: WindowPlan) -> Tensor:
        ctx.save_for_backward(query, key, value, bias_table)
        ctx.plan = plan
        attended, room = torch.empty_like(value), _room(query)
        for heads in _head_groups(query):
            bias = expand_bias(bias_table[heads].to(value.dtype), plan.window)
            for windows, mask in _window_groups(query, bias, plan):
                group = (windows, heads)
                _product(_weights(query[group], key[group], mask, room), value[group], attended[group])
        return attended

    @staticmethod
    @once_differentiable
    @_without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias_table = ctx.saved_tensors
        plan, wants_bias = ctx.plan, ctx.needs_input_grad[3]
        grad = grad.contiguous()
        grad_query, grad_key, grad_value = (torch.empty_like(t) for t in (query, key, value))
        grad_table = torch.empty_like(bias_table) if wants_bias else None
        room, other_room = _room(query), _room(query)
        for heads in _head_groups(query):
            bias = expand_bias(bias_table[heads].to(value.dtype), plan.window)
            grad_bias = torch.zeros(bias.shape, dtype=precise(bias.dtype))
            for windows, mask in _window_groups(query, bias, plan):
                group = (windows, heads)
                weights = _weights(query[group], key[group], mask, room)
                _product(weights.transpose(-2, -1), grad[group], grad_value[group])
                grad_logits = _product(grad[group], value[group].transpose(-2, -1), other_room)
                torch._softmax_backward_data(grad_logits, weights, -1, weights.dtype, grad_input=grad_logits)
                _product(grad_logits, key[group], grad_query[group])
                _product(grad_logits.transpose(-2, -1), query[group], grad_key[group])
                if wants_bias:
                    grad_bias += grad_logits.sum(0, dtype=grad_bias.dtype)
            if grad_table is not None:
                grad_table[heads] = collect_bias(grad_bias, plan.window)
        return grad_query, grad_key, grad_value, grad_table, None
