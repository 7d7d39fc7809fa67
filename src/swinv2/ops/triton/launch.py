"""The fused form as two operations of torch, `swinv2::attend_fused` and its backward, which start the kernels.

In and out: as `reference.py`, without the weights and without dropout. No map is padded, shifted, cut or copied, no
mask and no T x T tensor exists; beside the answer one number is kept for each token and head. There is no gradient of
the gradient: for that, load the model with attn_implementation="eager".

Compilers see operations, and what shapes they return; activation checkpointing, FSDP and CUDA graphs need no more.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from swinv2.ops.precision import precise
from swinv2.ops.triton import backward, forward
from swinv2.ops.windows import WindowPlan

SMALLEST_BLOCK = 16
"""Triton multiplies matrices of at least so many rows and columns."""

WHOLE_WINDOW = 64
"""Tokens of the largest window whose gradients are computed in one piece."""

PROGRAMS_PER_PROCESSOR = 4
"""Of the kernels that go from window to window."""


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
    return attend_fused(q.to(v.dtype), k.to(v.dtype), v, bias_table, scale, padded_value, plan.numbers)[0]


@torch.library.custom_op("swinv2::attend_fused", mutates_args=())
def attend_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    plan_numbers: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """The forward pass; see `forward.attend`. `padded_value` is given if and only if the map is padded.

    Returns:
        The attended map, and the logarithms of the sums of attention weights (windows of all images, heads, T).
    """
    plan = WindowPlan.of_numbers(plan_numbers)
    (q, k, v), strides = _with_equal_strides(q, k, v)
    attended, log_sums = _empty_answer(q, k, v, bias_table, scale, padded_value, plan_numbers)
    if attended.numel():
        queries, keys = _blocks(plan, v, 128)
        tiles = -(-plan.tokens // queries)
        forward.attend[(len(log_sums) * tiles * len(scale),)](
            *(q, k, v, bias_table.contiguous(), scale.contiguous(), padded_value, attended, log_sums),
            *(strides, attended.stride()[:4], _numbers(plan)),
            **_constants(plan, v, queries, keys),
            **_options(queries, keys, 1),
        )
    return attended, log_sums


@attend_fused.register_fake
def _empty_answer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    plan_numbers: Sequence[int],
) -> tuple[Tensor, Tensor]:
    plan = WindowPlan.of_numbers(plan_numbers)
    batch, heads = v.shape[0], v.shape[3]
    log_sums = v.new_empty(batch * plan.counts[0] * plan.counts[1], heads, plan.tokens, dtype=precise(v.dtype))
    return v.new_empty(v.shape), log_sums


@torch.library.custom_op("swinv2::attend_fused_backward", mutates_args=())
def attend_fused_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    attended: Tensor,
    log_sums: Tensor,
    wants_bias: bool,
    plan_numbers: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `attend_fused`.

    Args:
        grad: Of the attended map.
        wants_bias: Whether the bias table has a gradient. Unless torch.use_deterministic_algorithms is on, it is
            summed in another order each time.
        The others are what `attend_fused` was given and returned.

    Returns:
        Gradients of q, k, v, the bias table, the scale and the padded value; what is not wanted is empty.
    """
    plan = WindowPlan.of_numbers(plan_numbers)
    (q, k, v), strides = _with_equal_strides(q, k, v)
    grad, attended = grad.contiguous(), attended.contiguous()
    grad_maps = tuple(torch.empty_like(attended) for _ in range(3))
    if not attended.numel():
        sums = (torch.zeros_like(bias_table), torch.zeros_like(scale), v.new_zeros(v.shape[3:]))
        return *grad_maps, *sums
    inputs = (q, k, v, bias_table.contiguous(), scale.contiguous(), padded_value)
    where = (strides, attended.stride()[:4], _numbers(plan))
    compute = _backward_of_whole_windows if plan.tokens <= WHOLE_WINDOW else _backward_by_tiles
    grad_table, grad_scale, grad_padded = compute(
        inputs, (attended, log_sums, grad), grad_maps, where, wants_bias, plan
    )
    return *grad_maps, grad_table.to(bias_table.dtype), grad_scale.to(scale.dtype), grad_padded.to(v.dtype)


@attend_fused_backward.register_fake
def _empty_gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    attended: Tensor,
    log_sums: Tensor,
    wants_bias: bool,
    plan_numbers: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_table = bias_table.new_empty(bias_table.shape) if wants_bias else bias_table.new_empty(0)
    return (
        *(v.new_empty(v.shape) for _ in range(3)),
        *(grad_table, scale.new_empty(scale.shape), v.new_empty(v.shape[3:] if padded_value is not None else 0)),
    )


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.plan_numbers = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    wants = ctx.needs_input_grad
    gradients = attend_fused_backward(grad, *saved, wants[3], ctx.plan_numbers)
    return *(each if wanted else None for each, wanted in zip(gradients, wants, strict=False)), None


attend_fused.register_autograd(_backward, setup_context=_keep_for_backward)

Tensors = tuple[Any, ...]


def _backward_of_whole_windows(
    inputs: Tensors, results: Tensors, grad_maps: Tensors, where: Tensors, wants_bias: bool, plan: WindowPlan
) -> tuple[Tensor, Tensor, Tensor]:
    v, heads = inputs[2], len(inputs[4])
    block = _block(plan.tokens, WHOLE_WINDOW)
    table = _TableGradient(inputs[3], plan, block, block, wants_bias)
    all_windows = len(results[1])
    splits = _splits(v.device, all_windows, heads)
    parts = (splits, heads)
    grad_scale = results[1].new_empty(parts)
    grad_padded = results[1].new_empty(*parts, v.shape[-1]) if inputs[5] is not None else None
    constants = _constants(plan, v, block, block)
    backward.whole_windows[(splits * heads,)](
        *(*inputs, *results, *grad_maps, table.room(splits), grad_scale, grad_padded, *where, all_windows, splits),
        **(constants | table.constants | {"WANTS_BIAS": wants_bias}),
        **_options(block, block, 2),
    )
    return table.total(), grad_scale.sum(0), _sum_of_parts(grad_padded, v)


def _backward_by_tiles(
    inputs: Tensors, results: Tensors, grad_maps: Tensors, where: Tensors, wants_bias: bool, plan: WindowPlan
) -> tuple[Tensor, Tensor, Tensor]:
    (v, heads), (attended, log_sums, grad), (grad_q, grad_k, grad_v) = (inputs[2], len(inputs[4])), results, grad_maps
    queries, keys = _blocks(plan, v, 64)
    query_tiles, key_tiles = -(-plan.tokens // queries), -(-plan.tokens // keys)
    all_windows = len(log_sums)
    constants = _constants(plan, v, queries, keys)
    deltas = torch.empty_like(log_sums)
    options = _options(queries, keys, 2)

    grad_scale = log_sums.new_empty(all_windows, query_tiles, heads)
    backward.to_queries[(all_windows * query_tiles * heads,)](
        *(*inputs, attended, log_sums, grad, grad_q, grad_scale, deltas, *where), **constants, **options
    )
    grad_padded = None
    if inputs[5] is not None:
        grad_padded = log_sums.new_empty(all_windows, key_tiles, heads, v.shape[-1])
    backward.to_keys[(all_windows * key_tiles * heads,)](
        *(*inputs, log_sums, grad, grad_k, grad_v, grad_padded, deltas, *where), **constants, **options
    )
    table = _TableGradient(inputs[3], plan, queries, keys, wants_bias)
    if wants_bias:
        pairs = query_tiles * key_tiles
        splits = _splits(v.device, all_windows, heads * pairs)
        backward.to_bias[(splits * pairs * heads,)](
            *(*inputs, log_sums, grad, table.room(splits), deltas, *where, all_windows, splits),
            **(constants | table.constants),
            **options,
        )
    return table.total(), grad_scale.sum((0, 1)), _sum_of_parts(grad_padded, v)


class _TableGradient:
    """Where programs add up the gradient of the bias table.

    Args:
        bias_table: The table.
        plan: The plan.
        queries, keys: Tokens of a tile.
        wanted: Whether there is to be a gradient.
    """

    def __init__(self, bias_table: Tensor, plan: WindowPlan, queries: int, keys: int, wanted: bool) -> None:
        self.bias_table, self.plan, self.wanted = bias_table, plan, wanted
        self.queries, self.keys = queries, keys
        self.deterministic = torch.are_deterministic_algorithms_enabled()
        self.sums: Tensor | None = None

    @property
    def constants(self) -> dict[str, Any]:
        """Of the kernels that add to it."""
        return {"SPAN": self._span(self.queries) + self._span(self.keys) - 1, "DETERMINISTIC": self.deterministic}

    def room(self, splits: int) -> Tensor | None:
        """What programs write into."""
        dtype = precise(self.bias_table.dtype)
        if not self.wanted:
            return None
        if self.deterministic:
            parts = splits * len(self._firsts())
            shape = (parts, len(self.bias_table), self.constants["SPAN"])
            self.sums = self.bias_table.new_empty(shape, dtype=dtype)
        else:
            self.sums = torch.zeros_like(self.bias_table, dtype=dtype)
        return self.sums

    def total(self) -> Tensor:
        """The gradient; empty if it is not wanted."""
        if self.sums is None:
            return self.bias_table.new_empty(0)
        if not self.deterministic:
            return self.sums
        firsts = torch.tensor(self._firsts(), device=self.sums.device)
        of_pairs = self.sums.unflatten(0, (-1, len(firsts))).sum(0).transpose(0, 1)
        entries = firsts[:, None] + torch.arange(self.sums.shape[-1], device=self.sums.device)
        flat = self.sums.new_zeros(len(self.bias_table), self.bias_table[0].numel() + self.sums.shape[-1])
        heads = torch.arange(len(flat), device=flat.device)[:, None, None]
        flat.index_put_((heads, entries), of_pairs, accumulate=True)
        return flat[:, : self.bias_table[0].numel()].reshape(self.bias_table.shape)

    def _entry(self, token: int) -> int:
        width = self.plan.window[1]
        return token // width * (2 * width - 1) + token % width

    def _tiles(self, block: int) -> list[tuple[int, int]]:
        """The first and the last token's part of an entry, of every tile."""
        tokens = self.plan.tokens
        starts = range(0, tokens, block)
        return [(self._entry(start), self._entry(min(start + block, tokens) - 1)) for start in starts]

    def _span(self, block: int) -> int:
        return max(last - first for first, last in self._tiles(block)) + 1

    def _firsts(self) -> list[int]:
        """The first entry of every pair of tiles, tiles of keys running fastest."""
        middle = self._entry(self.plan.tokens - 1)
        return [first - last + middle for first, _ in self._tiles(self.queries) for _, last in self._tiles(self.keys)]


def _sum_of_parts(parts: Tensor | None, v: Tensor) -> Tensor:
    return v.new_empty(0) if parts is None else parts.flatten(0, -3).sum(0)


def _with_equal_strides(*maps: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The maps, copied unless one set of strides fits all and vectors lie in one piece; strides without the last."""
    if any(each.stride() != maps[0].stride() for each in maps) or maps[0].stride(-1) != 1:
        maps = tuple(each.contiguous() for each in maps)
    return maps, maps[0].stride()[:4]


def _numbers(plan: WindowPlan) -> tuple[int, ...]:
    return (*plan.grid, *plan.counts, *plan.shift)


def _constants(plan: WindowPlan, v: Tensor, queries: int, keys: int) -> dict[str, Any]:
    """What all kernels are compiled for."""
    relaxed = torch.get_float32_matmul_precision() != "highest"
    return {
        "HEADS": v.shape[3],
        "HEAD_DIM": v.shape[4],
        "WINDOW_HEIGHT": plan.window[0],
        "WINDOW_WIDTH": plan.window[1],
        "MASK_PADDING": plan.mask_padding,
        "PADDED": plan.padded_grid != plan.grid,
        "HAS_REGIONS": not all(kind.is_single_region for kind in plan.kinds),
        "UNEVEN": plan.tokens % queries != 0 or plan.tokens % keys != 0,
        "BLOCK_QUERIES": queries,
        "BLOCK_KEYS": keys,
        "BLOCK_DIM": max(triton.next_power_of_2(v.shape[4]), SMALLEST_BLOCK),
        "PRECISE": tl.float64 if v.dtype == torch.float64 else tl.float32,
        "INPUT_PRECISION": "tf32" if relaxed and v.dtype == torch.float32 else "ieee",
    }


def _block(tokens: int, largest: int) -> int:
    """Rows of a tile: a power of 2 by which little of the last tile is empty; small tiles cost more each."""
    sizes = [size for size in (16, 32, 64, 128) if size <= largest]
    return min(reversed(sizes), key=lambda size: -(-tokens // size) * (size + SMALLEST_BLOCK))


def _blocks(plan: WindowPlan, v: Tensor, largest: int) -> tuple[int, int]:
    """Tokens of a tile of queries, and of one of keys: half as many where vectors take twice as much room."""
    halves = 1 if v.element_size() <= 2 and v.shape[4] <= 64 else 2
    return _block(plan.tokens, largest // halves), _block(plan.tokens, 64 // halves)


def _options(queries: int, keys: int, work: int) -> dict[str, Any]:
    """How kernels are compiled: with so many threads that tiles stay in registers.

    Args:
        work: Tiles of pairs that a program holds at a time.
    """
    return {"num_warps": 8 if work * queries * keys > 64 * 64 else 4, "num_stages": 2, "enable_fp_fusion": True}


def _splits(device: torch.device, all_windows: int, programs: int) -> int:
    """Among how many programs the windows are split, if there are so many programs for each part."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return max(1, min(all_windows, PROGRAMS_PER_PROCESSOR * processors // programs))
