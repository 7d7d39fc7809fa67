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
    find_task,
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
def attend(inputs, attended, softmax_stats, layout, heads, CONST: tl.constexpr):
    """Writes the attended map and the softmax statistics of every token.

    Args:
        inputs: q, k, v, bias table, scale and padded value, see `reference.AttentionInputs`. The maps have the same
            strides, and their vectors are contiguous; the other inputs are contiguous.
        attended: The attended map, to be written.
        softmax_stats: (windows of all images, heads, 2, T), to be written: for each token, the row maximum of the
            logits, and the base-2 logarithm of the sum of exp(logit - maximum). Their sum in one fp32 number would be
            too imprecise.
        layout: Strides of q, k and v; strides of the attended map; the numbers of the plan.
    """
    q, k, v, bias_table, scale, padded_value = inputs
    strides, attended_strides, plan = layout
    IN_16_BITS: tl.constexpr = q.dtype.element_ty.primitive_bitwidth == 16
    head, tile, window = find_task(heads, CONST.query_tiles)

    mixed = may_be_mixed(window, plan, CONST)

    queries = tile * CONST.block_queries + tl.arange(0, CONST.block_queries)
    query_locations = locate(queries, window, head, plan, CONST)
    query = load(q, strides, query_locations, CONST)
    query_factors = tl.load(scale + head).to(CONST.precise) * reciprocal_norms(query, CONST)

    row_max = tl.full([CONST.block_queries], float("-inf"), CONST.precise)
    sums = tl.full([CONST.block_queries], 0.0, CONST.precise)
    output = tl.full([CONST.block_queries, CONST.block_dim], 0.0, CONST.precise)
    for start in range(0, CONST.tokens, CONST.block_keys):
        keys = start + tl.arange(0, CONST.block_keys)
        key_locations = locate(keys, window, head, plan, CONST)
        key = load(k, strides, key_locations, CONST)
        value = load_values(v, strides, padded_value, key_locations, CONST)

        products = multiply(query, tl.trans(key), CONST)
        bias = load_bias(bias_table, head, queries, keys, CONST)
        logits = products * reciprocal_norms(key, CONST)[None, :] * query_factors[:, None] + bias
        logits = hide(logits, queries, keys, window, mixed, plan, CONST)

        new_row_max = tl.maximum(row_max, tl.max(logits, 1))
        origin = new_row_max
        if CONST.has_regions:
            # If all keys so far are hidden from a query, its maximum is -inf.
            origin = tl.where(new_row_max == float("-inf"), 0.0, new_row_max)
        if IN_16_BITS:
            # Faster, as one multiply-add; in fp32 the rounding of origin * LOG2_E would be visible.
            weights = tl.exp2(logits * LOG2_E - (origin * LOG2_E)[:, None])
        else:
            weights = tl.exp2((logits - origin[:, None]) * LOG2_E)
        rescale = tl.exp2((row_max - origin) * LOG2_E)
        sums = sums * rescale + tl.sum(weights, 1)
        output = output * rescale[:, None] + multiply(rounded(weights, value.dtype), value, CONST)
        row_max = new_row_max

    if CONST.uneven:
        # For queries beyond the window, the sum may be 0.
        sums = tl.where(queries < CONST.tokens, sums, 1.0)
    store(attended, attended_strides, query_locations, output / sums[:, None], CONST)
    of_tokens = softmax_stats + (window.to(tl.int64) * heads + head) * (2 * CONST.tokens) + queries
    tl.store(of_tokens, row_max, mask=queries < CONST.tokens)
    tl.store(of_tokens + CONST.tokens, tl.log2(sums), mask=queries < CONST.tokens)
