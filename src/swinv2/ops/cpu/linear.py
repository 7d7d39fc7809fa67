"""Linear layers and the MLP on a CPU.

In: features (..., C) and weights. Out: features. The same matrix products; memory is touched less often.
The MLP has no gradient of the gradient: for that, load the model with attn_implementation="eager".
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.cpu.opaque import is_compiled, opaque
from swinv2.ops.cpu.pieces import SMALLEST_PIECE, can_run, pieces
from swinv2.ops.precision import at_least_fp32

Activation = Callable[[Tensor], Tensor]

Weights = tuple[Tensor, Tensor | None]
"""Weight (out, in) and bias, if there is one, of a linear layer."""

TOKENS_TO_JOIN = 8
"""Tokens for each channel from which one product is faster than several: joining the weights copies them."""


def linear(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What F.linear returns, by oneDNN: torch hands fp32 products to MKL, which is slower on many processors.

    Args:
        features: (..., in).
        weight: (out, in).
        bias: (out), or None.

    Returns:
        (..., out), in the dtype of autocast where that is on.
    """
    tensors = _in_autocast_dtype(features, weight, bias)
    if is_compiled(features) or _onednn_can_run(*tensors):
        return _Linear.apply(*tensors)
    return F.linear(features, weight, bias)


def linear_gelu(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.gelu(linear(features, weight, bias)) without gradients: oneDNN writes the wide tensor once, activated already.

    Args:
        features, weight, bias: See `linear`.

    Returns:
        As `linear`.
    """
    tensors = _in_autocast_dtype(features, weight, bias)
    return multiply(*tensors, True) if _onednn_can_run(*tensors) else F.gelu(F.linear(features, weight, bias))


def linear_each(features: Tensor, layers: Sequence[Weights]) -> tuple[Tensor, ...]:
    """`linear` with several weights, in one product where that is faster.

    Args:
        features: (..., in).
        layers: Weight and bias of each. They want gradients all, or none does.

    Returns:
        The result of each; they may be views of one tensor.
    """
    channels = features.shape[-1]
    if len(layers) == 1 or features.numel() < TOKENS_TO_JOIN * channels**2:
        return tuple(linear(features, weight, bias) for weight, bias in layers)
    bias = None
    if any(bias is not None for _, bias in layers):
        bias = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in layers])
    joined = linear(features, torch.cat([weight for weight, _ in layers]), bias)
    return joined.split([len(weight) for weight, _ in layers], dim=-1)


def _empty_product(features: Tensor, weight: Tensor, bias: Tensor | None, with_gelu: bool) -> Tensor:
    return features.new_empty(*features.shape[:-1], len(weight))


@opaque(_empty_product)
def multiply(features: Tensor, weight: Tensor, bias: Tensor | None, with_gelu: bool) -> Tensor:
    """A linear layer without gradients, by oneDNN if it can.

    Args:
        features, weight, bias: See `linear`; all of one dtype.
        with_gelu: Whether an exact GELU follows.
    """
    if not _onednn_can_run(features, weight, bias):
        product = F.linear(features, weight, bias)
        return F.gelu(product) if with_gelu else product
    # The op reads a bias as if it were contiguous. "none" beside "gelu" is the exact one, by the error function.
    bias = None if bias is None else bias.contiguous()
    activation = "gelu" if with_gelu else "none"
    return torch.ops.mkldnn._linear_pointwise(features, weight, bias, activation, [], "none")


class _Linear(torch.autograd.Function):
    """The gradient of the features is a product by oneDNN too; of the weight's, MKL is the faster. The backward pass
    consists of what torch can differentiate again."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_features, wants_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(features if wants_weight else None, weight if wants_features else None)
        return multiply(features, weight, bias, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        tokens = grad.reshape(-1, grad.shape[-1])
        return (
            None if weight is None else linear(grad, weight.T, None),
            None if features is None else tokens.T @ features.reshape(-1, features.shape[-1]),
            _sum(tokens) if ctx.needs_input_grad[2] else None,
        )


def _sum(tokens: Tensor) -> Tensor:
    """The sum of all tokens. In bf16 oneDNN adds with a product by ones, in half the time."""
    if tokens.dtype == torch.bfloat16 and _onednn_can_run(tokens, tokens, None):
        return tokens.new_ones(len(tokens)) @ tokens
    return tokens.sum(0)


def _in_autocast_dtype(*tensors: Tensor | None) -> tuple[Any, ...]:
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _onednn_can_run(features: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        # Asked again here: a backward pass may be watched where the forward pass was not.
        can_run(features)
        and features.dtype == weight.dtype
        and (bias is None or (bias.dtype == weight.dtype and bias.shape == weight.shape[:1]))
        and features.dtype in _onednn_dtypes()
        and features.numel() > 0
        and torch._C._get_mkldnn_enabled()
    )


@cache
def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """What oneDNN multiplies here. The op is not public: a torch without it has none."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return ()
    has_bf16 = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bf16 else (torch.float32,)


def feed_forward(features: Tensor, widen: Weights, activation: Activation, narrow: Weights) -> Tensor:
    """narrow(activation(widen(features))), a cacheful of tokens at a time.

    Of what lies between the two products only the input of the activation is kept for the gradients: the wide tensors
    that torch would write to fresh memory, once forward and twice backward, exist for one piece at a time.

    Args:
        features: (..., C).
        widen, narrow: The two linear layers.
        activation: Works on each number by itself, not in place, not at random, and learns nothing. Under
            torch.compile it is F.gelu.

    Returns:
        (..., C), in the dtype of autocast where that is on.
    """
    tensors = _in_autocast_dtype(features, *widen, *narrow)
    if is_compiled(features) and not torch.is_grad_enabled():
        return gelu_mlp(*tensors)
    return _FeedForward.apply(activation, *tensors)


def _like_features(features: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    return features.new_empty(*features.shape[:-1], len(w2))


@opaque(_like_features)
def gelu_mlp(features: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    """`feed_forward` with the exact GELU and without gradients."""
    output = _like_features(features, w1, b1, w2, b2)
    tokens, results = features.flatten(0, -2), output.view(-1, len(w2))
    for piece in _token_pieces(tokens, w1):
        results[piece] = multiply(multiply(tokens[piece], w1, b1, True), w2, b2, False)
    return output


def _empty_with_hidden(
    tokens: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
) -> tuple[Tensor, Tensor]:
    return tokens.new_empty(len(tokens), len(w2)), tokens.new_empty(len(tokens), len(w1))


@opaque(_empty_with_hidden)
def gelu_mlp_with_hidden(
    tokens: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`feed_forward` of tokens (N, C) with the exact GELU, and the GELU's input (N, hidden)."""
    output, hidden = tokens.new_empty(len(tokens), len(w2)), multiply(tokens, w1, b1, False)
    for piece in _token_pieces(tokens, w1):
        output[piece] = multiply(F.gelu(hidden[piece]), w2, b2, False)
    return output, hidden


def _empty_mlp_gradients(
    grad: Tensor, tokens: Tensor | None, w1: Tensor, w2: Tensor, hidden: Tensor, wants: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = [(len(grad), w1.shape[1]), w1.shape, w1.shape[:1], w2.shape, w2.shape[:1]]
    empty = [w1.new_empty(shape if wanted else (0,)) for shape, wanted in zip(shapes, wants, strict=True)]
    return empty[0], empty[1], empty[2], empty[3], empty[4]


@opaque(_empty_mlp_gradients)
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
    gradients = _mlp_gradients(_gelu_again, grad, tokens, w1, w2, parts, wants)
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


def _mlp_gradients(
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
            _sum(grad_hidden) if wanted[1] else None,
            some_grad.T @ after if wanted[2] else None,
            _sum(some_grad) if wanted[3] else None,
        ]
        sums = _add(sums, parts) if sums else parts
    return [grad_tokens, *(None if s is None else s.to(w1.dtype) for s in sums)]


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
        if is_compiled(features):
            output, *hidden = gelu_mlp_with_hidden(tokens, w1, b1, w2, b2)
        else:
            output, hidden = tokens.new_empty(len(tokens), len(w2)), []
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
        shape, grad, wants = grad.shape[:-1], grad.flatten(0, -2), ctx.needs_input_grad[1:]
        if is_compiled(grad):
            gradients = gelu_mlp_backward(grad, tokens, w1, w2, *hidden, wants)
            gradients = [gradient if wanted else None for gradient, wanted in zip(gradients, wants, strict=True)]
        else:
            gradients = _mlp_gradients(partial(_activate_again, ctx.activation), grad, tokens, w1, w2, hidden, wants)
        grad_tokens, *others = gradients
        return None, None if grad_tokens is None else grad_tokens.view(*shape, w1.shape[1]), *others


def _token_pieces(tokens: Tensor, w1: Tensor) -> list[slice]:
    return pieces(len(tokens), len(w1) * tokens.element_size(), SMALLEST_PIECE)


def _add(totals: list[Tensor | None], parts: list[Tensor | None]) -> list[Tensor | None]:
    """Adds what is there, in fp32 at least."""
    pairs = zip(totals, parts, strict=True)
    return [None if t is None or p is None else at_least_fp32(t).add_(p) for t, p in pairs]
