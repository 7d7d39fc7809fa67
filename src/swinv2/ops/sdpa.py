"""Cosine window attention with PyTorch's scaled_dot_product_attention.

In and out: as `reference.py`, without the attention weights. It does not roll the map or build a mask for each window.
A shifted map has only four kinds of window (see `windows.WindowKind`); the windows of each kind are read directly from
the unshifted map and share one (T, T) mask at most.

Torch's operation may store the T x T weights of all its windows. If these need too much memory, the windows are
computed in chunks, and the backward pass computes the weights again. So memory is linear in the tokens.

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
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.windows import Pair, Span, WindowKind, WindowPlan

WEIGHTS_BYTES = 2**27
"""Most memory for attention weights that exist at the same time, for each image."""


def window_attention(inputs: AttentionInputs) -> Float[Tensor, "B H W heads head_dim"]:
    """Cosine attention inside every window of a map, by torch's attention."""
    plan, bias = inputs.plan, expand_bias(inputs.bias_table, inputs.plan.window)
    query = windows.pad(_scale_to_length(inputs.q, inputs.scale[:, None]), plan)
    key = windows.pad(_scale_to_length(inputs.k, 1.0), plan)
    value = windows.pad(inputs.v, plan, inputs.padded_value)
    rows_of_windows = []
    for rows in plan.spans(0):
        row_of_windows = []
        for columns in plan.spans(1):
            kind = WindowKind(rows, columns)
            areas = [_take(_take(m, plan, 0, rows), plan, 1, columns) for m in (query, key, value)]
            tiles = Tiles(*(_cut_windows(area, plan.window) for area in areas))
            attended = _attend(tiles, inputs.v.shape[0], bias, kind, inputs.dropout)
            row_of_windows.append(_join_windows(attended, plan.window, (areas[0].shape[1], areas[0].shape[2])))
        rows_of_windows.append(_join_spans(row_of_windows, plan, 1))
    return windows.crop(_join_spans(rows_of_windows, plan, 0), plan)


def expand_bias(
    bias_table: Float[Tensor, "heads table_height table_width"], window: Pair
) -> Float[Tensor, "heads tokens tokens"]:
    """Looks up the bias of every pair of tokens, as `reference.expand_bias`, by copying slices of the table.

    In the reversed table, the biases of a query and a row of keys are a slice. The slice of the next query starts one
    entry earlier. This is done along the columns first, then along the rows.
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


def _cut_windows(feature_map: Tensor, window: Pair) -> Tensor:
    """As `windows.partition`, with the heads before the tokens; in one permutation, because each costs a copy."""
    batch, height, width, heads, head_dim = feature_map.shape
    split = (batch, height // window[0], window[0], width // window[1], window[1], heads, head_dim)
    tiles = feature_map.reshape(split).permute(0, 1, 3, 5, 2, 4, 6)
    return tiles.reshape(-1, heads, window[0] * window[1], head_dim)


def _join_windows(tiles: Tensor, window: Pair, grid: Pair) -> Tensor:
    """After torch's attention: undoes `_cut_windows`, for maps of size `grid`."""
    heads, head_dim = tiles.shape[1], tiles.shape[3]
    split = tiles.reshape(-1, grid[0] // window[0], grid[1] // window[1], heads, *window, head_dim)
    return split.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, *grid, heads, head_dim)


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
