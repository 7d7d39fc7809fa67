"""Window attention on GPUs: two custom operators, `attend_fused` and its backward, which launch the kernels.

In and out: as `reference.py`, without attention weights and dropout. No map is padded, shifted or cut, and none is
copied if queries, keys and values have the same strides. No mask and no T x T tensor exists. Besides the output, two
numbers are stored for each token and head. Second derivatives are not supported: for them, load the model with
attn_implementation="eager".

Compilers see two operations and the shapes of their results. Activation checkpointing, FSDP and CUDA graphs work too.
"""

import math
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
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.triton import backward, forward
from swinv2.ops.triton.programs import most_programs, start
from swinv2.ops.triton.table import TableGradient
from swinv2.ops.triton.tiles import Constants
from swinv2.ops.windows import WindowPlan

SMALLEST_BLOCK = 16
"""The smallest number of rows and columns in a matrix product of Triton."""

WHOLE_WINDOW = 64
"""The largest window, in tokens, whose gradients are computed in one tile."""

FEW_TOKENS = 256
"""Up to this number of tokens in a window, loops over tiles are too short for prefetching."""

WHOLE_VECTOR_BYTES = 128
"""The largest vector (head_dim) for gradients in one tile: the tiles of all maps must fit the shared memory."""


def window_attention(inputs: AttentionInputs) -> Float[Tensor, "B *grid heads head_dim"]:
    """Cosine attention inside every window of a map, by the kernels for GPUs."""
    q, k, v, padded_value, plan = inputs.q, inputs.k, inputs.v, inputs.padded_value, inputs.plan
    if plan.padded_grid == plan.grid:
        padded_value = None
    elif padded_value is None:
        padded_value = v.new_zeros(v.shape[-2:])
    else:
        padded_value = padded_value.to(v.dtype)
    return _AttendOnGpu.apply(q.to(v.dtype), k.to(v.dtype), v, inputs.bias_table, inputs.scale, padded_value, plan)


def _empty_attended(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """For compiled graphs: the shapes of the results of `attend_fused`."""
    batch, heads, plan = v.shape[0], v.shape[-2], rest[-1]
    softmax_stats = v.new_empty(batch * math.prod(plan.counts), heads, 2, plan.tokens, dtype=precise(v.dtype))
    return v.new_empty(v.shape), softmax_stats


@custom_op(_empty_attended)
def attend_fused(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, scale: Tensor, padded_value: Tensor | None, plan: WindowPlan
) -> tuple[Tensor, Tensor]:
    """The forward pass; see `forward.attend`. `padded_value` is given if and only if the map is padded.

    Returns:
        The attended map, and the softmax statistics (windows of all images, heads, 2, T).
    """
    inputs, strides = _kernel_inputs(q, k, v, bias_table, scale, padded_value)
    attended, softmax_stats = _empty_attended(*inputs[:3], plan)
    if attended.numel():
        constants, layout = _constants(plan, v, *_tile_sizes(plan, v)), (strides, _strides(attended), _numbers(plan))
        start(
            forward.attend,
            len(softmax_stats) * constants.query_tiles * len(scale),
            attended,
            (inputs, attended, softmax_stats, layout, len(scale), constants),
            _compiler_options(plan.tokens > FEW_TOKENS),
        )
    return attended, softmax_stats


def _empty_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, scale: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For compiled graphs: the shapes of the results of `attend_fused_backward`."""
    padded_value, _, _, wants_bias, _ = rest
    grad_q, grad_k, grad_v = v.new_empty(v.shape), v.new_empty(v.shape), v.new_empty(v.shape)
    grad_table = bias_table.new_empty(bias_table.shape if wants_bias else 0)
    grad_padded = v.new_empty(v.shape[-2:] if padded_value is not None else 0)
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
    inputs, strides = _kernel_inputs(q, k, v, bias_table, scale, padded_value)
    gradients = _empty_gradients(grad, *inputs[:3], bias_table, scale, padded_value, None, None, wants_bias, plan)
    if not attended.numel():
        for each in gradients:
            each.zero_()
        return gradients
    grad, attended = grad.contiguous(), attended.contiguous()
    layout = (strides, _strides(attended), _numbers(plan))
    backward_pass = _BackwardPass(inputs, attended, softmax_stats, grad, layout, plan, wants_bias)
    fits = plan.tokens <= WHOLE_WINDOW and v.element_size() * v.shape[-1] <= WHOLE_VECTOR_BYTES
    compute = backward_pass.whole_windows if fits else backward_pass.by_tiles
    for buffer, sums in zip(gradients[3:], compute(gradients[:3]), strict=True):
        if sums is not None:
            buffer.copy_(sums)
    return gradients


class _AttendOnGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Starts the forward kernel, and saves what the backward kernels need."""
        *tensors, ctx.plan = arguments
        attended, softmax_stats = attend_fused(*arguments)
        ctx.save_for_backward(*tensors, attended, softmax_stats)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients from the backward kernels, one for each argument."""
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
        inputs, layout: See `forward.attend`.
        attended, softmax_stats, grad, plan, wants_bias: See `attend_fused_backward`.
    """

    inputs: tuple[Any, ...]
    attended: Tensor
    softmax_stats: Tensor
    grad: Tensor
    layout: tuple[Any, ...]
    plan: WindowPlan
    wants_bias: bool

    def start(self, kernel: Any, programs: int, *arguments: Any) -> None:
        """Launches a kernel; `arguments` are those after the inputs."""
        start(kernel, programs, self.attended, (self.inputs, *arguments), _compiler_options())

    def buffer(self, *shape: int) -> Tensor:
        """New memory for the programs, in the dtype of sums."""
        return self.softmax_stats.new_empty(shape)

    def padded_buffer(self, *shape: int) -> Tensor | None:
        """As `buffer`, for parts of the padded value's gradient; None if there is no padded value."""
        return None if self.inputs[5] is None else self.buffer(*shape, *self.inputs[5].shape)

    def whole_windows(self, grad_maps: tuple[Tensor, Tensor, Tensor]) -> Sums:
        """For windows of one tile: writes the gradients of q, k and v, and returns the other gradients."""
        _, _, v, bias_table, scale, _ = self.inputs
        all_windows, heads, block = len(self.softmax_stats), len(scale), _rows_of_tile(self.plan.tokens, WHOLE_WINDOW)
        table = TableGradient(bias_table, self.plan, block, block, self.wants_bias)
        constants = _constants(self.plan, v, block, block, table.span)
        splits = _window_splits(v.device, all_windows, heads)
        grad_scale, grad_padded = self.buffer(splits, heads), self.padded_buffer(splits)
        sums, counts = (table.buffer(splits), grad_scale, grad_padded), (all_windows, splits, heads)
        maps = (self.softmax_stats, self.grad, grad_maps)
        self.start(backward.whole_windows, splits * heads, *maps, sums, self.layout, *counts, constants)
        return table.total(), grad_scale.sum(0), None if grad_padded is None else grad_padded.sum(0)

    def by_tiles(self, grad_maps: tuple[Tensor, Tensor, Tensor]) -> Sums:
        """For windows of several tiles: writes the gradients of q, k and v, and returns the other gradients."""
        _, _, v, bias_table, scale, _ = self.inputs
        all_windows, heads, (queries, keys) = len(self.softmax_stats), len(scale), _tile_sizes(self.plan, v)
        table = TableGradient(bias_table, self.plan, queries, keys, self.wants_bias)
        constants = _constants(self.plan, v, queries, keys, table.span)
        query_tiles, key_tiles = constants.query_tiles, constants.key_tiles
        deltas, given = self.buffer(all_windows, heads, self.plan.tokens), (self.softmax_stats, self.grad)

        grad_scale = self.buffer(all_windows, query_tiles, heads)
        # With fewer keys at a time, tiles take half the registers, and more programs run at the same time.
        few_keys = _constants(self.plan, v, queries, min(keys, 32))
        written = (grad_maps[0], grad_scale, deltas, self.layout, heads)
        self.start(backward.to_queries, grad_scale.numel(), self.attended, *given, *written, few_keys)

        grad_padded = self.padded_buffer(all_windows, key_tiles)
        written = (*grad_maps[1:], grad_padded, deltas, self.layout, heads)
        self.start(backward.to_keys, all_windows * key_tiles * heads, *given, *written, constants)

        if self.wants_bias:
            pairs = query_tiles * key_tiles
            splits = _window_splits(v.device, all_windows, heads * pairs)
            written = (table.buffer(splits), deltas, self.layout, all_windows, splits, heads)
            self.start(backward.to_bias, splits * pairs * heads, *given, *written, constants)
        return table.total(), grad_scale.sum((0, 1)), None if grad_padded is None else grad_padded.sum((0, 1))


def _kernel_inputs(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, scale: Tensor, padded_value: Tensor | None
) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """The inputs as kernels need them, and the common `_strides` of q, k and v.

    The maps are copied if their strides differ, if vectors are not contiguous, or if offsets inside an image do not fit
    32 bits. The bias table is in the dtype of sums.
    """
    maps = (q, k, v)
    farthest = sum((length - 1) * step for length, step in zip(q.shape[1:-2], q.stride()[1:-2], strict=True))
    if k.stride() != q.stride() or v.stride() != q.stride() or q.stride(-1) != 1 or farthest >= 2**31:
        maps = (q.contiguous(), k.contiguous(), v.contiguous())
    padding = None if padded_value is None else padded_value.contiguous()
    table = bias_table.to(precise(v.dtype)).contiguous()
    return (*maps, table, scale.contiguous(), padding), _strides(maps[0])


def _strides(feature_map: Tensor) -> tuple[int, ...]:
    """The strides of a map's images, rows, columns, heads and frames; 0 for the frames of images."""
    images, *frames, rows, columns, heads, _ = feature_map.stride()
    return (images, rows, columns, heads, *(frames or [0]))


def _numbers(plan: WindowPlan) -> tuple[int, ...]:
    """Grid, number of windows and shift of a plan, as kernels for GPUs take them: along height and width, then along
    frames."""
    axes = list(zip(plan.grid, plan.counts, plan.shift, strict=True))
    frames = axes[0] if len(axes) > 2 else (1, 1, 0)
    return (*plan.grid[-2:], *plan.counts[-2:], *plan.shift[-2:], *frames)


def _constants(plan: WindowPlan, v: Tensor, queries: int, keys: int, span: int = 0) -> Constants:
    """What kernels for GPUs with these tiles are compiled for."""
    # Not torch.get_float32_matmul_precision(): it raises an error if the newer setting was used, as by transformers.
    relaxed = v.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return _cached_constants(plan, v.shape[-1], v.dtype, queries, keys, span, relaxed)


# Cached, here and below: with small models, the GPU waits for the CPU, which launches the kernels.
@lru_cache(maxsize=256)
def _cached_constants(
    plan: WindowPlan, head_dim: int, dtype: torch.dtype, queries: int, keys: int, span: int, relaxed: bool
) -> Constants:
    """The constants of kernels for GPUs, cached by what they depend on."""
    has_frames = len(plan.window) > 2
    return Constants(
        *(plan.window if has_frames else (1, *plan.window)),
        has_frames=has_frames,
        mask_padding=plan.mask_padding,
        has_regions=not all(kind.is_single_region for kind in plan.kinds),
        padded=plan.padded_grid != plan.grid,
        head_dim=head_dim,
        block_dim=max(triton.next_power_of_2(head_dim), SMALLEST_BLOCK),
        block_queries=queries,
        block_keys=keys,
        precise=tl.float64 if dtype == torch.float64 else tl.float32,
        input_precision="tf32" if relaxed else "ieee",
        span=span,
    )


@lru_cache(maxsize=256)
def _rows_of_tile(tokens: int, largest: int) -> int:
    """Starting kernels: rows of a tile, a power of 2. Large tiles cost less per row, but the last one may be empty."""
    sizes = [size for size in (16, 32, 64, 128) if size <= largest]
    return min(reversed(sizes), key=lambda size: -(-tokens // size) * (size + SMALLEST_BLOCK))


def _tile_sizes(plan: WindowPlan, v: Tensor) -> tuple[int, int]:
    """Starting kernels: number of queries and of keys in a tile, fewer if vectors take more memory."""
    largest = 64 if v.element_size() <= 2 and v.shape[-1] <= 64 else 32
    block = _rows_of_tile(plan.tokens, largest)
    return block, block


def _compiler_options(copies_ahead: bool = False) -> dict[str, Any]:
    """Compiler options of the attention kernels. Four warps multiply 64 rows at a time.

    Args:
        copies_ahead: Whether loops prefetch their next tiles. Prefetching takes memory, so fewer programs run at the
            same time; it is faster only for long loops.
    """
    return {"num_warps": 4, "num_stages": 2 if copies_ahead else 1, "enable_fp_fusion": True}


def _window_splits(device: torch.device, all_windows: int, programs: int) -> int:
    """The number of parts into which the windows are split; each part has `programs` programs."""
    return max(1, min(all_windows, most_programs(device) // programs))
