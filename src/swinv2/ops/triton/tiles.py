"""What the kernels share: where the tokens of a window are in the map, and tiles of them.

In: pointers, strides and plain integers. Out: tiles in registers. A tile is a run of tokens of one window and one head;
it is read from the unshifted map: the cyclic shift, its wrap-around and the padding tokens are index arithmetic.

What is written in capitals is known when a kernel is compiled. `plan` is (height and width of the map, number of
windows down and across, shift down and across); `strides` are those of images, rows, columns and heads.
"""

import triton
import triton.language as tl

from swinv2.ops import precision

LOG2_E = tl.constexpr(1.4426950408889634)
SMALLEST_SQUARE = tl.constexpr(precision.SMALLEST_NORM**2)

COUNTS = ("heads", "all_windows", "splits")
"""Arguments of kernels that are not compiled anew where they happen to be multiples of 16."""

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU."""


@triton.jit
def multiply(left, right, PRECISE: tl.constexpr, INPUT_PRECISION: tl.constexpr):
    """left @ right, summed up in PRECISE."""
    if INTERPRETED:
        # It keeps bf16 as bits, and would multiply those.
        left, right = left.to(PRECISE), right.to(PRECISE)
    return tl.dot(left, right, input_precision=INPUT_PRECISION, out_dtype=PRECISE)


@triton.jit
def rounded(numbers, DTYPE: tl.constexpr):
    """Numbers in a dtype, the nearest."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        # It cuts the last bits off.
        bits = numbers.to(tl.float32).to(tl.int32, bitcast=True)
        numbers = (bits + 0x7FFF + (bits >> 16 & 1)).to(tl.float32, bitcast=True)
    return numbers.to(DTYPE)


@triton.jit
def _locate_along(window, offset, windows, shift, WINDOW: tl.constexpr):
    """Along one axis: where tokens of a window are in the unshifted map."""
    token = window * WINDOW + offset + shift
    return tl.where(token >= windows * WINDOW, token - windows * WINDOW, token)


@triton.jit
def locate(tokens, window, head, plan, WINDOW_HEIGHT: tl.constexpr, WINDOW_WIDTH: tl.constexpr):
    """Where tokens of a window are.

    Args:
        tokens: Their numbers in the window.
        window: Number of the window, through all images.
        head: Number of the head.

    Returns:
        Image, head, rows, columns, and whether they are the map's own.
    """
    down, across = plan[2], plan[3]
    rows = _locate_along(window // across % down, tokens // WINDOW_WIDTH, down, plan[4], WINDOW_HEIGHT)
    columns = _locate_along(window % across, tokens % WINDOW_WIDTH, across, plan[5], WINDOW_WIDTH)
    own = (tokens < WINDOW_HEIGHT * WINDOW_WIDTH) & (rows < plan[0]) & (columns < plan[1])
    return window // (down * across), head, rows, columns, own


@triton.jit
def _region_along(window, offset, size, windows, shift, WINDOW: tl.constexpr, MASK_PADDING: tl.constexpr):
    """Along one axis: 0, or 1 for what the shift brought to the other end, or 2 for the map's padding."""
    shifted = window * WINDOW + offset
    region = tl.where(shifted >= windows * WINDOW - shift, 1, 0)
    if MASK_PADDING:
        region = tl.where(_locate_along(window, offset, windows, shift, WINDOW) >= size, 2, region)
    return region


@triton.jit
def _regions(tokens, window, plan, WINDOW_HEIGHT: tl.constexpr, WINDOW_WIDTH: tl.constexpr, MASK_PADDING: tl.constexpr):
    """Regions of tokens of a window."""
    down, across = plan[2], plan[3]
    offsets = tokens // WINDOW_WIDTH, tokens % WINDOW_WIDTH
    row = _region_along(window // across % down, offsets[0], plan[0], down, plan[4], WINDOW_HEIGHT, MASK_PADDING)
    column = _region_along(window % across, offsets[1], plan[1], across, plan[5], WINDOW_WIDTH, MASK_PADDING)
    return row * 3 + column


@triton.jit
def _may_be_mixed_along(window, size, windows, shift, WINDOW: tl.constexpr, MASK_PADDING: tl.constexpr):
    """Along one axis: whether a window reaches to where another region begins."""
    end = windows * WINDOW
    if MASK_PADDING:
        end = tl.minimum(end, size)
    return (window + 1) * WINDOW > end - shift


@triton.jit
def may_be_mixed(window, plan, WINDOW_HEIGHT: tl.constexpr, WINDOW_WIDTH: tl.constexpr, MASK_PADDING: tl.constexpr):
    """Whether a window may have more than one region: most have one."""
    down, across = plan[2], plan[3]
    return _may_be_mixed_along(
        window // across % down, plan[0], down, plan[4], WINDOW_HEIGHT, MASK_PADDING
    ) | _may_be_mixed_along(window % across, plan[1], across, plan[5], WINDOW_WIDTH, MASK_PADDING)


@triton.jit
def hide(
    logits,
    queries,
    keys,
    window,
    mixed,
    plan,
    WINDOW_HEIGHT: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr,
    MASK_PADDING: tl.constexpr,
    HAS_REGIONS: tl.constexpr,
    UNEVEN: tl.constexpr,
):
    """Minus infinity for pairs of different regions, and for the padding keys of a tile."""
    if UNEVEN:
        logits = tl.where((keys < WINDOW_HEIGHT * WINDOW_WIDTH)[None, :], logits, float("-inf"))
    if HAS_REGIONS:  # noqa: SIM102 - one is known when a kernel is compiled, the other when it runs
        if mixed:
            of_queries = _regions(queries, window, plan, WINDOW_HEIGHT, WINDOW_WIDTH, MASK_PADDING)
            of_keys = _regions(keys, window, plan, WINDOW_HEIGHT, WINDOW_WIDTH, MASK_PADDING)
            logits = tl.where(of_queries[:, None] == of_keys[None, :], logits, float("-inf"))
    return logits


@triton.jit
def _point_to(feature_map, strides, locations, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Pointers to the vectors of tokens, and which of them there are."""
    image, head, rows, columns, own = locations
    dims = tl.arange(0, BLOCK_DIM)
    start = feature_map + image.to(tl.int64) * strides[0] + head * strides[3]
    pointers = start + ((rows * strides[1] + columns * strides[2])[:, None] + dims[None, :])
    return pointers, own[:, None] & (dims < HEAD_DIM)[None, :]


@triton.jit
def load(feature_map, strides, locations, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Vectors of tokens; zeros for those that are not the map's own."""
    pointers, mask = _point_to(feature_map, strides, locations, HEAD_DIM, BLOCK_DIM)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def load_values(
    v, strides, padded_value, locations, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, PADDED: tl.constexpr
):
    """Values of tokens; padding tokens carry `padded_value` (heads, HEAD_DIM)."""
    values = load(v, strides, locations, HEAD_DIM, BLOCK_DIM)
    if PADDED:
        dims = tl.arange(0, BLOCK_DIM)
        padding = tl.load(padded_value + locations[1] * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0.0)
        values = tl.where(locations[4][:, None], values, padding[None, :])
    return values


@triton.jit
def store(feature_map, strides, locations, vectors, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Writes vectors of the map's own tokens."""
    pointers, mask = _point_to(feature_map, strides, locations, HEAD_DIM, BLOCK_DIM)
    tl.store(pointers, rounded(vectors, feature_map.dtype.element_ty), mask=mask)


@triton.jit
def reciprocal_of_root(squares, DTYPE: tl.constexpr):
    """1 / sqrt(squares), as exact as what comes of numbers in a dtype deserves."""
    if tl.float32 == DTYPE:
        return tl.div_rn(1.0, tl.sqrt_rn(squares))
    if tl.float64 == DTYPE:
        return 1.0 / tl.sqrt(squares)
    return tl.rsqrt(squares)


@triton.jit
def reciprocal_norms(vectors, PRECISE: tl.constexpr):
    """Reciprocal lengths of vectors; what counts as zero has the smallest length."""
    precise = vectors.to(PRECISE)
    return reciprocal_of_root(tl.maximum(tl.sum(precise * precise, 1), SMALLEST_SQUARE), vectors.dtype)


@triton.jit
def _entries_of(tokens, WINDOW_WIDTH: tl.constexpr):
    """A query's part of the entry that a pair has in the bias table; a key's is taken from it. In two terms: what
    neighbours in a run differ by, and what all of them share, which is the same for all threads."""
    # As Triton lays products out, neighbours among the columns of a thread are in one run.
    RUN: tl.constexpr = 8
    if WINDOW_WIDTH % RUN == 0:
        # Unsigned, which is divided in two steps; runs // RUNS * (2 * WINDOW_WIDTH - 1) + runs % RUNS * RUN.
        runs = tokens.to(tl.uint32) // RUN
        return tokens % RUN, (runs * RUN + runs // (WINDOW_WIDTH // RUN) * (WINDOW_WIDTH - 1)).to(tl.int32)
    return tokens % WINDOW_WIDTH, tokens // WINDOW_WIDTH * (2 * WINDOW_WIDTH - 1)


@triton.jit
def pair_entries(queries, keys, WINDOW_HEIGHT: tl.constexpr, WINDOW_WIDTH: tl.constexpr):
    """Entry of every pair of tokens in one head's bias table, row by row, and whether there is such a pair."""
    TOKENS: tl.constexpr = WINDOW_HEIGHT * WINDOW_WIDTH
    MIDDLE: tl.constexpr = (2 * WINDOW_HEIGHT - 1) * (2 * WINDOW_WIDTH - 1) // 2
    own, shared = _entries_of(queries, WINDOW_WIDTH)
    key_own, key_shared = _entries_of(keys, WINDOW_WIDTH)
    entries = (own + shared + MIDDLE)[:, None] - (key_own + key_shared)[None, :]
    return entries, (queries < TOKENS)[:, None] & (keys < TOKENS)[None, :]


@triton.jit
def load_bias(
    bias_table,
    head,
    queries,
    keys,
    WINDOW_HEIGHT: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr,
    UNEVEN: tl.constexpr,
):
    """Bias of every pair of tokens, in the dtype of the table; any entry for the padding of a tile."""
    TABLE: tl.constexpr = (2 * WINDOW_HEIGHT - 1) * (2 * WINDOW_WIDTH - 1)
    TOKENS: tl.constexpr = WINDOW_HEIGHT * WINDOW_WIDTH
    if UNEVEN:
        queries, keys = tl.minimum(queries, TOKENS - 1), tl.minimum(keys, TOKENS - 1)
    own, shared = _entries_of(queries, WINDOW_WIDTH)
    pointers = (bias_table + head * TABLE + TABLE // 2 + (own + shared))[:, None]
    own, shared = _entries_of(keys, WINDOW_WIDTH)
    pointers = pointers - own[None, :] - shared[None, :]
    if INTERPRETED:
        return tl.load(pointers)
    # A load would be laid out for itself, and what is computed with it too, through shared memory and twice.
    return tl.inline_asm_elementwise(
        "ld.global.nc.f32 $0, [$1];", "=f,l", [pointers.to(tl.int64)], dtype=tl.float32, is_pure=True, pack=1
    )
