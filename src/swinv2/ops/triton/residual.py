"""The residual line on a GPU in eager mode, x + factors * layer_norm(branch_out): one kernel forward, one backward.

In: maps of tokens and the norm's tensors. Out: the sum. Without these kernels, norm, drop path and sum would each read
and write the map. torch.compile itself fuses the three, so it does not use this module. Second derivatives are not
supported: for them, load the model with attn_implementation="eager".
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.precision import precise
from swinv2.ops.triton import norm
from swinv2.ops.triton.programs import most_programs, start

NUMBERS_AT_ONCE = 2**12
"""The size of a program's tile, which is one row at least. A larger tile does not fit the registers."""


def add_normalised(
    x: Float[Tensor, "B H W C"],
    branch_out: Float[Tensor, "B H W C"],
    weight: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    eps: float,
    factors: Float[Tensor, " B"] | None,
) -> Float[Tensor, "B H W C"]:
    """x + factors * layer_norm(branch_out), in fp32 (in fp64 if `branch_out` is) and rounded once.

    Args:
        x: The map.
        branch_out: The branch's output before its norm.
        weight, bias, eps: Parameters of the norm.
        factors: The drop path factor of each image; None for 1.

    Returns:
        The sum, in the same dtype as torch's; under autocast, norms are in fp32.
    """
    return _AddNormalised.apply(x, branch_out, weight, bias, eps, factors)


class _AddNormalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch_out: Tensor, weight: Tensor, bias: Tensor, eps: float, factors: Tensor | None
    ) -> Tensor:
        """Starts the kernel that adds the normalised branch, and saves its statistics."""
        normed = precise(branch_out.dtype) if torch.is_autocast_enabled(branch_out.device.type) else branch_out.dtype
        output = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, normed), device=x.device)
        branch_out = branch_out.contiguous()
        count = branch_out.numel() // branch_out.shape[-1]
        statistics = branch_out.new_empty(2, count, dtype=precise(branch_out.dtype))
        factors = None if factors is None else factors.contiguous()
        if count:
            constants = _norm_constants(branch_out, factors)
            tensors = (x.contiguous(), branch_out, weight.contiguous(), bias.contiguous(), factors, output, statistics)
            programs = triton.cdiv(count, constants["BLOCK_ROWS"])
            start(norm.add_normalised, programs, x, (*tensors, count, count // len(x)), constants | {"EPS": eps})
        ctx.dtypes = x.dtype, bias.dtype
        ctx.save_for_backward(branch_out, weight, factors, statistics)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Starts the kernel of the gradients, and sums its parts."""
        branch_out, weight, factors, statistics = ctx.saved_tensors
        dtype, bias_dtype = ctx.dtypes
        grad, grad_branch_out = grad.contiguous(), torch.empty_like(branch_out)
        count = statistics.shape[1]
        constants = _norm_constants(branch_out, factors)
        blocks = triton.cdiv(count, constants["BLOCK_ROWS"])
        rounds = max(triton.cdiv(blocks, most_programs(branch_out.device)), 1)
        programs = triton.cdiv(blocks, rounds)
        parts = statistics.new_empty(2, programs, branch_out.shape[-1])
        if count:
            tensors = (grad, branch_out, weight.contiguous(), factors, statistics, grad_branch_out, parts[0], parts[1])
            numbers = (count, count // len(branch_out), rounds)
            start(norm.add_normalised_backward, programs, grad, (*tensors, *numbers), constants)
        grad_weight, grad_bias = parts.sum(1)
        return grad.to(dtype), grad_branch_out, grad_weight.to(weight.dtype), grad_bias.to(bias_dtype), None, None


def _norm_constants(branch_out: Tensor, factors: Tensor | None) -> dict[str, Any]:
    """Compile-time constants of the two kernels for norm, drop path and sum."""
    channels = triton.next_power_of_2(branch_out.shape[-1])
    rows = max(NUMBERS_AT_ONCE // channels, 1)
    return {
        "CHANNELS": branch_out.shape[-1],
        "BLOCK_ROWS": rows,
        "BLOCK_CHANNELS": channels,
        "HAS_FACTORS": factors is not None,
        "PRECISE": tl.float64 if branch_out.dtype == torch.float64 else tl.float32,
        "num_warps": 8,
    }
