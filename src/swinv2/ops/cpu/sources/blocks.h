/* The blocks of a stage, for a few windows at a time. Intermediate results stay in a core's own cache.

   Each token has a lane of the vectors: tokens are read and transposed to panels [feature][PANEL]. A linear layer is
   W x^T, with W read in place, and its output is the input of the next product. Sums over features, also those of norm and
   softmax, need no sums across lanes.

   A team of threads computes a group of tokens. If there are enough groups, a team is one thread. Otherwise it is all
   threads, and each of them computes some rows of every weight and some heads. */

#define CHUNK (1024 / (long)sizeof(REAL)) /* features of a sum at a time: their panel stays in the first-level cache */
#define HEIGHT 48                         /* rows of a weight at a time, a multiple of ROWS: second-level cache */

#define LINE (64 / (long)sizeof(REAL))    /* numbers in a cache line */

/* c[rows][lanes] = a[rows][k] b[k][lanes] + bias[rows], plus c if `adds`; of `vectors` vectors of lanes. The stride of b's
   rows is PANEL. */
INLINE void FN(lane_tile)(const long rows, const long vectors, long k, const REAL *a, long a_row, const REAL *b, REAL *c,
                          long c_row, int adds, const REAL *bias, int is_first_use) {
    /* With one vector there are too few independent sums to keep the processor busy, so each sum has two parts. */
    const long parts = vectors == 1 ? 2 : 1, length = k / parts;
    Vector sum[2 * ROWS][VECTORS];
#pragma GCC unroll 16
    for (long i = 0; i < parts * rows; i++)
#pragma GCC unroll 4
        for (long j = 0; j < vectors; j++) sum[i][j] = (Vector){0};
    for (long start = 0, end; start < length; start = end) {
        end = smaller(start + LINE, length);
        /* Prefetches the rows of the next tile if the weight is used for the first time. */
#pragma GCC unroll 16
        for (long i = 0; is_first_use && i < parts * rows; i++)
            __builtin_prefetch(a + (rows + i % rows) * a_row + i / rows * length + start);
        for (long step = start; step < end; step++)
#pragma GCC unroll 2
            for (long part = 0; part < parts; part++) {
                const REAL *left = a + part * length + step, *right = b + (part * length + step) * PANEL;
#pragma GCC unroll 16
                for (long i = 0; i < rows; i++)
#pragma GCC unroll 4
                    for (long j = 0; j < vectors; j++)
                        sum[part * rows + i][j] += left[i * a_row] * FN(load)(right + j * LANES);
            }
    }
#pragma GCC unroll 16
    for (long i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (long j = 0; j < vectors; j++) {
            if (parts == 2) sum[i][j] += sum[rows + i][j];
            if (parts * length < k) sum[i][j] += a[i * a_row + k - 1] * FN(load)(b + (k - 1) * PANEL + j * LANES);
            if (bias) sum[i][j] += bias[i];
            if (adds) sum[i][j] += FN(load)(c + i * c_row + j * LANES);
            FN(store)(c + i * c_row + j * LANES, sum[i][j]);
        }
}

#define FEW 4 /* rows of the smallest tile */

/* Whether the last two tiles are of FEW rows each, instead of one of ROWS rows and a remainder. */
INLINE int FN(ends_with_two)(long rows) { return rows > ROWS && rows % ROWS && ROWS + rows % ROWS == 2 * FEW; }

/* The number of rows that `multiply_lanes` reads and writes. */
INLINE long FN(tiled_rows)(long rows) {
    const long rest = rows % ROWS;
    if (rest == 0 || FN(ends_with_two)(rows)) return rows;
    return rows - rest + (rest <= FEW ? FEW : ROWS);
}

/* `lane_tile` for any number of rows. */
INLINE void FN(multiply_lanes)(const long vectors, long rows, long k, const REAL *a, long a_row, const REAL *b, REAL *c,
                               long c_row, int adds, const REAL *bias, int is_first_use) {
    const long rest = rows % ROWS;
    const long last = FN(ends_with_two)(rows) ? rows - 2 * FEW : rest && rest <= FEW ? rows - rest : rows;
    long i = 0;
    for (; i < last; i += ROWS)
        FN(lane_tile)(ROWS, vectors, k, a + i * a_row, a_row, b, c + i * c_row, c_row, adds, bias ? bias + i : NULL,
                      is_first_use);
    for (; i < rows; i += FEW)
        FN(lane_tile)(FEW, vectors, k, a + i * a_row, a_row, b, c + i * c_row, c_row, adds, bias ? bias + i : NULL,
                      is_first_use);
}

/* `multiply_lanes` for the first `lanes` lanes of a panel; a and c must have `tiled_rows` rows. */
static __attribute__((noinline)) void FN(multiply_panel)(long lanes, long rows, long k, const REAL *a, long a_row,
                                                         const REAL *b, REAL *c, long c_row, int adds, const REAL *bias,
                                                         int is_first_use) {
    if (lanes <= LANES) FN(multiply_lanes)(1, rows, k, a, a_row, b, c, c_row, adds, bias, is_first_use);
    else FN(multiply_lanes)(VECTORS, rows, k, a, a_row, b, c, c_row, adds, bias, is_first_use);
}

/* Reads n features of tokens to [n][PANEL]; tokens beyond `count` or of a negative position are zeros. */
static void FN(read_panel)(REAL *to, const Map *map, const int64_t *position, long count, long n) {
    const int is_plain = map->type == (IS_DOUBLE ? F64 : F32);
    REAL part[LANES * LANES] = {0};
    for (long i = 0; i < PANEL; i += LANES)
        for (long column = 0; column < n; column += LANES) {
            const long width = smaller(LANES, n - column);
            Vector lines[VECTOR_BYTES / sizeof(REAL)];
#pragma GCC unroll 16
            for (long j = 0; j < LANES; j++) {
                if (i + j >= count || position[i + j] < 0) lines[j] = (Vector){0};
                else if (is_plain && width == LANES)
                    lines[j] = FN(load)((const REAL *)map->data + position[i + j] * map->stride + column);
                else {
                    FN(read)(part + j * LANES, map, position[i + j] * map->stride + column, width);
                    lines[j] = FN(load)(part + j * LANES);
                }
            }
            FN(transpose)(lines);
            for (long j = 0; j < width; j++) FN(store)(to + (column + j) * PANEL + i, lines[j]);
        }
}

/* Writes n features of tokens from [n][row] to the map, beginning at a column. */
static void FN(write_panel)(const Map *map, const int64_t *position, long count, long column, const REAL *from, long row,
                            long n) {
    const int is_plain = map->type == (IS_DOUBLE ? F64 : F32);
    REAL part[LANES];
    for (long i = 0; i < count; i += LANES)
        for (long first = 0; first < n; first += LANES) {
            const long width = smaller(LANES, n - first), valid = smaller(LANES, count - i);
            Vector lines[VECTOR_BYTES / sizeof(REAL)];
#pragma GCC unroll 16
            for (long j = 0; j < LANES; j++) lines[j] = FN(load)(from + (first + (j < width ? j : 0)) * row + i);
            FN(transpose)(lines);
            for (long j = 0; j < valid; j++) {
                const long at = position[i + j] * map->stride + column + first;
                if (is_plain && width == LANES) {
                    FN(store)((REAL *)map->data + at, lines[j]);
                    continue;
                }
                FN(store)(part, lines[j]);
                FN(write)(map, at, part, width);
            }
        }
}

/* A group of windows that are computed together, with their tokens one window after the other. */
typedef struct {
    long tokens, windows;
    int64_t *position;             /* of each token in the map */
    int64_t *start, *valid, *keys; /* of each window: first token, number of tokens, number of keys with padding tokens */
    int64_t *at;                   /* [windows][size of a window]: index of tokens in the bias table, padding tokens last */
    REAL *region;                  /* [windows][size of a window] */
    unsigned char *has_regions;
} FN(Group);

/* The workspace of one thread. */
typedef struct {
    FN(Group) group;
    Window window;
    REAL *rows;            /* of a weight, in REAL */
    REAL *norms[3];        /* weight and bias of each norm, times its factor */
    REAL *table;           /* of one head */
    REAL *keys, *query;    /* of one window and head, scaled: [keys][dim], and [dim][PANEL] */
    REAL *logits, *output; /* [keys][PANEL], [dim][PANEL] */
} FN(Own);

/* The workspace of a team: panels [feature][PANEL]; queries, keys and values are [feature][row]. */
typedef struct {
    REAL *x, *qkv, *attended, *branch_out, *hidden;
    long row;
} FN(Shared);

/* Sizes of the blocks and of a group. */
typedef struct {
    const Plan *plan;
    long channels, hidden; /* hidden: the largest number of hidden features */
    long wide, deep;       /* channels and hidden features, rounded up to ROWS */
    long size;             /* tokens of a window */
    long windows, tokens;  /* of a group, at most */
    long panels;           /* that the MLP computes at a time */
} FN(Sizes);

/* Gives a field of a workspace the next `count` numbers of the memory. */
#define TAKE(field, count)                                                                                             \
    do {                                                                                                               \
        field = memory ? (void *)(memory + used) : NULL;                                                               \
        used = round_up(used + (long)sizeof *field * (count), 64);                                                     \
    } while (0)

/* Both functions lay out a workspace in memory and return its bytes; if memory is NULL, they only count them. */
static long FN(lay_out_own)(FN(Own) *own, const FN(Sizes) *sizes, char *memory) {
    const Plan *plan = sizes->plan;
    const long windows = sizes->windows, size = sizes->size, dim = plan->dim;
    long used = 0;
    TAKE(own->group.position, sizes->tokens + PANEL);
    TAKE(own->group.start, windows);
    TAKE(own->group.valid, windows);
    TAKE(own->group.keys, windows);
    TAKE(own->group.at, windows * size);
    TAKE(own->group.region, windows * size + PANEL);
    TAKE(own->group.has_regions, windows);
    TAKE(own->window.position, size);
    TAKE(own->window.query, size);
    TAKE(own->window.region, size);
    TAKE(own->window.token, window_lines(plan));
    TAKE(own->window.along, window_lines(plan));
    TAKE(own->rows, HEIGHT * CHUNK);
    for (int i = 0; i < 3; i++) TAKE(own->norms[i], 2 * sizes->channels);
    TAKE(own->table, table_size(plan) + LANES);
    TAKE(own->keys, (round_up(size, LANES) + ROWS) * round_up(dim, LANES));
    TAKE(own->query, (dim + LANES) * PANEL);
    TAKE(own->logits, (size + ROWS + 1) * PANEL);
    TAKE(own->output, (dim + ROWS) * PANEL);
    return used;
}

static long FN(lay_out_shared)(FN(Shared) *shared, const FN(Sizes) *sizes, char *memory) {
    const long tokens = round_up(sizes->tokens, PANEL), wide = sizes->wide;
    long used = 0;
    /* An odd number of panels: strides of a power of two would use only a few cache sets. */
    shared->row = (tokens / PANEL | 1) * PANEL;
    TAKE(shared->x, tokens * wide);
    TAKE(shared->branch_out, tokens * wide);
    const long begin = used;
    TAKE(shared->qkv, 3 * wide * shared->row + (ROWS + LANES) * shared->row);
    TAKE(shared->attended, tokens * wide);
    /* The hidden features use the same memory as the attention. */
    const long end = used;
    used = begin;
    TAKE(shared->hidden, sizes->panels * PANEL * sizes->deep);
    return used > end ? used : end;
}

/* A linear layer from panels to panels. */
typedef struct {
    const Linear *layer;
    long in, out;
    const REAL *from;
    long from_panel;
    REAL *to;
    long to_panel, to_row;
    int applies_gelu; /* to the output */
    const Map *saved; /* receives the output before the GELU, or NULL */
    long saved_column;
} FN(Product);

static void FN(read_numbers)(REAL *to, const Numbers *from, long at, long n) {
    const Map map = {(void *)from->data, 0, from->type};
    FN(read)(to, &map, at, n);
}

/* A thread's part of a linear layer: some rows of the weight. */
static void FN(apply_layer)(const FN(Product) *job, const FN(Group) *group, long first, long panels, FN(Own) *own, long me,
                            long team) {
    const Linear *layer = job->layer;
    const int is_plain = layer->type == (IS_DOUBLE ? F64 : F32);
    const long tiles = (job->out + ROWS - 1) / ROWS, end = smaller(share(tiles, me + 1, team) * ROWS, job->out);
    /* For one panel, each row of the weight is read only once, so it is not divided into chunks. */
    const long cuts = panels == 1 && is_plain && job->out % ROWS == 0 ? 1 : (job->in + CHUNK - 1) / CHUNK;
    const long depth = round_up((job->in + cuts - 1) / cuts, LANES);
    REAL bias[HEIGHT + ROWS] = {0};
    for (long row = share(tiles, me, team) * ROWS; row < end; row += HEIGHT) {
        const long count = smaller(HEIGHT, end - row);
        if (layer->bias.data) FN(read_numbers)(bias, &layer->bias, row, count);
        for (long start = 0; start < job->in; start += depth) {
            const long length = smaller(depth, job->in - start), at = row * layer->row + start;
            const REAL *rows = (const REAL *)layer->data + at;
            long step = layer->row;
            if (!is_plain || FN(tiled_rows)(count) != count) {
                const Numbers weight = {layer->data, layer->type};
                for (long i = 0; i < count; i++)
                    FN(read_numbers)(own->rows + i * length, &weight, at + i * layer->row, length);
                memset(own->rows + count * length, 0, sizeof(REAL) * (FN(tiled_rows)(count) - count) * length);
                rows = own->rows, step = length;
            }
            for (long panel = 0; panel < panels; panel++) {
                REAL *to = job->to + panel * job->to_panel + row * job->to_row;
                const long token = (first + panel) * PANEL, lanes = smaller(PANEL, group->tokens - token);
                FN(multiply_panel)(lanes, count, length, rows, step, job->from + panel * job->from_panel + start * PANEL, to,
                                   job->to_row, start > 0, layer->bias.data && start == 0 ? bias : NULL, panel == 0);
                if (start + length < job->in) continue;
                if (job->saved)
                    FN(write_panel)(job->saved, group->position + token, lanes, job->saved_column + row, to, job->to_row,
                                    count);
                for (long i = 0; job->applies_gelu && i < count; i++)
                    for (long j = 0; j < lanes; j += LANES) {
                        REAL *x = to + i * job->to_row + j;
                        FN(store)(x, FN(gelu_of)(FN(load)(x)));
                    }
            }
        }
    }
}

/* Mean and 1 / deviation of each lane of a panel. */
INLINE void FN(measure_lanes)(const REAL *x, long channels, REAL eps, Vector *mean, Vector *factor) {
    enum { SUMS = 4 };
    Vector sum[SUMS] = {{0}}, squares[SUMS] = {{0}};
    long c = 0;
    for (; c + SUMS <= channels; c += SUMS)
#pragma GCC unroll 4
        for (long i = 0; i < SUMS; i++) sum[i] += FN(load)(x + (c + i) * PANEL);
    for (; c < channels; c++) sum[0] += FN(load)(x + c * PANEL);
    *mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / (REAL)channels;
    for (c = 0; c + SUMS <= channels; c += SUMS)
#pragma GCC unroll 4
        for (long i = 0; i < SUMS; i++) {
            Vector part = FN(load)(x + (c + i) * PANEL) - *mean;
            squares[i] += part * part;
        }
    for (; c < channels; c++) {
        Vector part = FN(load)(x + c * PANEL) - *mean;
        squares[0] += part * part;
    }
    *factor = 1 / FN(roots)(((squares[0] + squares[1]) + (squares[2] + squares[3])) / (REAL)channels + eps);
}

/* x = norm(branch_out), plus x if `adds`, for a panel; `branch_out` may be x. */
static void FN(norm_panel)(long lanes, REAL *x, const REAL *branch_out, long channels, REAL eps, const REAL *norm, int adds) {
    for (long j = 0; j < lanes; j += LANES) {
        Vector mean, factor;
        FN(measure_lanes)(branch_out + j, channels, eps, &mean, &factor);
        for (long c = 0; c < channels; c++) {
            Vector output = (FN(load)(branch_out + c * PANEL + j) - mean) * factor * norm[c] + norm[channels + c];
            REAL *to = x + c * PANEL + j;
            FN(store)(to, adds ? FN(load)(to) + output : output);
        }
    }
}

static void FN(read_norm)(REAL *to, const Norm *norm, long channels) {
    if (!norm->weight.data) return;
    FN(read_numbers)(to, &norm->weight, 0, channels);
    FN(read_numbers)(to + channels, &norm->bias, 0, channels);
    for (long c = 0; c < 2 * channels; c++) to[c] *= (REAL)norm->factor;
}

/* Finds the tokens of `count` windows, counted through all images. */
static void FN(gather_windows)(FN(Own) *own, const Plan *plan, long first, long count) {
    FN(Group) *group = &own->group;
    const long in_image = windows_of(plan), size = window_tokens(plan);
    group->tokens = 0, group->windows = count;
    for (long w = 0; w < count; w++) {
        const long number = first + w, image = number / in_image * map_tokens(plan);
        const Window *window = &own->window;
        find_window(&own->window, plan, number % in_image);
        int64_t *at = group->at + w * size;
        REAL *region = group->region + w * size;
        long keys = 0;
        group->start[w] = group->tokens;
        for (int is_padding = 0; is_padding < 2; is_padding++) {
            for (long line = 0, i = 0; line < plan->frames.window * plan->rows.window; line++) {
                const long first_at = table_at(plan, line / plan->rows.window, line % plan->rows.window, 0);
                for (long x = 0; x < plan->columns.window; x++, i++) {
                    if ((window->position[i] < 0) != is_padding || (window->region[i] & HIDDEN)) continue;
                    at[keys] = first_at + x;
                    region[keys++] = window->region[i];
                    if (!is_padding) group->position[group->tokens++] = image + window->position[i];
                }
            }
            if (!is_padding) group->valid[w] = keys;
        }
        group->keys[w] = keys;
        group->has_regions[w] = window->has_regions;
    }
}

/* Scales the keys of a window and head to length 1. */
INLINE void FN(scale_keys)(FN(Own) *own, const REAL *from, long row, long count, long dim) {
    const long wide = round_up(dim, LANES);
    for (long i = 0; i < count; i += LANES) {
        Vector squares = {0};
        for (long d = 0; d < dim; d++) squares += FN(load)(from + d * row + i) * FN(load)(from + d * row + i);
        const Vector factor = 1 / FN(larger)(FN(roots)(squares), FN(broadcast)(SMALLEST_NORM));
        for (long d = 0; d < dim; d += LANES) {
            Vector lines[VECTOR_BYTES / sizeof(REAL)];
#pragma GCC unroll 16
            for (long j = 0; j < LANES; j++) lines[j] = FN(load)(from + smaller(d + j, dim - 1) * row + i) * factor;
            FN(transpose)(lines);
#pragma GCC unroll 16
            for (long j = 0; j < LANES; j++) FN(store)(own->keys + (i + j) * wide + d, lines[j]);
        }
    }
}

/* Scales a panel of queries to a length: [dim][PANEL]. */
INLINE void FN(scale_queries)(FN(Own) *own, const REAL *from, long row, long dim, REAL length) {
    for (long j = 0; j < PANEL; j += LANES) {
        Vector squares = {0};
        for (long d = 0; d < dim; d++) squares += FN(load)(from + d * row + j) * FN(load)(from + d * row + j);
        const Vector factor = length / FN(larger)(FN(roots)(squares), FN(broadcast)(SMALLEST_NORM));
        for (long d = 0; d < dim; d++) FN(store)(own->query + d * PANEL + j, FN(load)(from + d * row + j) * factor);
    }
}

/* Initialises the logits with the biases: for a key, the biases of neighbouring queries in a row are contiguous. */
INLINE void FN(begin_logits)(FN(Own) *own, const int64_t *at, long keys, long query, long count, long centre) {
    int64_t from[VECTORS * VECTOR_BYTES / sizeof(REAL)], to[VECTORS * VECTOR_BYTES / sizeof(REAL)];
    long vectors = 0;
    for (long i = 0, run; i < count; i += run) {
        for (run = 1; i + run < count && at[query + i + run] == at[query + i] + run;) run++;
        for (long j = 0; j < run; j += LANES) from[vectors] = at[query + i] + j, to[vectors++] = i + j;
    }
    for (long key = 0; key < keys; key++) {
        const REAL *biases = own->table + centre - at[key];
        REAL *row = own->logits + key * PANEL;
        /* Numbers copied beyond the end of a run are overwritten. */
        for (long i = 0; i < vectors; i++) FN(store)(row + to[i], FN(load)(biases + from[i]));
    }
}

/* Replaces logits by weights that are not yet divided by their sums. Returns 1 / sum, and the sum of the weights of padding
   tokens. */
INLINE void FN(weigh_lanes)(REAL *logits, long vectors, const REAL *region, int has_regions, long query, long valid, long keys,
                            Vector *inverse_sums, Vector *padding) {
    for (long j = 0; j < vectors; j++) {
        REAL *column = logits + j * LANES;
        Vector largest = FN(broadcast)(-INFINITY), sum = {0}, padding_sum = {0};
        if (has_regions) {
            const Vector own = FN(load)(region + query + j * LANES);
            for (long key = 0; key < keys; key++) {
                REAL *at = column + key * PANEL;
                FN(store)(at, FN(where)(own == FN(broadcast)(region[key]), FN(load)(at), FN(broadcast)(-INFINITY)));
            }
        }
        for (long key = 0; key < keys; key++) largest = FN(larger)(FN(load)(column + key * PANEL), largest);
        for (long key = 0; key < valid; key++) {
            Vector weight = FN(exp)(FN(load)(column + key * PANEL) - largest);
            FN(store)(column + key * PANEL, weight);
            sum += weight;
        }
        for (long key = valid; key < keys; key++) padding_sum += FN(exp)(FN(load)(column + key * PANEL) - largest);
        inverse_sums[j] = 1 / (sum + padding_sum);
        padding[j] = padding_sum;
    }
}

/* The attention of one window and head of a group. */
static void FN(attend_head)(FN(Own) *own, const FN(Sizes) *sizes, const FN(Shared) *shared, const Block *block, long window,
                            long head) {
    const Plan *plan = sizes->plan;
    const FN(Group) *group = &own->group;
    const long dim = plan->dim, row = shared->row, start = group->start[window], valid = group->valid[window];
    const long keys = group->keys[window], table = table_size(plan), centre = table / 2;
    const REAL *query = shared->qkv + head * dim * row + start, *key = query + sizes->wide * row;
    const REAL *value = key + sizes->wide * row, *region = group->region + window * sizes->size;
    const int64_t *at = group->at + window * sizes->size;
    REAL value_bias[dim];
    memset(value_bias, 0, sizeof value_bias);
    if (keys > valid && block->value.bias.data)
        FN(read_numbers)(value_bias, &block->value.bias, head * dim, dim);
    memcpy(own->table, (const REAL *)block->table.data + head * table, sizeof(REAL) * table);
    FN(scale_keys)(own, key, row, valid, dim);
    /* The keys of padding tokens are zero, so a tile does not change their logits. */
    memset(own->keys + valid * round_up(dim, LANES), 0, sizeof(REAL) * ROWS * round_up(dim, LANES));
    for (long first = 0; first < valid; first += PANEL) {
        const long count = smaller(PANEL, valid - first);
        Vector inverse_sums[VECTORS], padding[VECTORS];
        FN(scale_queries)(own, query + first, row, dim, ((const REAL *)block->scale.data)[head]);
        FN(begin_logits)(own, at, keys, first, count, centre);
        FN(multiply_panel)(count, valid, dim, own->keys, round_up(dim, LANES), own->query, own->logits, PANEL, 1, NULL, 0);
        FN(weigh_lanes)(own->logits, (count + LANES - 1) / LANES, region, group->has_regions[window], first, valid, keys,
                        inverse_sums, padding);
        FN(multiply_panel)(count, dim, valid, value, row, own->logits, own->output, PANEL, 0, NULL, 0);
        /* Writes to the positions of the tokens in the group. */
        const long to = start + first, lane = to % PANEL;
        REAL *attended = shared->attended + to / PANEL * PANEL * sizes->wide + head * dim * PANEL + lane;
        for (long d = 0; d < dim; d++) {
            REAL *output = own->output + d * PANEL;
            for (long j = 0; j * LANES < count; j++)
                FN(store)(output + j * LANES, (FN(load)(output + j * LANES) + padding[j] * value_bias[d]) * inverse_sums[j]);
            if (lane == 0 && count == PANEL) {
                for (long j = 0; j < PANEL; j += LANES) FN(store)(attended + d * PANEL + j, FN(load)(output + j));
                continue;
            }
            for (long i = 0; i < count; i++)
                attended[d * PANEL + i + (lane + i >= PANEL ? PANEL * (sizes->wide - 1) : 0)] = output[i];
        }
    }
}

/* The arguments of a call. */
typedef struct {
    FN(Sizes) sizes;
    const Block *block;
    const Map *from, *to;
    const Saved *saved;
} FN(Task);

INLINE void FN(wait_for_team)(long team) {
    if (team > 1) {
#pragma omp barrier
    }
}

INLINE const Map *FN(wanted)(const Saved *saved, const Map *map) { return saved && map->data ? map : NULL; }

/* Computes one block for a group of tokens. */
static void FN(run_group)(const FN(Task) *task, const FN(Shared) *shared, FN(Own) *own, long me, long team) {
    const FN(Sizes) *sizes = &task->sizes;
    const Block *block = task->block;
    const Saved *saved = task->saved;
    const FN(Group) *group = &own->group;
    const long channels = sizes->channels, wide = sizes->wide, panel_size = wide * PANEL, row = shared->row;
    const long panels = (group->tokens + PANEL - 1) / PANEL, heads = sizes->plan->heads;
    const long mine = share(panels, me, team), end = share(panels, me + 1, team);
    for (long panel = mine; panel < end; panel++) {
        const long count = smaller(PANEL, group->tokens - panel * PANEL);
        FN(read_panel)(shared->x + panel * panel_size, task->from, group->position + panel * PANEL, count, channels);
        if (block->query.data && count < PANEL) memset(shared->attended + panel * panel_size, 0, sizeof(REAL) * panel_size);
    }
    FN(wait_for_team)(team);
    if (block->query.data) {
        const Linear *layers[] = {&block->query, &block->key, &block->value};
        for (long i = 0; i < 3; i++) {
            const FN(Product) job = {layers[i], channels, channels, shared->x, panel_size, shared->qkv + i * wide * row,
                                     PANEL, row, 0, FN(wanted)(saved, &saved->qkv), i * channels};
            FN(apply_layer)(&job, group, 0, panels, own, me, team);
        }
        FN(wait_for_team)(team);
        const long tasks = group->windows * heads;
        for (long i = share(tasks, me, team); i < share(tasks, me + 1, team); i++)
            FN(attend_head)(own, sizes, shared, block, i / heads, i % heads);
        FN(wait_for_team)(team);
        const FN(Product) last = {&block->out_proj, channels, channels, shared->attended, panel_size, shared->branch_out,
                                  panel_size, PANEL, 0, FN(wanted)(saved, &saved->attention_out), 0};
        FN(apply_layer)(&last, group, 0, panels, own, me, team);
        FN(wait_for_team)(team);
        for (long panel = mine; panel < end; panel++) {
            const long token = panel * PANEL, count = smaller(PANEL, group->tokens - token);
            REAL *x = shared->x + panel * panel_size;
            if (FN(wanted)(saved, &saved->attended))
                FN(write_panel)(&saved->attended, group->position + token, count, 0, shared->attended + panel * panel_size,
                                PANEL, channels);
            FN(norm_panel)(count, x, shared->branch_out + panel * panel_size, channels, block->attention_norm.eps,
                           own->norms[0], 1);
        }
        FN(wait_for_team)(team);
    }
    for (long first = 0; block->fc1.data && first < panels; first += sizes->panels) {
        const long count = smaller(sizes->panels, panels - first), hidden_size = sizes->deep * PANEL;
        REAL *x = shared->x + first * panel_size, *branch_out = shared->branch_out + first * panel_size;
        const FN(Product) fc1 = {&block->fc1, channels, block->hidden, x, panel_size, shared->hidden, hidden_size, PANEL,
                                   1, FN(wanted)(saved, &saved->hidden), 0};
        FN(apply_layer)(&fc1, group, first, count, own, me, team);
        FN(wait_for_team)(team);
        const FN(Product) fc2 = {&block->fc2, block->hidden, channels, shared->hidden, hidden_size, branch_out, panel_size,
                                    PANEL, 0, FN(wanted)(saved, &saved->mlp_out), 0};
        FN(apply_layer)(&fc2, group, first, count, own, me, team);
        FN(wait_for_team)(team);
    }
    for (long panel = mine; panel < end; panel++) {
        const long count = smaller(PANEL, group->tokens - panel * PANEL);
        REAL *x = shared->x + panel * panel_size;
        if (block->fc1.data)
            FN(norm_panel)(count, x, shared->branch_out + panel * panel_size, channels, block->mlp_norm.eps, own->norms[1], 1);
        if (block->extra_norm.weight.data) FN(norm_panel)(count, x, x, channels, block->extra_norm.eps, own->norms[2], 0);
        FN(write_panel)(task->to, group->position + panel * PANEL, count, 0, x, PANEL, channels);
    }
    FN(wait_for_team)(team);
}

#define GROUP_TOKENS 64 /* tokens of a group for one thread, if windows are smaller */
#define TEAM_TOKENS 256 /* tokens of a group for all threads */
#define PRODUCTS_A_THREAD 200000 /* fewer multiply-adds do not pay for starting a thread */

/* Runs blocks one after the other. Returns 0, or the bytes it needs if `bytes` is too small.

   whole: the plan of all blocks, without their shifts; x: the map; out: receives the map, may be x. A block without a query
   layer is only an MLP; a block without fc1 is only an attention. saved: receives the maps that the gradients of a single
   block need, or NULL. */
long FN(run_blocks)(const Plan *whole, long count, const Block *blocks, const Map *x, const Map *out, const Saved *saved,
                    long threads, char *memory, long bytes) {
    Plan plan = *whole;
    const long channels = plan.heads * plan.dim, all_tokens = plan.images * map_tokens(&plan);
    int attends = 0;
    long hidden = 0, products = 0;
    for (long i = 0; i < count; i++) {
        attends |= blocks[i].query.data != NULL;
        if (blocks[i].fc1.data && blocks[i].hidden > hidden) hidden = blocks[i].hidden;
    }
    if (all_tokens < 1 || count < 1) return 0;
    if (!attends)
        plan = (Plan){1, {1, 1, 0}, {1, 1, 0}, {all_tokens, GROUP_TOKENS, 0}, 1, plan.heads, plan.dim};
    products = all_tokens * channels * (4 * channels * attends + 2 * hidden);
    threads = smaller(threads, 1 + products / PRODUCTS_A_THREAD);
    FN(Task) task = {.saved = saved};
    FN(Sizes) *sizes = &task.sizes;
    const long size = window_tokens(&plan), valid = valid_tokens(&plan), windows = plan.images * windows_of(&plan);
    const long at_once = smaller(windows, valid < GROUP_TOKENS ? GROUP_TOKENS / valid : 1);
    *sizes = (FN(Sizes)){&plan, channels, hidden, round_up(channels, ROWS), round_up(hidden, ROWS), size, at_once, 0, 0};
    /* Each thread computes the same number of groups alone. The remaining groups are computed by all threads together,
       unless there are nearly enough of them for every thread. */
    long groups = (windows + at_once - 1) / at_once, alone = groups / threads * threads;
    if (groups - alone > 0.8 * threads) alone = groups;
    const long first_left = smaller(alone * at_once, windows);
    FN(Sizes) together = *sizes;
    together.windows = smaller(windows - first_left, valid < TEAM_TOKENS ? TEAM_TOKENS / valid : 1);
    sizes->tokens = sizes->windows * valid, together.tokens = together.windows * valid;
    sizes->panels = (smaller(sizes->tokens, 2 * GROUP_TOKENS) + PANEL - 1) / PANEL;
    together.panels = (smaller(together.tokens, TEAM_TOKENS) + PANEL - 1) / PANEL;
    FN(Sizes) largest = together.windows > sizes->windows ? together : *sizes;
    FN(Own) own_sizes;
    FN(Shared) shared_sizes, for_all;
    const long own_bytes = FN(lay_out_own)(&own_sizes, &largest, NULL);
    const long alone_bytes = alone ? FN(lay_out_shared)(&shared_sizes, sizes, NULL) : 0;
    const long all_bytes = together.windows ? FN(lay_out_shared)(&shared_sizes, &together, NULL) : 0;
    const long needed = all_bytes + (own_bytes + alone_bytes) * threads;
    if (bytes < needed) return needed;
    FN(lay_out_shared)(&for_all, &together, memory);
#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        char *mine = memory + all_bytes + (own_bytes + alone_bytes) * me;
        FN(Own) own;
        FN(Shared) shared;
        FN(lay_out_own)(&own, &largest, mine);
        FN(lay_out_shared)(&shared, sizes, mine + own_bytes);
        for (long i = 0; i < count; i++) {
            const Block *block = blocks + i;
            Plan cut = plan;
            if (attends)
                cut.frames.shift = block->shift_frames, cut.rows.shift = block->shift_rows,
                cut.columns.shift = block->shift_columns;
            FN(Task) some = {*sizes, block, i ? out : x, out, saved};
            some.sizes.plan = &cut;
            FN(read_norm)(own.norms[0], &block->attention_norm, channels);
            FN(read_norm)(own.norms[1], &block->mlp_norm, channels);
            FN(read_norm)(own.norms[2], &block->extra_norm, channels);
#pragma omp for schedule(dynamic)
            for (long group = 0; group < alone; group++) {
                const long window = group * at_once;
                FN(gather_windows)(&own, &cut, window, smaller(at_once, first_left - window));
                FN(run_group)(&some, &shared, &own, 0, 1);
            }
            some.sizes = together, some.sizes.plan = &cut;
            for (long window = first_left; window < windows; window += together.windows) {
                FN(gather_windows)(&own, &cut, window, smaller(together.windows, windows - window));
                FN(run_group)(&some, &for_all, &own, me, team);
            }
        }
    }
    return 0;
}

/* A linear layer and a norm that merge every window of a map into one token. The input of the layer is the window's tokens,
   joined column by column; tokens beyond the map are zeros. Returns 0, or the bytes it needs if `bytes` is too small.

   plan: the windows of the map x of images, of a few tokens of `dim` numbers; out: receives the tokens of `wide` numbers. */
long FN(project)(const Plan *plan, const Linear *layer, const Norm *norm, long wide, const Map *x, const Map *out,
                 long threads, char *memory, long bytes) {
    const long down = windows_along(&plan->rows), across = windows_along(&plan->columns);
    const long tokens = plan->images * down * across, height = plan->rows.size, width = plan->columns.size;
    const long parts = window_tokens(plan), joined = parts * plan->dim;
    if (tokens < 1) return 0;
    threads = smaller(threads, 1 + tokens * joined * wide / PRODUCTS_A_THREAD);
    const long groups = (tokens + GROUP_TOKENS - 1) / GROUP_TOKENS, team = groups < threads ? threads : 1;
    const long x_panel = joined * PANEL, out_panel = round_up(wide, ROWS) * PANEL, panels = GROUP_TOKENS / PANEL;
    const long shared = sizeof(REAL) * panels * (x_panel + out_panel);
    const long position_bytes = sizeof(int64_t) * GROUP_TOKENS * (parts + 1);
    const long own_bytes = round_up(sizeof(REAL) * (HEIGHT * CHUNK + 2 * wide), 64) + position_bytes;
    const long needed = shared * (team > 1 ? 1 : threads) + own_bytes * threads;
    if (bytes < needed) return needed;
#pragma omp parallel num_threads(threads)
    {
        const long number = omp_get_thread_num(), all = omp_get_num_threads();
        /* All threads compute each group together, or each thread computes its own groups. */
        const long me = team > 1 ? number : 0, members = team > 1 ? all : 1;
        const long first = team > 1 ? 0 : share(groups, number, all), end = team > 1 ? groups : share(groups, number + 1, all);
        char *mine = memory + own_bytes * number;
        FN(Own) own = {.rows = (REAL *)mine};
        own.norms[0] = own.rows + HEIGHT * CHUNK;
        own.group.position = (int64_t *)(mine + own_bytes) - GROUP_TOKENS * (parts + 1);
        REAL *from = (REAL *)(memory + own_bytes * threads + (team > 1 ? 0 : shared * number));
        REAL *result = from + panels * x_panel;
        FN(read_norm)(own.norms[0], norm, wide);
        for (long group = first; group < end; group++) {
            const long start = group * GROUP_TOKENS, count = own.group.tokens = smaller(GROUP_TOKENS, tokens - start);
            const long some = (count + PANEL - 1) / PANEL;
            const long begin = share(some, me, members), stop = share(some, me + 1, members);
            int64_t *positions = own.group.position + GROUP_TOKENS;
            for (long i = 0; i < count; i++) {
                const long token = start + i, row = token / across % down * plan->rows.window;
                const long column = token % across * plan->columns.window, image = token / across / down * height;
                own.group.position[i] = token;
                for (long part = 0; part < parts; part++) {
                    const long y = row + part % plan->rows.window, x = column + part / plan->rows.window;
                    const int is_valid = y < height && x < width;
                    positions[part * GROUP_TOKENS + i] = is_valid ? (image + y) * width + x : -1;
                }
            }
            for (long panel = begin; panel < stop; panel++)
                for (long part = 0; part < parts; part++)
                    FN(read_panel)(from + panel * x_panel + part * plan->dim * PANEL, x,
                                   positions + part * GROUP_TOKENS + panel * PANEL, count - panel * PANEL, plan->dim);
            FN(wait_for_team)(members);
            const FN(Product) job = {layer, joined, wide, from, x_panel, result, out_panel, PANEL, 0, NULL, 0};
            FN(apply_layer)(&job, &own.group, 0, some, &own, me, members);
            FN(wait_for_team)(members);
            for (long panel = begin; panel < stop; panel++) {
                REAL *output = result + panel * out_panel;
                const long lanes = smaller(PANEL, count - panel * PANEL);
                FN(norm_panel)(lanes, output, output, wide, norm->eps, own.norms[0], 0);
                FN(write_panel)(out, own.group.position + panel * PANEL, lanes, 0, output, PANEL, wide);
            }
            FN(wait_for_team)(members);
        }
    }
    return 0;
}
