"""The forward kernel: cosine window attention from map to map.

A program computes one tile of queries of one window and one head, and loops over the tiles of keys (online softmax). It
multiplies queries and keys before they are normalised, in fp32, and then multiplies the products by the reciprocal
norms. So no intermediate result of a logit is rounded to 16 bits.
"""

import triton
import triton.language as tl

from swinv2.ops.triton.tiles import (
    COUNTS,
    LOG2_E,
    hide,
    load,
    load_bias,
    load_values,
    locate,
    may_be_mixed,
    multiply,
    reciprocal_norms,
    rounded,
    store,
)


@triton.jit(do_not_specialize=COUNTS)
def attend(
    q,
    k,
    v,
    bias_table,
    scale,
    padded_value,
    attended,
    softmax_stats,
    strides,
    attended_strides,
    plan,
    heads,
    HEAD_DIM: tl.constexpr,
    WINDOW_HEIGHT: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr,
    MASK_PADDING: tl.constexpr,
    PADDED: tl.constexpr,
    HAS_REGIONS: tl.constexpr,
    UNEVEN: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Writes the attended map and the softmax statistics of every token.

    Args:
        q, k, v: Maps (B, H, W, heads, head_dim) with the same strides; vectors are contiguous.
        bias_table, scale, padded_value: As in `reference.window_attention`, contiguous.
        attended: The attended map, to be written.
        softmax_stats: (windows of all images, heads, 2, T), to be written: for each token, the row maximum of the
            logits, and the base-2 logarithm of the sum of exp(logit - maximum). Their sum in one fp32 number would be
            too imprecise.
        PADDED: Whether the map is padded to whole windows.
        HAS_REGIONS: Whether a window has more than one region.
        UNEVEN: Whether tiles extend beyond a window.
        PRECISE: dtype of sums.
        INPUT_PRECISION: Precision of products in fp32, see `tl.dot`.
    """
    TOKENS: tl.constexpr = WINDOW_HEIGHT * WINDOW_WIDTH
    TILES: tl.constexpr = (TOKENS + BLOCK_QUERIES - 1) // BLOCK_QUERIES
    IN_16_BITS: tl.constexpr = q.dtype.element_ty.primitive_bitwidth == 16
    program = tl.program_id(0)
    head = program % heads
    tile = program // heads % TILES
    window = program // (heads * TILES)

    mixed = may_be_mixed(window, plan, WINDOW_HEIGHT, WINDOW_WIDTH, MASK_PADDING)

    queries = tile * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    query_locations = locate(queries, window, head, plan, WINDOW_HEIGHT, WINDOW_WIDTH)
    query = load(q, strides, query_locations, HEAD_DIM, BLOCK_DIM)
    query_factors = tl.load(scale + head).to(PRECISE) * reciprocal_norms(query, PRECISE)

    row_max = tl.full([BLOCK_QUERIES], float("-inf"), PRECISE)
    sums = tl.zeros([BLOCK_QUERIES], PRECISE)
    output = tl.zeros([BLOCK_QUERIES, BLOCK_DIM], PRECISE)
    for start in range(0, TOKENS, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        key_locations = locate(keys, window, head, plan, WINDOW_HEIGHT, WINDOW_WIDTH)
        key = load(k, strides, key_locations, HEAD_DIM, BLOCK_DIM)
        value = load_values(v, strides, padded_value, key_locations, HEAD_DIM, BLOCK_DIM, PADDED)

        products = multiply(query, tl.trans(key), PRECISE, INPUT_PRECISION)
        bias = load_bias(bias_table, head, queries, keys, WINDOW_HEIGHT, WINDOW_WIDTH, UNEVEN)
        logits = products * reciprocal_norms(key, PRECISE)[None, :] * query_factors[:, None] + bias
        logits = hide(
            logits, queries, keys, window, mixed, plan, WINDOW_HEIGHT, WINDOW_WIDTH, MASK_PADDING, HAS_REGIONS, UNEVEN
        )

        new_row_max = tl.maximum(row_max, tl.max(logits, 1))
        origin = new_row_max
        if HAS_REGIONS:
            # If all keys so far are hidden from a query, its maximum is -inf.
            origin = tl.where(new_row_max == float("-inf"), 0.0, new_row_max)
        if IN_16_BITS:
            # Faster, as one multiply-add; in fp32 the rounding of origin * LOG2_E would be visible.
            weights = tl.exp2(logits * LOG2_E - (origin * LOG2_E)[:, None])
        else:
            weights = tl.exp2((logits - origin[:, None]) * LOG2_E)
        rescale = tl.exp2((row_max - origin) * LOG2_E)
        sums = sums * rescale + tl.sum(weights, 1)
        output = output * rescale[:, None] + multiply(rounded(weights, value.dtype), value, PRECISE, INPUT_PRECISION)
        row_max = new_row_max

    if UNEVEN:
        # For queries beyond the window, the sum may be 0.
        sums = tl.where(queries < TOKENS, sums, 1.0)
    store(attended, attended_strides, query_locations, output / sums[:, None], HEAD_DIM, BLOCK_DIM)
    of_tokens = softmax_stats + (window.to(tl.int64) * heads + head) * (2 * TOKENS) + queries
    tl.store(of_tokens, row_max, mask=queries < TOKENS)
    tl.store(of_tokens + TOKENS, tl.log2(sums), mask=queries < TOKENS)
