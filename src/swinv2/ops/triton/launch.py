"""Window attention on GPUs: two custom operators, `attend_fused` and its backward, which launch the kernels.

In and out: as `reference.py`, without attention weights and dropout. No map is padded, shifted or cut, and none is
copied if queries, keys and values have the same strides. No mask and no T x T tensor exists. Besides the output, two
numbers are stored for each token and head. Second derivatives are not supported: for them, load the model with
attn_implementation="eager".

Compilers see two operations and the shapes of their results. Activation checkpointing, FSDP and CUDA graphs work too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2.ops.custom_op import custom_op
from swinv2.ops.precision import precise
from swinv2.ops.triton import backward, forward
from swinv2.ops.triton.programs import most_programs, start
from swinv2.ops.triton.table import TableGradient
from swinv2.ops.windows import WindowPlan

SMALLEST_BLOCK = 16
"""The smallest number of rows and columns in a matrix product of Triton."""

WHOLE_WINDOW = 64
"""The largest window, in tokens, whose gradients are computed in one tile."""

FEW_TOKENS = 256
"""Up to this number of tokens in a window, loops over tiles are too short for prefetching."""

WHOLE_VECTOR_BYTES = 128
"""The largest vector (head_dim) for gradients in one tile: the tiles of all maps must fit the shared memory."""


def window_attention(
    q: Float[Tensor, "B H W heads head_dim"],
    k: Float[Tensor, "B H W heads head_dim"],
    v: Float[Tensor, "B H W heads head_dim"],
    bias_table: Float[Tensor, "heads table_height table_width"],
    scale: Float[Tensor, " heads"],
    plan: WindowPlan,
    padded_value: Float[Tensor, "heads head_dim"] | None = None,
) -> Float[Tensor, "B H W heads head_dim"]:
    """Cosine attention inside every window of a map; arguments as in `reference.window_attention`."""
    if plan.padded_grid == plan.grid:
        padded_value = None
    elif padded_value is None:
        padded_value = v.new_zeros(v.shape[3:])
    else:
        padded_value = padded_value.to(v.dtype)
    return _Attend.apply(q.to(v.dtype), k.to(v.dtype), v, bias_table, scale, padded_value, plan)


def _empty_output(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    plan: WindowPlan,
) -> tuple[Tensor, Tensor]:
    batch, heads = v.shape[0], v.shape[3]
    softmax_stats = v.new_empty(batch * plan.counts[0] * plan.counts[1], heads, 2, plan.tokens, dtype=precise(v.dtype))
    return v.new_empty(v.shape), softmax_stats


@custom_op(_empty_output)
def attend_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    plan: WindowPlan,
) -> tuple[Tensor, Tensor]:
    """The forward pass; see `forward.attend`. `padded_value` is given if and only if the map is padded.

    Returns:
        The attended map, and the softmax statistics (windows of all images, heads, 2, T).
    """
    (q, k, v), strides = _with_equal_strides(q, k, v)
    attended, softmax_stats = _empty_output(q, k, v, bias_table, scale, padded_value, plan)
    if attended.numel():
        queries, keys = _blocks(plan, v)
        start(
            forward.attend,
            len(softmax_stats) * -(-plan.tokens // queries) * len(scale),
            (q, k, v, _exact(bias_table, v), scale.contiguous(), _contiguous(padded_value), attended, softmax_stats),
            (strides, attended.stride()[:4], _numbers(plan), len(scale)),
            _constants(plan, v, queries, keys) | _options(plan.tokens > FEW_TOKENS),
        )
    return attended, softmax_stats


def _empty_gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    attended: Tensor,
    softmax_stats: Tensor,
    wants_bias: bool,
    plan: WindowPlan,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = v.new_empty(v.shape), v.new_empty(v.shape), v.new_empty(v.shape)
    grad_table = bias_table.new_empty(bias_table.shape if wants_bias else 0)
    grad_padded = v.new_empty(v.shape[3:] if padded_value is not None else 0)
    return grad_q, grad_k, grad_v, grad_table, scale.new_empty(scale.shape), grad_padded


@custom_op(_empty_gradients)
def attend_fused_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    attended: Tensor,
    softmax_stats: Tensor,
    wants_bias: bool,
    plan: WindowPlan,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `attend_fused`.

    Args:
        grad: The gradient of the attended map.
        wants_bias: Whether to compute the gradient of the bias table. Its order of summation varies from call to call,
            unless torch.use_deterministic_algorithms is on.
        The other arguments are the arguments and results of `attend_fused`.

    Returns:
        Gradients of q, k, v, the bias table, the scale and the padded value. The gradient of the bias table is empty
        unless `wants_bias`; that of the padded value is empty if there is none.
    """
    (q, k, v), strides = _with_equal_strides(q, k, v)
    grad, attended = grad.contiguous(), attended.contiguous()
    gradients = _empty_gradients(
        grad, q, k, v, bias_table, scale, padded_value, attended, softmax_stats, wants_bias, plan
    )
    if not attended.numel():
        for each in gradients:
            each.zero_()
        return gradients
    backward_pass = _BackwardPass(
        (q, k, v, _exact(bias_table, v), scale.contiguous(), _contiguous(padded_value)),
        (attended, softmax_stats, grad),
        (strides, attended.stride()[:4], _numbers(plan)),
        plan,
        wants_bias,
    )
    fits = plan.tokens <= WHOLE_WINDOW and v.element_size() * v.shape[4] <= WHOLE_VECTOR_BYTES
    compute = backward_pass.whole_windows if fits else backward_pass.by_tiles
    for buffer, sums in zip(gradients[3:], compute(gradients[:3]), strict=True):
        if sums is not None:
            buffer.copy_(sums)
    return gradients


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, ctx.plan = arguments
        attended, softmax_stats = attend_fused(*arguments)
        ctx.save_for_backward(*tensors, attended, softmax_stats)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias_table, scale, padded_value, attended, softmax_stats = ctx.saved_tensors
        wants, saved = ctx.needs_input_grad, (bias_table, scale, padded_value, attended, softmax_stats)
        gradients = attend_fused_backward(grad, q, k, v, *saved, wants[3], ctx.plan)
        return *(each if wanted else None for each, wanted in zip(gradients, wants, strict=False)), None


Sums = tuple[Tensor | None, Tensor, Tensor | None]
"""Gradients of the bias table, the scale and the padded value."""


@dataclass(frozen=True)
class _BackwardPass:
    """One backward pass, by `whole_windows` or `by_tiles`.

    Attributes:
        inputs: q, k, v, bias table, scale, padded value.
        results: The attended map, the softmax statistics, the gradient of the attended map.
        where: Strides of q, k and v; strides of all other maps; numbers of the plan.
        plan: The plan.
        wants_bias: Whether to compute the gradient of the bias table.
    """

    inputs: tuple[Any, ...]
    results: tuple[Tensor, Tensor, Tensor]
    where: tuple[Any, ...]
    plan: WindowPlan
    wants_bias: bool

    @property
    def heads(self) -> int:
        """The number of heads."""
        return len(self.inputs[4])

    def buffer(self, *shape: int) -> Tensor:
        """New memory for the programs, in the dtype of sums."""
        return self.results[1].new_empty(shape)

    def padded_buffer(self, *shape: int) -> Tensor | None:
        """As `buffer`, for parts of the padded value's gradient; None if there is no padded value."""
        return None if self.inputs[5] is None else self.buffer(*shape, *self.inputs[5].shape)

    def whole_windows(self, grad_maps: Sequence[Tensor]) -> Sums:
        """For windows of one tile: writes the gradients of q, k and v, and returns the other gradients."""
        block = _block(self.plan.tokens, WHOLE_WINDOW)
        table = TableGradient(self.inputs[3], self.plan, block, block, self.wants_bias)
        all_windows = len(self.results[1])
        splits = _splits(self.inputs[2].device, all_windows, self.heads)
        grad_scale, grad_padded = self.buffer(splits, self.heads), self.padded_buffer(splits)
        start(
            backward.whole_windows,
            splits * self.heads,
            (*self.inputs, *self.results[1:], *grad_maps, table.buffer(splits), grad_scale, grad_padded),
            (*self.where, all_windows, splits, self.heads),
            _constants(self.plan, self.inputs[2], block, block)
            | table.constants
            | {"WANTS_BIAS": self.wants_bias}
            | _options(),
        )
        return table.total(), grad_scale.sum(0), None if grad_padded is None else grad_padded.sum(0)

    def by_tiles(self, grad_maps: Sequence[Tensor]) -> Sums:
        """For windows of several tiles: writes the gradients of q, k and v, and returns the other gradients."""
        attended, softmax_stats, grad = self.results
        queries, keys = _blocks(self.plan, self.inputs[2])
        query_tiles, key_tiles = -(-self.plan.tokens // queries), -(-self.plan.tokens // keys)
        all_windows = len(softmax_stats)
        constants = _constants(self.plan, self.inputs[2], queries, keys) | _options()
        deltas = self.buffer(all_windows, self.heads, self.plan.tokens)
        where = (*self.where, self.heads)

        grad_scale = self.buffer(all_windows, query_tiles, self.heads)
        maps = (attended, softmax_stats, grad, grad_maps[0], grad_scale, deltas)
        # With fewer keys at a time, tiles take half the registers, and more programs run at the same time.
        few_keys = _constants(self.plan, self.inputs[2], queries, min(keys, 32)) | _options()
        start(backward.to_queries, grad_scale.numel(), (*self.inputs, *maps), where, few_keys)

        grad_padded = self.padded_buffer(all_windows, key_tiles)
        maps = (softmax_stats, grad, grad_maps[1], grad_maps[2], grad_padded, deltas)
        start(backward.to_keys, all_windows * key_tiles * self.heads, (*self.inputs, *maps), where, constants)

        table = TableGradient(self.inputs[3], self.plan, queries, keys, self.wants_bias)
        if self.wants_bias:
            pairs = query_tiles * key_tiles
            splits = _splits(self.inputs[2].device, all_windows, self.heads * pairs)
            start(
                backward.to_bias,
                splits * pairs * self.heads,
                (*self.inputs, softmax_stats, grad, table.buffer(splits), deltas),
                (*self.where, all_windows, splits, self.heads),
                constants | table.constants,
            )
        return table.total(), grad_scale.sum((0, 1)), None if grad_padded is None else grad_padded.sum((0, 1))


def _exact(bias_table: Tensor, v: Tensor) -> Tensor:
    """The table in the dtype of sums, contiguous."""
    return bias_table.to(precise(v.dtype)).contiguous()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _with_equal_strides(*maps: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The maps and their common strides without the last one. The maps are copied if their strides differ, if vectors
    are not contiguous, or if offsets inside an image do not fit 32 bits."""
    _, height, width, _, _ = maps[0].shape
    _, down, across, _, along = maps[0].stride()
    farthest = (height - 1) * down + (width - 1) * across
    if any(each.stride() != maps[0].stride() for each in maps[1:]) or along != 1 or farthest >= 2**31:
        maps = tuple(each.contiguous() for each in maps)
    return maps, maps[0].stride()[:4]


def _numbers(plan: WindowPlan) -> tuple[int, ...]:
    return (*plan.grid, *plan.counts, *plan.shift)


def _constants(plan: WindowPlan, v: Tensor, queries: int, keys: int) -> dict[str, Any]:
    """Compile-time constants of all kernels. The dictionary is cached, so do not change it."""
    # Not torch.get_float32_matmul_precision(): it raises an error if the newer setting was used, as by transformers.
    relaxed = v.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return _constants_of(plan, v.shape[4], v.dtype, queries, keys, relaxed)


# Cached, here and below: with small models, the GPU waits for the CPU, which launches the kernels.
@lru_cache(maxsize=256)
def _constants_of(
    plan: WindowPlan, head_dim: int, dtype: torch.dtype, queries: int, keys: int, relaxed: bool
) -> dict[str, Any]:
    return {
        "HEAD_DIM": head_dim,
        "WINDOW_HEIGHT": plan.window[0],
        "WINDOW_WIDTH": plan.window[1],
        "MASK_PADDING": plan.mask_padding,
        "PADDED": plan.padded_grid != plan.grid,
        "HAS_REGIONS": not all(kind.is_single_region for kind in plan.kinds),
        "UNEVEN": plan.tokens % queries != 0 or plan.tokens % keys != 0,
        "BLOCK_QUERIES": queries,
        "BLOCK_KEYS": keys,
        "BLOCK_DIM": max(triton.next_power_of_2(head_dim), SMALLEST_BLOCK),
        "PRECISE": tl.float64 if dtype == torch.float64 else tl.float32,
        "INPUT_PRECISION": "tf32" if relaxed else "ieee",
    }


@lru_cache(maxsize=256)
def _block(tokens: int, largest: int) -> int:
    """Rows of a tile: a power of 2 that leaves little of the last tile empty. Small tiles cost more per row."""
    sizes = [size for size in (16, 32, 64, 128) if size <= largest]
    return min(reversed(sizes), key=lambda size: -(-tokens // size) * (size + SMALLEST_BLOCK))


def _blocks(plan: WindowPlan, v: Tensor) -> tuple[int, int]:
    """Number of queries and of keys in a tile: fewer if vectors take more memory."""
    largest = 64 if v.element_size() <= 2 and v.shape[4] <= 64 else 32
    block = _block(plan.tokens, largest)
    return block, block


def _options(copies_ahead: bool = False) -> dict[str, Any]:
    """Compiler options of the kernels. Four warps multiply 64 rows at a time.

    Args:
        copies_ahead: Whether loops prefetch their next tiles. Prefetching takes memory, so fewer programs run at the
            same time; it is faster only for long loops.
    """
    return {"num_warps": 4, "num_stages": 2 if copies_ahead else 1, "enable_fp_fusion": True}


def _splits(device: torch.device, all_windows: int, programs: int) -> int:
    """The number of parts into which the windows are split; each part has `programs` programs."""
    return max(1, min(all_windows, most_programs(device) // programs))
