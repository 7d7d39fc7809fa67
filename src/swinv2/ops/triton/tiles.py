"""What the kernels share: where the tokens of a window lie in the map, and tiles of them.

In: pointers, strides and plain integers. Out: tiles in registers. A tile is a run of tokens of one window and one head;
it is read from the unshifted map: the cyclic shift, its wrap-around and the filling tokens are index arithmetic.

What is written in capitals is known when a kernel is compiled. `plan` is (height and width of the map, number of
windows down and across, shift down and across); `strides` are those of images, rows, columns and heads.
"""

import triton
import triton.language as tl

from swinv2.ops import precision

LOG2_E = tl.constexpr(1.4426950408889634)
SMALLEST_NORM = tl.constexpr(precision.SMALLEST_NORM)

NO_QUERY, NO_KEY = tl.constexpr(-1), tl.constexpr(-2)
"""Regions of what fills up the last tile of a window: they see nothing, and nothing sees them."""

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
def _place_along(window, offset, size, windows, shift, WINDOW: tl.constexpr, MASK_PADDING: tl.constexpr):
    """Along one axis: where tokens of a window lie in the unshifted map, and their regions."""
    padded = windows * WINDOW
    shifted = window * WINDOW + offset
    token = shifted + shift
    token = tl.where(token >= padded, token - padded, token)
    region = tl.where(shifted >= padded - shift, 1, 0)
    if MASK_PADDING:
        region = tl.where(token >= size, 2, region)
    return token, region


@triton.jit
def place(
    tokens,
    window,
    head,
    plan,
    NOBODY: tl.constexpr,
    WINDOW_HEIGHT: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr,
    MASK_PADDING: tl.constexpr,
):
    """Where tokens of a window lie.

    Args:
        tokens: Their numbers in the window.
        window: Number of the window, through all images.
        head: Number of the head.
        NOBODY: Region of what is no token of the window.

    Returns:
        Their spots (image, head, rows, columns, whether they are the map's own), and their regions.
    """
    down, across = plan[2], plan[3]
    rows, row_regions = _place_along(
        window // across % down, tokens // WINDOW_WIDTH, plan[0], down, plan[4], WINDOW_HEIGHT, MASK_PADDING
    )
    columns, column_regions = _place_along(
        window % across, tokens % WINDOW_WIDTH, plan[1], across, plan[5], WINDOW_WIDTH, MASK_PADDING
    )
    exist = tokens < WINDOW_HEIGHT * WINDOW_WIDTH
    own = exist & (rows < plan[0]) & (columns < plan[1])
    return (window // (down * across), head, rows, columns, own), tl.where(
        exist, row_regions * 3 + column_regions, NOBODY
    )


@triton.jit
def _point_to(feature_map, strides, spots, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Pointers to the vectors of tokens, and which of them there are."""
    image, head, rows, columns, own = spots
    dims = tl.arange(0, BLOCK_DIM)
    start = feature_map + image.to(tl.int64) * strides[0] + head * strides[3]
    pointers = start + ((rows * strides[1] + columns * strides[2])[:, None] + dims[None, :])
    return pointers, own[:, None] & (dims < HEAD_DIM)[None, :]


@triton.jit
def load(feature_map, strides, spots, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Vectors of tokens; zeros for those that are not the map's own."""
    pointers, mask = _point_to(feature_map, strides, spots, HEAD_DIM, BLOCK_DIM)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def load_values(v, strides, padded_value, spots, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, PADDED: tl.constexpr):
    """Values of tokens; those that fill up a window carry `padded_value` (heads, HEAD_DIM)."""
    values = load(v, strides, spots, HEAD_DIM, BLOCK_DIM)
    if PADDED:
        dims = tl.arange(0, BLOCK_DIM)
        filling = tl.load(padded_value + spots[1] * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0.0)
        values = tl.where(spots[4][:, None], values, filling[None, :])
    return values


@triton.jit
def store(feature_map, strides, spots, vectors, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Writes vectors of the map's own tokens."""
    pointers, mask = _point_to(feature_map, strides, spots, HEAD_DIM, BLOCK_DIM)
    tl.store(pointers, rounded(vectors, feature_map.dtype.element_ty), mask=mask)


@triton.jit
def norms_of(vectors, PRECISE: tl.constexpr):
    """Lengths of vectors; what counts as zero has the smallest length."""
    precise = vectors.to(PRECISE)
    return tl.maximum(tl.sqrt(tl.sum(precise * precise, 1)), SMALLEST_NORM)


@triton.jit
def _entries_of(tokens, WINDOW_WIDTH: tl.constexpr):
    """A query's part of the entry that a pair has in the bias table; a key's is taken from it."""
    return tokens // WINDOW_WIDTH * (2 * WINDOW_WIDTH - 1) + tokens % WINDOW_WIDTH


@triton.jit
def pair_entries(queries, keys, WINDOW_HEIGHT: tl.constexpr, WINDOW_WIDTH: tl.constexpr):
    """Entry of every pair of tokens in one head's bias table, row by row, and whether there is such a pair."""
    TOKENS: tl.constexpr = WINDOW_HEIGHT * WINDOW_WIDTH
    middle = _entries_of(TOKENS - 1, WINDOW_WIDTH)
    entries = _entries_of(queries, WINDOW_WIDTH)[:, None] - _entries_of(keys, WINDOW_WIDTH)[None, :] + middle
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
    PRECISE: tl.constexpr,
):
    """Bias of every pair of tokens."""
    table = bias_table + head * ((2 * WINDOW_HEIGHT - 1) * (2 * WINDOW_WIDTH - 1))
    entries, exist = pair_entries(queries, keys, WINDOW_HEIGHT, WINDOW_WIDTH)
    if UNEVEN:
        return tl.load(table + entries, mask=exist, other=0.0).to(PRECISE)
    return tl.load(table + entries).to(PRECISE)
