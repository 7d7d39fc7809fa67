"""Attention of many small windows on a CPU, a cacheful at a time.

In: queries (already scaled), keys and values of windows (N, heads, T, head_dim) and one bias for all of them.
Out: the attended windows. Nothing is known here of maps, shifts or cosines.

Torch's own CPU attention has no gradient for a learned bias, so it falls back to keeping all T x T weights, and in
bf16 its tiles are slower than plain matrix products. Here the weights of a few windows are computed, used and
forgotten while they are in the cache; the backward pass computes them again. Memory is linear in the tokens.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CACHE_BYTES = 2**20
"""What the weights of the windows in work may take: about the second-level cache of one core."""


def attend(
    query: Float[Tensor, "N heads T head_dim"],
    key: Float[Tensor, "N heads T head_dim"],
    value: Float[Tensor, "N heads T head_dim"],
    bias: Float[Tensor, "heads T T"],
) -> Float[Tensor, "N heads T head_dim"]:
    """softmax(query @ key^T + bias) @ value, for every window and head.

    Args:
        query, key, value: The windows, contiguous.
        bias: What is added to the logits; minus infinity hides a pair.
    """
    return _Attend.apply(query, key, value, bias)


def _groups(query: Tensor) -> list[tuple[slice, slice]]:
    """Cuts windows and heads into groups whose weights fit the cache; whole windows if they can."""
    windows, heads, tokens, _ = query.shape
    fitting = max(CACHE_BYTES // (tokens * tokens * query.element_size()), torch.get_num_threads())
    if fitting >= heads:
        step = max(fitting // heads, 1)
        return [(slice(start, start + step), slice(None)) for start in range(0, windows, step)]
    return [
        (slice(window, window + 1), slice(start, start + fitting))
        for window in range(windows)
        for start in range(0, heads, fitting)
    ]


def _weights(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    return torch.softmax((query @ key.transpose(-2, -1)).add_(bias), dim=-1)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value, bias)
        attended = torch.empty_like(value)
        for group in _groups(query):
            attended[group] = _weights(query[group], key[group], bias[group[1]]) @ value[group]
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        query, key, value, bias = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.empty_like(t) for t in (query, key, value))
        grad_bias = torch.zeros(bias.shape, dtype=torch.promote_types(bias.dtype, torch.float32))
        for group in _groups(query):
            weights = _weights(query[group], key[group], bias[group[1]])
            grad_value[group] = weights.transpose(-2, -1) @ grad[group]
            grad_weights = grad[group] @ value[group].transpose(-2, -1)
            grad_logits = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_query[group] = grad_logits @ key[group]
            grad_key[group] = grad_logits.transpose(-2, -1) @ query[group]
            if ctx.needs_input_grad[3]:
                grad_bias[group[1]] += grad_logits.sum(0, dtype=grad_bias.dtype)
        return grad_query, grad_key, grad_value, grad_bias.to(bias.dtype) if ctx.needs_input_grad[3] else None
