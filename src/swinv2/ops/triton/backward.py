"""The backward kernels: gradients of cosine window attention, from map to map.

The attention weights are computed again from the softmax statistics that the forward kernel stored. If a window is one
tile, `whole_windows` computes all gradients. Otherwise `to_queries`, `to_keys` and, if the bias table needs a gradient,
`to_bias` each loop over the pairs of tiles. A program of `to_bias` has one pair of tiles and loops over windows, so its
sums stay in registers and no T x T tensor exists.

With x = c / |c| for a query or key c, dc = (dx - x (x dx)) / |c|. If c counts as zero, dc = dx / SMALLEST_NORM.

All kernels have the arguments of `forward.attend`, and some of these:

- softmax_stats: the softmax statistics from the forward kernel;
- grad: the gradient of the attended map; all gradients of maps have the strides `attended_strides`;
- deltas: (windows of all images, heads, T), for each query the dot product of `grad` and the attended vector;
- grad_scale_parts, grad_padded_parts: buffers for each program's part of these gradients;
- all_windows, splits: number of windows of all images, and number of parts into which they are split.
"""

import triton
import triton.language as tl

from swinv2.ops.triton.tiles import (
    COUNTS,
    LOG2_E,
    SMALLEST_SQUARE,
    find_task,
    hide,
    load,
    load_bias,
    load_values,
    locate,
    may_be_mixed,
    multiply,
    pair_entries,
    reciprocal_norms,
    reciprocal_of_root,
    rounded,
    store,
)


@triton.jit
def _weigh(
    query, query_factors, key, key_factors, row_max, log_sum, bias, queries, keys, window, plan, CONST: tl.constexpr
):
    """Computes the attention weights of pairs of tokens again, from the softmax statistics."""
    products = multiply(query, tl.trans(key), CONST)
    logits = products * key_factors[None, :] * query_factors[:, None] + bias
    logits = hide(logits, queries, keys, window, may_be_mixed(window, plan, CONST), plan, CONST)
    return tl.exp2((logits - row_max[:, None]) * LOG2_E - log_sum[:, None])


@triton.jit
def _load_softmax_stats(softmax_stats, window, head, heads, queries, CONST: tl.constexpr):
    """Loads the softmax statistics of queries. A row maximum of infinity gives queries beyond the window no weight."""
    of_tokens = softmax_stats + (window.to(tl.int64) * heads + head) * (2 * CONST.tokens) + queries
    row_max = tl.load(of_tokens, mask=queries < CONST.tokens, other=float("inf"))
    return row_max, tl.load(of_tokens + CONST.tokens, mask=queries < CONST.tokens, other=0.0)


@triton.jit
def _unit(vectors, factors, CONST: tl.constexpr):
    """Unit vectors, in the vectors' dtype: in fp16 the factors could be too large to multiply a product by them."""
    return rounded(vectors.to(CONST.precise) * factors[:, None], vectors.dtype)


@triton.jit
def _through_unit(grad_unit, vectors, CONST: tl.constexpr):
    """The gradient of vectors from the gradient of their unit vectors, and the dot product of the latter two."""
    precise = vectors.to(CONST.precise)
    square = tl.sum(precise * precise, 1)
    factors = reciprocal_of_root(tl.maximum(square, SMALLEST_SQUARE), vectors.dtype)
    unit = precise * factors[:, None]
    along = tl.sum(unit * grad_unit, 1)
    radial = tl.where(square > SMALLEST_SQUARE, along, 0.0)
    return (grad_unit - unit * radial[:, None]) * factors[:, None], along


@triton.jit
def _add_to_table(grad_table, grad_bias, part, head, heads, queries, keys, CONST: tl.constexpr):
    """Sums the gradients of pairs with the same relative position.

    Args:
        grad_table: If CONST.span is 0, the gradient of the table, to which programs add in any order. Otherwise (parts,
            heads, span): each program writes its own part, which begins at the first entry of its pair of tiles, and
            span is the largest number of entries of a pair of tiles.
        grad_bias: The gradient of the bias of each pair of tokens.
    """
    entries, exist = pair_entries(queries, keys, CONST)
    if CONST.span:
        first = tl.min(tl.where(exist, entries, CONST.table))
        for entry in range(CONST.span):
            total = tl.sum(tl.where(exist & (entries == first + entry), grad_bias, 0.0))
            tl.store(grad_table + (part.to(tl.int64) * heads + head) * CONST.span + entry, total)
    else:
        tl.atomic_add(grad_table + head * CONST.table + entries, grad_bias, mask=exist, sem="relaxed")


@triton.jit(do_not_specialize=COUNTS)
def to_queries(
    inputs, attended, softmax_stats, grad, grad_q, grad_scale_parts, deltas, layout, heads, CONST: tl.constexpr
):
    """Writes the gradient of the queries, parts (all windows, tiles, heads) of the scale's gradient, and `deltas`."""
    q, k, v, bias_table, scale, padded_value = inputs
    strides, attended_strides, plan = layout
    head, tile, window = find_task(heads, CONST.query_tiles)

    queries = tile * CONST.block_queries + tl.arange(0, CONST.block_queries)
    query_locations = locate(queries, window, head, plan, CONST)
    query = load(q, strides, query_locations, CONST)
    factor = tl.load(scale + head).to(CONST.precise)
    query_factors = factor * reciprocal_norms(query, CONST)
    output = load(attended, attended_strides, query_locations, CONST)
    grad_output = load(grad, attended_strides, query_locations, CONST)
    delta = tl.sum(grad_output.to(CONST.precise) * output.to(CONST.precise), 1)
    of_tokens = (window.to(tl.int64) * heads + head) * CONST.tokens + queries
    row_max, log_sum = _load_softmax_stats(softmax_stats, window, head, heads, queries, CONST)
    tl.store(deltas + of_tokens, delta, mask=queries < CONST.tokens)

    grad_unit = tl.full([CONST.block_queries, CONST.block_dim], 0.0, CONST.precise)
    for start in range(0, CONST.tokens, CONST.block_keys):
        keys = start + tl.arange(0, CONST.block_keys)
        key_locations = locate(keys, window, head, plan, CONST)
        key = load(k, strides, key_locations, CONST)
        key_factors = reciprocal_norms(key, CONST)
        value = load_values(v, strides, padded_value, key_locations, CONST)
        bias = load_bias(bias_table, head, queries, keys, CONST)
        weights = _weigh(
            query, query_factors, key, key_factors, row_max, log_sum, bias, queries, keys, window, plan, CONST
        )
        grad_weights = multiply(grad_output, tl.trans(value), CONST)
        grad_logits = rounded(weights * (grad_weights - delta[:, None]), key.dtype)
        grad_unit += multiply(grad_logits, _unit(key, key_factors, CONST), CONST)

    grad_query, grad_scale = _through_unit(grad_unit * factor, query, CONST)
    store(grad_q, attended_strides, query_locations, grad_query, CONST)
    tl.store(grad_scale_parts + (window * CONST.query_tiles + tile) * heads + head, tl.sum(grad_scale) / factor)


@triton.jit(do_not_specialize=COUNTS)
def to_keys(inputs, softmax_stats, grad, grad_k, grad_v, grad_padded_parts, deltas, layout, heads, CONST: tl.constexpr):
    """Writes the gradients of the keys and values and, if the map is padded, parts (windows of all images, tiles,
    heads, head_dim) of the padded value's gradient."""
    q, k, v, bias_table, scale, padded_value = inputs
    strides, attended_strides, plan = layout
    head, tile, window = find_task(heads, CONST.key_tiles)

    keys = tile * CONST.block_keys + tl.arange(0, CONST.block_keys)
    key_locations = locate(keys, window, head, plan, CONST)
    key = load(k, strides, key_locations, CONST)
    key_factors = reciprocal_norms(key, CONST)
    value = load_values(v, strides, padded_value, key_locations, CONST)
    factor = tl.load(scale + head).to(CONST.precise)

    grad_unit = tl.full([CONST.block_keys, CONST.block_dim], 0.0, CONST.precise)
    grad_value = tl.full([CONST.block_keys, CONST.block_dim], 0.0, CONST.precise)
    for start in range(0, CONST.tokens, CONST.block_queries):
        queries = start + tl.arange(0, CONST.block_queries)
        query_locations = locate(queries, window, head, plan, CONST)
        query = load(q, strides, query_locations, CONST)
        query_factors = reciprocal_norms(query, CONST)
        grad_output = load(grad, attended_strides, query_locations, CONST)
        of_tokens = (window.to(tl.int64) * heads + head) * CONST.tokens + queries
        row_max, log_sum = _load_softmax_stats(softmax_stats, window, head, heads, queries, CONST)
        delta = tl.load(deltas + of_tokens, mask=queries < CONST.tokens, other=0.0)
        bias = load_bias(bias_table, head, queries, keys, CONST)
        weights = _weigh(
            query, factor * query_factors, key, key_factors, row_max, log_sum, bias, queries, keys, window, plan, CONST
        )
        grad_value += multiply(tl.trans(rounded(weights, grad_output.dtype)), grad_output, CONST)
        grad_weights = multiply(grad_output, tl.trans(value), CONST)
        grad_logits = rounded(weights * (grad_weights - delta[:, None]), query.dtype)
        grad_unit += multiply(tl.trans(grad_logits), _unit(query, query_factors, CONST), CONST)

    grad_key, _ = _through_unit(grad_unit * factor, key, CONST)
    store(grad_k, attended_strides, key_locations, grad_key, CONST)
    store(grad_v, attended_strides, key_locations, grad_value, CONST)
    if CONST.padded:
        dims = tl.arange(0, CONST.block_dim)
        padding = tl.sum(tl.where(key_locations[4][:, None], 0.0, grad_value), 0)
        part = (window.to(tl.int64) * CONST.key_tiles + tile) * heads + head
        tl.store(grad_padded_parts + part * CONST.head_dim + dims, padding, mask=dims < CONST.head_dim)


@triton.jit(do_not_specialize=COUNTS)
def to_bias(inputs, softmax_stats, grad, grad_table, deltas, layout, all_windows, splits, heads, CONST: tl.constexpr):
    """Writes the gradient of the bias table, see `_add_to_table`. A program has one pair of tiles, and the windows
    split, split + splits, split + 2 splits and so on. Parts are ordered by split, tile of queries, tile of keys."""
    q, k, v, bias_table, scale, padded_value = inputs
    strides, attended_strides, plan = layout
    program = tl.program_id(0)
    head = program % heads
    part = program // heads
    queries = part // CONST.key_tiles % CONST.query_tiles * CONST.block_queries + tl.arange(0, CONST.block_queries)
    keys = part % CONST.key_tiles * CONST.block_keys + tl.arange(0, CONST.block_keys)
    split = part // (CONST.key_tiles * CONST.query_tiles)
    factor = tl.load(scale + head).to(CONST.precise)
    bias = load_bias(bias_table, head, queries, keys, CONST)

    grad_bias = tl.full([CONST.block_queries, CONST.block_keys], 0.0, CONST.precise)
    for step in range(tl.cdiv(all_windows - split, splits)):
        window = split + step * splits
        query_locations = locate(queries, window, head, plan, CONST)
        key_locations = locate(keys, window, head, plan, CONST)
        query = load(q, strides, query_locations, CONST)
        grad_output = load(grad, attended_strides, query_locations, CONST)
        key = load(k, strides, key_locations, CONST)
        value = load_values(v, strides, padded_value, key_locations, CONST)
        of_tokens = (window.to(tl.int64) * heads + head) * CONST.tokens + queries
        row_max, log_sum = _load_softmax_stats(softmax_stats, window, head, heads, queries, CONST)
        delta = tl.load(deltas + of_tokens, mask=queries < CONST.tokens, other=0.0)
        query_factors, key_factors = factor * reciprocal_norms(query, CONST), reciprocal_norms(key, CONST)
        weights = _weigh(
            query, query_factors, key, key_factors, row_max, log_sum, bias, queries, keys, window, plan, CONST
        )
        grad_bias += weights * (multiply(grad_output, tl.trans(value), CONST) - delta[:, None])

    _add_to_table(grad_table, grad_bias, part, head, heads, queries, keys, CONST)


@triton.jit(do_not_specialize=COUNTS)
def whole_windows(
    inputs, softmax_stats, grad, grad_maps, sums, layout, all_windows, splits, heads, CONST: tl.constexpr
):
    """Writes all gradients, if a window is one tile. A program has one head, and the windows split, split + splits,
    split + 2 splits and so on. Parts are (splits, heads, ...)."""
    q, k, v, bias_table, scale, padded_value = inputs
    strides, attended_strides, plan = layout
    grad_q, grad_k, grad_v = grad_maps
    grad_table, grad_scale_parts, grad_padded_parts = sums
    program = tl.program_id(0)
    head = program % heads
    split = program // heads
    tokens = tl.arange(0, CONST.block_keys)
    factor = tl.load(scale + head).to(CONST.precise)
    bias = load_bias(bias_table, head, tokens, tokens, CONST)

    grad_bias = tl.full([CONST.block_queries, CONST.block_keys], 0.0, CONST.precise)
    grad_scale = tl.full([CONST.block_queries], 0.0, CONST.precise)
    padding = tl.full([CONST.block_dim], 0.0, CONST.precise)
    for step in range(tl.cdiv(all_windows - split, splits)):
        window = split + step * splits
        locations = locate(tokens, window, head, plan, CONST)
        query = load(q, strides, locations, CONST)
        key = load(k, strides, locations, CONST)
        value = load_values(v, strides, padded_value, locations, CONST)
        grad_output = load(grad, attended_strides, locations, CONST)
        row_max, log_sum = _load_softmax_stats(softmax_stats, window, head, heads, tokens, CONST)
        query_factors, key_factors = reciprocal_norms(query, CONST), reciprocal_norms(key, CONST)
        weights = _weigh(
            query, factor * query_factors, key, key_factors, row_max, log_sum, bias, tokens, tokens, window, plan, CONST
        )

        grad_value = multiply(tl.trans(rounded(weights, grad_output.dtype)), grad_output, CONST)
        store(grad_v, attended_strides, locations, grad_value, CONST)
        if CONST.padded:
            padding += tl.sum(tl.where(locations[4][:, None], 0.0, grad_value), 0)
        # All keys are in this tile, so the sum is computed from the weights, without the attended map.
        grad_weights = multiply(grad_output, tl.trans(value), CONST)
        grad_logits = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None])
        if grad_table is not None:
            grad_bias += grad_logits
        grad_rounded = rounded(grad_logits, query.dtype)
        grad_unit = multiply(grad_rounded, _unit(key, key_factors, CONST), CONST)
        grad_query, grad_factors = _through_unit(grad_unit * factor, query, CONST)
        grad_scale += grad_factors
        store(grad_q, attended_strides, locations, grad_query, CONST)
        grad_unit = multiply(tl.trans(grad_rounded), _unit(query, query_factors, CONST), CONST)
        grad_key, _ = _through_unit(grad_unit * factor, key, CONST)
        store(grad_k, attended_strides, locations, grad_key, CONST)

    tl.store(grad_scale_parts + split * heads + head, tl.sum(grad_scale) / factor)
    if CONST.padded:
        dims = tl.arange(0, CONST.block_dim)
        tl.store(
            grad_padded_parts + (split * heads + head) * CONST.head_dim + dims, padding, mask=dims < CONST.head_dim
        )
    if grad_table is not None:
        _add_to_table(grad_table, grad_bias, split, head, heads, tokens, tokens, CONST)
