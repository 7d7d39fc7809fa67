"""The branches of `branches.py` with matrix products by torch: in 16 bits, if the processor has instructions for them.

In: maps (B, *grid, C) and the layers of a branch. Out: maps and gradients, written in place. A branch is computed for a
chunk of images or tokens at a time, so that intermediate results stay in the cache. The C kernels compute what is
between the products. In all functions, a branch without bias table and scale is an MLP.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from swinv2.ops.cpu import kernels
from swinv2.ops.cpu.arguments import Norm, Weights
from swinv2.ops.cpu.blocks import Gradients
from swinv2.ops.cpu.chunks import SMALLEST_CHUNK, chunks
from swinv2.ops.cpu.linear import add_transposed_product, join, product, sum_of_tokens
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.windows import WindowPlan


def add_branch(
    x: Tensor,
    layers: Sequence[Weights],
    bias_table: Any,
    scale: Any,
    plan: WindowPlan,
    norm: Norm,
    out: Tensor,
    dtype: torch.dtype,
    saved: Sequence[Tensor | None],
) -> None:
    """A branch by torch's products: x + factor * norm(last(middle(first(x)))).

    Args:
        x: The map (B, *grid, C).
        layers: The first layers and the last layer.
        bias_table, scale, plan, norm: See `blocks.add_attention`.
        out: Receives the result.
        dtype: That of the matrix products.
        saved: Receive the output of the first layers, the attended map and the norm's input; None: not saved.
    """
    first, last, value_bias = join(layers[:-1]), layers[-1], layers[-2][1]
    for tokens, out_tokens, first_out, middle_out, branch_out in _chunks(len(first[0]), scale, dtype, x, out, *saved):
        first_out = product(tokens, *first, dtype, out=first_out)
        if scale is None:
            middle_out = torch.empty_like(first_out)
            kernels.gelu(first_out, middle_out)
        else:
            middle_out = first_out.new_empty(tokens.shape) if middle_out is None else middle_out
            q, k, v, attended = _as_vectors((*first_out.chunk(3, -1), middle_out), scale, plan)
            padded_value = _padded_value(value_bias, scale)
            kernels.attend(AttentionInputs(q, k, v, bias_table, scale, plan, padded_value), attended)
        branch_out = product(middle_out, *last, dtype, out=branch_out)
        kernels.add_normalised(tokens, branch_out, *norm, out_tokens)


def branch_backward(
    grad: Tensor,
    x: Tensor,
    saved: Sequence[Tensor],
    weights: Sequence[Tensor],
    value_bias: Tensor | None,
    bias_table: Any,
    scale: Any,
    plan: WindowPlan,
    norm: Norm,
    to: Gradients,
) -> None:
    """The gradients of `add_branch`, by torch's products.

    Args:
        grad: The gradient of the result.
        x, bias_table, scale, plan, norm: The arguments of `add_branch`; the norm's bias is not used.
        saved: The tensors that it saved. Their dtype is that of the matrix products.
        weights: Those of the first layers and of the last layer.
        value_bias: The bias of the value layer, or None for an MLP.
        to: Receives the gradients.
    """
    dtype, (norm_weight, _, eps, factor) = saved[0].dtype, norm
    (first, _), last = join([(weight, None) for weight in weights[:-1]]), weights[-1]
    grad_table_sum: Any = to.table
    grad_scale_sum: Any = to.scale
    for sums in (to.in_proj, to.out_proj, to.table, to.scale):
        if sums is not None:
            sums.zero_()
    first_bias_sum, epilogue = (torch.zeros_like(each, dtype=torch.float64) for each in (to.in_proj_bias, to.epilogue))
    maps = _chunks(len(first), scale, dtype, grad, x, *saved, to.x)
    for grad_out, tokens, first_out, middle_out, branch_out, grad_x in maps:
        grad_branch_out = grad_out.new_empty(grad_out.shape, dtype=dtype)
        kernels.add_normalised_backward(grad_out, branch_out, norm_weight, eps, factor, grad_branch_out, epilogue)
        grad_middle = product(grad_branch_out, last.T, None, dtype)
        if scale is None:
            middle_out, grad_first = torch.empty_like(first_out), grad_middle
            kernels.gelu_backward(first_out, grad_middle, middle_out, grad_first, first_bias_sum)
        else:
            grad_first = torch.empty_like(first_out)
            vectors = _as_vectors((grad_middle, *first_out.chunk(3, -1), *grad_first.chunk(3, -1)), scale, plan)
            q, k, v = vectors[1:4]
            inputs = AttentionInputs(q, k, v, bias_table, scale, plan, _padded_value(value_bias, scale))
            grad_table, grad_scale, grad_padding = kernels.attend_backward(
                vectors[0], inputs, vectors[4:], to.table is not None
            )
            grad_scale_sum.add_(grad_scale)
            if grad_table is not None:
                grad_table_sum.add_(grad_table)
            first_bias_sum += sum_of_tokens(grad_first)
            first_bias_sum.chunk(3)[2].add_(grad_padding.flatten())
        if to.out_proj is not None:
            add_transposed_product(to.out_proj, grad_branch_out, middle_out, dtype)
        if to.in_proj is not None:
            add_transposed_product(to.in_proj, grad_first, tokens, dtype)
        if grad_x is not None:
            product(grad_first, first.T, None, dtype, base=grad_out, out=grad_x)
    to.in_proj_bias.copy_(first_bias_sum)
    to.epilogue.copy_(epilogue)


def _chunks(first_features: int, scale: Any, dtype: torch.dtype, *maps: Tensor | None) -> Iterator[list[Any]]:
    """Cuts maps (or None) to chunks of tokens (N, features) that fit the cache.

    A chunk has whole images for an attention, with queries, keys, values, attended map and branch output; and some
    tokens for an MLP, with the hidden features before and after the GELU.
    """
    x: Any = maps[0]
    if scale is None:
        maps = tuple(each if each is None else each.flatten(0, -2) for each in maps)
        slices = chunks(math.prod(x.shape[:-1]), 2 * first_features * dtype.itemsize, SMALLEST_CHUNK)
    else:
        slices = chunks(len(x), 5 * math.prod(x.shape[1:]) * dtype.itemsize)
    for chunk in slices:
        yield [each if each is None else each[chunk].flatten(0, -2) for each in maps]


def _as_vectors(maps: Sequence[Tensor], scale: Tensor, plan: WindowPlan) -> list[Tensor]:
    """For a branch by torch's products: maps of tokens (N, C) as maps of vectors (B, *grid, heads, head_dim)."""
    return [each.view(-1, *plan.grid, len(scale), each.shape[-1] // len(scale)) for each in maps]


def _padded_value(bias: Tensor | None, scale: Tensor) -> Tensor | None:
    """For torch's products: the value of a padding token for each head, which is the bias of the value layer."""
    return None if bias is None else bias.view(len(scale), -1)
