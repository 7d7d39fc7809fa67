"""The kernels of the residual line: layer norm, drop path and sum, with one read and one write of each map.

In: pointers to tokens (rows of channels) and integers. Out: y = x + factor * (weight * (branch_out - mean) / deviation
+ bias); in the backward pass, the gradients of `branch_out`, `weight` and `bias`. The gradient of x is that of y.

Arguments in capitals are compile-time constants. A program computes BLOCK_ROWS whole rows at a time.
"""

import triton
import triton.language as tl

from swinv2.ops.triton.tiles import rounded


@triton.jit
def _load_rows(tokens, rows, channels, count, CHANNELS: tl.constexpr, PRECISE: tl.constexpr):
    """Loads whole rows of the norm; rows and channels beyond the end are zeros."""
    mask = (rows < count)[:, None] & (channels < CHANNELS)[None, :]
    pointers = tokens + rows.to(tl.int64)[:, None] * CHANNELS + channels[None, :]
    return tl.load(pointers, mask=mask, other=0.0).to(PRECISE)


@triton.jit
def _store_rows(tokens, rows, channels, count, values, CHANNELS: tl.constexpr):
    """Writes whole rows of the norm, without rows and channels beyond the end."""
    mask = (rows < count)[:, None] & (channels < CHANNELS)[None, :]
    pointers = tokens + rows.to(tl.int64)[:, None] * CHANNELS + channels[None, :]
    tl.store(pointers, rounded(values, tokens.dtype.element_ty), mask=mask)


@triton.jit
def _load_factors(factors, rows, count, image_tokens, PRECISE: tl.constexpr):
    """The drop path factor of each row's image."""
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
    """x + factors * norm(branch_out). `statistics` (2, count) receives each row's mean and reciprocal deviation."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channels = tl.arange(0, BLOCK_CHANNELS)
    is_channel = channels < CHANNELS
    branch_rows = _load_rows(branch_out, rows, channels, count, CHANNELS, PRECISE)
    mean = tl.sum(branch_rows, 1) / CHANNELS
    # The mean is subtracted before squaring: E[x^2] - mean^2 would lose precision.
    centred = tl.where(is_channel[None, :], branch_rows - mean[:, None], 0.0)
    reciprocal = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / CHANNELS + EPS)
    tl.store(statistics + rows, mean, mask=rows < count)
    tl.store(statistics + count + rows, reciprocal, mask=rows < count)

    norm_weight = tl.load(weight + channels, mask=is_channel, other=0.0).to(PRECISE)
    norm_bias = tl.load(bias + channels, mask=is_channel, other=0.0).to(PRECISE)
    branch = centred * reciprocal[:, None] * norm_weight[None, :] + norm_bias[None, :]
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
    """The gradients of `add_normalised`. A program computes `rounds` blocks of BLOCK_ROWS rows, one after another.
    `grad_weight_parts` and `grad_bias_parts` are (programs, CHANNELS)."""
    program = tl.program_id(0)
    channels = tl.arange(0, BLOCK_CHANNELS)
    is_channel = channels < CHANNELS
    norm_weight = tl.load(weight + channels, mask=is_channel, other=0.0).to(PRECISE)
    grad_weight = tl.zeros([BLOCK_CHANNELS], PRECISE)
    grad_bias = tl.zeros([BLOCK_CHANNELS], PRECISE)
    for step in range(rounds):
        rows = (program * rounds + step) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        grad_rows = _load_rows(grad, rows, channels, count, CHANNELS, PRECISE)
        if HAS_FACTORS:
            grad_rows = grad_rows * _load_factors(factors, rows, count, image_tokens, PRECISE)[:, None]
        branch_rows = _load_rows(branch_out, rows, channels, count, CHANNELS, PRECISE)
        mean = tl.load(statistics + rows, mask=rows < count, other=0.0)
        reciprocal = tl.load(statistics + count + rows, mask=rows < count, other=0.0)
        normalised = tl.where(is_channel[None, :], (branch_rows - mean[:, None]) * reciprocal[:, None], 0.0)
        grad_weight += tl.sum(grad_rows * normalised, 0)
        grad_bias += tl.sum(grad_rows, 0)
        grad_normalised = grad_rows * norm_weight[None, :]
        grad_mean = tl.sum(grad_normalised, 1) / CHANNELS
        projection = tl.sum(grad_normalised * normalised, 1) / CHANNELS
        grad_input = (grad_normalised - grad_mean[:, None] - normalised * projection[:, None]) * reciprocal[:, None]
        _store_rows(grad_branch_out, rows, channels, count, grad_input, CHANNELS)
    tl.store(grad_weight_parts + program * CHANNELS + channels, grad_weight, mask=is_channel)
    tl.store(grad_bias_parts + program * CHANNELS + channels, grad_bias, mask=is_channel)
