/* What works on each token by itself: the residual line with its norm, and GELU; and their gradients. */

#define TOKENS_AT_ONCE 64

typedef struct {
    REAL *work, *grad; /* LANES tokens, `wide` numbers apart */
    REAL *weight, *bias;
    REAL *some[3];   /* sums of some tokens */
    double *sums[3]; /* of all tokens of this thread */
    long wide;       /* channels, rounded up to LANES */
} FN(Lines);

/* Cuts memory into the lines of a thread. Returns the bytes; with no memory that is all it does. */
static long FN(lay_out_lines)(FN(Lines) *lines, long channels, char *memory) {
    long used = 0, wide = lines->wide = round_up(channels, LANES);
#define TAKE(field, count)                                                                                             \
    do {                                                                                                               \
        lines->field = memory ? (void *)(memory + used) : NULL;                                                        \
        used = round_up(used + (long)sizeof *lines->field * (count), 64);                                              \
    } while (0)
    TAKE(work, LANES * wide);
    TAKE(grad, LANES * wide);
    TAKE(weight, wide);
    TAKE(bias, wide);
    for (int i = 0; i < 3; i++) {
        TAKE(some[i], wide);
        TAKE(sums[i], wide);
    }
    return used;
#undef TAKE
}

/* Reads tokens, each with zeros beyond its end; the last of them again if there are fewer than LANES. */
INLINE void FN(read_tokens)(REAL *to, const Map *map, long token, long count, long channels, long wide) {
    for (long j = 0; j < LANES; j++) {
        FN(read)(to + j * wide, map, (token + smaller(j, count - 1)) * map->stride, channels);
        for (long c = channels; c < wide; c++) to[j * wide + c] = 0;
    }
}

/* Makes (x - mean) / deviation of each of LANES tokens, `row` numbers apart, with zeros beyond their ends; returns
   1 / deviation of each. */
INLINE Vector FN(normalise)(REAL *x, long row, long channels, REAL eps) {
    const long wide = round_up(channels, LANES);
    Vector sums[VECTOR_BYTES / sizeof(REAL)];
    REAL means[LANES], factors[LANES];
    for (long j = 0; j < LANES; j++) {
        Vector sum = {0};
        for (long c = 0; c < wide; c += LANES) sum += FN(load)(x + j * row + c);
        sums[j] = sum;
    }
    FN(store)(means, FN(sums)(sums) / (REAL)channels);
    for (long j = 0; j < LANES; j++) {
        Vector squares = {0};
        REAL *at = x + j * row;
        for (long c = 0; c < wide; c += LANES) FN(store)(at + c, FN(load)(at + c) - means[j]);
        for (long c = channels; c < wide; c++) at[c] = 0;
        for (long c = 0; c < wide; c += LANES) squares += FN(load)(at + c) * FN(load)(at + c);
        sums[j] = squares;
    }
    Vector factor = 1 / FN(roots)(FN(sums)(sums) / (REAL)channels + eps);
    FN(store)(factors, factor);
    for (long j = 0; j < LANES; j++)
        for (long c = 0; c < wide; c += LANES) {
            REAL *at = x + j * row + c;
            FN(store)(at, FN(load)(at) * factors[j]);
        }
    return factor;
}

/* How a branch ends. Weight and bias are those of its norm times its factor, with zeros beyond their ends. */
typedef struct {
    const REAL *weight, *bias;
    long channels;
    REAL eps;
} FN(Norm);

/* x += norm(work), for LANES tokens, `row` numbers apart. `work` is lost. */
INLINE void FN(add_norm)(REAL *x, REAL *work, long row, const FN(Norm) *norm) {
    const REAL *weight = norm->weight, *bias = norm->bias;
    const long wide = round_up(norm->channels, LANES);
    FN(normalise)(work, row, norm->channels, norm->eps);
    for (long j = 0; j < LANES; j++)
        for (long c = 0; c < wide; c += LANES) {
            REAL *at = x + j * row + c;
            Vector normed = FN(load)(work + j * row + c) * FN(load)(weight + c) + FN(load)(bias + c);
            FN(store)(at, FN(load)(at) + normed);
        }
}

/* out = x + factor * norm(work), for every token. Returns 0, or the bytes it needs if `bytes` are too few.

   weight, bias: (channels), of the norm; out may be x. */
long FN(add_normalised)(long tokens, long channels, const Map *x, const Map *work, const REAL *weight, const REAL *bias,
                        double eps, double factor, const Map *out, long threads, char *memory, long bytes) {
    threads = smaller(threads, (tokens + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE);
    if (threads < 1) return 0;
    FN(Lines) sizes;
    long share_bytes = FN(lay_out_lines)(&sizes, channels, NULL);
    if (bytes < share_bytes * threads) return share_bytes * threads;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads(), end = share(tokens, me + 1, team);
        FN(Lines) lines;
        memset(memory + me * share_bytes, 0, share_bytes);
        FN(lay_out_lines)(&lines, channels, memory + me * share_bytes);
        const long wide = lines.wide;
        for (long c = 0; c < channels; c++) lines.weight[c] = weight[c] * factor, lines.bias[c] = bias[c] * factor;
        const FN(Norm) norm = {lines.weight, lines.bias, channels, eps};
        for (long token = share(tokens, me, team); token < end; token += LANES) {
            long count = smaller(LANES, end - token);
            FN(read_tokens)(lines.work, work, token, count, channels, wide);
            FN(read_tokens)(lines.grad, x, token, count, channels, wide);
            FN(add_norm)(lines.grad, lines.work, wide, &norm);
            for (long j = 0; j < count; j++) FN(write)(out, (token + j) * out->stride, lines.grad + j * wide, channels);
        }
    }
    return 0;
}

/* Adds sums of some tokens to those of all, and begins anew. */
INLINE void FN(add_up)(FN(Lines) *lines, int count, long channels) {
    for (int i = 0; i < count; i++) {
        for (long c = 0; c < channels; c++) lines->sums[i][c] += lines->some[i][c];
        memset(lines->some[i], 0, sizeof(REAL) * channels);
    }
}

/* Adds what threads have summed up to `sums` (count, channels), in the order of threads. */
INLINE void FN(add_threads)(const char *memory, long bytes, long members, int count, long channels, double *sums) {
    for (long me = 0; me < members; me++) {
        FN(Lines) lines;
        FN(lay_out_lines)(&lines, channels, (char *)memory + me * bytes);
        for (int i = 0; i < count; i++)
            for (long c = 0; c < channels; c++) sums[i * channels + c] += lines.sums[i][c];
    }
}

/* From the gradients of norm(work) of LANES tokens to those of work, in place; `work` is lost. Sums of so many of these tokens
   are added to `some`: the gradients of weight and bias, and the answers. */
INLINE void FN(norm_backward)(FN(Lines) *lines, REAL *work, REAL *grad, long row, long count, long channels, REAL eps,
                          REAL factor) {
    const long wide = lines->wide;
    Vector sum[VECTOR_BYTES / sizeof(REAL)], along[VECTOR_BYTES / sizeof(REAL)];
    REAL scales[LANES], means[LANES], radials[LANES];
    FN(store)(scales, FN(normalise)(work, wide, channels, eps));
    for (long j = 0; j < LANES; j++) {
        REAL *slopes = grad + j * row, *normed = work + j * wide;
        Vector some = {0}, some_along = {0};
        for (long c = 0; c < wide; c += LANES) {
            Vector slope = FN(load)(slopes + c) * factor, direction = FN(load)(normed + c);
            if (j < count) {
                FN(store)(lines->some[0] + c, FN(load)(lines->some[0] + c) + slope * direction);
                FN(store)(lines->some[1] + c, FN(load)(lines->some[1] + c) + slope);
            }
            slope *= FN(load)(lines->weight + c);
            some += slope;
            some_along += slope * direction;
            FN(store)(slopes + c, slope);
        }
        sum[j] = some, along[j] = some_along;
    }
    FN(store)(means, FN(sums)(sum) / (REAL)channels);
    FN(store)(radials, FN(sums)(along) / (REAL)channels);
    for (long j = 0; j < count; j++) {
        REAL *slopes = grad + j * row, *normed = work + j * wide;
        for (long c = 0; c < wide; c += LANES) {
            Vector grad_input = FN(load)(slopes + c) - means[j] - FN(load)(normed + c) * radials[j];
            grad_input *= scales[j];
            FN(store)(slopes + c, grad_input);
            FN(store)(lines->some[2] + c, FN(load)(lines->some[2] + c) + grad_input);
        }
    }
}

/* The gradients of `add_normalised`, but x's, which is the answer's. Returns 0, or the bytes it needs if `bytes` are too
   few.

   grad: of the answer; grad_work: to be written; sums (3, channels): to these are added the gradients of weight and bias,
   and the sum of all tokens of grad_work. */
long FN(add_normalised_backward)(long tokens, long channels, const Map *grad, const Map *work, const REAL *weight,
                                 double eps, double factor, const Map *grad_branch_out, double *sums, long threads,
                                 char *memory, long bytes) {
    threads = smaller(threads, (tokens + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE);
    if (threads < 1) return 0;
    FN(Lines) sizes;
    long share_bytes = FN(lay_out_lines)(&sizes, channels, NULL), members = 1;
    if (bytes < share_bytes * threads) return share_bytes * threads;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads(), end = share(tokens, me + 1, team);
        FN(Lines) lines;
        memset(memory + me * share_bytes, 0, share_bytes);
        FN(lay_out_lines)(&lines, channels, memory + me * share_bytes);
        const long wide = lines.wide;
        memcpy(lines.weight, weight, sizeof(REAL) * channels);
        for (long token = share(tokens, me, team), done = 0; token < end; token += LANES) {
            long count = smaller(LANES, end - token);
            FN(read_tokens)(lines.work, work, token, count, channels, wide);
            FN(read_tokens)(lines.grad, grad, token, count, channels, wide);
            FN(norm_backward)(&lines, lines.work, lines.grad, wide, count, channels, eps, factor);
            for (long j = 0; j < count; j++)
                FN(write)(grad_branch_out, (token + j) * grad_branch_out->stride, lines.grad + j * wide, channels);
            done += LANES;
            if (done % TOKENS_AT_ONCE == 0) FN(add_up)(&lines, 3, channels);
        }
        FN(add_up)(&lines, 3, channels);
        if (me == 0) members = team;
    }
    FN(add_threads)(memory, share_bytes, members, 3, channels, sums);
    return 0;
}

/* after = GELU(before), for every token; `after` may be `before`. Returns 0, or the bytes it needs if `bytes` are too few. */
long FN(gelu)(long tokens, long channels, const Map *before, const Map *after, long threads, char *memory, long bytes) {
    threads = smaller(threads, tokens);
    if (threads < 1) return 0;
    FN(Lines) sizes;
    long share_bytes = FN(lay_out_lines)(&sizes, channels, NULL);
    if (bytes < share_bytes * threads) return share_bytes * threads;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads();
        FN(Lines) lines;
        FN(lay_out_lines)(&lines, channels, memory + me * share_bytes);
        for (long token = share(tokens, me, team); token < share(tokens, me + 1, team); token++) {
            FN(read)(lines.work, before, token * before->stride, channels);
            for (long c = 0; c < channels; c += LANES) FN(store)(lines.work + c, FN(gelu_of)(FN(load)(lines.work + c)));
            FN(write)(after, token * after->stride, lines.work, channels);
        }
    }
    return 0;
}

/* GELU again, and its gradient. Returns 0, or the bytes it needs if `bytes` are too few.

   grad: of its answer; after: the answer, to be written; grad_before: to be written, may be grad; sums (channels): to
   these is added the sum of all tokens of grad_before. */
long FN(gelu_backward)(long tokens, long channels, const Map *before, const Map *grad, const Map *after,
                      const Map *grad_before, double *sums, long threads, char *memory, long bytes) {
    threads = smaller(threads, tokens);
    if (threads < 1) return 0;
    FN(Lines) sizes;
    long share_bytes = FN(lay_out_lines)(&sizes, channels, NULL), members = 1;
    if (bytes < share_bytes * threads) return share_bytes * threads;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads();
        FN(Lines) lines;
        memset(memory + me * share_bytes, 0, share_bytes);
        FN(lay_out_lines)(&lines, channels, memory + me * share_bytes);
        for (long token = share(tokens, me, team), i = 1; token < share(tokens, me + 1, team); token++, i++) {
            FN(read)(lines.work, before, token * before->stride, channels);
            FN(read)(lines.grad, grad, token * grad->stride, channels);
            for (long c = 0; c < channels; c += LANES) {
                Vector x = FN(load)(lines.work + c), below, density;
                FN(normal)(x, &below, &density);
                Vector slope = (below + x * density) * FN(load)(lines.grad + c);
                FN(store)(lines.work + c, x * below);
                FN(store)(lines.grad + c, slope);
                FN(store)(lines.some[0] + c, FN(load)(lines.some[0] + c) + slope);
            }
            FN(write)(after, token * after->stride, lines.work, channels);
            FN(write)(grad_before, token * grad_before->stride, lines.grad, channels);
            if (i % TOKENS_AT_ONCE == 0) FN(add_up)(&lines, 1, channels);
        }
        FN(add_up)(&lines, 1, channels);
        if (me == 0) members = team;
    }
    FN(add_threads)(memory, share_bytes, members, 1, channels, sums);
    return 0;
}
