"""The MLP of a block on a CPU, a cacheful of tokens at a time.

In: features (..., C) and the weights of two linear layers. Out: features. Of what lies between the two products only
the input of the activation is kept for the gradients: the wide tensors that torch would write to fresh memory, once
forward and twice backward, exist for one piece at a time. There is no gradient of the gradient: for that, load the
model with attn_implementation="eager".
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.cpu.linear import Weights, in_autocast_dtype, linear, multiply, sum_of_tokens
from swinv2.ops.cpu.opaque import opaque
from swinv2.ops.cpu.pieces import SMALLEST_PIECE, pieces
from swinv2.ops.precision import at_least_fp32

Activation = Callable[[Tensor], Tensor]


def feed_forward(features: Tensor, widen: Weights, activation: Activation, narrow: Weights) -> Tensor:
    """narrow(activation(widen(features))) with gradients, in eager mode.

    Args:
        features: (..., C).
        widen, narrow: The two linear layers.
        activation: Works on each number by itself, not in place, not at random, and learns nothing.

    Returns:
        (..., C), in the dtype of autocast where that is on.
    """
    return _FeedForward.apply(activation, *in_autocast_dtype(features, *widen, *narrow))


def gelu_feed_forward(features: Tensor, widen: Weights, narrow: Weights) -> Tensor:
    """narrow(F.gelu(widen(features))), as operations of a compiled graph.

    Args:
        features, widen, narrow: See `feed_forward`.

    Returns:
        As `feed_forward`.
    """
    tensors = in_autocast_dtype(features, *widen, *narrow)
    return _GeluFeedForward.apply(*tensors) if torch.is_grad_enabled() else gelu_mlp(*tensors)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        activation: Activation,
        features: Tensor,
        w1: Tensor,
        b1: Tensor | None,
        w2: Tensor,
        b2: Tensor | None,
    ) -> Tensor:
        tokens = features.flatten(0, -2)
        output = tokens.new_empty(len(tokens), len(w2))
        hidden: list[Tensor] = []
        for piece in _token_pieces(tokens, w1):
            hidden.append(linear(tokens[piece], w1, b1))
            output[piece] = linear(activation(hidden[-1]), w2, b2)
        ctx.activation = activation
        ctx.save_for_backward(tokens if ctx.needs_input_grad[2] else None, w1, w2, *hidden)
        return output.view(*features.shape[:-1], len(w2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, w1, w2, *hidden = ctx.saved_tensors
        again = partial(_activate_again, ctx.activation)
        grad_tokens, *others = _gradients(again, grad.flatten(0, -2), tokens, w1, w2, hidden, ctx.needs_input_grad[1:])
        return None, None if grad_tokens is None else grad_tokens.view(*grad.shape[:-1], w1.shape[1]), *others


class _GeluFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
        tokens = features.flatten(0, -2)
        output, hidden = gelu_mlp_with_hidden(tokens, w1, b1, w2, b2)
        ctx.save_for_backward(tokens if ctx.needs_input_grad[1] else None, w1, w2, hidden)
        return output.view(*features.shape[:-1], len(w2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, w1, w2, hidden = ctx.saved_tensors
        wants = ctx.needs_input_grad
        gradients = gelu_mlp_backward(grad.flatten(0, -2), tokens, w1, w2, hidden, wants)
        grad_tokens, *others = (part if wanted else None for part, wanted in zip(gradients, wants, strict=True))
        return None if grad_tokens is None else grad_tokens.view(*grad.shape[:-1], w1.shape[1]), *others


def _empty_output(features: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    return features.new_empty(*features.shape[:-1], len(w2))


@opaque(_empty_output)
def gelu_mlp(features: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    """`gelu_feed_forward` without gradients."""
    output = _empty_output(features, w1, b1, w2, b2)
    tokens, results = features.flatten(0, -2), output.view(-1, len(w2))
    for piece in _token_pieces(tokens, w1):
        results[piece] = multiply(multiply(tokens[piece], w1, b1, True), w2, b2, False)
    return output


def _empty_output_and_hidden(
    tokens: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _empty_output(tokens, w1, b1, w2, b2), tokens.new_empty(tokens.shape[0], len(w1))


@opaque(_empty_output_and_hidden)
def gelu_mlp_with_hidden(
    tokens: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`gelu_feed_forward` of tokens (N, C), and the GELU's input (N, hidden)."""
    output, hidden = _empty_output(tokens, w1, b1, w2, b2), multiply(tokens, w1, b1, False)
    for piece in _token_pieces(tokens, w1):
        output[piece] = multiply(F.gelu(hidden[piece]), w2, b2, False)
    return output, hidden


def _empty_gradients(
    grad: Tensor, tokens: Tensor | None, w1: Tensor, w2: Tensor, hidden: Tensor, wants: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = [(grad.shape[0], w1.shape[1]), w1.shape, w1.shape[:1], w2.shape, w2.shape[:1]]
    empty = [w1.new_empty(shape if wanted else (0,)) for shape, wanted in zip(shapes, wants, strict=True)]
    return empty[0], empty[1], empty[2], empty[3], empty[4]


@opaque(_empty_gradients)
def gelu_mlp_backward(
    grad: Tensor, tokens: Tensor | None, w1: Tensor, w2: Tensor, hidden: Tensor, wants: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `gelu_mlp_with_hidden`: of tokens, w1, b1, w2, b2; empty where they are not wanted.

    Args:
        grad: Of the output.
        tokens, w1, w2: What it was given; no tokens if w1 wants no gradient.
        hidden: What it returned.
        wants: Which of the gradients are wanted.
    """
    parts = [hidden[piece] for piece in _token_pieces(grad, w1)]
    gradients = _gradients(_gelu_again, grad, tokens, w1, w2, parts, wants)
    given = [w1.new_empty(0) if gradient is None else gradient for gradient in gradients]
    return given[0], given[1], given[2], given[3], given[4]


def _gelu_again(before: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    # Inside of an operation nothing is recorded for autograd.
    return F.gelu(before), torch.ops.aten.gelu_backward(grad, before)


def _activate_again(activation: Activation, before: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        before = before.detach().requires_grad_()
        after = activation(before)
    return after.detach(), torch.autograd.grad(after, before, grad)[0]


def _gradients(
    activate_again: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    grad: Tensor,
    tokens: Tensor | None,
    w1: Tensor,
    w2: Tensor,
    hidden: Sequence[Tensor],
    wants: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of tokens, w1, b1, w2, b2, None where they are not wanted. `activate_again` gives what the activation
    made of its input, and the gradient of that input."""
    wants_tokens, *wanted = wants
    grad_tokens = grad.new_empty(len(grad), w1.shape[1]) if wants_tokens else None
    sums: list[Tensor | None] = []
    for piece, some_hidden in zip(_token_pieces(grad, w1), hidden, strict=True):
        some_grad = grad[piece]
        after, grad_hidden = activate_again(some_hidden, linear(some_grad, w2.T, None))
        if grad_tokens is not None:
            grad_tokens[piece] = linear(grad_hidden, w1.T, None)
        parts = [
            None if tokens is None or not wanted[0] else grad_hidden.T @ tokens[piece],
            sum_of_tokens(grad_hidden) if wanted[1] else None,
            some_grad.T @ after if wanted[2] else None,
            sum_of_tokens(some_grad) if wanted[3] else None,
        ]
        sums = _add(sums, parts) if sums else parts
    return [grad_tokens, *(None if s is None else s.to(w1.dtype) for s in sums)]


def _token_pieces(tokens: Tensor, w1: Tensor) -> list[slice]:
    return pieces(len(tokens), len(w1) * tokens.element_size(), SMALLEST_PIECE)


def _add(totals: list[Tensor | None], parts: list[Tensor | None]) -> list[Tensor | None]:
    """Adds what is there, in fp32 at least."""
    pairs = zip(totals, parts, strict=True)
    return [None if t is None or p is None else at_least_fp32(t).add_(p) for t, p in pairs]
