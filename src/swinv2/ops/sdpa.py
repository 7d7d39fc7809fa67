"""Cosine window attention on PyTorch's scaled_dot_product_attention: the same contract, no T x T weights kept.

In and out: as `reference.py`, without the weights. It never rolls a map and never builds a mask per window: under a
shift there are only four kinds of window (see `windows.WindowKind`), each is taken straight from the unshifted map,
and each needs one (T, T) mask at most. On a CPU `cpu/attention.py` does the attention where `can_run` or `is_compiled`
allow it: it has what torch's own lacks there.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from swinv2.ops import reference, windows
from swinv2.ops.bias import expand_bias
from swinv2.ops.cpu import attention as cpu
from swinv2.ops.cpu import library
from swinv2.ops.execution import ORDINARY, execution
from swinv2.ops.precision import SMALLEST_NORM, precise
from swinv2.ops.windows import Span, WindowKind, WindowPlan


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
    if torch._C._are_functorch_transforms_active():
        # torch.func hides from torch's attention that the bias wants a gradient, and it then has none.
        return reference.window_attention(q, k, v, bias_table, scale, plan, padded_value, dropout)[0]
    if runs_in_pieces(v, dropout):
        return cpu.window_attention(q, k, v, bias_table, scale, plan, padded_value)
    query = windows.pad(_with_length(q, scale[:, None]), plan)
    key = windows.pad(_with_length(k, 1.0), plan)
    value = windows.pad(v, plan, padded_value)
    bias = expand_bias(bias_table.to(v.dtype), plan.window)
    return windows.crop(_attend(query, key, value, bias, plan, dropout), plan)


def runs_in_pieces(v: Float[Tensor, "B H W heads head_dim"], dropout: float) -> bool:
    """Whether `cpu/attention.py` does the attention, which holds the weights of a few rows at a time."""
    return dropout == 0.0 and v.device.type == "cpu" and execution(v) in ORDINARY and library.refuse(v.dtype) is None


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, plan: WindowPlan, dropout: float) -> Tensor:
    """One call of torch's attention for each kind of window."""
    bands = []
    for rows in plan.spans(0):
        band = []
        for columns in plan.spans(1):
            kind = WindowKind(rows, columns)
            areas = [_take(_take(m, plan, 0, rows), plan, 1, columns) for m in (query, key, value)]
            tiles = [windows.partition(area, plan.window).transpose(1, 2) for area in areas]
            mask = bias
            if not kind.is_single_region:
                mask = bias.masked_fill(kind.hidden_pairs(bias.device), float("-inf"))
            attended = F.scaled_dot_product_attention(
                tiles[0], tiles[1], tiles[2], attn_mask=mask[None], dropout_p=dropout, scale=1.0
            )
            grid = (areas[0].shape[1], areas[0].shape[2])
            band.append(windows.merge(attended.transpose(1, 2), plan.window, grid))
        bands.append(_join(band, plan, 1))
    return _join(bands, plan, 0)


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
