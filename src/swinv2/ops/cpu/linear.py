"""Linear layers on a CPU.

In: features (..., C) and weights. Out: features. The same matrix products, by the compiled kernels where they are the
faster: in fp32, and in 16 bits where the processor has no instructions for them.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2.ops.cpu import kernels, library
from swinv2.ops.cpu.arguments import Weights
from swinv2.ops.custom_op import custom_op
from swinv2.ops.execution import ORDINARY, Execution, execution
from swinv2.ops.precision import without_autocast


def linear(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What F.linear returns, by the faster library.

    Args:
        features: (..., in).
        weight: (out, in).
        bias: (out), or None.

    Returns:
        (..., out), in the dtype of autocast where that is on.
    """
    tensors = in_autocast_dtype(features, weight, bias)
    if _is_for_kernels(*tensors):
        return _Linear.apply(*tensors)
    return F.linear(*tensors)


def join(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Weights:
    """Layers that take the same features as one layer."""
    if all(bias is None for bias in biases):
        return torch.cat(list(weights)), None
    pairs = zip(weights, biases, strict=True)
    return torch.cat(list(weights)), torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in pairs])


def may_project_patches(pixels: Tensor, projection: nn.Conv2d) -> bool:
    """Whether `project_patches` is for a convolution: one without overlap and padding, in 16 bits that the processor
    has no instructions for."""
    pixels, weight, bias = in_autocast_dtype(pixels, projection.weight, projection.bias)
    return (
        _is_eager(pixels)
        and _is_slow_in(pixels.dtype)
        and all(each.dtype == pixels.dtype for each in (weight, bias) if each is not None)
        and projection.stride == projection.kernel_size
        and (projection.padding, projection.dilation, projection.groups) == ((0, 0), (1, 1), 1)
    )


def project_patches(pixels: Tensor, projection: nn.Conv2d) -> Tensor:
    """What such a convolution returns, computed in fp32.

    Args:
        pixels: (B, channels, height, width).
        projection: The convolution.
    """
    pixels, weight, bias = in_autocast_dtype(pixels, projection.weight, projection.bias)
    bias = None if bias is None else bias.float()
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(pixels.float(), weight.float(), bias, projection.stride).to(pixels.dtype)


def _empty_product(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return features.new_empty(*features.shape[:-1], len(weight))


@custom_op(_empty_product)
@without_autocast
def multiply(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer without gradients, by the kernels.

    Args:
        features, weight, bias: See `linear`.
    """
    product, tokens = _empty_product(features, weight, bias), math.prod(features.shape[:-1])
    out = product.view(tokens, len(weight))
    kernels.matmul(features.reshape(tokens, features.shape[-1]), weight.T, bias, out=out)
    return product


class _Linear(torch.autograd.Function):
    """The backward pass consists of what torch can differentiate again."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_features, wants_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(features if wants_weight else None, weight if wants_features else None)
        return multiply(features, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        tokens = grad.reshape(-1, grad.shape[-1])
        return (
            None if weight is None else linear(grad, weight.T, None),
            None if features is None else _turned_product(tokens, features.reshape(-1, features.shape[-1])),
            sum_of_tokens(tokens) if ctx.needs_input_grad[2] else None,
        )


def _turned_product(left: Tensor, right: Tensor) -> Tensor:
    """left.T @ right, of matrices in 16 bits by sums in fp32: they are long, and kernels cut them only if there is a
    place for what they have so far."""
    in_16_bits = left.dtype == right.dtype and left.dtype.itemsize == 2 and uses_kernels(left.dtype)
    if (
        not in_16_bits
        or not _is_eager(left)
        or (torch.is_grad_enabled() and (left.requires_grad or right.requires_grad))
    ):
        return linear(left.T, right.T, None)
    sums = left.new_zeros(left.shape[1], right.shape[1], dtype=torch.float32)
    kernels.matmul(left.T, right, base=sums, out=sums)
    return sums.to(left.dtype)


def product(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    base: Tensor | None = None,
    out: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """tokens @ weight.T + bias + base, of matrices, by torch and without gradients.

    Args:
        tokens: (N, in).
        weight, bias: (out, in) and (out).
        dtype: What is multiplied is rounded to it.
        base: (N, out).
        out: Gets the sum, (N, out); may be `base`. None for new memory.
        after: Gets the sum's GELU, if it is given.

    Returns:
        The sum.
    """
    answer = F.linear(tokens.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    if base is not None:
        answer = base + answer
    if after is not None:
        kernels.gelu(answer, after)
    return answer if out is None else out.copy_(answer)


def add_turned_product(sums: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    """sums += left.T @ right, of matrices; what is multiplied is rounded to a dtype, the sums are in fp32 at least."""
    sums += left.to(dtype).T @ right.to(dtype)


def sum_of_tokens(tokens: Tensor) -> Tensor:
    """The sum of all tokens (N, C). In bf16 a product by ones is the faster, where the processor has it."""
    if tokens.dtype == torch.bfloat16 and len(tokens) and _is_eager(tokens) and not _is_slow_in(tokens.dtype):
        return tokens.new_ones(len(tokens)) @ tokens
    return tokens.sum(0)


def in_autocast_dtype(*tensors: Tensor | None) -> tuple[Any, ...]:
    """What autocast makes of the arguments of a matrix product; they as they are where it is off."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _is_eager(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and execution(tensor) is Execution.EAGER


def _is_for_kernels(features: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        # Asked again in the backward pass: it may be watched where the forward pass was not.
        features.device.type == "cpu"
        and execution(features) in ORDINARY
        and features.dtype == weight.dtype
        # What does not fit is torch's to refuse.
        and features.shape[-1:] == weight.shape[1:]
        and (bias is None or (bias.dtype == weight.dtype and bias.shape == weight.shape[:1]))
        and uses_kernels(features.dtype)
    )


@torch.compiler.assume_constant_result
def uses_kernels(dtype: torch.dtype) -> bool:
    """Whether the compiled kernels multiply matrices of a dtype."""
    return library.refuse(dtype) is None and (dtype.itemsize > 2 or _is_slow_in(dtype))


@cache
def _is_slow_in(dtype: torch.dtype) -> bool:
    """Whether the processor has no instructions for a dtype of 16 bits. Torch then multiplies number by number, and
    rounds sums on the way."""
    questions = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype not in questions:
        return False
    # Not public: a torch without them is taken for one that knows.
    ask = getattr(torch.ops.mkldnn, questions[dtype], None)
    return ask is not None and not (torch.backends.mkldnn.is_available() and ask())
