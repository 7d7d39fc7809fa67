"""How tensors become arguments of the compiled kernels.

In: tensors. Out: what `library.py` declares. Kernels do not check their arguments, so wrong sizes and devices are
refused here. What kernels only read may lie in any way: it is copied if they could not read it. An argument does not
keep its tensor alive; whoever calls does, until the kernel returns.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swinv2.ops.cpu import library
from swinv2.ops.precision import precise
from swinv2.ops.windows import WindowPlan

Weights = tuple[Tensor, Tensor | None]
"""Weight (out, in) and bias, if there is one, of a linear layer."""

Norm = tuple[Tensor, Tensor, float, float]
"""Weight, bias and eps of a layer norm, and what its answer is multiplied by."""


def fit(expected: tuple[int, ...], **tensors: Tensor | None) -> None:
    """Refuses tensors of another size, or on another device."""
    for name, tensor in tensors.items():
        if tensor is None or (tensor.shape == expected and tensor.is_cpu):
            continue
        if tensor.shape != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {tuple(expected)}.")
        raise ValueError(f"{name} is on {tensor.device}; the kernels for CPUs take tensors on a CPU only.")


def fit_attention(
    v: Tensor, bias_table: Tensor, scale: Tensor, padded_value: Tensor | None, plan: WindowPlan
) -> tuple[Any, Any, Any]:
    """As `fit`, what attention is given beside maps; in the dtype that kernels take."""
    heads, head_dim = v.shape[-2:]
    fit((v.shape[0], *plan.grid, heads, head_dim), **{"the map": v})
    fit((heads, 2 * plan.window[0] - 1, 2 * plan.window[1] - 1), bias_table=bias_table)
    fit((heads,), scale=scale)
    fit((heads, head_dim), padded_value=padded_value)
    return in_precise(bias_table, v.dtype), in_precise(scale, v.dtype), in_precise(padded_value, v.dtype)


def in_precise(tensor: Any, dtype: torch.dtype) -> Any:
    """What kernels take beside maps of a dtype: numbers in fp32, or in fp64, without gaps."""
    if tensor is None or (tensor.dtype == dtype and dtype.itemsize > 2 and tensor.is_contiguous()):
        return tensor
    return tensor.detach().to(precise(dtype)).contiguous()


def at(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin."""
    return None if tensor is None else tensor.data_ptr()


def as_tokens(tensor: Tensor, axes: int = 1) -> Tensor:
    """Tokens (..., C), or vectors (B, H, W, heads, head_dim) of two axes each, as kernels read them."""
    return tensor if tensor.is_contiguous() or token_step(tensor, axes) is not None else tensor.contiguous()


def as_map(tensor: Tensor | None) -> Any:
    """Such tokens or vectors, for a kernel."""
    if tensor is None:
        return None
    step = token_step(tensor, 2 if tensor.ndim == 5 else 1)
    if step is None:
        raise ValueError(f"tokens of strides {tensor.stride()} are not at equal distances.")
    return library.Map(tensor.data_ptr(), step, library.TYPES[tensor.dtype])


def token_step(tensor: Tensor, axes: int) -> int | None:
    """How far it is from token to token; None if tokens are not at equal distances, or a token's numbers not side by
    side.

    Args:
        tensor: Tokens, one after the other along all axes but the last.
        axes: Number of the last axes, those of a token.
    """
    if tensor.is_contiguous():
        return tensor.shape[-1] if axes == 1 else math.prod(tensor.shape[-axes:])
    sizes, strides = tensor.shape, tensor.stride()
    # Along an axis of length 1 torch may call the stride anything.
    expected = 1
    for size, stride in zip(sizes[: -axes - 1 : -1], strides[: -axes - 1 : -1], strict=True):
        if size > 1 and stride != expected:
            return None
        expected *= size
    width, step, tokens = expected, None, 1
    for size, stride in zip(sizes[-axes - 1 :: -1], strides[-axes - 1 :: -1], strict=True):
        if size > 1:
            step = stride if step is None else step
            if stride != step * tokens:
                return None
        tokens *= size
    return width if step is None else step


def as_weights(layer: Weights) -> Weights:
    """A linear layer as kernels read it."""
    weight, bias = layer
    has_rows = weight.stride(1) == 1 or weight.shape[1] == 1
    return weight if has_rows else weight.contiguous(), None if bias is None else bias.contiguous()


def as_linear(layer: Weights, out: int, into: int) -> library.Linear:
    """Such a layer of certain sizes, for a kernel."""
    weight, bias = layer
    fit((out, into), weight=weight)
    fit((out,), bias=bias)
    return library.Linear(weight.data_ptr(), weight.stride(0), library.TYPES[weight.dtype], as_numbers(bias))


def as_numbers(numbers: Tensor | None) -> library.Numbers:
    """Numbers side by side, for a kernel."""
    return library.Numbers() if numbers is None else library.Numbers(numbers.data_ptr(), library.TYPES[numbers.dtype])


def side_by_side(norm: Norm) -> Norm:
    """A norm as kernels read it."""
    weight, bias, eps, factor = norm
    return weight.contiguous(), bias.contiguous(), eps, factor


def as_norm(norm: Norm, channels: int) -> library.Norm:
    """A norm, whose numbers are side by side, for a kernel."""
    weight, bias, eps, factor = norm
    fit((channels,), **{"weight of the norm": weight, "bias of the norm": bias})
    return library.Norm(as_numbers(weight), as_numbers(bias), eps, factor)


def as_plan(plan: WindowPlan, batch: int, heads: int, head_dim: int) -> library.Plan:
    """How maps are cut, for a kernel."""
    return library.Plan(batch, *plan.grid, *plan.window, *plan.shift, plan.mask_padding, heads, head_dim)


class _Memory(threading.local):
    """The workspace of kernels, kept for the next call: fresh memory would have to be cleared by the system each
    time."""

    buffer = torch.empty(0, dtype=torch.uint8, device="cpu")


_memory = _Memory()


def run(name: str, dtype: torch.dtype, arguments: Sequence[Any]) -> None:
    """Calls a kernel for maps of a dtype; threads and memory follow its arguments."""
    kernel = library.kernel(name, dtype == torch.float64)
    threads, buffer = torch.get_num_threads(), _memory.buffer
    needed = kernel(*arguments, threads, buffer.data_ptr(), buffer.numel())
    if needed:
        # What is there goes first: both together would be the most memory that this program takes.
        _memory.buffer = torch.empty(0, dtype=torch.uint8, device="cpu")
        del buffer
        _memory.buffer = torch.empty(needed, dtype=torch.uint8, device="cpu")
        kernel(*arguments, threads, _memory.buffer.data_ptr(), needed)
