"""The forward kernel: cosine window attention from map to map.

One program has one tile of queries of one window and one head, and takes the keys tile by tile (online softmax). The
products of queries and keys are of the vectors as they are, in fp32; what makes cosines of them is multiplied in
afterwards, so that nothing is rounded to 16 bits on the way to a logit.
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
    """Writes the attended map, and what makes weights of every token's logits.

    Args:
        q, k, v: Maps (B, H, W, heads, head_dim) of the same strides; vectors are contiguous.
        bias_table, scale, padded_value: As in `reference.window_attention`, contiguous.
        attended: Map to write.
        softmax_stats: (windows of all images, heads, 2, T) to write: a token's highest logit, and the logarithm to the
            base of 2 of the sum of its weights when that one weighs 1. One number would be rounded too much for fp32.
        PADDED: Whether the map is padded to whole windows.
        HAS_REGIONS: Whether a window has more than one region.
        UNEVEN: Whether tiles reach beyond a window.
        PRECISE: dtype of sums.
        INPUT_PRECISION: How fp32 is multiplied, see `tl.dot`.
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
            # A query that sees none of the keys so far has no weights yet.
            origin = tl.where(new_row_max == float("-inf"), 0.0, new_row_max)
        if IN_16_BITS:
            # In one step, whose rounding of the origin would be seen in fp32.
            weights = tl.exp2(logits * LOG2_E - (origin * LOG2_E)[:, None])
        else:
            weights = tl.exp2((logits - origin[:, None]) * LOG2_E)
        rescale = tl.exp2((row_max - origin) * LOG2_E)
        sums = sums * rescale + tl.sum(weights, 1)
        output = output * rescale[:, None] + multiply(rounded(weights, value.dtype), value, PRECISE, INPUT_PRECISION)
        row_max = new_row_max

    if UNEVEN:
        # the padding of the last tile may have seen nothing at all.
        sums = tl.where(queries < TOKENS, sums, 1.0)
    store(attended, attended_strides, query_locations, output / sums[:, None], HEAD_DIM, BLOCK_DIM)
    of_tokens = softmax_stats + (window.to(tl.int64) * heads + head) * (2 * TOKENS) + queries
    tl.store(of_tokens, row_max, mask=queries < TOKENS)
    tl.store(of_tokens + TOKENS, tl.log2(sums), mask=queries < TOKENS)
