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
    query,
    query_factors,
    row_max,
    log_sum,
    key,
    key_factors,
    bias,
    queries,
    keys,
    window,
    plan,
    WINDOW_HEIGHT: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr,
    MASK_PADDING: tl.constexpr,
    HAS_REGIONS: tl.constexpr,
    UNEVEN: tl.constexpr,
    PRECISE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Attention weights of pairs of tokens."""
    products = multiply(query, tl.trans(key), PRECISE, INPUT_PRECISION)
    logits = products * key_factors[None, :] * query_factors[:, None] + bias
    mixed = may_be_mixed(window, plan, WINDOW_HEIGHT, WINDOW_WIDTH, MASK_PADDING)
    logits = hide(
        logits, queries, keys, window, mixed, plan, WINDOW_HEIGHT, WINDOW_WIDTH, MASK_PADDING, HAS_REGIONS, UNEVEN
    )
    return tl.exp2((logits - row_max[:, None]) * LOG2_E - log_sum[:, None])


@triton.jit
def _load_softmax_stats(softmax_stats, window, head, heads, queries, TOKENS: tl.constexpr):
    """Loads the softmax statistics of queries. A row maximum of infinity gives queries beyond the window no weight."""
    of_tokens = softmax_stats + (window.to(tl.int64) * heads + head) * (2 * TOKENS) + queries
    row_max = tl.load(of_tokens, mask=queries < TOKENS, other=float("inf"))
    return row_max, tl.load(of_tokens + TOKENS, mask=queries < TOKENS, other=0.0)


@triton.jit
def _unit(vectors, factors, PRECISE: tl.constexpr):
    """Unit vectors, in the dtype of the vectors. In fp16 the factors could be too large to be multiplied in after a
    product."""
    return rounded(vectors.to(PRECISE) * factors[:, None], vectors.dtype)


@triton.jit
def _through_unit(grad_unit, vectors, PRECISE: tl.constexpr):
    """The gradient of vectors from the gradient of their unit vectors, and the dot product of the latter two."""
    precise = vectors.to(PRECISE)
    square = tl.sum(precise * precise, 1)
    factors = reciprocal_of_root(tl.maximum(square, SMALLEST_SQUARE), vectors.dtype)
    unit = precise * factors[:, None]
    along = tl.sum(unit * grad_unit, 1)
    radial = tl.where(square > SMALLEST_SQUARE, along, 0.0)
    return (grad_unit - unit * radial[:, None]) * factors[:, None], along


@triton.jit
def _add_to_table(
    grad_table,
    grad_bias,
    part,
    head,
    queries,
    keys,
    heads,
    WINDOW_HEIGHT: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr,
    SPAN: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
):
    """Sums the gradients of pairs with the same relative position.

    Args:
        grad_table: The gradient of the table, to which programs add in any order. If DETERMINISTIC, (parts, heads,
            SPAN): each program writes its own part, which begins at the first entry of its pair of tiles.
        grad_bias: The gradient of the bias of each pair of tokens.
        SPAN: The largest number of entries of a pair of tiles.
    """
    TABLE: tl.constexpr = (2 * WINDOW_HEIGHT - 1) * (2 * WINDOW_WIDTH - 1)
    entries, exist = pair_entries(queries, keys, WINDOW_HEIGHT, WINDOW_WIDTH)
    if DETERMINISTIC:
        first = tl.min(tl.where(exist, entries, TABLE))
        for entry in range(SPAN):
            total = tl.sum(tl.where(exist & (entries == first + entry), grad_bias, 0.0))
            tl.store(grad_table + (part.to(tl.int64) * heads + head) * SPAN + entry, total)
    else:
        tl.atomic_add(grad_table + head * TABLE + entries, grad_bias, mask=exist, sem="relaxed")


@triton.jit(do_not_specialize=COUNTS)
def to_queries(
    q,
    k,
    v,
    bias_table,
    scale,
    padded_value,
    attended,
    softmax_stats,
    grad,
    grad_q,
    grad_scale_parts,
    deltas,
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
    """Writes the gradient of the queries, parts (windows of all images, tiles, heads) of the scale's gradient, and
    `deltas`."""
    TOKENS: tl.constexpr = WINDOW_HEIGHT * WINDOW_WIDTH
    TILES: tl.constexpr = (TOKENS + BLOCK_QUERIES - 1) // BLOCK_QUERIES
    program = tl.program_id(0)
    head = program % heads
    tile = program // heads % TILES
    window = program // (heads * TILES)

    queries = tile * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    query_locations = locate(queries, window, head, plan, WINDOW_HEIGHT, WINDOW_WIDTH)
    query = load(q, strides, query_locations, HEAD_DIM, BLOCK_DIM)
    factor = tl.load(scale + head).to(PRECISE)
    query_factors = factor * reciprocal_norms(query, PRECISE)
    output = load(attended, attended_strides, query_locations, HEAD_DIM, BLOCK_DIM)
    grad_output = load(grad, attended_strides, query_locations, HEAD_DIM, BLOCK_DIM)
    delta = tl.sum(grad_output.to(PRECISE) * output.to(PRECISE), 1)
    of_tokens = (window.to(tl.int64) * heads + head) * TOKENS + queries
    row_max, log_sum = _load_softmax_stats(softmax_stats, window, head, heads, queries, TOKENS)
    tl.store(deltas + of_tokens, delta, mask=queries < TOKENS)

    grad_unit = tl.zeros([BLOCK_QUERIES, BLOCK_DIM], PRECISE)
    for start in range(0, TOKENS, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        key_locations = locate(keys, window, head, plan, WINDOW_HEIGHT, WINDOW_WIDTH)
        key = load(k, strides, key_locations, HEAD_DIM, BLOCK_DIM)
        key_factors = reciprocal_norms(key, PRECISE)
        value = load_values(v, strides, padded_value, key_locations, HEAD_DIM, BLOCK_DIM, PADDED)
        bias = load_bias(bias_table, head, queries, keys, WINDOW_HEIGHT, WINDOW_WIDTH, UNEVEN)
        weights = _weigh(
            query,
            query_factors,
            row_max,
            log_sum,
            key,
            key_factors,
            bias,
            queries,
            keys,
            window,
            plan,
            WINDOW_HEIGHT,
            WINDOW_WIDTH,
            MASK_PADDING,
            HAS_REGIONS,
            UNEVEN,
            PRECISE,
            INPUT_PRECISION,
        )
        grad_weights = multiply(grad_output, tl.trans(value), PRECISE, INPUT_PRECISION)
        grad_logits = rounded(weights * (grad_weights - delta[:, None]), key.dtype)
        grad_unit += multiply(grad_logits, _unit(key, key_factors, PRECISE), PRECISE, INPUT_PRECISION)

    grad_query, grad_scale = _through_unit(grad_unit * factor, query, PRECISE)
    store(grad_q, attended_strides, query_locations, grad_query, HEAD_DIM, BLOCK_DIM)
    tl.store(grad_scale_parts + (window * TILES + tile) * heads + head, tl.sum(grad_scale) / factor)


@triton.jit(do_not_specialize=COUNTS)
def to_keys(
    q,
    k,
    v,
    bias_table,
    scale,
    padded_value,
    softmax_stats,
    grad,
    grad_k,
    grad_v,
    grad_padded_parts,
    deltas,
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
    """Writes the gradients of the keys and values and, if PADDED, parts (windows of all images, tiles, heads, HEAD_DIM)
    of the padded value's gradient."""
    TOKENS: tl.constexpr = WINDOW_HEIGHT * WINDOW_WIDTH
    TILES: tl.constexpr = (TOKENS + BLOCK_KEYS - 1) // BLOCK_KEYS
    program = tl.program_id(0)
    head = program % heads
    tile = program // heads % TILES
    window = program // (heads * TILES)

    keys = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    key_locations = locate(keys, window, head, plan, WINDOW_HEIGHT, WINDOW_WIDTH)
    key = load(k, strides, key_locations, HEAD_DIM, BLOCK_DIM)
    key_factors = reciprocal_norms(key, PRECISE)
    value = load_values(v, strides, padded_value, key_locations, HEAD_DIM, BLOCK_DIM, PADDED)
    factor = tl.load(scale + head).to(PRECISE)

    grad_unit = tl.zeros([BLOCK_KEYS, BLOCK_DIM], PRECISE)
    grad_value = tl.zeros([BLOCK_KEYS, BLOCK_DIM], PRECISE)
    for start in range(0, TOKENS, BLOCK_QUERIES):
        queries = start + tl.arange(0, BLOCK_QUERIES)
        query_locations = locate(queries, window, head, plan, WINDOW_HEIGHT, WINDOW_WIDTH)
        query = load(q, strides, query_locations, HEAD_DIM, BLOCK_DIM)
        query_factors = reciprocal_norms(query, PRECISE)
        grad_output = load(grad, attended_strides, query_locations, HEAD_DIM, BLOCK_DIM)
        of_tokens = (window.to(tl.int64) * heads + head) * TOKENS + queries
        row_max, log_sum = _load_softmax_stats(softmax_stats, window, head, heads, queries, TOKENS)
        delta = tl.load(deltas + of_tokens, mask=queries < TOKENS, other=0.0)
        bias = load_bias(bias_table, head, queries, keys, WINDOW_HEIGHT, WINDOW_WIDTH, UNEVEN)
        weights = _weigh(
            query,
            factor * query_factors,
            row_max,
            log_sum,
            key,
            key_factors,
            bias,
            queries,
            keys,
            window,
            plan,
            WINDOW_HEIGHT,
            WINDOW_WIDTH,
            MASK_PADDING,
            HAS_REGIONS,
            UNEVEN,
            PRECISE,
            INPUT_PRECISION,
        )
        grad_value += multiply(tl.trans(rounded(weights, grad_output.dtype)), grad_output, PRECISE, INPUT_PRECISION)
        grad_weights = multiply(grad_output, tl.trans(value), PRECISE, INPUT_PRECISION)
        grad_logits = rounded(weights * (grad_weights - delta[:, None]), query.dtype)
        grad_unit += multiply(tl.trans(grad_logits), _unit(query, query_factors, PRECISE), PRECISE, INPUT_PRECISION)

    grad_key, _ = _through_unit(grad_unit * factor, key, PRECISE)
    store(grad_k, attended_strides, key_locations, grad_key, HEAD_DIM, BLOCK_DIM)
    store(grad_v, attended_strides, key_locations, grad_value, HEAD_DIM, BLOCK_DIM)
    if PADDED:
        dims = tl.arange(0, BLOCK_DIM)
        padding = tl.sum(tl.where(key_locations[4][:, None], 0.0, grad_value), 0)
        part = (window.to(tl.int64) * TILES + tile) * heads + head
        tl.store(grad_padded_parts + part * HEAD_DIM + dims, padding, mask=dims < HEAD_DIM)


@triton.jit(do_not_specialize=COUNTS)
def to_bias(
    q,
    k,
    v,
    bias_table,
    scale,
    padded_value,
    softmax_stats,
    grad,
    grad_table,
    deltas,
    strides,
    attended_strides,
    plan,
    all_windows,
    splits,
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
    SPAN: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
):
    """Writes the gradient of the bias table, see `_add_to_table`. A program has one pair of tiles, and the windows
    split, split + splits, split + 2 splits and so on. Parts are ordered by split, tile of queries, tile of keys."""
    TOKENS: tl.constexpr = WINDOW_HEIGHT * WINDOW_WIDTH
    QUERY_TILES: tl.constexpr = (TOKENS + BLOCK_QUERIES - 1) // BLOCK_QUERIES
    KEY_TILES: tl.constexpr = (TOKENS + BLOCK_KEYS - 1) // BLOCK_KEYS
    program = tl.program_id(0)
    head = program % heads
    part = program // heads
    queries = part // KEY_TILES % QUERY_TILES * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    keys = part % KEY_TILES * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    split = part // (KEY_TILES * QUERY_TILES)
    factor = tl.load(scale + head).to(PRECISE)
    bias = load_bias(bias_table, head, queries, keys, WINDOW_HEIGHT, WINDOW_WIDTH, UNEVEN)

    grad_bias = tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], PRECISE)
    for step in range(tl.cdiv(all_windows - split, splits)):
        window = split + step * splits
        query_locations = locate(queries, window, head, plan, WINDOW_HEIGHT, WINDOW_WIDTH)
        key_locations = locate(keys, window, head, plan, WINDOW_HEIGHT, WINDOW_WIDTH)
        query = load(q, strides, query_locations, HEAD_DIM, BLOCK_DIM)
        grad_output = load(grad, attended_strides, query_locations, HEAD_DIM, BLOCK_DIM)
        key = load(k, strides, key_locations, HEAD_DIM, BLOCK_DIM)
        value = load_values(v, strides, padded_value, key_locations, HEAD_DIM, BLOCK_DIM, PADDED)
        of_tokens = (window.to(tl.int64) * heads + head) * TOKENS + queries
        row_max, log_sum = _load_softmax_stats(softmax_stats, window, head, heads, queries, TOKENS)
        delta = tl.load(deltas + of_tokens, mask=queries < TOKENS, other=0.0)
        weights = _weigh(
            query,
            factor * reciprocal_norms(query, PRECISE),
            row_max,
            log_sum,
            key,
            reciprocal_norms(key, PRECISE),
            bias,
            queries,
            keys,
            window,
            plan,
            WINDOW_HEIGHT,
            WINDOW_WIDTH,
            MASK_PADDING,
            HAS_REGIONS,
            UNEVEN,
            PRECISE,
            INPUT_PRECISION,
        )
        grad_bias += weights * (multiply(grad_output, tl.trans(value), PRECISE, INPUT_PRECISION) - delta[:, None])

    _add_to_table(
        grad_table, grad_bias, part, head, queries, keys, heads, WINDOW_HEIGHT, WINDOW_WIDTH, SPAN, DETERMINISTIC
    )


@triton.jit(do_not_specialize=COUNTS)
def whole_windows(
    q,
    k,
    v,
    bias_table,
    scale,
    padded_value,
    softmax_stats,
    grad,
    grad_q,
    grad_k,
    grad_v,
    grad_table,
    grad_scale_parts,
    grad_padded_parts,
    strides,
    attended_strides,
    plan,
    all_windows,
    splits,
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
    SPAN: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    WANTS_BIAS: tl.constexpr,
):
    """Writes all gradients, if a window is one tile. A program has one head, and the windows split, split + splits,
    split + 2 splits and so on. Parts are (splits, heads, ...)."""
    TOKENS: tl.constexpr = WINDOW_HEIGHT * WINDOW_WIDTH
    program = tl.program_id(0)
    head = program % heads
    split = program // heads
    tokens = tl.arange(0, BLOCK_KEYS)
    factor = tl.load(scale + head).to(PRECISE)
    bias = load_bias(bias_table, head, tokens, tokens, WINDOW_HEIGHT, WINDOW_WIDTH, UNEVEN)

    grad_bias = tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], PRECISE)
    grad_scale = tl.zeros([BLOCK_QUERIES], PRECISE)
    padding = tl.zeros([BLOCK_DIM], PRECISE)
    for step in range(tl.cdiv(all_windows - split, splits)):
        window = split + step * splits
        locations = locate(tokens, window, head, plan, WINDOW_HEIGHT, WINDOW_WIDTH)
        query = load(q, strides, locations, HEAD_DIM, BLOCK_DIM)
        key = load(k, strides, locations, HEAD_DIM, BLOCK_DIM)
        value = load_values(v, strides, padded_value, locations, HEAD_DIM, BLOCK_DIM, PADDED)
        grad_output = load(grad, attended_strides, locations, HEAD_DIM, BLOCK_DIM)
        row_max, log_sum = _load_softmax_stats(softmax_stats, window, head, heads, tokens, TOKENS)
        query_factors, key_factors = reciprocal_norms(query, PRECISE), reciprocal_norms(key, PRECISE)
        weights = _weigh(
            query,
            factor * query_factors,
            row_max,
            log_sum,
            key,
            key_factors,
            bias,
            tokens,
            tokens,
            window,
            plan,
            WINDOW_HEIGHT,
            WINDOW_WIDTH,
            MASK_PADDING,
            HAS_REGIONS,
            UNEVEN,
            PRECISE,
            INPUT_PRECISION,
        )

        grad_value = multiply(tl.trans(rounded(weights, grad_output.dtype)), grad_output, PRECISE, INPUT_PRECISION)
        store(grad_v, attended_strides, locations, grad_value, HEAD_DIM, BLOCK_DIM)
        if PADDED:
            padding += tl.sum(tl.where(locations[4][:, None], 0.0, grad_value), 0)
        # All keys are in this tile, so the sum is computed from the weights, without the attended map.
        grad_weights = multiply(grad_output, tl.trans(value), PRECISE, INPUT_PRECISION)
        grad_logits = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None])
        if WANTS_BIAS:
            grad_bias += grad_logits
        grad_rounded = rounded(grad_logits, query.dtype)
        grad_unit = multiply(grad_rounded, _unit(key, key_factors, PRECISE), PRECISE, INPUT_PRECISION)
        grad_query, grad_factors = _through_unit(grad_unit * factor, query, PRECISE)
        grad_scale += grad_factors
        store(grad_q, attended_strides, locations, grad_query, HEAD_DIM, BLOCK_DIM)
        grad_unit = multiply(tl.trans(grad_rounded), _unit(query, query_factors, PRECISE), PRECISE, INPUT_PRECISION)
        grad_key, _ = _through_unit(grad_unit * factor, key, PRECISE)
        store(grad_k, attended_strides, locations, grad_key, HEAD_DIM, BLOCK_DIM)

    tl.store(grad_scale_parts + split * heads + head, tl.sum(grad_scale) / factor)
    if PADDED:
        dims = tl.arange(0, BLOCK_DIM)
        tl.store(grad_padded_parts + (split * heads + head) * HEAD_DIM + dims, padding, mask=dims < HEAD_DIM)
    if WANTS_BIAS:
        _add_to_table(
            grad_table, grad_bias, split, head, tokens, tokens, heads, WINDOW_HEIGHT, WINDOW_WIDTH, SPAN, DETERMINISTIC
        )
