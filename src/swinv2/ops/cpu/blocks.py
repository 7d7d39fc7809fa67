"""Whole branches and runs of blocks on a CPU, each one call of a kernel.

In: maps (B, H, W, C) on a CPU, of any layout, and the tensors of a block. Out: maps, written into place. Weights are
read where they lie: nothing of them is packed or kept. Nothing here is differentiable.
"""

from collections.abc import Sequence

from torch import Tensor

from swinv2.ops.cpu import library
from swinv2.ops.cpu.arguments import (
    Norm,
    Weights,
    as_linear,
    as_map,
    as_norm,
    as_numbers,
    as_plan,
    as_tokens,
    as_weights,
    fit,
    fit_attention,
    run,
)
from swinv2.ops.windows import WindowPlan


def add_mlp(
    x: Tensor,
    widen: Weights,
    narrow: Weights,
    norm: Norm,
    out: Tensor,
    before: Tensor | None = None,
    work: Tensor | None = None,
) -> None:
    """x + factor * norm(narrow(GELU(widen(x)))), for every token.

    Args:
        x: Tokens (N, C).
        widen, narrow: Weight and bias of each linear layer.
        norm: Weight, bias, eps and factor.
        out: Gets the sums; may be x.
        before: (N, hidden), gets the GELU's input if it is given.
        work: (N, C), gets the norm's input if it is given.
    """
    (tokens, channels), hidden = x.shape, len(widen[0])
    fit(x.shape, x=x, work=work, out=out)
    fit((tokens, hidden), before=before)
    x, widen, narrow, norm = as_tokens(x), as_weights(widen), as_weights(narrow), _side_by_side(norm)
    block = library.Block(hidden=hidden)
    block.widen, block.narrow = as_linear(widen, hidden, channels), as_linear(narrow, channels, hidden)
    block.mlp_norm = as_norm(norm, channels)
    saved = library.Saved(hidden=as_map(before) or _NOTHING, mlp_work=as_map(work) or _NOTHING)
    plan = library.Plan(images=1, height=1, width=tokens, window_height=1, window_width=1, heads=1, dim=channels)
    run("run_blocks", x.dtype, (plan, 1, block, as_map(x), as_map(out), saved))


def add_attention(
    x: Tensor,
    qkv: Sequence[Weights],
    last: Weights,
    bias_table: Tensor,
    scale: Tensor,
    plan: WindowPlan,
    norm: Norm,
    out: Tensor,
    saved_qkv: Tensor | None = None,
    attended: Tensor | None = None,
    work: Tensor | None = None,
) -> None:
    """x + factor * norm(last(attention(q(x), k(x), v(x)))), each window by itself.

    Args:
        x: The map (B, H, W, C).
        qkv: Weight and bias of the layers of queries, keys and values; that of the keys has no bias.
        last: Weight and bias of the layer after the attention.
        bias_table, scale, plan: See `reference.window_attention`.
        norm: Weight, bias, eps and factor.
        out: Gets the sums; may be x.
        saved_qkv, attended, work: (B, H, W, 3 C), and (B, H, W, C) twice: get queries, keys and values, the attended
            map and the norm's input, if they are given.
    """
    batch, *grid, channels = x.shape
    fit(x.shape, x=x, attended=attended, work=work, out=out)
    fit((batch, *grid, 3 * channels), saved_qkv=saved_qkv)
    layers, norm, x = [as_weights(each) for each in (*qkv, last)], _side_by_side(norm), as_tokens(x)
    table, scale, _ = fit_attention(x.unflatten(3, (len(scale), -1)), bias_table, scale, None, plan)
    block = library.Block(*plan.shift)
    block.query, block.key, block.value, block.output = (as_linear(each, channels, channels) for each in layers)
    block.table, block.scale, block.attention_norm = as_numbers(table), as_numbers(scale), as_norm(norm, channels)
    saved = library.Saved(*(as_map(each) or _NOTHING for each in (saved_qkv, attended, work)))
    cut = as_plan(plan, batch, len(scale), channels // len(scale))
    run("run_blocks", x.dtype, (cut, 1, block, as_map(x), as_map(out), saved))


_NOTHING = library.Map()


def _side_by_side(norm: Norm) -> Norm:
    weight, bias, eps, factor = norm
    return weight.contiguous(), bias.contiguous(), eps, factor
