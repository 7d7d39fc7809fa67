/* Cosine attention inside every window of a map, and its gradients: ops/reference.py is the specification.

   A thread computes one window and head at a time. It reads the keys and values from the unshifted map, and loops over
   chunks of queries. Of the T x T weights, only those of one chunk exist. 16-bit numbers are computed in 32 bits. */

#define SMALLEST_NORM ((REAL)1e-12)

/* The workspace of a thread, one block of memory. */
typedef struct {
    long tokens;    /* of a window */
    long keys, dim; /* tokens and channels of a head, rounded up to panels */
    long row, rows; /* of logits: length of a row, rows of a chunk */
    long table;     /* size of the table of one head */
    Window window;
    REAL *reversed_table;                 /* the table of one head in reverse order */
    REAL *panel;                          /* PANEL vectors before they are transposed */
    REAL *transposed_key, *value;         /* keys [dim][PANEL] panel by panel, values [tokens][dim] */
    REAL *query, *factor;                 /* of a chunk: scaled queries, and their factors */
    REAL *logits, *inverse_sum, *output;  /* of a chunk; inverse_sum: 1 / sum of the weights */
    REAL *key, *key_factor;               /* for gradients: scaled keys [keys][dim], and their factors */
    REAL *transposed_value, *grad_output; /* values like transposed_key; of a chunk */
    REAL *grad_logits, *grad_query;
    REAL *grad_key, *grad_value;                   /* [tokens][dim] */
    REAL *grad_reversed;                           /* of one window and head, in reverse order */
    double *grad_table, *grad_scale, *grad_padded; /* sums of this thread over its tasks, for all heads */
} FN(Workspace);

/* Lays out the workspace in memory. Returns its bytes; if memory is NULL, it only counts them. */
static long FN(lay_out_workspace)(FN(Workspace) *work, const Plan *plan, int with_gradients, char *memory) {
    long used = 0;
#define TAKE(field, count)                                                                                             \
    do {                                                                                                               \
        work->field = memory ? (void *)(memory + used) : NULL;                                                         \
        used = round_up(used + (long)sizeof *work->field * (count) + VECTOR_BYTES * VECTORS, 64);                      \
    } while (0)
    long tokens = work->tokens = window_tokens(plan);
    work->keys = round_up(tokens, PANEL);
    work->dim = round_up(plan->dim, PANEL);
    work->row = work->keys + PANEL; /* not a power of two, which would use only a few cache sets */
    work->rows = round_up(tokens <= 512 ? 48 : 24, ROWS);
    work->table = table_size(plan);
    TAKE(window.position, tokens);
    TAKE(window.query, tokens);
    TAKE(window.region, tokens);
    TAKE(window.token, window_lines(plan));
    TAKE(window.along, window_lines(plan));
    TAKE(reversed_table, work->table);
    TAKE(panel, PANEL * work->dim);
    TAKE(transposed_key, work->keys * work->dim);
    TAKE(query, work->rows * work->dim);
    TAKE(factor, work->rows + LANES);
    TAKE(inverse_sum, work->rows + LANES);
    TAKE(logits, work->rows * work->row);
    if (!with_gradients) {
        TAKE(value, tokens * work->dim);
        TAKE(output, work->rows * work->dim);
        return used;
    }
    long rounded = round_up(tokens, ROWS);
    TAKE(key, work->keys * work->dim);
    TAKE(key_factor, work->keys);
    TAKE(transposed_value, work->keys * work->dim);
    TAKE(grad_output, work->rows * work->dim);
    TAKE(grad_logits, work->rows * work->row);
    TAKE(grad_query, work->rows * work->dim);
    TAKE(grad_key, rounded * work->dim);
    TAKE(grad_value, rounded * work->dim);
    TAKE(grad_reversed, work->table);
    TAKE(grad_table, plan->heads * work->table);
    TAKE(grad_scale, plan->heads);
    TAKE(grad_padded, plan->heads * plan->dim);
    return used;
#undef TAKE
}

/* Prefetches the vector that is read in the next task: that of the next head, or of the next window. */
INLINE void FN(prefetch_next)(const Map *map, long at, const Plan *plan, long head) {
    long size = (const long[]){4, 2, 2, 8}[map->type];
    long ahead = head + 1 < plan->heads ? plan->dim : plan->columns.window * map->stride - head * plan->dim;
    const char *next = (const char *)map->data + (at + ahead) * size;
    for (long byte = 0; byte < plan->dim * size; byte += 64) __builtin_prefetch(next + byte);
}

/* Reads the vector of a token and head, and pads it with zeros. */
INLINE void FN(read_vector)(REAL *to, const Map *map, long token, const Plan *plan, long head, long dim) {
    long at = token * map->stride + head * plan->dim;
    FN(read)(to, map, at, plan->dim);
    for (long d = plan->dim; d < dim; d++) to[d] = 0;
    FN(prefetch_next)(map, at, plan, head);
}

/* The vector of a padding token and head: that of `padding`, or zeros if it is NULL. */
INLINE void FN(fill_vector)(REAL *to, const REAL *padding, const Plan *plan, long head, long dim) {
    memset(to, 0, sizeof(REAL) * dim);
    if (padding) memcpy(to, padding + head * plan->dim, sizeof(REAL) * plan->dim);
}

/* Scales the vectors of a panel to length 1; a zero vector stays zero. The factors of vectors that count as zero are
   negative. */
INLINE void FN(scale_panel)(REAL *panel, long dim, REAL *factors) {
    for (long i = 0; i < PANEL; i += LANES) {
        Vector squares = {0};
        for (long d = 0; d < dim; d++) {
            Vector x = FN(load)(panel + d * PANEL + i);
            squares += x * x;
        }
        Vector norm = FN(roots)(squares), factor = 1 / FN(larger)(norm, FN(broadcast)(SMALLEST_NORM));
        for (long d = 0; d < dim; d++) {
            REAL *at = panel + d * PANEL + i;
            FN(store)(at, FN(load)(at) * factor);
        }
        if (factors) FN(store)(factors + i, FN(where)(norm > SMALLEST_NORM, factor, -factor));
    }
}

/* Reads the vectors of a window as transposed panels [dim][PANEL]. Keys are scaled; padding tokens are `padding` or 0. */
static void FN(read_transposed)(FN(Workspace) *work, REAL *transposed, const Map *map, const Plan *plan, long first, long head,
                            int is_key, const REAL *padding) {
    const long dim = work->dim, tokens = work->tokens;
    const int is_in_place = map->type == (IS_DOUBLE ? F64 : F32) && plan->dim == dim;
    for (long token = 0; token < work->keys; token += PANEL) {
        REAL *panel = transposed + token * dim;
        const REAL *vectors[PANEL];
        for (long i = 0; i < PANEL; i++) {
            long position = token + i < tokens ? work->window.position[token + i] : -1;
            REAL *copy = work->panel + i * dim;
            vectors[i] = copy;
            if (position >= 0 && is_in_place) {
                long at = (first + position) * map->stride + head * dim;
                vectors[i] = (const REAL *)map->data + at;
                FN(prefetch_next)(map, at, plan, head);
            } else if (position >= 0) {
                FN(read_vector)(copy, map, first + position, plan, head, dim);
            } else {
                FN(fill_vector)(copy, token + i < tokens ? padding : NULL, plan, head, dim);
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

/* Initialises the logits of a query with the bias, and with -infinity for keys that are hidden from it. */
INLINE void FN(begin_row)(REAL *row, const FN(Workspace) *work, const Plan *plan, long query) {
    const long height = plan->rows.window, width = plan->columns.window, tokens = work->tokens;
    /* In the reversed table, the biases of a row of keys are contiguous; numbers copied beyond them are overwritten. */
    const REAL *from = work->reversed_table + work->table / 2 - table_at_token(plan, query);
    REAL *to = row;
    for (long frame = 0; frame < plan->frames.window; frame++, from += table_at(plan, 1, 0, 0))
        for (long down = 0; down < height; down++, to += width)
            for (long i = 0; i < width; i += LANES) FN(store)(to + i, FN(load)(from + down * (2 * width - 1) + i));
    for (long token = tokens, keys = work->keys; token < keys; token++) row[token] = -INFINITY;
    if (!work->window.has_regions) return;
    const unsigned char *region = work->window.region, own = region[query];
    for (long token = 0; token < tokens; token++)
        if (region[token] != own) row[token] = -INFINITY;
}

/* Scales vectors to a length and writes their factors; the factors of vectors that count as zero are negative. */
INLINE void FN(scale_vectors)(REAL *vectors, long count, long dim, REAL length, REAL *factors) {
    for (long i = 0; i < count; i += LANES) {
        Vector squares[VECTOR_BYTES / sizeof(REAL)];
        for (long j = 0; j < LANES; j++) {
            const REAL *vector = vectors + smaller(i + j, count - 1) * dim;
            squares[j] = (Vector){0};
            for (long d = 0; d < dim; d += LANES) squares[j] += FN(load)(vector + d) * FN(load)(vector + d);
        }
        Vector norm = FN(roots)(FN(sums)(squares)), factor = length / FN(larger)(norm, FN(broadcast)(SMALLEST_NORM));
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

/* Replaces rows of logits by weights that are not yet divided by their sum; `inverse_sums` receives 1 / sum. */
INLINE void FN(weigh)(REAL *logits, long row, long count, long keys, REAL *inverse_sums) {
    for (long i = 0; i < count; i += LANES) {
        Vector group[VECTOR_BYTES / sizeof(REAL)];
        REAL row_max[LANES];
        for (long j = 0; j < LANES; j++) {
            const REAL *from = logits + smaller(i + j, count - 1) * row;
            Vector largest = FN(load)(from);
            for (long k = LANES; k < keys; k += LANES) largest = FN(larger)(FN(load)(from + k), largest);
            group[j] = largest;
        }
        FN(store)(row_max, FN(maxima)(group));
        for (long j = 0; j < LANES; j++) {
            Vector sum = {0};
            REAL *at = logits + (i + j) * row;
            for (long k = 0; i + j < count && k < keys; k += LANES) {
                Vector weight = FN(exp)(FN(load)(at + k) - row_max[j]);
                FN(store)(at + k, weight);
                sum += weight;
            }
            group[j] = sum;
        }
        FN(store)(inverse_sums + i, 1 / FN(sums)(group));
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

/* Copies the table of a head in reverse order. */
INLINE void FN(reverse_table)(FN(Workspace) *work, const REAL *table, long head) {
    for (long i = 0; i < work->table; i++) work->reversed_table[i] = table[(head + 1) * work->table - 1 - i];
}

/* Prepares the window and the head's table, unless they are the same as in the previous task. */
static void FN(move_to)(FN(Workspace) *work, const Plan *plan, long window, long head, const REAL *table, int moves) {
    if (moves || head == 0) find_window(&work->window, plan, window);
    if (moves || plan->heads > 1) FN(reverse_table)(work, table, head);
}

/* Reads and scales a chunk of queries, and computes their logits. Returns the number of rows, rounded up to ROWS. */
INLINE long FN(begin_rows)(FN(Workspace) *work, const Plan *plan, const Map *q, long first, long head, REAL scale, long start,
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

typedef struct {
    const Map *q, *k, *v; /* the arguments of `attend` */
    const Map *grad;      /* of its output, for gradients */
    const Map *grad_q, *grad_k, *grad_v;
    const Map *out; /* the output, without gradients */
} FN(Maps);

/* The attention of one window and head. */
static void FN(attend_window)(FN(Workspace) *work, const Plan *plan, const FN(Maps) *maps, REAL scale,
                              const REAL *padded_value, long first, long head) {
    const long dim = work->dim, row = work->row;
    FN(read_transposed)(work, work->transposed_key, maps->k, plan, first, head, 1, NULL);
    for (long token = 0; token < work->tokens; token++) {
        REAL *vector = work->value + token * dim;
        const long position = work->window.position[token];
        if (position >= 0) FN(read_vector)(vector, maps->v, first + position, plan, head, dim);
        else FN(fill_vector)(vector, padded_value, plan, head, dim);
    }
    for (long start = 0; start < work->window.queries; start += work->rows) {
        long count = smaller(work->rows, work->window.queries - start);
        long rounded = FN(begin_rows)(work, plan, maps->q, first, head, scale, start, count);
        FN(weigh)(work->logits, row, count, work->keys, work->inverse_sum);
        FN(multiply)(rounded, dim, work->tokens, work->logits, row, 1, work->value, dim, PANEL, work->output, dim, 0);
        for (long i = 0; i < count; i++) {
            REAL *output = work->output + i * dim;
            FN(multiply_row)(output, dim, work->inverse_sum[i]);
            long token = first + work->window.position[work->window.query[start + i]];
            FN(write)(maps->out, token * maps->out->stride + head * plan->dim, output, plan->dim);
        }
    }
}

/* The gradient dx of a vector x that was scaled to y = f x of a certain length, from y and dy; dx replaces dy:
   dx = f (dy - y (y . dy) / length^2). Returns y . dy. */
INLINE REAL FN(unscale)(REAL *grad, const REAL *scaled, long dim, REAL factor, REAL length) {
    REAL along = FN(dot)(grad, scaled, dim);
    /* For a vector that counts as zero, f is constant. */
    REAL radial = factor > 0 ? along / (length * length) : 0, size = factor > 0 ? factor : -factor;
    for (long d = 0; d < dim; d += LANES)
        FN(store)(grad + d, (FN(load)(grad + d) - FN(load)(scaled + d) * radial) * size);
    return along;
}

/* Adds the gradients of a row of logits to the reversed gradient of the table. */
INLINE void FN(collect_row)(REAL *grad_reversed, const REAL *row, const Plan *plan, long query) {
    const long height = plan->rows.window, width = plan->columns.window;
    REAL *frame_to = grad_reversed + table_size(plan) / 2 - table_at_token(plan, query);
    for (long frame = 0; frame < plan->frames.window; frame++, frame_to += table_at(plan, 1, 0, 0)) {
        REAL *to = frame_to;
        for (long down = 0; down < height; down++, to += 2 * width - 1, row += width) {
            long i = 0;
            for (; i + LANES <= width; i += LANES) FN(store)(to + i, FN(load)(to + i) + FN(load)(row + i));
            for (; i < width; i++) to[i] += row[i];
        }
    }
}

/* Adds the sums of all threads, which are `bytes` apart, in the order of threads, so that the result is deterministic. */
static void FN(add_members)(REAL *to, const double *first, long count, long members, long bytes) {
    for (long i = 0; to && i < count; i++) {
        double sum = 0;
        for (long me = 0; me < members; me++) sum += ((const double *)((const char *)first + me * bytes))[i];
        to[i] = sum;
    }
}

/* The gradients of one window and head. */
static void FN(attend_window_backward)(FN(Workspace) *work, const Plan *plan, const FN(Maps) *maps, REAL scale,
                                       const REAL *padded_value, long first, long head, int wants_table) {
    long tokens = work->tokens, dim = work->dim, rounded_tokens = round_up(tokens, ROWS);
    FN(read_transposed)(work, work->transposed_key, maps->k, plan, first, head, 1, NULL);
    FN(read_transposed)(work, work->transposed_value, maps->v, plan, first, head, 0, padded_value);
    memset(work->grad_key, 0, sizeof(REAL) * rounded_tokens * dim);
    memset(work->grad_value, 0, sizeof(REAL) * rounded_tokens * dim);
    if (wants_table) memset(work->grad_reversed, 0, sizeof(REAL) * work->table);
    for (long start = 0; start < work->window.queries; start += work->rows) {
        long count = smaller(work->rows, work->window.queries - start);
        long rounded = FN(begin_rows)(work, plan, maps->q, first, head, scale, start, count);
        for (long i = 0; i < rounded; i++) {
            long token = first + work->window.position[work->window.query[start + (i < count ? i : 0)]];
            FN(read_vector)(work->grad_output + i * dim, maps->grad, token, plan, head, dim);
        }
        FN(multiply)(rounded, work->keys, dim, work->grad_output, dim, 1, work->transposed_value, PANEL, PANEL * dim,
                     work->grad_logits, work->row, 0);
        FN(weigh)(work->logits, work->row, count, work->keys, work->inverse_sum);
        for (long i = 0; i < count; i++) {
            REAL *weights = work->logits + i * work->row, *grad = work->grad_logits + i * work->row;
            FN(multiply_row)(weights, work->keys, work->inverse_sum[i]);
            REAL mean = FN(dot)(weights, grad, work->keys);
            for (long t = 0; t < work->keys; t += LANES)
                FN(store)(grad + t, FN(load)(weights + t) * (FN(load)(grad + t) - mean));
            if (wants_table) FN(collect_row)(work->grad_reversed, grad, plan, work->window.query[start + i]);
        }
        /* weights.T @ grad_output, grad_logits.T @ queries, and grad_logits @ keys. */
        FN(multiply)(rounded_tokens, dim, count, work->logits, 1, work->row, work->grad_output, dim, PANEL,
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
            work->grad_table[(head + 1) * work->table - 1 - i] += work->grad_reversed[i];
}

/* Attention in all windows, or its gradients if maps->grad is given. Returns 0, or the bytes of workspace that it needs if
   `bytes` is too small. */
static long FN(attend_all)(const Plan *plan, const FN(Maps) *maps, const REAL *table, const REAL *scale,
                           const REAL *padded_value, REAL *grad_table, REAL *grad_scale, REAL *grad_padded, long threads,
                           char *memory, long bytes) {
    const int with_gradients = maps->grad != NULL;
    long windows = windows_of(plan), tasks = plan->images * windows * plan->heads, members = 1;
    FN(Workspace) sizes;
    long thread_bytes = FN(lay_out_workspace)(&sizes, plan, with_gradients, NULL);
    threads = smaller(threads, tasks) > 1 ? smaller(threads, tasks) : 1;
    if (bytes < thread_bytes * threads) return thread_bytes * threads;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads();
        FN(Workspace) work = {0};
        memset(memory + me * thread_bytes, 0, thread_bytes);
        FN(lay_out_workspace)(&work, plan, with_gradients, memory + me * thread_bytes);
        for (long task = share(tasks, me, team), begin = task; task < share(tasks, me + 1, team); task++) {
            long head = task % plan->heads, window = task / plan->heads % windows;
            long first = task / plan->heads / windows * map_tokens(plan);
            FN(move_to)(&work, plan, window, head, table, task == begin);
            if (with_gradients)
                FN(attend_window_backward)(&work, plan, maps, scale[head], padded_value, first, head, grad_table != NULL);
            else FN(attend_window)(&work, plan, maps, scale[head], padded_value, first, head);
        }
        if (me == 0) members = team;
    }
    if (!with_gradients) return 0;
    FN(lay_out_workspace)(&sizes, plan, 1, memory);
    FN(add_members)(grad_table, sizes.grad_table, plan->heads * sizes.table, members, thread_bytes);
    FN(add_members)(grad_scale, sizes.grad_scale, plan->heads, members, thread_bytes);
    FN(add_members)(grad_padded, sizes.grad_padded, plan->heads * plan->dim, members, thread_bytes);
    return 0;
}

/* Attention in all windows; returns as `attend_all`.

   table: (heads, 2 frames - 1, 2 rows - 1, 2 columns - 1) for the sizes of a window; scale: (heads); padded_value: (heads, dim), or NULL for zeros;
   out: a map of the same tokens as q, k and v. */
long FN(attend)(const Plan *plan, const Map *q, const Map *k, const Map *v, const REAL *table, const REAL *scale,
               const REAL *padded_value, const Map *out, long threads, char *memory, long bytes) {
    const FN(Maps) maps = {q, k, v, NULL, NULL, NULL, NULL, out};
    return FN(attend_all)(plan, &maps, table, scale, padded_value, NULL, NULL, NULL, threads, memory, bytes);
}

/* The gradients of `attend`; returns as `attend_all`.

   grad: of the output; grad_q, grad_k, grad_v: maps to be written; grad_table, grad_scale, grad_padded: to be written, of
   the shapes of table, scale and padded_value; grad_table may be NULL. */
long FN(attend_backward)(const Plan *plan, const Map *grad, const Map *q, const Map *k, const Map *v, const REAL *table,
                        const REAL *scale, const REAL *padded_value, const Map *grad_q, const Map *grad_k,
                        const Map *grad_v, REAL *grad_table, REAL *grad_scale, REAL *grad_padded, long threads, char *memory,
                        long bytes) {
    const FN(Maps) maps = {q, k, v, grad, grad_q, grad_k, grad_v, NULL};
    return FN(attend_all)(plan, &maps, table, scale, padded_value, grad_table, grad_scale, grad_padded, threads, memory, bytes);
}
