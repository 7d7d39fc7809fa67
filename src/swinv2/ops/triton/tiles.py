"""Functions that all kernels use: positions of a window's tokens in the map, and tiles of tokens.

In: pointers, strides and integers. Out: tiles in registers. A tile is consecutive tokens of one window and one head. It
is read from the unshifted map: index arithmetic computes the cyclic shift and the padding.

Arguments in capitals are compile-time constants. `plan` is (height and width of the map, number of windows down and
across, shift down and across). `strides` are those of images, rows, columns and heads.
"""

import triton
import triton.language as tl

from swinv2.ops import precision

LOG2_E = tl.constexpr(1.4426950408889634)
SMALLEST_SQUARE = tl.constexpr(precision.SMALLEST_NORM**2)

COUNTS = ("heads", "all_windows", "splits")
"""Arguments that Triton must not specialise: it would compile a kernel again for multiples of 16."""

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU."""


@triton.jit
def multiply(left, right, PRECISE: tl.constexpr, INPUT_PRECISION: tl.constexpr):
    """left @ right, with sums in PRECISE."""
    if INTERPRETED:
        # The interpreter stores bf16 as integers and would multiply those.
        left, right = left.to(PRECISE), right.to(PRECISE)
    return tl.dot(left, right, input_precision=INPUT_PRECISION, out_dtype=PRECISE)


@triton.jit
def rounded(numbers, DTYPE: tl.constexpr):
    """Rounds numbers to the nearest in a dtype."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        # The interpreter truncates.
        bits = numbers.to(tl.float32).to(tl.int32, bitcast=True)
        numbers = (bits + 0x7FFF + (bits >> 16 & 1)).to(tl.float32, bitcast=True)
    return numbers.to(DTYPE)


@triton.jit
def _locate_along(window, offset, windows, shift, WINDOW: tl.constexpr):
    """Positions of a window's tokens in the unshifted map, along one axis."""
    token = window * WINDOW + offset + shift
    return tl.where(token >= windows * WINDOW, token - windows * WINDOW, token)


@triton.jit
def locate(tokens, window, head, plan, WINDOW_HEIGHT: tl.constexpr, WINDOW_WIDTH: tl.constexpr):
    """Positions of a window's tokens in the map.

    Args:
        tokens: Indices of the tokens in the window.
        window: Index of the window among those of all images.
        head: Index of the head.

    Returns:
        Image, head, rows, columns, and whether a token is in the map (not padding).
    """
    down, across = plan[2], plan[3]
    rows = _locate_along(window // across % down, tokens // WINDOW_WIDTH, down, plan[4], WINDOW_HEIGHT)
    columns = _locate_along(window % across, tokens % WINDOW_WIDTH, across, plan[5], WINDOW_WIDTH)
    own = (tokens < WINDOW_HEIGHT * WINDOW_WIDTH) & (rows < plan[0]) & (columns < plan[1])
    return window // (down * across), head, rows, columns, own


@triton.jit
def _region_along(window, offset, size, windows, shift, WINDOW: tl.constexpr, MASK_PADDING: tl.constexpr):
    """Regions along one axis: 1 for tokens that the shift moved to the other end, 2 for hidden padding, otherwise 0."""
    shifted = window * WINDOW + offset
    region = tl.where(shifted >= windows * WINDOW - shift, 1, 0)
    if MASK_PADDING:
        region = tl.where(_locate_along(window, offset, windows, shift, WINDOW) >= size, 2, region)
    return region


@triton.jit
def _regions(tokens, window, plan, WINDOW_HEIGHT: tl.constexpr, WINDOW_WIDTH: tl.constexpr, MASK_PADDING: tl.constexpr):
    """Regions of a window's tokens."""
    down, across = plan[2], plan[3]
    offsets = tokens // WINDOW_WIDTH, tokens % WINDOW_WIDTH
    row = _region_along(window // across % down, offsets[0], plan[0], down, plan[4], WINDOW_HEIGHT, MASK_PADDING)
    column = _region_along(window % across, offsets[1], plan[1], across, plan[5], WINDOW_WIDTH, MASK_PADDING)
    return row * 3 + column


@triton.jit
def _may_be_mixed_along(window, size, windows, shift, WINDOW: tl.constexpr, MASK_PADDING: tl.constexpr):
    """Whether a window extends into another region, along one axis."""
    end = windows * WINDOW
    if MASK_PADDING:
        end = tl.minimum(end, size)
    return (window + 1) * WINDOW > end - shift


@triton.jit
def may_be_mixed(window, plan, WINDOW_HEIGHT: tl.constexpr, WINDOW_WIDTH: tl.constexpr, MASK_PADDING: tl.constexpr):
    """Whether a window may have more than one region; most windows have one."""
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
    """Sets logits to minus infinity for pairs in different regions and for keys beyond the window."""
    if UNEVEN:
        logits = tl.where((keys < WINDOW_HEIGHT * WINDOW_WIDTH)[None, :], logits, float("-inf"))
    if HAS_REGIONS:  # noqa: SIM102 - HAS_REGIONS is known at compile time, `mixed` only at run time
        if mixed:
            of_queries = _regions(queries, window, plan, WINDOW_HEIGHT, WINDOW_WIDTH, MASK_PADDING)
            of_keys = _regions(keys, window, plan, WINDOW_HEIGHT, WINDOW_WIDTH, MASK_PADDING)
            logits = tl.where(of_queries[:, None] == of_keys[None, :], logits, float("-inf"))
    return logits


@triton.jit
def _point_to(feature_map, strides, locations, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Pointers to the vectors of tokens, and the mask of valid pointers."""
    image, head, rows, columns, own = locations
    dims = tl.arange(0, BLOCK_DIM)
    start = feature_map + image.to(tl.int64) * strides[0] + head * strides[3]
    pointers = start + ((rows * strides[1] + columns * strides[2])[:, None] + dims[None, :])
    return pointers, own[:, None] & (dims < HEAD_DIM)[None, :]


@triton.jit
def load(feature_map, strides, locations, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Loads vectors of tokens; zeros for padding tokens."""
    pointers, mask = _point_to(feature_map, strides, locations, HEAD_DIM, BLOCK_DIM)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def load_values(
    v, strides, padded_value, locations, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, PADDED: tl.constexpr
):
    """Loads values of tokens; `padded_value` (heads, HEAD_DIM) for padding tokens."""
    values = load(v, strides, locations, HEAD_DIM, BLOCK_DIM)
    if PADDED:
        dims = tl.arange(0, BLOCK_DIM)
        padding = tl.load(padded_value + locations[1] * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0.0)
        values = tl.where(locations[4][:, None], values, padding[None, :])
    return values


@triton.jit
def store(feature_map, strides, locations, vectors, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Writes vectors of tokens, without padding tokens."""
    pointers, mask = _point_to(feature_map, strides, locations, HEAD_DIM, BLOCK_DIM)
    tl.store(pointers, rounded(vectors, feature_map.dtype.element_ty), mask=mask)


@triton.jit
def reciprocal_of_root(squares, DTYPE: tl.constexpr):
    """1 / sqrt(squares), rounded correctly for fp32 and approximate for 16 bits."""
    if tl.float32 == DTYPE:
        return tl.div_rn(1.0, tl.sqrt_rn(squares))
    if tl.float64 == DTYPE:
        return 1.0 / tl.sqrt(squares)
    return tl.rsqrt(squares)


@triton.jit
def reciprocal_norms(vectors, PRECISE: tl.constexpr):
    """Reciprocal norms of vectors; a smaller norm than SMALLEST_NORM is replaced by it."""
    precise = vectors.to(PRECISE)
    return reciprocal_of_root(tl.maximum(tl.sum(precise * precise, 1), SMALLEST_SQUARE), vectors.dtype)


@triton.jit
def _entries_of(tokens, WINDOW_WIDTH: tl.constexpr):
    """The terms of tokens in the index of a bias table entry: the entry of a pair is MIDDLE + query term - key term.

    A term is a sum of two: the offset in a run of tokens, and the start of the run, which is the same for all threads.
    """
    # In Triton's layout of products, neighbouring columns of a thread are in one run.
    RUN: tl.constexpr = 8
    if WINDOW_WIDTH % RUN == 0:
        # runs // RUNS * (2 * WINDOW_WIDTH - 1) + runs % RUNS * RUN, where RUNS = WINDOW_WIDTH // RUN; unsigned numbers
        # are divided faster.
        runs = tokens.to(tl.uint32) // RUN
        return tokens % RUN, (runs * RUN + runs // (WINDOW_WIDTH // RUN) * (WINDOW_WIDTH - 1)).to(tl.int32)
    return tokens % WINDOW_WIDTH, tokens // WINDOW_WIDTH * (2 * WINDOW_WIDTH - 1)


@triton.jit
def pair_entries(queries, keys, WINDOW_HEIGHT: tl.constexpr, WINDOW_WIDTH: tl.constexpr):
    """Index of every pair's entry in the bias table of a head, and whether both tokens are inside the window."""
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
    """Loads the bias of every pair of tokens, in the dtype of the table; undefined for tokens beyond the window."""
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
    # Not tl.load: it has its own layout, and Triton would convert tensors between both layouts through shared memory.
    return tl.inline_asm_elementwise(
        "ld.global.nc.f32 $0, [$1];", "=f,l", [pointers.to(tl.int64)], dtype=tl.float32, is_pure=True, pack=1
    )
