"""Linear layers and the MLP on a CPU.

In: features (..., C) and weights. Out: features. The same matrix products; memory is touched less often.
The MLP has no gradient of the gradient: for that, load the model with attn_implementation="eager".
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.cpu.pieces import SMALLEST_PIECE, can_run, pieces
from swinv2.ops.precision import at_least_fp32

Activation = Callable[[Tensor], Tensor]

Weights = tuple[Tensor, Tensor | None]
"""Weight (out, in) and bias, if there is one, of a linear layer."""


def linear(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What F.linear returns, by oneDNN: torch hands fp32 products to MKL, which is slower on many processors.

    Args:
        features: (..., in).
        weight: (out, in).
        bias: (out), or None.

    Returns:
        (..., out), in the dtype of autocast where that is on.
    """
    tensors = _for_onednn(features, weight, bias)
    return F.linear(features, weight, bias) if tensors is None else _Linear.apply(*tensors)


def linear_gelu(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.gelu(linear(features, weight, bias)) without gradients: oneDNN writes the wide tensor once, activated already.

    Args:
        features, weight, bias: See `linear`.

    Returns:
        As `linear`.
    """
    tensors = _for_onednn(features, weight, bias)
    return F.gelu(F.linear(features, weight, bias)) if tensors is None else _multiply(*tensors, "gelu")


def _for_onednn(features: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The tensors of a product as oneDNN can take them, or None."""
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") not in _onednn_dtypes():
        return None
    tensors = _in_autocast_dtype(features, weight, bias)
    return tensors if _onednn_can_run(*tensors) else None


def _multiply(features: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    # The op reads a bias as if it were contiguous. "none" beside "gelu" is the exact one, by the error function.
    bias = None if bias is None else bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(features, weight, bias, then, [], "none")


class _Linear(torch.autograd.Function):
    """The gradient of the features is a product by oneDNN too; of the weight's, MKL is the faster. The backward pass
    consists of what torch can differentiate again."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_features, wants_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(features if wants_weight else None, weight if wants_features else None)
        return _multiply(features, weight, bias)

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
    """narrow(activation(widen(features))) with gradients, a cacheful of tokens at a time.

    Of what lies between the two products only the input of the activation is kept: the wide tensors that torch would
    write to fresh memory, once forward and twice backward, exist for one piece at a time.

    Args:
        features: (..., C).
        widen, narrow: The two linear layers.
        activation: Works on each number by itself, not in place, not at random, and learns nothing.

    Returns:
        (..., C), in the dtype of autocast where that is on.
    """
    return _FeedForward.apply(activation, *_in_autocast_dtype(features, *widen, *narrow))


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
        shape, grad = grad.shape[:-1], grad.flatten(0, -2)
        wants_tokens, *wants = ctx.needs_input_grad[1:]
        grad_tokens = grad.new_empty(len(grad), w1.shape[1]) if wants_tokens else None
        sums: list[Tensor | None] = []
        for piece, some_hidden in zip(_token_pieces(grad, w1), hidden, strict=True):
            some_grad = grad[piece]
            with torch.enable_grad():
                before = some_hidden.detach().requires_grad_()
                after = ctx.activation(before)
            (grad_hidden,) = torch.autograd.grad(after, before, linear(some_grad, w2.T, None))
            if grad_tokens is not None:
                grad_tokens[piece] = linear(grad_hidden, w1.T, None)
            parts = [
                grad_hidden.T @ tokens[piece] if wants[0] else None,
                _sum(grad_hidden) if wants[1] else None,
                some_grad.T @ after.detach() if wants[2] else None,
                _sum(some_grad) if wants[3] else None,
            ]
            sums = _add(sums, parts) if sums else parts
        if grad_tokens is not None:
            grad_tokens = grad_tokens.view(*shape, w1.shape[1])
        return None, grad_tokens, *(None if s is None else s.to(w1.dtype) for s in sums)


def _token_pieces(tokens: Tensor, w1: Tensor) -> list[slice]:
    return pieces(len(tokens), len(w1) * tokens.element_size(), SMALLEST_PIECE)


def _add(totals: list[Tensor | None], parts: list[Tensor | None]) -> list[Tensor | None]:
    """Adds what is there, in fp32 at least."""
    pairs = zip(totals, parts, strict=True)
    return [None if t is None or p is None else at_least_fp32(t).add_(p) for t, p in pairs]
