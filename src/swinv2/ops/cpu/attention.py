"""Window attention on a CPU, by compiled kernels.

In and out: as `reference.py`, without the attention weights. The kernels read queries, keys and values from the
unshifted map and write to it, as `ops/triton` does on a GPU. A thread stores only some rows of the T x T weights of one
head, and the backward pass computes them again. So memory is linear in the tokens. Second derivatives are not
supported: for them, load the model with attn_implementation="eager".
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.cpu import kernels
from swinv2.ops.custom_op import custom_op
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.windows import WindowPlan


def window_attention(inputs: AttentionInputs) -> Float[Tensor, "B *grid heads head_dim"]:
    """Cosine attention inside every window of a map, by the compiled kernels for CPUs."""
    q, k, v = inputs.q.to(inputs.v.dtype), inputs.k.to(inputs.v.dtype), inputs.v
    return _AttendOnCpu.apply(q, k, v, inputs.bias_table, inputs.scale, inputs.padded_value, inputs.plan)


def _empty_attended(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    """For compiled graphs: the shape of the result of `attend_map`."""
    return v.new_empty(v.shape)


@custom_op(_empty_attended)
def attend_map(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, scale: Tensor, padded_value: Tensor | None, plan: WindowPlan
) -> Tensor:
    """The custom operator of attention on a CPU: `window_attention` without gradients."""
    attended = v.new_empty(v.shape)
    kernels.attend(AttentionInputs(q, k, v, bias_table, scale, plan, padded_value), attended)
    return attended


def _empty_attention_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, scale: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For compiled graphs: the shapes of the results of `attend_map_backward`."""
    heads, head_dim = v.shape[-2:]
    maps = v.new_empty(*v.shape[:-2], 3 * heads * head_dim)
    table = bias_table.new_empty(bias_table.shape if rest[1] else 0)
    return maps, table, torch.empty_like(scale), scale.new_empty(heads, head_dim)


@custom_op(_empty_attention_gradients)
def attend_map_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    wants_table: bool,
    plan: WindowPlan,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `attend_map`.

    Args:
        grad: The gradient of the attended map.
        wants_table: Whether to compute the gradient of the bias table.
        The other arguments are those of `attend_map`.

    Returns:
        The gradients of q, k and v as one map (B, *grid, 3 * heads * head_dim); of the bias table, empty unless
        `wants_table`; of the scale; and of `padded_value`.
    """
    inputs = AttentionInputs(q, k, v, bias_table, scale, plan, padded_value)
    joined = v.new_empty(*v.shape[:-2], 3 * v.shape[-2] * v.shape[-1])
    maps = [part.unflatten(-1, v.shape[-2:]) for part in joined.chunk(3, -1)]
    table, grad_scale, padding = kernels.attend_backward(grad, inputs, maps, wants_table)
    grad_table = bias_table.new_empty(0) if table is None else table.to(bias_table.dtype)
    return joined, grad_table, grad_scale.to(scale.dtype), padding.to(scale.dtype)


class _AttendOnCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Runs `attend_map`, and saves its arguments for the backward pass."""
        *tensors, ctx.plan = arguments
        ctx.save_for_backward(*tensors)
        return attend_map(*arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias_table, scale, padded_value = ctx.saved_tensors
        wants_table = ctx.needs_input_grad[3]
        arguments = (grad, q, k, v, bias_table, scale, padded_value, wants_table, ctx.plan)
        joined, table, grad_scale, padding = attend_map_backward(*arguments)
        maps = [part.unflatten(-1, grad.shape[-2:]) for part in joined.chunk(3, -1)]
        grad_padding = None if padded_value is None else padding.to(padded_value.dtype)
        return *maps, table if wants_table else None, grad_scale, grad_padding, None
