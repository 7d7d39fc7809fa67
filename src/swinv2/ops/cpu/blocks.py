"""Whole branches and sequences of blocks on a CPU, each by one call of a kernel.

In: maps (B, *grid, C) on a CPU, of any layout, and the tensors of a block. Out: maps, written in place. Weights are
read in place, without a copy. Nothing here is differentiable.
"""

import math
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from swinv2.lengths import Lengths, Pair
from swinv2.ops.cpu import library
from swinv2.ops.cpu.arguments import (
    Norm,
    Weights,
    as_block,
    as_linear,
    as_map,
    as_norm,
    as_numbers,
    as_plan,
    as_tokens,
    as_weights,
    at,
    fit,
    fit_attention,
    run,
    side_by_side,
)
from swinv2.ops.windows import WindowPlan


def add_mlp(
    x: Tensor,
    fc1: Weights,
    fc2: Weights,
    norm: Norm,
    out: Tensor,
    gelu_in: Tensor | None = None,
    branch_out: Tensor | None = None,
) -> None:
    """One call of a kernel: x + factor * norm(fc2(GELU(fc1(x)))), for every token.

    Args:
        x: Tokens (..., C).
        fc1, fc2, norm: The layers, and the norm with its factor.
        out: Receives the result; may be x.
        gelu_in, branch_out: (..., hidden) and (..., C), receive the inputs of GELU and norm, if given.
    """
    fit(x.shape, x=x, branch_out=branch_out, out=out)
    fit((*x.shape[:-1], len(fc1[0])), gelu_in=gelu_in)
    x, fc1, fc2, norm = as_tokens(x), as_weights(fc1), as_weights(fc2), side_by_side(norm)
    block = _add_mlp_to(library.Block(), fc1, fc2, norm)
    saved = library.Saved(hidden=as_map(gelu_in), mlp_out=as_map(branch_out))
    run("run_blocks", x.dtype, (_plan_of_tokens(x), 1, block, as_map(x), as_map(out), saved))


def add_attention(
    x: Tensor,
    qkv: Sequence[Weights],
    out_proj: Weights,
    bias_table: Tensor,
    scale: Tensor,
    plan: WindowPlan,
    norm: Norm,
    out: Tensor,
    saved_qkv: Tensor | None = None,
    attended: Tensor | None = None,
    branch_out: Tensor | None = None,
) -> None:
    """One call of a kernel: x + factor * norm(out_proj(attention(q(x), k(x), v(x)))), with attention in windows.

    Args:
        x: The map (B, *grid, C).
        qkv, out_proj, norm: The layers, and the norm with its factor; the key layer has no bias.
        bias_table, scale, plan: See `reference.window_attention`.
        out: Receives the result; may be x.
        saved_qkv: (B, *grid, 3 C), receives queries, keys and values, if given.
        attended, branch_out: (B, *grid, C), receive the attended map and the norm's input, if given.
    """
    batch, *grid, channels = x.shape
    fit(x.shape, x=x, attended=attended, branch_out=branch_out, out=out)
    fit((batch, *grid, 3 * channels), saved_qkv=saved_qkv)
    layers, norm, x = [as_weights(each) for each in (*qkv, out_proj)], side_by_side(norm), as_tokens(x)
    table, scale, _ = fit_attention(x.unflatten(-1, (len(scale), -1)), bias_table, scale, None, plan)
    block = _add_attention_to(as_block(plan.shift), layers, table, scale, norm)
    saved = library.Saved(*(as_map(each) for each in (saved_qkv, attended, branch_out)))
    cut = as_plan(plan, batch, len(scale), channels // len(scale))
    run("run_blocks", x.dtype, (cut, 1, block, as_map(x), as_map(out), saved))


@dataclass(frozen=True)
class Gradients:
    """The buffers for the gradients of a branch; all but `x` are contiguous and in `precise(x.dtype)`.

    Attributes:
        x: For the gradient of x, of any dtype and layout that a kernel can write.
        in_proj, in_proj_bias: For weight and bias of the first layer, or of the joined layers of queries, keys, values.
        out_proj: For the weight of the last layer.
        epilogue: (3, C), for the norm's weight, the norm's bias and the last layer's bias.
        table, scale: For the bias table and the scale of an attention.
    """

    x: Tensor | None
    in_proj: Tensor | None
    in_proj_bias: Tensor
    out_proj: Tensor | None
    epilogue: Tensor
    table: Tensor | None = None
    scale: Tensor | None = None

    def fit(self, channels: int, last_in: int, first_out: int) -> library.Gradients:
        """The kernel argument for the gradients of a branch.

        Args:
            channels: Channels of x.
            last_in: Input features of the last layer.
            first_out: Output features of the first layer, or of the joined layers of queries, keys and values.
        """
        fit((first_out, channels), in_proj=self.in_proj)
        fit((first_out,), in_proj_bias=self.in_proj_bias)
        fit((channels, last_in), out_proj=self.out_proj)
        fit((3, channels), epilogue=self.epilogue)
        sums = (self.in_proj, self.in_proj_bias, self.out_proj, self.epilogue, self.table, self.scale)
        return library.Gradients(as_map(self.x), *map(at, sums))


def mlp_backward(
    grad: Tensor, x: Tensor, gelu_in: Tensor, branch_out: Tensor, fc1: Tensor, fc2: Tensor, norm: Norm, to: Gradients
) -> None:
    """One call of a kernel: the gradients of `add_mlp`.

    Args:
        grad: The gradient of the result, (..., C).
        x, norm: The arguments of `add_mlp`; the norm's bias is not used.
        gelu_in, branch_out: The tensors that `add_mlp` saved.
        fc1, fc2: The weights of the linear layers.
        to: Receives the gradients.
    """
    channels, hidden = x.shape[-1], fc1.shape[0]
    fit(x.shape, grad=grad, branch_out=branch_out, x=x, **{"gradient of x": to.x})
    fit((*x.shape[:-1], hidden), gelu_in=gelu_in)
    grad, x, gelu_in, branch_out = (as_tokens(each) for each in (grad, x, gelu_in, branch_out))
    norm = side_by_side(norm)
    layers = as_weights((fc1, None)), as_weights((fc2, None))
    block = _add_mlp_to(library.Block(), *layers, norm)
    saved = library.Saved(hidden=as_map(gelu_in), mlp_out=as_map(branch_out))
    gradients = to.fit(channels, hidden, hidden)
    run("run_backward", x.dtype, (_plan_of_tokens(x), block, as_map(grad), as_map(x), saved, gradients))


def attention_backward(
    grad: Tensor,
    x: Tensor,
    saved: Sequence[Tensor],
    weights: Sequence[Tensor],
    value_bias: Tensor | None,
    bias_table: Tensor,
    scale: Tensor,
    plan: WindowPlan,
    norm: Norm,
    to: Gradients,
) -> None:
    """One call of a kernel: the gradients of `add_attention`.

    Args:
        grad: The gradient of the result, (B, *grid, C).
        x, bias_table, scale, plan, norm: The arguments of `add_attention`; the norm's bias is not used.
        saved: The tensors that `add_attention` saved: `saved_qkv`, `attended` and `branch_out`.
        weights: Those of the layers of queries, keys, values and of the output projection.
        value_bias: The bias of the value layer.
        to: Receives the gradients.
    """
    (batch, *grid, channels), heads = x.shape, scale.shape[0]
    qkv, attended, branch_out = (as_tokens(each) for each in saved)
    fit(x.shape, grad=grad, x=x, attended=attended, branch_out=branch_out, **{"gradient of x": to.x})
    fit((batch, *grid, 3 * channels), qkv=qkv)
    table, scale, _ = fit_attention(x.unflatten(-1, (heads, -1)), bias_table, scale, None, plan)
    fit(table.shape, **{"gradient of the bias table": to.table})
    fit((heads,), **{"gradient of the scale": to.scale})
    grad, x, norm = as_tokens(grad), as_tokens(x), side_by_side(norm)
    layers = [as_weights((weight, value_bias if i == 2 else None)) for i, weight in enumerate(weights)]
    block = _add_attention_to(as_block(plan.shift), layers, table, scale, norm)
    cut = as_plan(plan, batch, heads, channels // heads)
    gradients = to.fit(channels, channels, 3 * channels)
    maps = library.Saved(as_map(qkv), as_map(attended), as_map(branch_out))
    run("run_backward", x.dtype, (cut, block, as_map(grad), as_map(x), maps, gradients))


def _add_attention_to(
    block: library.Block, layers: Sequence[Weights], table: Tensor, scale: Tensor, norm: Norm
) -> library.Block:
    """Sets the attention branch of a kernel's block."""
    channels = len(norm[0])
    block.query, block.key, block.value, block.out_proj = (as_linear(each, channels, channels) for each in layers)
    block.table, block.scale, block.attention_norm = as_numbers(table), as_numbers(scale), as_norm(norm, channels)
    return block


def _add_mlp_to(block: library.Block, fc1: Weights, fc2: Weights, norm: Norm) -> library.Block:
    """Sets the MLP branch of a kernel's block."""
    channels, block.hidden = len(norm[0]), len(fc1[0])
    block.fc1, block.fc2 = as_linear(fc1, block.hidden, channels), as_linear(fc2, channels, block.hidden)
    block.mlp_norm = as_norm(norm, channels)
    return block


def _plan_of_tokens(x: Tensor) -> library.Plan:
    """A plan for tokens (..., C): each token is a window."""
    *sizes, channels = x.shape
    return library.Plan(1, (1, 1, 0), (1, 1, 0), (math.prod(sizes), 1, 0), heads=1, dim=channels)


@dataclass(frozen=True)
class BlockTensors:
    """The tensors and numbers of a block, on a CPU.

    Attributes:
        qkv, out_proj: See `add_attention`.
        bias_table, scale: See `add_attention`. In fp64 the block is for maps in fp64; in fp32 it is for all other maps.
        window, shift, mask_padding: See `WindowPlan`.
        attention_norm, mlp_norm: The post-norms of the branches.
        fc1, fc2: The layers of the MLP.
        extra_norm: The norm of the block's output, or None.
    """

    qkv: Sequence[Weights]
    out_proj: Weights
    bias_table: Tensor
    scale: Tensor
    window: Lengths
    shift: Lengths
    mask_padding: bool
    attention_norm: Norm
    fc1: Weights
    fc2: Weights
    mlp_norm: Norm
    extra_norm: Norm | None = None

    @property
    def alike(self) -> tuple[Lengths, bool, bool]:
        """What must be the same for all blocks that run together: window, `mask_padding`, and whether it is fp64."""
        return self.window, self.mask_padding, self.scale.dtype == torch.float64

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the block."""
        norms = (self.attention_norm, self.mlp_norm, *([] if self.extra_norm is None else [self.extra_norm]))
        layers = (*self.qkv, self.out_proj, self.fc1, self.fc2)
        pairs = [pair for each in (*layers, *(norm[:2] for norm in norms)) for pair in each]
        return [self.bias_table, self.scale, *(tensor for tensor in pairs if tensor is not None)]


class PreparedBlocks:
    """Blocks with the same channels, heads and window, prepared for `run_blocks`.

    The prepared blocks, like a `PreparedProjection`, point to the memory of the weights. The weights may change in
    place, but the caller must ensure that their memory is not replaced (`.data`).

    Args:
        blocks: The blocks.
    """

    def __init__(self, blocks: Sequence[BlockTensors]) -> None:
        first = blocks[0]
        self.heads, self.channels = len(first.scale), len(first.out_proj[0])
        self.window, self.mask_padding, self.is_double = alike = first.alike
        if any(block.alike != alike for block in blocks) or self.channels % self.heads:
            raise ValueError("blocks that run together must have the same window, heads and precision.")
        self._tensors = [tensor for block in blocks for tensor in block.tensors]
        self.blocks = (library.Block * len(blocks))(*(self._prepare_block(block) for block in blocks))

    def _prepare_block(self, tensors: BlockTensors) -> library.Block:
        """Checks the tensors of a block, and makes the kernel argument of them."""
        # A plan raises an error for a wrong shift.
        WindowPlan((1,) * len(tensors.window), tensors.window, tensors.shift)
        fit((self.heads, *(2 * length - 1 for length in self.window)), bias_table=tensors.bias_table)
        fit((self.heads,), scale=tensors.scale)
        if tensors.scale.dtype != tensors.bias_table.dtype or tensors.scale.dtype not in (torch.float32, torch.float64):
            raise ValueError("bias_table and scale must both be in fp32, or both in fp64.")
        for tensor in tensors.tensors:
            if not tensor.is_contiguous() or tensor.dtype not in library.TYPES:
                raise ValueError(f"a tensor with strides {tensor.stride()} in {tensor.dtype} cannot be prepared.")
        block, layers = as_block(tensors.shift), (*tensors.qkv, tensors.out_proj)
        _add_attention_to(block, layers, tensors.bias_table, tensors.scale, tensors.attention_norm)
        _add_mlp_to(block, tensors.fc1, tensors.fc2, tensors.mlp_norm)
        if tensors.extra_norm is not None:
            block.extra_norm = as_norm(tensors.extra_norm, self.channels)
        return block


@lru_cache(maxsize=256)
def _plan_of_map(size: torch.Size, window: Lengths, mask_padding: bool, heads: int) -> library.Plan:
    """The kernel argument for maps of a size (B, *grid, C), without shift: each block has its own."""
    batch, *grid, channels = size
    return as_plan(WindowPlan(tuple(grid), window, mask_padding=mask_padding), batch, heads, channels // heads)


def run_blocks(prepared: PreparedBlocks, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Runs blocks one after the other, without gradients and drop path.

    Args:
        prepared: The blocks.
        x: The map (B, *grid, C), of any layout.
        out: Receives the map; may be x. None for new memory.

    Returns:
        `out`.
    """
    _check_map(x, prepared)
    plan, blocks = _plan_of_map(x.shape, prepared.window, prepared.mask_padding, prepared.heads), prepared.blocks
    out = x.new_empty(x.shape) if out is None else out
    fit(x.shape, out=out)
    x = as_tokens(x)
    run("run_blocks", x.dtype, (plan, len(blocks), blocks, as_map(x), as_map(out), None))
    return out


class PreparedProjection:
    """A linear layer and a norm that merge every window of a map into one token, prepared for `project`.

    Args:
        layer: The layer; its input is the window's tokens, joined column by column.
        norm: The norm of its output.
        window: Size (height, width) in tokens of the windows; tokens beyond the map are zeros.
    """

    def __init__(self, layer: Weights, norm: Norm, window: Pair) -> None:
        self._tensors = as_weights(layer), side_by_side(norm)
        self.wide, self.joined = layer[0].shape
        self.window, self.channels = window, self.joined // math.prod(window)
        self.is_double = layer[0].dtype == torch.float64
        self.layer = as_linear(self._tensors[0], self.wide, self.channels * math.prod(window))
        self.norm = as_norm(self._tensors[1], self.wide)


def project(prepared: PreparedProjection, x: Tensor) -> Tensor:
    """Joins the tokens of every window of a map, projects them and normalises the result, without gradients.

    Args:
        prepared: The layer and the norm.
        x: The map (..., H, W, C), of any layout; each frame of a video is projected by itself.

    Returns:
        A map (..., ceil(H / window height), ceil(W / window width), out).
    """
    _check_map(x, prepared)
    x, (*images, height, width, channels), (down, across) = as_tokens(x), x.shape, prepared.window
    out = x.new_empty(*images, -(-height // down), -(-width // across), prepared.wide)
    plan = _plan_of_map(torch.Size((math.prod(images), height, width, channels)), prepared.window, False, 1)
    run("project", x.dtype, (plan, prepared.layer, prepared.norm, prepared.wide, as_map(x), as_map(out)))
    return out


def _check_map(x: Tensor, prepared: PreparedBlocks | PreparedProjection) -> None:
    """Raises an error for a map that the prepared weights do not fit."""
    fit((*x.shape[:-1], prepared.channels), x=x)
    if not x.is_cpu or (x.dtype == torch.float64) is not prepared.is_double or x.dtype not in library.TYPES:
        needed = "fp64" if prepared.is_double else "fp32, bf16 or fp16"
        raise ValueError(f"the map is on {x.device} in {x.dtype}; expected one on a CPU in {needed} for these weights.")


class Copies:
    """Copies of small tensors, to see whether their values or addresses have changed.

    Args:
        tensors: The tensors, on a CPU and contiguous.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        if not all(tensor.is_cpu and tensor.is_contiguous() for tensor in tensors):
            raise ValueError("only contiguous tensors on a CPU can be compared.")
        self._tensors = list(tensors)
        self._copies = [each.detach().clone() for each in tensors]
        self._addresses = [tensor.data_ptr() for tensor in tensors]
        count = len(tensors)
        self._arguments = (
            count,
            (c_void_p * count)(*self._addresses),
            (c_void_p * count)(*(copy.data_ptr() for copy in self._copies)),
            (c_int64 * count)(*(tensor.nbytes for tensor in tensors)),
        )

    def are_equal(self) -> bool:
        """Whether all tensors have the same addresses and bytes as at the time of the copy."""
        if [tensor.data_ptr() for tensor in self._tensors] != self._addresses:
            return False
        return bool(library.load().are_equal(*self._arguments))
