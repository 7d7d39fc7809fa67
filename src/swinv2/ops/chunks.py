"""Window attention some windows at a time, for forms that hold the T x T weights of all windows they are given.

In and out: as `reference.py`, without the weights; and a form that does the work. Windows do not depend on each other,
so each is a map of its own: windows that are cut alike are taken from the map as a batch of small maps, the form
attends in a chunk of them, and the answers are put back. With gradients, each chunk is computed again in the backward
pass. So T x T tensors exist for the windows of one chunk, and what is kept is linear in the tokens.

Source: Liu et al., Swin Transformer V2, section 3.5 ("sequential self-attention computation").
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from swinv2.ops.execution import is_transformed
from swinv2.ops.precision import at_least_fp32
from swinv2.ops.windows import Span, WindowPlan, merge, partition


def window_attention(
    form: Callable[..., Tensor],
    chunk_size: int,
    q: Float[Tensor, "B H W heads head_dim"],
    k: Float[Tensor, "B H W heads head_dim"],
    v: Float[Tensor, "B H W heads head_dim"],
    bias_table: Float[Tensor, "heads table_height table_width"],
    scale: Float[Tensor, " heads"],
    plan: WindowPlan,
    padded_value: Float[Tensor, "heads head_dim"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H W heads head_dim"]:
    """Cosine attention inside every window of a map; the other arguments are those of `reference.window_attention`.

    Args:
        form: Takes them too, and returns the attended map.
        chunk_size: Windows that it attends in at a time, those of all images counted together.
    """
    # Their gradients are sums over the chunks: they must not be rounded at each.
    shared = tuple(None if t is None else at_least_fp32(t) for t in (bias_table, scale, padded_value))
    # Windows with filling tokens are maps of their own size, whether these are hidden or not.
    rows, columns = (replace(plan, mask_padding=True).spans(axis) for axis in (0, 1))
    bands = []
    for down in rows:
        band = []
        for across in columns:
            areas = [_take(_take(m, plan, 0, down), plan, 1, across) for m in (q, k, v)]
            part = _plan_of_one(plan, down, across)
            maps = [partition(area, part.grid).unflatten(1, part.grid) for area in areas]
            chunks = zip(*(m.split(chunk_size) for m in maps), strict=True)
            attended = [_run(form, *chunk, *shared, part, dropout) for chunk in chunks]
            band.append(merge(torch.cat(attended).flatten(1, 2), part.grid, (areas[0].shape[1], areas[0].shape[2])))
        bands.append(_join(band, plan, 1))
    return _join(bands, plan, 0)


def _run(form: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """_attend(form, *arguments), computed again in the backward pass if there is one."""
    wanted = any(isinstance(argument, Tensor) and argument.requires_grad for argument in arguments)
    # torch.func and forward-mode differentiation cannot transform checkpoints.
    if not (wanted and torch.is_grad_enabled()) or is_transformed():
        return _attend(form, *arguments)
    dropout = arguments[-1]
    return checkpoint(_attend, form, *arguments, use_reentrant=False, preserve_rng_state=dropout > 0)


def _attend(
    form: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    scale: Tensor,
    padded_value: Tensor | None,
    plan: WindowPlan,
    dropout: float,
) -> Tensor:
    padded_value = None if padded_value is None else padded_value.to(v.dtype)
    return form(q, k, v, bias_table, scale, plan, padded_value, dropout)


def _plan_of_one(plan: WindowPlan, down: Span, across: Span) -> WindowPlan:
    """How a map is cut that is one window of a larger one: not at all, but it may be filled up, and have regions."""
    height, width = (span.unmoved + span.wrapped for span in (down, across))
    shift = (plan.shift[0] if down.wrapped else 0, plan.shift[1] if across.wrapped else 0)
    part = WindowPlan((height, width), plan.window, shift, plan.mask_padding)
    if torch.compiler.is_compiling():
        # It remembers them now: torch.compile lets nothing be remembered inside a checkpoint.
        _ = part.kinds
    return part


def _take(feature_map: Tensor, plan: WindowPlan, axis: int, span: Span) -> Tensor:
    """The tokens of a run of windows along an axis of the unshifted map, filling left out. A window across the map's
    edge begins with the tokens that the shift puts at its end."""
    dim, windows = axis + 1, span.stop - span.start
    start = min(span.start * plan.window[axis] + plan.shift[axis], plan.grid[axis])
    taken = feature_map.narrow(dim, start, windows * span.unmoved)
    return torch.cat([feature_map.narrow(dim, 0, span.wrapped), taken], dim) if span.wrapped else taken


def _join(pieces: list[Tensor], plan: WindowPlan, axis: int) -> Tensor:
    """Puts together what `_take` took."""
    dim, wrapped, last = axis + 1, min(plan.shift[axis], plan.grid[axis]), pieces[-1]
    if wrapped:
        pieces = [last.narrow(dim, 0, wrapped), *pieces[:-1], last.narrow(dim, wrapped, last.shape[dim] - wrapped)]
    return torch.cat(pieces, dim) if len(pieces) > 1 else pieces[0]
