"""The compiled kernels for CPUs as functions of tensors.

In: tensors on a CPU; features lie side by side. Out: tensors, mostly written into place. Nothing here is
differentiable. Kernels trust what they are told, so sizes and devices that do not fit are refused here. `library.py`
says where the kernels are there.
"""

import ctypes
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


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    plan: WindowPlan,
    out: Tensor,
) -> None:
    """Cosine attention inside every window of a map: `reference.window_attention`, without the weights.

    Args:
        q, k, v: Maps (B, H, W, heads, head_dim), of one dtype.
        bias_table, scale, padded_value, plan: See `reference.window_attention`.
        out: Gets the attended map.
    """
    table, scale, filling = _fit_attention(v, bias_table, scale, padded_value, plan)
    _fit(v.shape, q=q, k=k, out=out)
    arguments = [*(_map(m) for m in (q, k, v)), _at(table), _at(scale), _at(filling), _map(out)]
    _run("attend", v.dtype, _plan(plan, v), *arguments)


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    plan: WindowPlan,
    out: Sequence[Tensor],
    wants_table: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of `attend`.

    Args:
        grad: Of the attended map.
        q, k, v, bias_table, scale, padded_value, plan: What `attend` was given.
        out: Get the gradients of q, k and v.
        wants_table: Whether the bias table has a gradient.

    Returns:
        The gradients of the bias table (None unless wanted), of the scale and of the filling tokens' value, summed in
        fp64 and in fp32 at least.
    """
    table, scale, filling = _fit_attention(v, bias_table, scale, padded_value, plan)
    _fit(v.shape, grad=grad, q=q, k=k, **{f"gradient {i}": each for i, each in enumerate(out)})
    grad_table = torch.empty_like(table) if wants_table else None
    grad_scale, grad_filling = torch.empty_like(scale), torch.empty(v.shape[-2:], dtype=scale.dtype)
    _run(
        "attend_backward",
        v.dtype,
        _plan(plan, v),
        *(_map(m) for m in (grad, q, k, v)),
        *(_at(t) for t in (table, scale, filling)),
        *(_map(m) for m in out),
        *(_at(t) for t in (grad_table, grad_scale, grad_filling)),
    )
    return grad_table, grad_scale, grad_filling


def matmul(
    left: Tensor,
    right: Tensor,
    bias: Tensor | None = None,
    base: Tensor | None = None,
    out: Tensor | None = None,
    after: Tensor | None = None,
) -> None:
    """left @ right + bias + base, computed in fp32 at least.

    Args:
        left, right: (M, K) and (K, N).
        bias: (N).
        base: (M, N).
        out: (M, N), gets the sum if it is given; may be `base`.
        after: (M, N), gets the sum's exact GELU if it is given.
    """
    left, right, bias = _lined_up(left), _lined_up(right), _precise(bias, left.dtype)
    matrices = [_matrix(m) for m in (base, out, after)]
    sizes = (left.shape[0], right.shape[1], left.shape[1])
    _fit(sizes[::2], left=left)
    _fit(sizes[:0:-1], right=right)
    _fit(sizes[1:2], bias=bias)
    _fit(sizes[:2], base=base, out=out, after=after)
    _run("matmul", left.dtype, *sizes, _matrix(left), _matrix(right), _at(bias), *matrices)


def add_normalised(
    x: Tensor, work: Tensor, weight: Tensor, bias: Tensor, eps: float, factor: float, out: Tensor
) -> None:
    """x + factor * norm(work), for every token.

    Args:
        x, work: Tokens (N, C).
        weight, bias, eps: Of the layer norm.
        factor: What its answer is multiplied by.
        out: Gets the sums; may be x.
    """
    weight, bias = _precise(weight, x.dtype), _precise(bias, x.dtype)
    _fit(x.shape, x=x, work=work, out=out)
    _fit(x.shape[1:], weight=weight, bias=bias)
    _run("add_normalised", x.dtype, *x.shape, _map(x), _map(work), _at(weight), _at(bias), eps, factor, _map(out))


def add_normalised_backward(
    grad: Tensor, work: Tensor, weight: Tensor, eps: float, factor: float, out: Tensor, sums: Tensor
) -> None:
    """The gradients of `add_normalised`; x's is the answer's.

    Args:
        grad: Of the sums, (N, C).
        work, weight, eps, factor: What `add_normalised` was given.
        out: Gets the gradient of `work`.
        sums: (3, C) in fp64: to these are added the gradients of weight and bias, and all tokens of `out`.
    """
    weight = _precise(weight, grad.dtype)
    _fit(grad.shape, grad=grad, work=work, out=out)
    _fit(grad.shape[1:], weight=weight)
    _fit((3, grad.shape[1]), sums=sums)
    norm = (_at(weight), eps, factor)
    _run("add_normalised_backward", grad.dtype, *grad.shape, _map(grad), _map(work), *norm, _map(out), _at(sums))


def add_mlp(
    x: Tensor,
    widen: Weights,
    narrow: Weights,
    norm: Norm,
    out: Tensor,
    before: Tensor | None = None,
    work: Tensor | None = None,
) -> None:
    """x + factor * norm(narrow(GELU(widen(x)))), for every token.

    Args:
        x: Tokens (N, C).
        widen, narrow: Weight and bias of each linear layer.
        norm: Weight, bias, eps and factor.
        out: Gets the sums; may be x.
        before: (N, hidden), gets the GELU's input if it is given.
        work: (N, C), gets the norm's input if it is given.
    """
    (w1, b1), (w2, b2) = (_layer(layer, x.dtype) for layer in (widen, narrow))
    weight, bias = _precise(norm[0], x.dtype), _precise(norm[1], x.dtype)
    channels, hidden = x.shape[1], len(w1)
    _fit((hidden, channels), widen=w1)
    _fit((channels, hidden), narrow=w2)
    _fit((hidden,), **{"bias of widen": b1})
    _fit((channels,), **{"bias of narrow": b2, "weight of the norm": weight, "bias of the norm": bias})
    _fit((len(x), hidden), before=before)
    _fit(x.shape, x=x, work=work, out=out)
    layers = (_matrix(w1), _at(b1), _matrix(w2), _at(b2), _at(weight), _at(bias), *norm[2:])
    _run("add_mlp", x.dtype, *x.shape, len(w1), _map(x), *layers, *(_map(t) for t in (before, work, out)))


def add_attention(
    x: Tensor,
    into: Weights,
    last: Weights,
    bias_table: Tensor,
    scale: Tensor,
    plan: WindowPlan,
    norm: Norm,
    out: Tensor,
    qkv: Tensor | None = None,
    attended: Tensor | None = None,
    work: Tensor | None = None,
) -> None:
    """x + factor * norm(last(attention(into(x)))), each window by itself.

    Args:
        x: The map (B, H, W, C).
        into: Weight and bias of the layer of queries, keys and values, joined in this order.
        last: Weight and bias of the layer after the attention.
        bias_table, scale, plan: See `reference.window_attention`.
        norm: Weight, bias, eps and factor.
        out: Gets the sums; may be x.
        qkv, attended, work: (B, H, W, 3 C), and (B, H, W, C) twice: get queries, keys and values, the attended map and
            the norm's input, if they are given.
    """
    (w1, b1), (w2, b2) = (_layer(layer, x.dtype) for layer in (into, last))
    weight, bias = _precise(norm[0], x.dtype), _precise(norm[1], x.dtype)
    vectors, channels = x.unflatten(-1, (len(scale), -1)), x.shape[-1]
    table, scale, _ = _fit_attention(vectors, bias_table, scale, None, plan)
    _fit((3 * channels, channels), into=w1)
    _fit((channels, channels), last=w2)
    _fit((3 * channels,), **{"bias of into": b1})
    _fit((channels,), **{"bias of last": b2, "weight of the norm": weight, "bias of the norm": bias})
    _fit((*x.shape[:-1], 3 * channels), qkv=qkv)
    _fit(x.shape, x=x, attended=attended, work=work, out=out)
    layers = (_matrix(w1), _at(b1), _matrix(w2), _at(b2), *(_at(t) for t in (table, scale, weight, bias)), *norm[2:])
    maps = (_map(t) for t in (qkv, attended, work, out))
    _run("add_attention", x.dtype, _plan(plan, vectors), _map(x), *layers, *maps)


def gelu(before: Tensor, out: Tensor) -> None:
    """The exact GELU of tokens (N, C); `out` may be what is given."""
    _fit(before.shape, before=before, out=out)
    _run("gelu", before.dtype, *before.shape, _map(before), _map(out))


def gelu_backward(before: Tensor, grad: Tensor, after: Tensor, out: Tensor, sums: Tensor) -> None:
    """The exact GELU again, and its gradient.

    Args:
        before: Tokens (N, C).
        grad: Of the GELU of these.
        after: Gets their GELU.
        out: Gets their gradient; may be `grad`.
        sums: (C) in fp64: to these are added all tokens of `out`.
    """
    _fit(before.shape, before=before, grad=grad, after=after, out=out)
    _fit(before.shape[1:], sums=sums)
    _run("gelu_backward", before.dtype, *before.shape, *(_map(t) for t in (before, grad, after, out)), _at(sums))


class _Memory(threading.local):
    """What kernels work in, kept for the next call: fresh memory would have to be cleared by the system each time."""

    room = torch.empty(0, dtype=torch.uint8)


_memory = _Memory()


def _run(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    precision = "f64" if dtype == torch.float64 else "f32"
    kernel, threads, room = getattr(library.load(), f"{name}_{precision}"), torch.get_num_threads(), _memory.room
    needed = kernel(*arguments, threads, room.data_ptr(), room.numel())
    if needed:
        room = _memory.room = torch.empty(needed, dtype=torch.uint8)
        kernel(*arguments, threads, room.data_ptr(), needed)


def _fit(expected: Sequence[int], **tensors: Tensor | None) -> None:
    """Refuses tensors of another size, or on another device."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != tuple(expected):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {tuple(expected)}.")
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} is on {tensor.device}; the kernels for CPUs take tensors on a CPU only.")


def _fit_attention(
    v: Tensor, bias_table: Tensor, scale: Tensor, padded_value: Tensor | None, plan: WindowPlan
) -> tuple[Any, Any, Any]:
    """As `_fit`, what attention is given beside maps; in the dtype that kernels take."""
    _fit((len(v), *plan.grid, *v.shape[-2:]), **{"the map": v})
    heads, head_dim = v.shape[-2:]
    _fit((heads, *(2 * length - 1 for length in plan.window)), bias_table=bias_table)
    _fit((heads,), scale=scale)
    _fit((heads, head_dim), padded_value=padded_value)
    return _precise(bias_table, v.dtype), _precise(scale, v.dtype), _precise(padded_value, v.dtype)


def _precise(tensor: Any, dtype: torch.dtype) -> Any:
    """What kernels take beside maps of a dtype: numbers in fp32, or in fp64, without gaps."""
    return None if tensor is None else tensor.detach().to(precise(dtype)).contiguous()


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _layer(layer: Weights, dtype: torch.dtype) -> Weights:
    weight, bias = layer
    return _lined_up(weight), _precise(bias, dtype)


def _map(tensor: Tensor | None) -> Any:
    """Tokens (..., C), or vectors (B, H, W, heads, head_dim), as kernels see them."""
    if tensor is None:
        return None
    step = token_step(tensor, 2 if tensor.ndim == 5 else 1)
    if step is None:
        raise ValueError(f"tokens of strides {tensor.stride()} do not lie at equal distances.")
    return ctypes.byref(library.Map(tensor.data_ptr(), step, library.TYPES[tensor.dtype]))


def token_step(tensor: Tensor, axes: int) -> int | None:
    """How far it is from token to token; None if tokens do not lie at equal distances, or a token's numbers not side by
    side.

    Args:
        tensor: Tokens, one after the other along all axes but the last.
        axes: Number of the last axes, those of a token.
    """
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


def _matrix(matrix: Tensor | None) -> Any:
    """A matrix as kernels see it; a stride along an axis of length 1 may be anything, and becomes one they know."""
    if matrix is None:
        return None
    row, column = matrix.stride()
    if matrix.shape[1] == 1:
        column = 1
    elif matrix.shape[0] == 1 and column != 1:
        row = 1
    return ctypes.byref(library.Matrix(matrix.data_ptr(), row, column, library.TYPES[matrix.dtype]))


def _lined_up(matrix: Tensor) -> Tensor:
    return matrix if 1 in matrix.stride() else matrix.contiguous()


def _plan(plan: WindowPlan, vectors: Tensor) -> Any:
    batch, heads, head_dim = vectors.shape[0], *vectors.shape[-2:]
    return ctypes.byref(library.Plan(batch, *plan.grid, *plan.window, *plan.shift, plan.mask_padding, heads, head_dim))
