"""Window attention on a CPU, a cacheful of windows at a time.

In and out: as `reference.py`, without the weights.

Torch's own CPU attention has no gradient for a learned bias, so it falls back to keeping all T x T weights, and in
bf16 its tiles are slower than plain matrix products. Here the weights of a few windows are computed, used and
forgotten while they are in the cache; the backward pass computes them again. Memory is linear in the tokens. There is
no gradient of the gradient: for that, load the model with attn_implementation="eager".
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.bias import collect_bias, expand_bias
from swinv2.ops.cpu.copies import ToMap, ToWindows
from swinv2.ops.cpu.linear import linear, linear_each
from swinv2.ops.cpu.opaque import opaque
from swinv2.ops.cpu.pieces import pieces
from swinv2.ops.precision import precise, without_autocast
from swinv2.ops.windows import WindowPlan, crop, pad

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
    query = ToWindows.apply(pad(q.to(v.dtype), plan), scale, plan)
    key = ToWindows.apply(pad(k.to(v.dtype), plan), torch.ones_like(scale, requires_grad=False), plan)
    value = ToWindows.apply(pad(v, plan, padded_value), None, plan)
    return crop(ToMap.apply(_Attend.apply(query, key, value, bias_table, plan), plan), plan)


def _empty_attended(
    feature_map: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    bias_table: Tensor,
    scale: Tensor,
    plan: WindowPlan,
) -> Tensor:
    return feature_map.new_empty(*feature_map.shape[:-1], len(weights[-1]))


@opaque(_empty_attended)
def project_and_attend(
    feature_map: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    bias_table: Tensor,
    scale: Tensor,
    plan: WindowPlan,
) -> Tensor:
    """Projects a map (B, H, W, C) to queries, keys and values, attends and projects back, a few images at a time.

    Without gradients.

    Args:
        feature_map: The map.
        weights, biases: Of the linear layers of queries, keys and values, and of the last one.
        bias_table, scale, plan: See `reference.window_attention`.
    """
    output = _empty_attended(feature_map, weights, biases, bias_table, scale, plan)
    batch, *grid, channels = feature_map.shape
    *into, out = zip(weights, biases, strict=True)
    heads = (len(scale), -1)
    # A filling token is a token of zeros.
    padded_value = None if biases[2] is None else biases[2].unflatten(-1, heads)
    for some in pieces(batch, math.prod(grid) * 3 * channels * feature_map.element_size()):
        query, key, value = (result.unflatten(-1, heads) for result in linear_each(feature_map[some], into))
        attended = window_attention(query, key, value, bias_table, scale, plan, padded_value)
        output[some] = linear(attended.flatten(-2), *out)
    return output


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


@opaque(lambda query, key, value, bias_table, plan: torch.empty_like(value))
@without_autocast
def attend(query: Tensor, key: Tensor, value: Tensor, bias_table: Tensor, plan: WindowPlan) -> Tensor:
    """Attention in windows (N, heads, T, head_dim), whose queries and keys have their lengths already.

    The bias of the pairs (heads, T, T) is looked up for a group of heads at a time, and again in the backward pass:
    for all heads it would be larger than the maps.
    """
    attended, room = torch.empty_like(value), _room(query)
    for heads in _head_groups(query):
        bias = expand_bias(bias_table[heads].to(value.dtype), plan.window)
        for windows, mask in _window_groups(query, bias, plan):
            group = (windows, heads)
            _product(_weights(query[group], key[group], mask, room), value[group], attended[group])
    return attended


def _empty_attend_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, bias_table: Tensor, wants_bias: bool, plan: WindowPlan
) -> tuple[Tensor, ...]:
    grad_table = torch.empty_like(bias_table) if wants_bias else bias_table.new_empty(0)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), grad_table


@opaque(_empty_attend_gradients)
@without_autocast
def attend_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, bias_table: Tensor, wants_bias: bool, plan: WindowPlan
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `attend`.

    Args:
        grad: Of the attended windows.
        query, key, value, bias_table, plan: What `attend` was given.
        wants_bias: Whether the bias table has a gradient.

    Returns:
        The gradients of the queries, keys, values and bias table; the last is empty unless it is wanted.
    """
    grad_query, grad_key, grad_value, grad_table = _empty_attend_gradients(
        grad, query, key, value, bias_table, wants_bias, plan
    )
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
        if wants_bias:
            grad_table[heads] = collect_bias(grad_bias, plan.window)
    return grad_query, grad_key, grad_value, grad_table


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias_table: Tensor, plan: WindowPlan) -> Tensor:
        ctx.save_for_backward(query, key, value, bias_table)
        ctx.plan = plan
        return attend(query, key, value, bias_table, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias_table = ctx.saved_tensors
        wants_bias = ctx.needs_input_grad[3]
        *gradients, grad_table = attend_backward(grad.contiguous(), query, key, value, bias_table, wants_bias, ctx.plan)
        return *gradients, grad_table if wants_bias else None, None
