"""Cosine window attention with PyTorch's scaled_dot_product_attention.

In and out: as `reference.py`, without the attention weights. It does not roll the map or build a mask for each window.
A shifted map has only four kinds of window (see `windows.WindowKind`); the windows of each kind are read directly from
the unshifted map and share one (T, T) mask at most.

Torch's operation may store the T x T weights of all its windows. If these need too much memory, the windows are
computed in chunks, and the backward pass computes the weights again. So memory is linear in the tokens.

Source: Liu et al., Swin Transformer V2, section 3.5 ("sequential self-attention computation").
"""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from swinv2.lengths import Lengths
from swinv2.ops import windows
from swinv2.ops.execution import Execution, execution
from swinv2.ops.precision import SMALLEST_NORM, precise
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.windows import Span, WindowKind, WindowPlan

WEIGHTS_BYTES = 2**27
"""Most memory for attention weights that exist at the same time, for each image."""


def window_attention(inputs: AttentionInputs) -> Float[Tensor, "B *grid heads head_dim"]:
    """Cosine attention inside every window of a map, by torch's attention."""
    plan, bias = inputs.plan, expand_bias(inputs.bias_table, inputs.plan.window)
    query = windows.pad(_scale_to_length(inputs.q, inputs.scale[:, None]), plan)
    key = windows.pad(_scale_to_length(inputs.k, 1.0), plan)
    value = windows.pad(inputs.v, plan, inputs.padded_value)
    return windows.crop(_attend_areas([query, key, value], plan, bias, inputs.dropout), plan)


def _attend_areas(
    areas: list[Tensor], plan: WindowPlan, bias: Tensor, dropout: float, spans: tuple[Span, ...] = ()
) -> Tensor:
    """Attends in an area of the padded maps, kind of window by kind of window.

    Args:
        areas: Queries, keys and values: the maps, cut to `spans`.
        plan: The windows.
        bias: The bias of every pair of tokens.
        dropout: See `AttentionInputs`.
        spans: The windows of the area along the first axes.

    Returns:
        The attended area; along the axes without a span, in the order of the unshifted map.
    """
    axis = len(spans)
    if axis == len(plan.grid):
        tiles = Tiles(*(_cut_windows(area, plan.window) for area in areas))
        attended = _attend(tiles, areas[2].shape[0], bias, WindowKind(spans), dropout)
        return _join_windows(attended, plan.window, areas[0].shape[1 : 1 + axis])
    parts = [
        _attend_areas([_take(area, plan, axis, span) for area in areas], plan, bias, dropout, (*spans, span))
        for span in plan.spans(axis)
    ]
    return _join_spans(parts, plan, axis)


def expand_bias(bias_table: Float[Tensor, "heads *table"], window: Lengths) -> Float[Tensor, "heads tokens tokens"]:
    """Looks up the bias of every pair of tokens, as `reference.expand_bias`, by copying slices of the table.

    In the reversed table, the biases of a query and a row of keys are a slice. The slice of the next query starts one
    entry earlier. This is done along the last axis first.
    """
    axes, tokens = len(window), math.prod(window)
    biases = bias_table.flip(list(range(1, 1 + axes)))
    for length in reversed(window):
        # The next axis of the table follows those of the queries, which are done, and those of the table that are not.
        biases = torch.stack([biases.narrow(axes, length - 1 - place, length) for place in range(length)], dim=1)
    return biases.reshape(bias_table.shape[0], tokens, tokens)


class Tiles(NamedTuple):
    """Queries, keys and values of windows of one kind, (N, heads, T, head_dim) each."""

    query: Tensor
    key: Tensor
    value: Tensor


def _attend(tiles: Tiles, images: int, bias: Tensor, kind: WindowKind, dropout: float) -> Tensor:
    """Torch's attention in windows of one kind, in chunks if the weights of all of them need too much memory."""
    run = execution(tiles.query)
    at_once = max(WEIGHTS_BYTES // (bias.numel() * tiles.query.element_size()), 1)
    if run is Execution.EAGER and at_once * images < len(tiles.query):
        needs_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*tiles, bias))
        attend = partial(checkpoint, _attend_at_once, use_reentrant=False) if needs_gradients else _attend_at_once
        chunks = zip(*(each.split(at_once) for each in tiles), strict=True)
        return torch.cat([attend(Tiles(*chunk), bias, kind, dropout) for chunk in chunks])
    attended = _attend_at_once(tiles, bias, kind, dropout)
    # An exported graph must not depend on the strides that torch's attention returns on this machine.
    return attended.clone(memory_format=torch.contiguous_format) if run is Execution.EXPORTED else attended


def _attend_at_once(tiles: Tiles, bias: Tensor, kind: WindowKind, dropout: float) -> Tensor:
    """Calls torch's attention for all windows of one kind."""
    mask = bias.to(tiles.value.dtype)
    if not kind.is_single_region:
        mask = mask.masked_fill(kind.hidden_pairs(bias.device), float("-inf"))
    return F.scaled_dot_product_attention(*tiles, attn_mask=mask[None], dropout_p=dropout, scale=1.0)


def _cut_windows(feature_map: Tensor, window: Lengths) -> Tensor:
    """As `windows.partition`, with the heads before the tokens; in one permutation, because each costs a copy."""
    (batch, *grid, heads, head_dim), axes = feature_map.shape, len(window)
    split = [part for length, side in zip(grid, window, strict=True) for part in (length // side, side)]
    counts, sides = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    tiles = feature_map.reshape(batch, *split, heads, head_dim)
    tiles = tiles.permute(0, *counts, 2 * axes + 1, *sides, 2 * axes + 2)
    return tiles.reshape(-1, heads, math.prod(window), head_dim)


def _join_windows(tiles: Tensor, window: Lengths, grid: Lengths) -> Tensor:
    """After torch's attention: undoes `_cut_windows`, for maps of size `grid`."""
    heads, head_dim, axes = tiles.shape[1], tiles.shape[3], len(window)
    counts = [length // side for length, side in zip(grid, window, strict=True)]
    split = tiles.reshape(-1, *counts, heads, *window, head_dim)
    order = [dim for axis in range(1, 1 + axes) for dim in (axis, axes + 1 + axis)]
    return split.permute(0, *order, axes + 1, 2 * axes + 2).reshape(-1, *grid, heads, head_dim)


def _scale_to_length(vectors: Tensor, length: Tensor | float) -> Tensor:
    """Scales vectors along the last axis to a length, in their own dtype; a zero vector stays zero.

    Norms are computed in fp32 at least. bf16 has the range of fp32, so the factor may be rounded to bf16. In fp16 the
    factor of a zero vector would be infinite, so the product is computed in fp32.
    """
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=precise(vectors.dtype))
    factors = length / norms.clamp_min(SMALLEST_NORM)
    if vectors.dtype == torch.float16:
        return (vectors * factors).to(vectors.dtype)
    return vectors * factors.to(vectors.dtype)


def _take(feature_map: Tensor, plan: WindowPlan, axis: int, span: Span) -> Tensor:
    """Reads the tokens of a span of windows from the unshifted map, in the order of the shifted map."""
    dim, size, window = axis + 1, plan.padded_grid[axis], plan.window[axis]
    start, length = span.start * window + plan.shift[axis], (span.stop - span.start) * window
    if (start, length) == (0, size):
        return feature_map
    wrapped = max(start + length - size, 0)
    taken = feature_map.narrow(dim, start, length - wrapped)
    return torch.cat([taken, feature_map.narrow(dim, 0, wrapped)], dim) if wrapped else taken


def _join_spans(parts: list[Tensor], plan: WindowPlan, axis: int) -> Tensor:
    """After torch's attention: joins parts of the shifted map along an axis, and undoes the shift."""
    dim, wrapped = axis + 1, plan.shift[axis]
    if wrapped:
        last = parts[-1]
        inside = last.shape[dim] - wrapped
        parts = [last.narrow(dim, inside, wrapped), *parts[:-1], last.narrow(dim, 0, inside)]
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]
