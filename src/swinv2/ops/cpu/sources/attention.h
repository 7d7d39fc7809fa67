/* Cosine attention inside every window of a map, and its gradients: ops/reference.py is the specification.

   A thread takes a window and a head, reads their keys and values from the unshifted map, and goes through the queries
   some rows at a time. The weights of those rows are all that exists of the T x T weights. What is stored in 16 bits is
   computed in 32. */

#define SMALLEST_NORM ((REAL)1e-12)

/* What a thread works with; all of it in one block of memory. */
typedef struct {
    long tokens, keys, dim, row, rows; /* tokens; rounded up to panels; channels likewise; of logits: length, number */
    long table;                        /* size of the table of one head */
    Window window;
    int64_t *window_row, *window_column;
    REAL *backwards;                  /* the table of one head, last entry first */
    REAL *panel;                      /* PANEL vectors on their way to being transposed */
    REAL *transposed_key, *value;         /* keys [dim][PANEL] panel by panel, values [tokens][dim] */
    REAL *query, *factor;             /* of some rows, and what the queries were multiplied by */
    REAL *logits, *share, *answer;    /* of these */
    REAL *key, *key_factor;           /* for gradients: keys [keys][dim], what they were multiplied by */
    REAL *transposed_value, *grad_answer; /* values as transposed_key; of some rows */
    REAL *grad_logits, *grad_query;
    REAL *grad_key, *grad_value;      /* [tokens][dim] */
    REAL *grad_backwards;             /* of one window and head */
    double *grad_table, *grad_scale, *grad_padded; /* sums of this thread, all heads */
} FN(Work);

/* Cuts memory into what a thread works with. Returns the bytes; with no memory that is all it does. */
static long FN(lay_out_work)(FN(Work) *work, const Plan *plan, int with_gradients, char *memory) {
    long used = 0;
#define TAKE(field, count)                                                                                             \
    do {                                                                                                               \
        work->field = memory ? (void *)(memory + used) : NULL;                                                         \
        used = round_up(used + (long)sizeof *work->field * (count) + VECTOR_BYTES * VECTORS, 64);                      \
    } while (0)
    long tokens = work->tokens = plan->window_height * plan->window_width;
    work->keys = round_up(tokens, PANEL);
    work->dim = round_up(plan->dim, PANEL);
    work->row = work->keys + PANEL; /* no power of two, which would crowd a few lines of the cache */
    work->rows = round_up(tokens <= 512 ? 48 : 24, ROWS);
    work->table = (2 * plan->window_height - 1) * (2 * plan->window_width - 1);
    TAKE(window.position, tokens);
    TAKE(window.query, tokens);
    TAKE(window.row_region, plan->window_height);
    TAKE(window.column_region, plan->window_width);
    TAKE(window_row, plan->window_height);
    TAKE(window_column, plan->window_width);
    TAKE(backwards, work->table);
    TAKE(panel, PANEL * work->dim);
    TAKE(transposed_key, work->keys * work->dim);
    TAKE(query, work->rows * work->dim);
    TAKE(factor, work->rows + LANES);
    TAKE(share, work->rows + LANES);
    TAKE(logits, work->rows * work->row);
    if (!with_gradients) {
        TAKE(value, tokens * work->dim);
        TAKE(answer, work->rows * work->dim);
        return used;
    }
    long rounded = round_up(tokens, ROWS);
    TAKE(key, work->keys * work->dim);
    TAKE(key_factor, work->keys);
    TAKE(transposed_value, work->keys * work->dim);
    TAKE(grad_answer, work->rows * work->dim);
    TAKE(grad_logits, work->rows * work->row);
    TAKE(grad_query, work->rows * work->dim);
    TAKE(grad_key, rounded * work->dim);
    TAKE(grad_value, rounded * work->dim);
    TAKE(grad_backwards, work->table);
    TAKE(grad_table, plan->heads * work->table);
    TAKE(grad_scale, plan->heads);
    TAKE(grad_padded, plan->heads * plan->dim);
    return used;
#undef TAKE
}

/* Asks for the vector of the same token that is read next time: the next head's, or the next window's. */
INLINE void FN(ask_for_next)(const Map *map, long at, const Plan *plan, long head) {
    long size = (const long[]){4, 2, 2, 8}[map->type];
    long ahead = head + 1 < plan->heads ? plan->dim : plan->window_width * map->stride - head * plan->dim;
    const char *next = (const char *)map->data + (at + ahead) * size;
    for (long byte = 0; byte < plan->dim * size; byte += 64) __builtin_prefetch(next + byte);
}

/* Reads the vector of a token and head, zeros beyond its end. */
INLINE void FN(read_vector)(REAL *to, const Map *map, long token, const Plan *plan, long head, long dim) {
    long at = token * map->stride + head * plan->dim;
    FN(read)(to, map, at, plan->dim);
    for (long d = plan->dim; d < dim; d++) to[d] = 0;
    FN(ask_for_next)(map, at, plan, head);
}

/* Scales the vectors of a panel to length 1; a vector of zeros stays. Factors of those that count as zero are negative. */
INLINE void FN(scale_panel)(REAL *panel, long dim, REAL *factors) {
    for (long i = 0; i < PANEL; i += LANES) {
        Vector squares = {0};
        for (long d = 0; d < dim; d++) {
            Vector x = FN(load)(panel + d * PANEL + i);
            squares += x * x;
        }
        Vector norm = FN(roots)(squares), factor = 1 / FN(larger)(norm, FN(spread)(SMALLEST_NORM));
        for (long d = 0; d < dim; d++) {
            REAL *at = panel + d * PANEL + i;
            FN(store)(at, FN(load)(at) * factor);
        }
        if (factors) FN(store)(factors + i, FN(where)(norm > SMALLEST_NORM, factor, -factor));
    }
}

/* Reads vectors of a window panel by panel, transposed: [dim][PANEL]. Keys are scaled; padding is `padding` or zeros. */
static void FN(read_transposed)(FN(Work) *work, REAL *transposed, const Map *map, const Plan *plan, long first, long head,
                            int is_key, const REAL *padding) {
    const long dim = work->dim, tokens = work->tokens;
    const int lies_ready = map->type == (IS_DOUBLE ? F64 : F32) && plan->dim == dim;
    for (long token = 0; token < work->keys; token += PANEL) {
        REAL *panel = transposed + token * dim;
        const REAL *vectors[PANEL];
        for (long i = 0; i < PANEL; i++) {
            long position = token + i < tokens ? work->window.position[token + i] : -1;
            REAL *copy = work->panel + i * dim;
            vectors[i] = copy;
            if (position >= 0 && lies_ready) {
                long at = (first + position) * map->stride + head * dim;
                vectors[i] = (const REAL *)map->data + at;
                FN(ask_for_next)(map, at, plan, head);
            } else if (position >= 0) {
                FN(read_vector)(copy, map, first + position, plan, head, dim);
            } else {
                memset(copy, 0, sizeof(REAL) * dim);
                if (token + i < tokens && padding) memcpy(copy, padding + head * plan->dim, sizeof(REAL) * plan->dim);
            }
        }
        for (long i = 0; i < PANEL; i += LANES)
            for (long d = 0; d < dim; d += LANES) {
                Vector block[VECTOR_BYTES / sizeof(REAL)];
#pragma GCC unroll 16
                for (long j = 0; j < LANES; j++) block[j] = FN(load)(vectors[i + j] + d);
                FN(transpose)(block);
#pragma GCC unroll 16
                for (long j = 0; j < LANES; j++) FN(store)(panel + (d + j) * PANEL + i, block[j]);
            }
        if (!is_key) continue;
        FN(scale_panel)(panel, dim, work->key_factor ? work->key_factor + token : NULL);
        for (long i = 0; work->key && i < PANEL; i++) {
            REAL factor = work->key_factor[token + i], *key = work->key + (token + i) * dim;
            for (long d = 0; d < dim; d += LANES)
                FN(store)(key + d, FN(load)(vectors[i] + d) * (factor > 0 ? factor : -factor));
        }
    }
}

/* The logits of a query before its products: the bias, and -infinity for what it may not see. */
INLINE void FN(begin_row)(REAL *row, const FN(Work) *work, const Plan *plan, long query) {
    const long height = plan->window_height, width = plan->window_width, y = query / width, x = query % width;
    /* Backwards, the biases of a row of keys lie side by side; what is copied beyond them is written over. */
    const REAL *from = work->backwards + (height - 1 - y) * (2 * width - 1) + width - 1 - x;
    for (long down = 0; down < height; down++)
        for (long i = 0; i < width; i += LANES)
            FN(store)(row + down * width + i, FN(load)(from + down * (2 * width - 1) + i));
    for (long token = height * width, keys = work->keys; token < keys; token++) row[token] = -INFINITY;
    if (!work->window.has_regions) return;
    const unsigned char *rows = work->window.row_region, *columns = work->window.column_region;
    for (long down = 0; down < height; down++)
        for (long across = 0; across < width; across++)
            if (rows[down] != rows[y] || columns[across] != columns[x]) row[down * width + across] = -INFINITY;
}

/* Scales vectors to a length; returns their factors in `factors`, negative for those that count as zero. */
INLINE void FN(scale_vectors)(REAL *vectors, long count, long dim, REAL length, REAL *factors) {
    for (long i = 0; i < count; i += LANES) {
        Vector squares[VECTOR_BYTES / sizeof(REAL)];
        for (long j = 0; j < LANES; j++) {
            const REAL *vector = vectors + smaller(i + j, count - 1) * dim;
            squares[j] = (Vector){0};
            for (long d = 0; d < dim; d += LANES) squares[j] += FN(load)(vector + d) * FN(load)(vector + d);
        }
        Vector norm = FN(roots)(FN(sums)(squares)), factor = length / FN(larger)(norm, FN(spread)(SMALLEST_NORM));
        REAL some[LANES];
        FN(store)(some, factor);
        for (long j = 0; j < LANES && i + j < count; j++)
            for (long d = 0; d < dim; d += LANES) {
                REAL *at = vectors + (i + j) * dim + d;
                FN(store)(at, FN(load)(at) * some[j]);
            }
        FN(store)(factors + i, FN(where)(norm > SMALLEST_NORM, factor, -factor));
    }
}

/* Makes weights of the logits of some rows, not yet divided by their sums: `shares` gets what divides them. */
INLINE void FN(weigh)(REAL *logits, long row, long count, long keys, REAL *shares) {
    for (long i = 0; i < count; i += LANES) {
        Vector group[VECTOR_BYTES / sizeof(REAL)];
        REAL peaks[LANES];
        for (long j = 0; j < LANES; j++) {
            const REAL *from = logits + smaller(i + j, count - 1) * row;
            Vector most = FN(load)(from);
            for (long k = LANES; k < keys; k += LANES) most = FN(larger)(FN(load)(from + k), most);
            group[j] = most;
        }
        FN(store)(peaks, FN(most)(group));
        for (long j = 0; j < LANES; j++) {
            Vector sum = {0};
            REAL *at = logits + (i + j) * row;
            for (long k = 0; i + j < count && k < keys; k += LANES) {
                Vector weight = FN(exp)(FN(load)(at + k) - peaks[j]);
                FN(store)(at + k, weight);
                sum += weight;
            }
            group[j] = sum;
        }
        FN(store)(shares + i, 1 / FN(sums)(group));
    }
}

INLINE void FN(multiply_row)(REAL *row, long n, REAL factor) {
    for (long i = 0; i < n; i += LANES) FN(store)(row + i, FN(load)(row + i) * factor);
}

INLINE REAL FN(dot)(const REAL *a, const REAL *b, long n) {
    Vector sum = {0};
    for (long i = 0; i < n; i += LANES) sum += FN(load)(a + i) * FN(load)(b + i);
    return FN(sum)(sum);
}

/* Takes the table of a head, last entry first. */
INLINE void FN(reorder_table)(FN(Work) *work, const REAL *table, long head) {
    for (long i = 0; i < work->table; i++) work->backwards[i] = table[(head + 1) * work->table - 1 - i];
}

/* Finds the window and the head's table, unless they are those of before. */
static void FN(move_to)(FN(Work) *work, const Plan *plan, long window, long head, const REAL *table, int moves) {
    if (moves || head == 0) find_window(&work->window, plan, window, work->window_row, work->window_column);
    if (moves || plan->heads > 1) FN(reorder_table)(work, table, head);
}

/* The queries of some rows, scaled, and their logits. Returns how many rows, rounded up to ROWS. */
INLINE long FN(begin_rows)(FN(Work) *work, const Plan *plan, const Map *q, long first, long head, REAL scale, long start,
                           long count) {
    const long rounded = round_up(count, ROWS), dim = work->dim, row = work->row;
    for (long i = 0; i < rounded; i++) {
        long token = work->window.query[start + (i < count ? i : 0)];
        FN(read_vector)(work->query + i * dim, q, first + work->window.position[token], plan, head, dim);
        FN(begin_row)(work->logits + i * row, work, plan, token);
    }
    FN(scale_vectors)(work->query, rounded, dim, scale, work->factor);
    FN(multiply)(rounded, work->keys, dim, work->query, dim, 1, work->transposed_key, PANEL, PANEL * dim, work->logits, row, 1);
    return rounded;
}

/* Attention of one window and head. */
static void FN(attend_window)(FN(Work) *work, const Plan *plan, const Map *q, const Map *k, const Map *v, REAL scale,
                              const REAL *padded_value, const Map *out, long first, long head) {
    const long dim = work->dim, row = work->row;
    FN(read_transposed)(work, work->transposed_key, k, plan, first, head, 1, NULL);
    for (long token = 0; token < work->tokens; token++) {
        REAL *vector = work->value + token * dim;
        if (work->window.position[token] >= 0) {
            FN(read_vector)(vector, v, first + work->window.position[token], plan, head, dim);
            continue;
        }
        memset(vector, 0, sizeof(REAL) * dim);
        if (padded_value) memcpy(vector, padded_value + head * plan->dim, sizeof(REAL) * plan->dim);
    }
    for (long start = 0; start < work->window.queries; start += work->rows) {
        long count = smaller(work->rows, work->window.queries - start);
        long rounded = FN(begin_rows)(work, plan, q, first, head, scale, start, count);
        FN(weigh)(work->logits, row, count, work->keys, work->share);
        FN(multiply)(rounded, dim, work->tokens, work->logits, row, 1, work->value, dim, PANEL, work->answer, dim, 0);
        for (long i = 0; i < count; i++) {
            REAL *answer = work->answer + i * dim;
            FN(multiply_row)(answer, dim, work->share[i]);
            long token = first + work->window.position[work->window.query[start + i]];
            FN(write)(out, token * out->stride + head * plan->dim, answer, plan->dim);
        }
    }
}

/* Attends in all windows. Returns 0, or the bytes of memory it needs if `bytes` are too few.

   table: (heads, 2 window_height - 1, 2 window_width - 1); scale: (heads); padded_value: (heads, dim), or NULL for zeros;
   out: as many tokens as q, k and v have. */
long FN(attend)(const Plan *plan, const Map *q, const Map *k, const Map *v, const REAL *table, const REAL *scale,
               const REAL *padded_value, const Map *out, long threads, char *memory, long bytes) {
    long windows = windows_down(plan) * windows_across(plan), tasks = plan->images * windows * plan->heads;
    threads = smaller(threads, tasks);
    if (threads < 1) return 0;
    FN(Work) sizes;
    long share_bytes = FN(lay_out_work)(&sizes, plan, 0, NULL);
    if (bytes < share_bytes * threads) return share_bytes * threads;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads();
        FN(Work) work = {0};
        memset(memory + me * share_bytes, 0, share_bytes);
        FN(lay_out_work)(&work, plan, 0, memory + me * share_bytes);
        for (long task = share(tasks, me, team), begin = task; task < share(tasks, me + 1, team); task++) {
            long head = task % plan->heads, window = task / plan->heads % windows;
            long first = task / plan->heads / windows * plan->height * plan->width;
            FN(move_to)(&work, plan, window, head, table, task == begin);
            FN(attend_window)(&work, plan, q, k, v, scale[head], padded_value, out, first, head);
        }
    }
    return 0;
}

/* The gradient of a vector that was scaled to a length, from the scaled vector y and its gradient dy, in place of dy:
   dx = f (dy - y (y . dy) / length^2). Returns y . dy. */
INLINE REAL FN(unscale)(REAL *grad, const REAL *scaled, long dim, REAL factor, REAL length) {
    REAL along = FN(dot)(grad, scaled, dim);
    /* A vector that counts as zero has no direction that could turn. */
    REAL radial = factor > 0 ? along / (length * length) : 0, size = factor > 0 ? factor : -factor;
    for (long d = 0; d < dim; d += LANES)
        FN(store)(grad + d, (FN(load)(grad + d) - FN(load)(scaled + d) * radial) * size);
    return along;
}

/* Adds the gradients of a row of logits to those of the table, backwards. */
INLINE void FN(collect_row)(REAL *grad_backwards, const REAL *row, const Plan *plan, long query) {
    long height = plan->window_height, width = plan->window_width, y = query / width, x = query % width;
    REAL *to = grad_backwards + (height - 1 - y) * (2 * width - 1) + width - 1 - x;
    for (long down = 0; down < height; down++, to += 2 * width - 1, row += width) {
        long i = 0;
        for (; i + LANES <= width; i += LANES) FN(store)(to + i, FN(load)(to + i) + FN(load)(row + i));
        for (; i < width; i++) to[i] += row[i];
    }
}

/* Adds up what threads have summed, each `bytes` after the one before: in their order, so that the same call gives the same
   answer. */
static void FN(add_members)(REAL *to, const double *first, long count, long members, long bytes) {
    for (long i = 0; to && i < count; i++) {
        double sum = 0;
        for (long me = 0; me < members; me++) sum += ((const double *)((const char *)first + me * bytes))[i];
        to[i] = sum;
    }
}

typedef struct {
    const Map *q, *k, *v; /* what `attend` was given */
    const Map *grad;      /* of its answer */
    const Map *grad_q, *grad_k, *grad_v;
} FN(Maps);

/* Gradients of one window and head. */
static void FN(attend_window_backward)(FN(Work) *work, const Plan *plan, const FN(Maps) *maps, REAL scale,
                                       const REAL *padded_value, long first, long head, int wants_table) {
    long tokens = work->tokens, dim = work->dim, rounded_tokens = round_up(tokens, ROWS);
    FN(read_transposed)(work, work->transposed_key, maps->k, plan, first, head, 1, NULL);
    FN(read_transposed)(work, work->transposed_value, maps->v, plan, first, head, 0, padded_value);
    memset(work->grad_key, 0, sizeof(REAL) * rounded_tokens * dim);
    memset(work->grad_value, 0, sizeof(REAL) * rounded_tokens * dim);
    if (wants_table) memset(work->grad_backwards, 0, sizeof(REAL) * work->table);
    for (long start = 0; start < work->window.queries; start += work->rows) {
        long count = smaller(work->rows, work->window.queries - start);
        long rounded = FN(begin_rows)(work, plan, maps->q, first, head, scale, start, count);
        for (long i = 0; i < rounded; i++) {
            long token = first + work->window.position[work->window.query[start + (i < count ? i : 0)]];
            FN(read_vector)(work->grad_answer + i * dim, maps->grad, token, plan, head, dim);
        }
        FN(multiply)(rounded, work->keys, dim, work->grad_answer, dim, 1, work->transposed_value, PANEL, PANEL * dim,
                     work->grad_logits, work->row, 0);
        FN(weigh)(work->logits, work->row, count, work->keys, work->share);
        for (long i = 0; i < count; i++) {
            REAL *weights = work->logits + i * work->row, *grad = work->grad_logits + i * work->row;
            FN(multiply_row)(weights, work->keys, work->share[i]);
            REAL mean = FN(dot)(weights, grad, work->keys);
            for (long t = 0; t < work->keys; t += LANES)
                FN(store)(grad + t, FN(load)(weights + t) * (FN(load)(grad + t) - mean));
            if (wants_table) FN(collect_row)(work->grad_backwards, grad, plan, work->window.query[start + i]);
        }
        /* Weights transposed times the answers' gradients, logits' gradients transposed times queries, and times keys. */
        FN(multiply)(rounded_tokens, dim, count, work->logits, 1, work->row, work->grad_answer, dim, PANEL,
                     work->grad_value, dim, 1);
        FN(multiply)(rounded_tokens, dim, count, work->grad_logits, 1, work->row, work->query, dim, PANEL,
                     work->grad_key, dim, 1);
        FN(multiply)(rounded, dim, tokens, work->grad_logits, work->row, 1, work->key, dim, PANEL, work->grad_query,
                     dim, 0);
        for (long i = 0; i < count; i++) {
            REAL *grad = work->grad_query + i * dim;
            work->grad_scale[head] += FN(unscale)(grad, work->query + i * dim, dim, work->factor[i], scale) / scale;
            long token = first + work->window.position[work->window.query[start + i]];
            FN(write)(maps->grad_q, token * maps->grad_q->stride + head * plan->dim, grad, plan->dim);
        }
    }
    for (long token = 0; token < tokens; token++) {
        REAL *grad_key = work->grad_key + token * dim, *grad_value = work->grad_value + token * dim;
        if (work->window.position[token] < 0) {
            for (long d = 0; d < plan->dim; d++) work->grad_padded[head * plan->dim + d] += grad_value[d];
            continue;
        }
        long position = first + work->window.position[token];
        FN(unscale)(grad_key, work->key + token * dim, dim, work->key_factor[token], 1);
        FN(write)(maps->grad_k, position * maps->grad_k->stride + head * plan->dim, grad_key, plan->dim);
        FN(write)(maps->grad_v, position * maps->grad_v->stride + head * plan->dim, grad_value, plan->dim);
    }
    if (wants_table)
        for (long i = 0; i < work->table; i++)
            work->grad_table[(head + 1) * work->table - 1 - i] += work->grad_backwards[i];
}

/* The gradients of `attend`. Returns 0, or the bytes of memory it needs if `bytes` are too few.

   grad: of the answer; grad_q, grad_k, grad_v: maps to be written; grad_table, grad_scale, grad_padded: of the sizes of
   table, scale and padded_value, to be written; grad_table may be NULL if it is not wanted. */
long FN(attend_backward)(const Plan *plan, const Map *grad, const Map *q, const Map *k, const Map *v, const REAL *table,
                        const REAL *scale, const REAL *padded_value, const Map *grad_q, const Map *grad_k,
                        const Map *grad_v, REAL *grad_table, REAL *grad_scale, REAL *grad_padded, long threads, char *memory,
                        long bytes) {
    long windows = windows_down(plan) * windows_across(plan), tasks = plan->images * windows * plan->heads;
    FN(Maps) maps = {q, k, v, grad, grad_q, grad_k, grad_v};
    FN(Work) sizes;
    long share_bytes = FN(lay_out_work)(&sizes, plan, 1, NULL);
    threads = smaller(threads, tasks) > 1 ? smaller(threads, tasks) : 1;
    if (bytes < share_bytes * threads) return share_bytes * threads;
    long members = 1;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads();
        FN(Work) work = {0};
        memset(memory + me * share_bytes, 0, share_bytes);
        FN(lay_out_work)(&work, plan, 1, memory + me * share_bytes);
        for (long task = share(tasks, me, team), begin = task; task < share(tasks, me + 1, team); task++) {
            long head = task % plan->heads, window = task / plan->heads % windows;
            long first = task / plan->heads / windows * plan->height * plan->width;
            FN(move_to)(&work, plan, window, head, table, task == begin);
            FN(attend_window_backward)(&work, plan, &maps, scale[head], padded_value, first, head, grad_table != NULL);
        }
        if (me == 0) members = team;
    }
    FN(lay_out_work)(&sizes, plan, 1, memory);
    FN(add_members)(grad_table, sizes.grad_table, plan->heads * sizes.table, members, share_bytes);
    FN(add_members)(grad_scale, sizes.grad_scale, plan->heads, members, share_bytes);
    FN(add_members)(grad_padded, sizes.grad_padded, plan->heads * plan->dim, members, share_bytes);
    return 0;
}
