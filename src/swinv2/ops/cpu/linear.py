"""Matrix products by torch, and the dtypes for which the processor has instructions.

In: features and weights on a CPU. Out: products.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.ops.cpu import library
from swinv2.ops.cpu.arguments import Weights
from swinv2.ops.execution import Execution, execution


def join(layers: Sequence[Weights]) -> Weights:
    """Joins linear layers with the same input into one, for one product."""
    if len(layers) == 1:
        return layers[0]
    weights, biases = [weight for weight, _ in layers], [bias for _, bias in layers]
    if all(bias is None for bias in biases):
        return torch.cat(weights), None
    pairs = zip(weights, biases, strict=True)
    return torch.cat(weights), torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in pairs])


def is_slow(*tensors: Tensor | None) -> bool:
    """Whether the product of tensors, after autocast, is in a 16-bit dtype without instructions of the processor.

    torch's product is then slow, and rounds intermediate sums.
    """
    dtypes = {tensor.dtype for tensor in in_autocast_dtype(*tensors) if tensor is not None}
    return len(dtypes) == 1 and is_slow_in(dtypes.pop())


def in_fp32(operation: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """Computes an operation on 16-bit tensors (after autocast) in fp32, and rounds the result to their dtype."""
    given = in_autocast_dtype(*tensors)
    with torch.autocast("cpu", enabled=False):
        return operation(*(each if each is None else each.float() for each in given)).to(given[0].dtype)


def product(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    base: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """tokens @ weight.T + bias + base, by torch and without gradients.

    Args:
        tokens: (N, in).
        weight, bias: (out, in) and (out).
        dtype: The factors are rounded to it.
        base: (N, out).
        out: Receives the sum, (N, out); may be `base`. None for new memory.

    Returns:
        The sum.
    """
    result = F.linear(tokens.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    if base is not None:
        result = base + result
    return result if out is None else out.copy_(result)


def add_transposed_product(sums: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    """sums += left.T @ right; the factors are rounded to `dtype`, and the sums are in fp32 at least."""
    sums += left.to(dtype).T @ right.to(dtype)


def sum_of_tokens(tokens: Tensor) -> Tensor:
    """The sum of all tokens (N, C). In bf16 a product with ones is faster, if the processor has instructions for it."""
    is_eager = tokens.is_cpu and execution(tokens) is Execution.EAGER
    if tokens.dtype == torch.bfloat16 and len(tokens) and is_eager and not is_slow_in(tokens.dtype):
        return tokens.new_ones(len(tokens)) @ tokens
    return tokens.sum(0)


def in_autocast_dtype(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The arguments of a matrix product in the dtype to which autocast converts them, if it is on."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


@torch.compiler.assume_constant_result
def uses_kernels(dtype: torch.dtype) -> bool:
    """Whether the compiled kernels multiply matrices of a dtype."""
    return library.refuse(dtype) is None and (dtype.itemsize > 2 or is_slow_in(dtype))


@torch.compiler.assume_constant_result
def is_slow_in(dtype: torch.dtype) -> bool:
    """Whether the processor has no instructions for a dtype of 16 bits."""
    questions = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype not in questions:
        return False
    # These functions are not public. If torch has none, the dtype is assumed to be fast.
    ask = getattr(torch.ops.mkldnn, questions[dtype], None)
    return ask is not None and not (torch.backends.mkldnn.is_available() and ask())
