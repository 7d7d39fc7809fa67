"""Linear layers on a CPU.

In: features (..., C) and weights. Out: features. The same matrix products by a faster library.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.ops.cpu.opaque import is_compiled, opaque
from swinv2.ops.cpu.pieces import can_run

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
    tensors = in_autocast_dtype(features, weight, bias)
    if _is_for_onednn(*tensors):
        return _Linear.apply(*tensors)
    return F.linear(*tensors)


def linear_gelu(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.gelu(linear(features, weight, bias)) without gradients: oneDNN writes the wide tensor once, activated already.

    Args:
        features, weight, bias: See `linear`.

    Returns:
        As `linear`.
    """
    features, weight, bias = in_autocast_dtype(features, weight, bias)
    if _is_for_onednn(features, weight, bias):
        return multiply(features, weight, bias, True)
    return F.gelu(F.linear(features, weight, bias))


def linear_each(features: Tensor, layers: Sequence[Weights]) -> tuple[Tensor, ...]:
    """`linear` with several weights, in one product where that is faster. In a compiled graph it would depend on the
    number of tokens, and need another graph for another one; there each has its own.

    Args:
        features: (..., in).
        layers: Weight and bias of each. They want gradients all, or none does.

    Returns:
        The result of each; they may be views of one tensor.
    """
    channels = features.shape[-1]
    if len(layers) == 1 or is_compiled(features) or features.numel() < TOKENS_TO_JOIN * channels**2:
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
            sum_of_tokens(tokens) if ctx.needs_input_grad[2] else None,
        )


def sum_of_tokens(tokens: Tensor) -> Tensor:
    """The sum of all tokens (N, C). In bf16 oneDNN adds with a product by ones, in half the time."""
    if tokens.dtype == torch.bfloat16 and _onednn_can_run(tokens, tokens, None):
        return tokens.new_ones(len(tokens)) @ tokens
    return tokens.sum(0)


def in_autocast_dtype(*tensors: Tensor | None) -> tuple[Any, ...]:
    """What autocast makes of the arguments of a matrix product; they as they are where it is off."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _is_for_onednn(features: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN is to multiply; in a compiled graph, whether it is to be asked at every call."""
    if is_compiled(features):
        return features.dtype in (torch.float32, torch.bfloat16)
    return _onednn_can_run(features, weight, bias)


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
