"""The residual line as kernels: a layer norm, its factor of drop path and the main branch, read and written once.

In: pointers to tokens (rows of channels) and plain integers. Out: y = x + factor * (weight * (work - mean) / deviation
+ bias), and the other way round the gradients of `branch_out`, `weight` and `bias`; that of x is the gradient of y
itself.

What is written in capitals is known when a kernel is compiled. A program has BLOCK_ROWS whole rows at a time.
"""

import triton
import triton.language as tl

from swinv2.ops.triton.tiles import rounded


@triton.jit
def _load_rows(tokens, rows, channels, count, CHANNELS: tl.constexpr, PRECISE: tl.constexpr):
    """Whole rows; zeros where there is no such row or channel."""
    mask = (rows < count)[:, None] & (channels < CHANNELS)[None, :]
    pointers = tokens + rows.to(tl.int64)[:, None] * CHANNELS + channels[None, :]
    return tl.load(pointers, mask=mask, other=0.0).to(PRECISE)


@triton.jit
def _store_rows(tokens, rows, channels, count, values, CHANNELS: tl.constexpr):
    """Writes the rows and channels that there are."""
    mask = (rows < count)[:, None] & (channels < CHANNELS)[None, :]
    pointers = tokens + rows.to(tl.int64)[:, None] * CHANNELS + channels[None, :]
    tl.store(pointers, rounded(values, tokens.dtype.element_ty), mask=mask)


@triton.jit
def _load_factors(factors, rows, count, image_tokens, PRECISE: tl.constexpr):
    """The factor of drop path of each row's image."""
    return tl.load(factors + rows // image_tokens, mask=rows < count, other=0.0).to(PRECISE)


@triton.jit
def add_normalised(
    x,
    branch_out,
    weight,
    bias,
    factors,
    output,
    statistics,
    count,
    image_tokens,
    EPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    HAS_FACTORS: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """A residual line; a program has BLOCK_ROWS rows. The mean and the reciprocal of the deviation of row i are
    written to statistics (2, count)."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channels = tl.arange(0, BLOCK_CHANNELS)
    is_channel = channels < CHANNELS
    branch_rows = _load_rows(branch_out, rows, channels, count, CHANNELS, PRECISE)
    mean = tl.sum(branch_rows, 1) / CHANNELS
    # From the mean, not from a sum of squares: that would cancel.
    away = tl.where(is_channel[None, :], branch_rows - mean[:, None], 0.0)
    reciprocal = 1.0 / tl.sqrt(tl.sum(away * away, 1) / CHANNELS + EPS)
    tl.store(statistics + rows, mean, mask=rows < count)
    tl.store(statistics + count + rows, reciprocal, mask=rows < count)

    slope = tl.load(weight + channels, mask=is_channel, other=0.0).to(PRECISE)
    start = tl.load(bias + channels, mask=is_channel, other=0.0).to(PRECISE)
    branch = away * reciprocal[:, None] * slope[None, :] + start[None, :]
    if HAS_FACTORS:
        branch = branch * _load_factors(factors, rows, count, image_tokens, PRECISE)[:, None]
    main = _load_rows(x, rows, channels, count, CHANNELS, PRECISE)
    _store_rows(output, rows, channels, count, main + branch, CHANNELS)


@triton.jit
def add_normalised_backward(
    grad,
    branch_out,
    weight,
    factors,
    statistics,
    grad_branch_out,
    grad_weight_parts,
    grad_bias_parts,
    count,
    image_tokens,
    rounds,
    CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    HAS_FACTORS: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """The gradients. A program has `rounds` times BLOCK_ROWS rows, one block after another; parts are (programs,
    CHANNELS)."""
    program = tl.program_id(0)
    channels = tl.arange(0, BLOCK_CHANNELS)
    is_channel = channels < CHANNELS
    slope = tl.load(weight + channels, mask=is_channel, other=0.0).to(PRECISE)
    grad_slope = tl.zeros([BLOCK_CHANNELS], PRECISE)
    grad_start = tl.zeros([BLOCK_CHANNELS], PRECISE)
    for step in range(rounds):
        rows = (program * rounds + step) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        from_above = _load_rows(grad, rows, channels, count, CHANNELS, PRECISE)
        if HAS_FACTORS:
            from_above = from_above * _load_factors(factors, rows, count, image_tokens, PRECISE)[:, None]
        branch_rows = _load_rows(branch_out, rows, channels, count, CHANNELS, PRECISE)
        mean = tl.load(statistics + rows, mask=rows < count, other=0.0)
        reciprocal = tl.load(statistics + count + rows, mask=rows < count, other=0.0)
        unit = tl.where(is_channel[None, :], (branch_rows - mean[:, None]) * reciprocal[:, None], 0.0)
        grad_slope += tl.sum(from_above * unit, 0)
        grad_start += tl.sum(from_above, 0)
        grad_unit = from_above * slope[None, :]
        level = tl.sum(grad_unit, 1) / CHANNELS
        along = tl.sum(grad_unit * unit, 1) / CHANNELS
        grad_input = (grad_unit - level[:, None] - unit * along[:, None]) * reciprocal[:, None]
        _store_rows(grad_branch_out, rows, channels, count, grad_input, CHANNELS)
    tl.store(grad_weight_parts + program * CHANNELS + channels, grad_slope, mask=is_channel)
    tl.store(grad_bias_parts + program * CHANNELS + channels, grad_start, mask=is_channel)
