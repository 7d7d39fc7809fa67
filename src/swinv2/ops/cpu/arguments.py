"""Conversion of tensors to arguments of the compiled kernels.

In: tensors. Out: the structures of `library.py`. Kernels do not check their arguments, so this module raises an error
for wrong sizes and devices. An input may have any layout: it is copied if kernels cannot read it. An argument does not
keep its tensor alive; the caller must, until the kernel returns.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swinv2.lengths import Lengths
from swinv2.ops.cpu import library
from swinv2.ops.precision import precise
from swinv2.ops.windows import WindowPlan

Weights = tuple[Tensor, Tensor | None]
"""Weight (out, in) and bias (or None) of a linear layer."""

Norm = tuple[Tensor, Tensor, float, float]
"""Weight, bias and eps of a layer norm, and a factor of its output."""


def fit(expected: tuple[int, ...], **tensors: Tensor | None) -> None:
    """Checks arguments of a kernel: raises an error for tensors of another shape or device."""
    for name, tensor in tensors.items():
        if tensor is None or (tensor.shape == expected and tensor.is_cpu):
            continue
        if tensor.shape != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {tuple(expected)}.")
        raise ValueError(f"{name} is on {tensor.device}; the kernels for CPUs take tensors on a CPU only.")


def fit_attention(
    v: Tensor, bias_table: Tensor, scale: Tensor, padded_value: Tensor | None, plan: WindowPlan
) -> tuple[Any, Any, Any]:
    """Checks the arguments of attention, as `fit`, and returns bias table, scale and padded value for kernels."""
    heads, head_dim = v.shape[-2:]
    fit((v.shape[0], *plan.grid, heads, head_dim), **{"the map": v})
    fit((heads, *(2 * length - 1 for length in plan.window)), bias_table=bias_table)
    fit((heads,), scale=scale)
    fit((heads, head_dim), padded_value=padded_value)
    return in_precise(bias_table, v.dtype), in_precise(scale, v.dtype), in_precise(padded_value, v.dtype)


def in_precise(tensor: Any, dtype: torch.dtype) -> Any:
    """A tensor in fp32 (fp64 for maps in fp64), contiguous, for kernels on maps of a dtype."""
    if tensor is None or (tensor.dtype == dtype and dtype.itemsize > 2 and tensor.is_contiguous()):
        return tensor
    return tensor.detach().to(precise(dtype)).contiguous()


def at(tensor: Tensor | None) -> int | None:
    """The kernel argument for the numbers of a tensor: its address, or None."""
    return None if tensor is None else tensor.data_ptr()


def as_tokens(tensor: Tensor, axes: int = 1) -> Tensor:
    """Tokens of `axes` axes, (..., C) or (..., heads, head_dim); copied if kernels cannot read them."""
    return tensor if tensor.is_contiguous() or token_step(tensor, axes) is not None else tensor.contiguous()


def as_map(tensor: Tensor | None, axes: int = 1) -> library.Map:
    """The kernel argument for tokens of `axes` axes, (..., C) or (..., heads, head_dim); without data for None."""
    if tensor is None:
        return library.Map()
    step = token_step(tensor, axes)
    if step is None:
        raise ValueError(f"tokens with strides {tensor.stride()} are not at equal distances in memory.")
    return library.Map(tensor.data_ptr(), step, library.TYPES[tensor.dtype])


def token_step(tensor: Tensor, axes: int) -> int | None:
    """The stride between tokens, for kernels; None if tokens are not at equal distances or not contiguous themselves.

    Args:
        tensor: The tokens.
        axes: Number of axes of a token, which are the last axes of the tensor.
    """
    if tensor.is_contiguous():
        return tensor.shape[-1] if axes == 1 else math.prod(tensor.shape[-axes:])
    sizes, strides = tensor.shape, tensor.stride()
    # The stride of an axis of length 1 may be any number.
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
    """A linear layer, copied if kernels cannot read it."""
    weight, bias = layer
    has_rows = weight.stride(1) == 1 or weight.shape[1] == 1
    return weight if has_rows else weight.contiguous(), None if bias is None else bias.contiguous()


def as_linear(layer: Weights, out: int, into: int) -> library.Linear:
    """The kernel argument for a layer with `out` outputs and `into` inputs."""
    weight, bias = layer
    fit((out, into), weight=weight)
    fit((out,), bias=bias)
    return library.Linear(weight.data_ptr(), weight.stride(0), library.TYPES[weight.dtype], as_numbers(bias))


def as_numbers(numbers: Tensor | None) -> library.Numbers:
    """The kernel argument for a contiguous vector, or for None."""
    return library.Numbers() if numbers is None else library.Numbers(numbers.data_ptr(), library.TYPES[numbers.dtype])


def side_by_side(norm: Norm) -> Norm:
    """A norm as kernels can read it, with contiguous weight and bias."""
    weight, bias, eps, factor = norm
    return weight.contiguous(), bias.contiguous(), eps, factor


def as_norm(norm: Norm, channels: int) -> library.Norm:
    """The kernel argument for a norm with contiguous weight and bias."""
    weight, bias, eps, factor = norm
    fit((channels,), **{"weight of the norm": weight, "bias of the norm": bias})
    return library.Norm(as_numbers(weight), as_numbers(bias), eps, factor)


MOST_AXES = 3
"""Axes of the largest maps that kernels take: frames, height and width."""


def as_plan(plan: WindowPlan, batch: int, heads: int, head_dim: int) -> library.Plan:
    """The kernel argument for a plan. A map of images has one frame."""
    axes = zip(plan.grid, plan.window, plan.shift, strict=True)
    no_frames = [(1, 1, 0)] * (MOST_AXES - len(plan.grid))
    return library.Plan(batch, *no_frames, *axes, plan.mask_padding, heads, head_dim)


def as_block(shift: Lengths) -> library.Block:
    """The kernel argument for a block without branches, with its shift."""
    return library.Block(*(0,) * (MOST_AXES - len(shift)), *shift)


class _Memory(threading.local):
    """The workspace of kernels, kept for the next call: the system would have to clear new memory each time."""

    buffer = torch.empty(0, dtype=torch.uint8, device="cpu")


_memory = _Memory()


def run(name: str, dtype: torch.dtype, arguments: Sequence[Any]) -> None:
    """Calls a kernel for maps of a dtype, with the number of threads and a workspace as its last arguments."""
    kernel = library.kernel(name, dtype == torch.float64)
    threads, buffer = torch.get_num_threads(), _memory.buffer
    needed = kernel(*arguments, threads, buffer.data_ptr(), buffer.numel())
    if needed:
        # The old workspace is released first, so that both do not exist at the same time.
        _memory.buffer = torch.empty(0, dtype=torch.uint8, device="cpu")
        del buffer
        _memory.buffer = torch.empty(needed, dtype=torch.uint8, device="cpu")
        kernel(*arguments, threads, _memory.buffer.data_ptr(), needed)
