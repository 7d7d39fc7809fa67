"""Cosine window attention on PyTorch's scaled_dot_product_attention: the same contract, no T x T weights stored.

In and out: as `reference.py`, without the weights. It never rolls a map and never builds a mask per window: under a
shift there are only four kinds of window (see `windows.WindowKind`), each is taken straight from the unshifted map,
and each needs one (T, T) mask at most.

Torch's operation may hold the T x T weights of all windows that it is given. Where these would take much memory, it
attends in some windows at a time, and the backward pass computes them again: memory stays linear in the tokens.

Source: Liu et al., Swin Transformer V2, section 3.5 ("sequential self-attention computation").
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from swinv2.ops import windows
from swinv2.ops.execution import Execution, execution
from swinv2.ops.precision import SMALLEST_NORM, precise
from swinv2.ops.windows import Pair, Span, WindowKind, WindowPlan

WEIGHTS_BYTES = 2**27
"""What the attention weights of an image that exist at a time may take."""


def window_attention(
    q: Float[Tensor, "B H W heads head_dim"],
    k: Float[Tensor, "B H W heads head_dim"],
    v: Float[Tensor, "B H W heads head_dim"],
    bias_table: Float[Tensor, "heads table_height table_width"],
    scale: Float[Tensor, " heads"],
    plan: WindowPlan,
    padded_value: Float[Tensor, "heads head_dim"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H W heads head_dim"]:
    """Cosine attention inside every window of a map; arguments as in `reference.window_attention`."""
    query = windows.pad(_with_length(q, scale[:, None]), plan)
    key = windows.pad(_with_length(k, 1.0), plan)
    value = windows.pad(v, plan, padded_value)
    bias = expand_bias(bias_table, plan.window)
    rows_of_windows = []
    for rows in plan.spans(0):
        row_of_windows = []
        for columns in plan.spans(1):
            kind = WindowKind(rows, columns)
            areas = [_take(_take(m, plan, 0, rows), plan, 1, columns) for m in (query, key, value)]
            tiles = Tiles(*(_cut(area, plan.window) for area in areas))
            attended = _attend(tiles, v.shape[0], bias, kind, dropout)
            row_of_windows.append(_put(attended, plan.window, (areas[0].shape[1], areas[0].shape[2])))
        rows_of_windows.append(_join(row_of_windows, plan, 1))
    return windows.crop(_join(rows_of_windows, plan, 0), plan)


def expand_bias(
    bias_table: Float[Tensor, "heads table_height table_width"], window: Pair
) -> Float[Tensor, "heads tokens tokens"]:
    """Looks up the bias of every pair of tokens, as `reference.expand_bias` does, in whole runs of the table.

    Read backwards, the keys of a query lie in the table one after another, and from one query to the next the run
    starts one entry earlier: along the columns first, then the same along the rows.
    """
    height, width = window
    backwards = bias_table.flip(1, 2)
    columns = torch.stack([backwards[:, :, width - 1 - x : 2 * width - 1 - x] for x in range(width)], dim=1)
    rows = torch.stack([columns[:, :, height - 1 - y : 2 * height - 1 - y] for y in range(height)], dim=1)
    return rows.reshape(bias_table.shape[0], height * width, height * width)


class Tiles(NamedTuple):
    """Queries, keys and values of windows of one kind, (N, heads, T, head_dim) each."""

    query: Tensor
    key: Tensor
    value: Tensor


def _attend(tiles: Tiles, images: int, bias: Tensor, kind: WindowKind, dropout: float) -> Tensor:
    """Attends in windows, in some at a time if those of an image would take too much memory."""
    run = execution(tiles.query)
    at_once = max(WEIGHTS_BYTES // (bias.numel() * tiles.query.element_size()), 1)
    if run is Execution.EAGER and at_once * images < len(tiles.query):
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*tiles, bias))
        attend = partial(checkpoint, _attend_at_once, use_reentrant=False) if wanted else _attend_at_once
        runs = zip(*(each.split(at_once) for each in tiles), strict=True)
        return torch.cat([attend(Tiles(*some), bias, kind, dropout) for some in runs])
    attended = _attend_at_once(tiles, bias, kind, dropout)
    # A graph that is exported must not depend on the strides that this machine's attention returns.
    return attended.clone(memory_format=torch.contiguous_format) if run is Execution.EXPORTED else attended


def _attend_at_once(tiles: Tiles, bias: Tensor, kind: WindowKind, dropout: float) -> Tensor:
    mask = bias.to(tiles.value.dtype)
    if not kind.is_single_region:
        mask = mask.masked_fill(kind.hidden_pairs(bias.device), float("-inf"))
    return F.scaled_dot_product_attention(*tiles, attn_mask=mask[None], dropout_p=dropout, scale=1.0)


def _cut(feature_map: Tensor, window: Pair) -> Tensor:
    """As `windows.partition`, with the heads before the tokens: in one permutation, for each costs a copy."""
    batch, height, width, heads, head_dim = feature_map.shape
    split = (batch, height // window[0], window[0], width // window[1], window[1], heads, head_dim)
    tiles = feature_map.reshape(split).permute(0, 1, 3, 5, 2, 4, 6)
    return tiles.reshape(-1, heads, window[0] * window[1], head_dim)


def _put(tiles: Tensor, window: Pair, grid: Pair) -> Tensor:
    """Undoes `_cut`, for maps of size `grid`."""
    heads, head_dim = tiles.shape[1], tiles.shape[3]
    split = tiles.reshape(-1, grid[0] // window[0], grid[1] // window[1], heads, *window, head_dim)
    return split.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, *grid, heads, head_dim)


def _with_length(vectors: Tensor, length: Tensor | float) -> Tensor:
    """Scales vectors along the last axis to a length, in their own dtype; a zero vector stays zero.

    Norms are taken in fp32. bf16 has fp32's range, so the factor may be rounded to it; in fp16 the factor of a vector
    of zeros would be infinite, so there the product is taken in fp32.
    """
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=precise(vectors.dtype))
    factors = length / norms.clamp_min(SMALLEST_NORM)
    if vectors.dtype == torch.float16:
        return (vectors * factors).to(vectors.dtype)
    return vectors * factors.to(vectors.dtype)


def _take(feature_map: Tensor, plan: WindowPlan, axis: int, span: Span) -> Tensor:
    """The tokens of a run of windows along an axis, in the order of the shifted map, from the unshifted one."""
    dim, size, window = axis + 1, plan.padded_grid[axis], plan.window[axis]
    start, length = span.start * window + plan.shift[axis], (span.stop - span.start) * window
    if (start, length) == (0, size):
        return feature_map
    wrapped = max(start + length - size, 0)
    taken = feature_map.narrow(dim, start, length - wrapped)
    return torch.cat([taken, feature_map.narrow(dim, 0, wrapped)], dim) if wrapped else taken


def _join(parts: list[Tensor], plan: WindowPlan, axis: int) -> Tensor:
    """Joins parts along an axis, in the order of the shifted map, and takes the shift back."""
    dim, wrapped = axis + 1, plan.shift[axis]
    if wrapped:
        last = parts[-1]
        inside = last.shape[dim] - wrapped
        parts = [last.narrow(dim, inside, wrapped), *parts[:-1], last.narrow(dim, 0, inside)]
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]
