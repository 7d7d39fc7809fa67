"""The compiled kernels for CPUs as functions of tensors.

In: tensors on a CPU, of any layout. Out: tensors, most of them written in place; in these, the features of a token must
be contiguous. Nothing here is differentiable. `library.py` finds the kernels; `blocks.py` has the kernels of whole
branches and blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from swinv2.ops.cpu.arguments import as_map, as_plan, as_tokens, at, fit, fit_attention, in_precise, run
from swinv2.ops.reference import AttentionInputs


def attend(inputs: AttentionInputs, out: Tensor) -> None:
    """Calls the kernel for CPUs of `reference.window_attention`; `out` receives the attended map."""
    v, plan = inputs.v, inputs.plan
    table, scale, padding = fit_attention(v, inputs.bias_table, inputs.scale, inputs.padded_value, plan)
    fit(v.shape, q=inputs.q, k=inputs.k, out=out)
    # They are kept until the kernel returns.
    given = [as_tokens(each, 2) for each in (inputs.q, inputs.k, v)]
    maps, numbers = [as_map(each, 2) for each in given], (at(table), at(scale), at(padding))
    run("attend", v.dtype, (as_plan(plan, len(v), *v.shape[-2:]), *maps, *numbers, as_map(out, 2)))


def attend_backward(
    grad: Tensor, inputs: AttentionInputs, out: Sequence[Tensor], wants_table: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Calls the kernel for CPUs of the gradients of `attend`.

    Args:
        grad: The gradient of the attended map.
        inputs: Those of `attend`.
        out: Receive the gradients of q, k and v.
        wants_table: Whether to compute the gradient of the bias table.

    Returns:
        The gradients of the bias table (or None), the scale and `padded_value`, in fp32 at least; sums over threads are
        in fp64.
    """
    v, plan = inputs.v, inputs.plan
    table, scale, padding = fit_attention(v, inputs.bias_table, inputs.scale, inputs.padded_value, plan)
    fit(v.shape, grad=grad, q=inputs.q, k=inputs.k, **{f"gradient {i}": each for i, each in enumerate(out)})
    given = [as_tokens(each, 2) for each in (grad, inputs.q, inputs.k, v)]
    grad_table = torch.empty_like(table) if wants_table else None
    grad_scale, grad_padding = torch.empty_like(scale), scale.new_empty(v.shape[-2:])
    numbers, sums = (at(table), at(scale), at(padding)), (at(grad_table), at(grad_scale), at(grad_padding))
    maps, out_maps = ([as_map(each, 2) for each in some] for some in (given, out))
    arguments = (as_plan(plan, len(v), *v.shape[-2:]), *maps, *numbers, *out_maps, *sums)
    run("attend_backward", v.dtype, arguments)
    return grad_table, grad_scale, grad_padding


def add_normalised(
    x: Tensor, branch_out: Tensor, weight: Tensor, bias: Tensor, eps: float, factor: float, out: Tensor
) -> None:
    """Calls the kernel for CPUs of x + factor * norm(branch_out), for every token.

    Args:
        x, branch_out: Tokens (N, C).
        weight, bias, eps: Parameters of the layer norm.
        factor: Factor of the norm's output.
        out: Receives the result; may be x.
    """
    fit(x.shape, x=x, branch_out=branch_out, out=out)
    fit(x.shape[1:], weight=weight, bias=bias)
    x, branch_out = as_tokens(x), as_tokens(branch_out)
    weight, bias = in_precise(weight, x.dtype), in_precise(bias, x.dtype)
    norm = (at(weight), at(bias), eps, factor)
    run("add_normalised", x.dtype, (*x.shape, as_map(x), as_map(branch_out), *norm, as_map(out)))


def add_normalised_backward(
    grad: Tensor, branch_out: Tensor, weight: Tensor, eps: float, factor: float, out: Tensor, sums: Tensor
) -> None:
    """The gradients of `add_normalised`; the gradient of x is `grad`.

    Args:
        grad: The gradient of the result, (N, C).
        branch_out, weight, eps, factor: The arguments of `add_normalised`.
        out: Receives the gradient of `branch_out`.
        sums: (3, C) in fp64. The function adds the gradients of weight and bias, and the sum of all tokens of `out`.
    """
    fit(grad.shape, grad=grad, branch_out=branch_out, out=out)
    fit(grad.shape[1:], weight=weight)
    fit((3, grad.shape[1]), sums=sums)
    grad, branch_out, weight = as_tokens(grad), as_tokens(branch_out), in_precise(weight, grad.dtype)
    arguments = (as_map(grad), as_map(branch_out), at(weight), eps, factor, as_map(out), at(sums))
    run("add_normalised_backward", grad.dtype, (*grad.shape, *arguments))


def gelu(gelu_in: Tensor, out: Tensor) -> None:
    """Calls the kernel for CPUs of the exact GELU of tokens (N, C); `out` may be `gelu_in`."""
    fit(gelu_in.shape, gelu_in=gelu_in, out=out)
    gelu_in = as_tokens(gelu_in)
    run("gelu", gelu_in.dtype, (*gelu_in.shape, as_map(gelu_in), as_map(out)))


def gelu_backward(gelu_in: Tensor, grad: Tensor, gelu_out: Tensor, out: Tensor, sums: Tensor) -> None:
    """Calls the kernel for CPUs that computes the exact GELU again, and its gradient.

    Args:
        gelu_in: Tokens (N, C), the input of the GELU.
        grad: The gradient of its output.
        gelu_out: Receives its output.
        out: Receives the gradient of its input; may be `grad`.
        sums: (C) in fp64. The function adds the sum of all tokens of `out`.
    """
    fit(gelu_in.shape, gelu_in=gelu_in, grad=grad, gelu_out=gelu_out, out=out)
    fit(gelu_in.shape[1:], sums=sums)
    gelu_in, grad = as_tokens(gelu_in), as_tokens(grad)
    maps = (as_map(gelu_in), as_map(grad), as_map(gelu_out), as_map(out))
    run("gelu_backward", gelu_in.dtype, (*gelu_in.shape, *maps, at(sums)))
