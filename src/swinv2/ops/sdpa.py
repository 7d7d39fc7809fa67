"""Cosine window attention on PyTorch's scaled_dot_product_attention: the same contract, no T x T weights kept.

In and out: as `reference.py`, without the weights. It never rolls a map and never builds a mask per window: under a
shift there are only four kinds of window (see `windows.WindowKind`), each is taken straight from the unshifted map,
and each needs one (T, T) mask at most.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from swinv2.ops import windows
from swinv2.ops.reference import expand_bias, normalise
from swinv2.ops.windows import Span, WindowPlan


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
    query = windows.pad((normalise(q) * scale[:, None]).to(v.dtype), plan)
    key = windows.pad(normalise(k).to(v.dtype), plan)
    value = windows.pad(v, plan, padded_value)
    bias = expand_bias(bias_table, plan.window).to(v.dtype)

    bands = []
    for rows in plan.spans(0):
        band = []
        for columns in plan.spans(1):
            kind = windows.WindowKind(rows, columns)
            area = [_take(_take(m, plan, 0, rows), plan, 1, columns) for m in (query, key, value)]
            grid = (area[0].shape[1], area[0].shape[2])
            tiles = [windows.partition(m, plan.window).transpose(1, 2) for m in area]
            mask = bias
            if not kind.is_single_region:
                mask = bias.masked_fill(kind.hidden_pairs(q.device), float("-inf"))
            attended = F.scaled_dot_product_attention(*tiles, attn_mask=mask[None], dropout_p=dropout, scale=1.0)
            band.append(windows.merge(attended.transpose(1, 2), plan.window, grid))
        bands.append(_join(band, plan, 1))
    return windows.crop(_join(bands, plan, 0), plan)


def _take(feature_map: Tensor, plan: WindowPlan, axis: int, span: Span) -> Tensor:
    """The tokens of a run of windows along an axis, in the order of the shifted map, from the unshifted one."""
    dim, size, window = axis + 1, plan.padded_grid[axis], plan.window[axis]
    start, length = span.start * window + plan.shift[axis], (span.stop - span.start) * window
    wrapped = max(start + length - size, 0)
    taken = feature_map.narrow(dim, start, length - wrapped)
    return torch.cat([taken, feature_map.narrow(dim, 0, wrapped)], dim) if wrapped else taken


def _join(pieces: list[Tensor], plan: WindowPlan, axis: int) -> Tensor:
    """Puts pieces along an axis together, in the order of the shifted map, and takes the shift back."""
    dim, wrapped = axis + 1, plan.shift[axis]
    if wrapped:
        last = pieces[-1]
        inside = last.shape[dim] - wrapped
        pieces = [last.narrow(dim, inside, wrapped), *pieces[:-1], last.narrow(dim, 0, inside)]
    return torch.cat(pieces, dim) if len(pieces) > 1 else pieces[0]
