/* Functions of single tokens: the residual line with its norm, the GELU, and their gradients. */

#define TOKENS_AT_ONCE 64

typedef struct {
    REAL *branch_out, *grad; /* LANES tokens with a stride of `wide` numbers */
    REAL *weight, *bias;
    REAL *partial[3]; /* sums of at most TOKENS_AT_ONCE tokens */
    double *sums[3];  /* sums of all tokens of this thread */
    long wide;        /* channels, rounded up to LANES */
} FN(Lines);

/* Lays out the workspace of a thread in memory. Returns its bytes; if memory is NULL, it only counts them. */
static long FN(lay_out_lines)(FN(Lines) *lines, long channels, char *memory) {
    long used = 0, wide = lines->wide = round_up(channels, LANES);
#define TAKE(field, count)                                                                                             \
    do {                                                                                                               \
        lines->field = memory ? (void *)(memory + used) : NULL;                                                        \
        used = round_up(used + (long)sizeof *lines->field * (count), 64);                                              \
    } while (0)
    TAKE(branch_out, LANES * wide);
    TAKE(grad, LANES * wide);
    TAKE(weight, wide);
    TAKE(bias, wide);
    for (int i = 0; i < 3; i++) {
        TAKE(partial[i], wide);
        TAKE(sums[i], wide);
    }
    return used;
#undef TAKE
}

/* Reads LANES tokens, each padded with zeros; if `count` is less, the last token is repeated. */
INLINE void FN(read_tokens)(REAL *to, const Map *map, long token, long count, long channels, long wide) {
    for (long j = 0; j < LANES; j++) {
        FN(read)(to + j * wide, map, (token + smaller(j, count - 1)) * map->stride, channels);
        for (long c = channels; c < wide; c++) to[j * wide + c] = 0;
    }
}

/* Replaces LANES tokens, with a stride of `row` numbers, by (x - mean) / deviation, padded with zeros. Returns
   1 / deviation of each token. */
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

/* The epilogue of a branch. Weight and bias are those of its norm, multiplied by the factor and padded with zeros. */
typedef struct {
    const REAL *weight, *bias;
    long channels;
    REAL eps;
} FN(Norm);

/* x += norm(branch_out), for LANES tokens with a stride of `row` numbers. `branch_out` is overwritten. */
INLINE void FN(add_norm)(REAL *x, REAL *branch_out, long row, const FN(Norm) *norm) {
    const REAL *weight = norm->weight, *bias = norm->bias;
    const long wide = round_up(norm->channels, LANES);
    FN(normalise)(branch_out, row, norm->channels, norm->eps);
    for (long j = 0; j < LANES; j++)
        for (long c = 0; c < wide; c += LANES) {
            REAL *at = x + j * row + c;
            Vector normed = FN(load)(branch_out + j * row + c) * FN(load)(weight + c) + FN(load)(bias + c);
            FN(store)(at, FN(load)(at) + normed);
        }
}

/* out = x + factor * norm(branch_out), for every token. Returns 0, or the bytes it needs if `bytes` is too small.

   weight, bias: (channels), of the norm; out may be x. */
long FN(add_normalised)(long tokens, long channels, const Map *x, const Map *branch_out, const REAL *weight, const REAL *bias,
                        double eps, double factor, const Map *out, long threads, char *memory, long bytes) {
    threads = smaller(threads, (tokens + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE);
    if (threads < 1) return 0;
    FN(Lines) sizes;
    long thread_bytes = FN(lay_out_lines)(&sizes, channels, NULL);
    if (bytes < thread_bytes * threads) return thread_bytes * threads;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads(), end = share(tokens, me + 1, team);
        FN(Lines) lines;
        memset(memory + me * thread_bytes, 0, thread_bytes);
        FN(lay_out_lines)(&lines, channels, memory + me * thread_bytes);
        const long wide = lines.wide;
        for (long c = 0; c < channels; c++) lines.weight[c] = weight[c] * factor, lines.bias[c] = bias[c] * factor;
        const FN(Norm) norm = {lines.weight, lines.bias, channels, eps};
        for (long token = share(tokens, me, team); token < end; token += LANES) {
            long count = smaller(LANES, end - token);
            FN(read_tokens)(lines.branch_out, branch_out, token, count, channels, wide);
            FN(read_tokens)(lines.grad, x, token, count, channels, wide);
            FN(add_norm)(lines.grad, lines.branch_out, wide, &norm);
            for (long j = 0; j < count; j++) FN(write)(out, (token + j) * out->stride, lines.grad + j * wide, channels);
        }
    }
    return 0;
}

/* Adds the partial sums to the sums of all tokens, and clears them. */
INLINE void FN(add_up)(FN(Lines) *lines, int count, long channels) {
    for (int i = 0; i < count; i++) {
        for (long c = 0; c < channels; c++) lines->sums[i][c] += lines->partial[i][c];
        memset(lines->partial[i], 0, sizeof(REAL) * channels);
    }
}

/* Adds the sums of all threads to `sums` (count, channels), in the order of threads. */
INLINE void FN(add_threads)(const char *memory, long bytes, long members, int count, long channels, double *sums) {
    for (long me = 0; me < members; me++) {
        FN(Lines) lines;
        FN(lay_out_lines)(&lines, channels, (char *)memory + me * bytes);
        for (int i = 0; i < count; i++)
            for (long c = 0; c < channels; c++) sums[i * channels + c] += lines.sums[i][c];
    }
}

/* Replaces the gradients of norm(branch_out) of LANES tokens by those of branch_out, which is overwritten. The first `count`
   tokens are added to `partial`: the gradients of weight and bias, and the sum of the gradients of branch_out. */
INLINE void FN(norm_backward)(FN(Lines) *lines, REAL *branch_out, REAL *grad, long row, long count, long channels, REAL eps,
                          REAL factor) {
    const long wide = lines->wide;
    Vector sum[VECTOR_BYTES / sizeof(REAL)], along[VECTOR_BYTES / sizeof(REAL)];
    REAL scales[LANES], means[LANES], radials[LANES];
    FN(store)(scales, FN(normalise)(branch_out, wide, channels, eps));
    for (long j = 0; j < LANES; j++) {
        REAL *grads = grad + j * row, *normed = branch_out + j * wide;
        Vector partial = {0}, sum_along = {0};
        for (long c = 0; c < wide; c += LANES) {
            Vector g = FN(load)(grads + c) * factor, normed_c = FN(load)(normed + c);
            if (j < count) {
                FN(store)(lines->partial[0] + c, FN(load)(lines->partial[0] + c) + g * normed_c);
                FN(store)(lines->partial[1] + c, FN(load)(lines->partial[1] + c) + g);
            }
            g *= FN(load)(lines->weight + c);
            partial += g;
            sum_along += g * normed_c;
            FN(store)(grads + c, g);
        }
        sum[j] = partial, along[j] = sum_along;
    }
    FN(store)(means, FN(sums)(sum) / (REAL)channels);
    FN(store)(radials, FN(sums)(along) / (REAL)channels);
    for (long j = 0; j < count; j++) {
        REAL *grads = grad + j * row, *normed = branch_out + j * wide;
        for (long c = 0; c < wide; c += LANES) {
            Vector grad_input = FN(load)(grads + c) - means[j] - FN(load)(normed + c) * radials[j];
            grad_input *= scales[j];
            FN(store)(grads + c, grad_input);
            FN(store)(lines->partial[2] + c, FN(load)(lines->partial[2] + c) + grad_input);
        }
    }
}

/* The gradients of `add_normalised`; the gradient of x is `grad`. Returns 0, or the bytes it needs if `bytes` is too small.

   grad: of the output; grad_branch_out: to be written; sums (3, channels): the gradients of weight and bias, and the sum of
   all tokens of grad_branch_out, are added to them. */
long FN(add_normalised_backward)(long tokens, long channels, const Map *grad, const Map *branch_out, const REAL *weight,
                                 double eps, double factor, const Map *grad_branch_out, double *sums, long threads,
                                 char *memory, long bytes) {
    threads = smaller(threads, (tokens + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE);
    if (threads < 1) return 0;
    FN(Lines) sizes;
    long thread_bytes = FN(lay_out_lines)(&sizes, channels, NULL), members = 1;
    if (bytes < thread_bytes * threads) return thread_bytes * threads;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads(), end = share(tokens, me + 1, team);
        FN(Lines) lines;
        memset(memory + me * thread_bytes, 0, thread_bytes);
        FN(lay_out_lines)(&lines, channels, memory + me * thread_bytes);
        const long wide = lines.wide;
        memcpy(lines.weight, weight, sizeof(REAL) * channels);
        for (long token = share(tokens, me, team), done = 0; token < end; token += LANES) {
            long count = smaller(LANES, end - token);
            FN(read_tokens)(lines.branch_out, branch_out, token, count, channels, wide);
            FN(read_tokens)(lines.grad, grad, token, count, channels, wide);
            FN(norm_backward)(&lines, lines.branch_out, lines.grad, wide, count, channels, eps, factor);
            for (long j = 0; j < count; j++)
                FN(write)(grad_branch_out, (token + j) * grad_branch_out->stride, lines.grad + j * wide, channels);
            done += LANES;
            if (done % TOKENS_AT_ONCE == 0) FN(add_up)(&lines, 3, channels);
        }
        FN(add_up)(&lines, 3, channels);
        if (me == 0) members = team;
    }
    FN(add_threads)(memory, thread_bytes, members, 3, channels, sums);
    return 0;
}

/* gelu_out = GELU(gelu_in), for every token; `gelu_out` may be `gelu_in`. Returns 0, or the bytes it needs if `bytes` is
   too small. */
long FN(gelu)(long tokens, long channels, const Map *gelu_in, const Map *gelu_out, long threads, char *memory, long bytes) {
    threads = smaller(threads, tokens);
    if (threads < 1) return 0;
    FN(Lines) sizes;
    long thread_bytes = FN(lay_out_lines)(&sizes, channels, NULL);
    if (bytes < thread_bytes * threads) return thread_bytes * threads;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads();
        FN(Lines) lines;
        FN(lay_out_lines)(&lines, channels, memory + me * thread_bytes);
        for (long token = share(tokens, me, team); token < share(tokens, me + 1, team); token++) {
            FN(read)(lines.branch_out, gelu_in, token * gelu_in->stride, channels);
            for (long c = 0; c < channels; c += LANES)
                FN(store)(lines.branch_out + c, FN(gelu_of)(FN(load)(lines.branch_out + c)));
            FN(write)(gelu_out, token * gelu_out->stride, lines.branch_out, channels);
        }
    }
    return 0;
}

/* Computes the GELU again, and its gradient. Returns 0, or the bytes it needs if `bytes` is too small.

   grad: of the output; gelu_out: the output, to be written; grad_in: the gradient of gelu_in, to be written, may be grad;
   sums (channels): the sum of all tokens of grad_in is added to them. */
long FN(gelu_backward)(long tokens, long channels, const Map *gelu_in, const Map *grad, const Map *gelu_out,
                      const Map *grad_in, double *sums, long threads, char *memory, long bytes) {
    threads = smaller(threads, tokens);
    if (threads < 1) return 0;
    FN(Lines) sizes;
    long thread_bytes = FN(lay_out_lines)(&sizes, channels, NULL), members = 1;
    if (bytes < thread_bytes * threads) return thread_bytes * threads;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads();
        FN(Lines) lines;
        memset(memory + me * thread_bytes, 0, thread_bytes);
        FN(lay_out_lines)(&lines, channels, memory + me * thread_bytes);
        for (long token = share(tokens, me, team), i = 1; token < share(tokens, me + 1, team); token++, i++) {
            FN(read)(lines.branch_out, gelu_in, token * gelu_in->stride, channels);
            FN(read)(lines.grad, grad, token * grad->stride, channels);
            for (long c = 0; c < channels; c += LANES) {
                Vector x = FN(load)(lines.branch_out + c), below, density;
                FN(normal)(x, &below, &density);
                Vector g = (below + x * density) * FN(load)(lines.grad + c);
                FN(store)(lines.branch_out + c, x * below);
                FN(store)(lines.grad + c, g);
                FN(store)(lines.partial[0] + c, FN(load)(lines.partial[0] + c) + g);
            }
            FN(write)(gelu_out, token * gelu_out->stride, lines.branch_out, channels);
            FN(write)(grad_in, token * grad_in->stride, lines.grad, channels);
            if (i % TOKENS_AT_ONCE == 0) FN(add_up)(&lines, 1, channels);
        }
        FN(add_up)(&lines, 1, channels);
        if (me == 0) members = team;
    }
    FN(add_threads)(memory, thread_bytes, members, 1, channels, sums);
    return 0;
}
