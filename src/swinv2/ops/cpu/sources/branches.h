/* The residual branches of a block, some tokens or a window at a time: what lies between two products stays in a core's own
   cache. Weights are packed first, once for all threads. */

#define TOKENS 48 /* at a time, a multiple of ROWS */

typedef struct {
    const Matrix *weight; /* (out, in) */
    const REAL *bias;     /* (out), or NULL */
} FN(Weights);

/* A linear layer: its weight packed as [out / PANEL][in][PANEL]; its bias, with zeros beyond its end. */
typedef struct {
    long in, out, wide; /* out, rounded up to PANEL */
    REAL *packed, *bias;
} FN(Layer);

/* Cuts memory into a layer. Returns the bytes; with no memory that is all it does. */
static long FN(lay_out_layer)(FN(Layer) *layer, long in, long out, char *memory) {
    long wide = round_up(out, PANEL), packed = round_up(sizeof(REAL) * wide * in, 64);
    *layer = (FN(Layer)){in, out, wide, (REAL *)memory, memory ? (REAL *)(memory + packed) : NULL};
    return packed + round_up(sizeof(REAL) * wide, 64);
}

/* Packs a layer, each thread a share of it; they must meet before it is used. */
static void FN(pack_layer)(FN(Layer) *layer, const FN(Weights) *weights) {
    const Matrix *weight = weights->weight, turned = {weight->data, weight->column, weight->row, weight->type};
#pragma omp for nowait
    for (long start = 0; start < layer->wide; start += PANEL) {
        FN(pack_panel)(layer->packed + start * layer->in, &turned, start, layer->out, 0, layer->in);
        for (long i = start; i < start + PANEL; i++)
            layer->bias[i] = weights->bias && i < layer->out ? weights->bias[i] : 0;
    }
}

/* Sends rows through a layer; their number is a multiple of ROWS, and answers are as wide as the layer. */
static void FN(apply)(const FN(Layer) *layer, const REAL *from, long from_row, REAL *to, long to_row, long rows) {
    /* In parts of about TOKENS: each reads the whole weight once. */
    const long tiles = rows / ROWS, parts = (2 * rows + 3 * TOKENS - 1) / (3 * TOKENS);
    for (long part = 0; part < parts; part++)
        for (long start = 0; start < layer->wide; start += PANEL)
            for (long i = share(tiles, part, parts) * ROWS; i < share(tiles, part + 1, parts) * ROWS; i += ROWS)
                FN(tile)(layer->in, from + i * from_row, from_row, 1, layer->packed + start * layer->in, PANEL,
                         layer->bias + start, NULL, 0, to + i * to_row + start, to_row);
}

/* Cuts memory into a norm, and multiplies it by its factor. Returns the bytes; with no memory that is all it does. */
static long FN(lay_out_norm)(FN(Norm) *norm, const REAL *weight, const REAL *bias, double eps, double factor,
                             long channels, char *memory) {
    long wide = round_up(channels, LANES);
    REAL *room = (REAL *)memory;
    *norm = (FN(Norm)){room, room + wide, channels, eps};
    if (memory) memset(room, 0, sizeof(REAL) * 2 * wide);
    for (long c = 0; memory && c < channels; c++) room[c] = weight[c] * factor, room[wide + c] = bias[c] * factor;
    return round_up(sizeof(REAL) * 2 * wide, 64);
}

/* out = x + factor * norm(second(GELU(first(x)))), for every token. Returns 0, or the bytes it needs if `bytes` are too few.

   w1: (hidden, channels); w2: (channels, hidden); b1, b2: may be NULL; before, work: get the GELU's and the norm's input, or
   NULL; out may be x. */
long FN(add_mlp)(long tokens, long channels, long hidden, const Map *x, const Matrix *w1, const REAL *b1,
                 const Matrix *w2, const REAL *b2, const REAL *norm_weight, const REAL *norm_bias, double eps,
                 double factor, const Map *before, const Map *work, const Map *out, long threads, char *memory,
                 long bytes) {
    /* Half as many where hidden features are so many that they would not stay in the cache. */
    const long some = hidden * (long)sizeof(REAL) * TOKENS > 400000 ? TOKENS / 2 : TOKENS;
    const long pieces = (tokens + some - 1) / some, wide = round_up(channels, PANEL);
    const long hidden_row = round_up(hidden, PANEL) + PANEL; /* no power of two, which would crowd the cache */
    FN(Layer) first, second;
    FN(Norm) norm;
    long used = FN(lay_out_layer)(&first, channels, hidden, NULL) + FN(lay_out_layer)(&second, hidden, channels, NULL) +
                FN(lay_out_norm)(&norm, norm_weight, norm_bias, eps, factor, channels, NULL);
    /* More tokens than some, for groups of LANES. */
    const long own_bytes = round_up(sizeof(REAL) * (some + LANES) * (2 * wide + hidden_row), 64);
    threads = smaller(threads, pieces);
    if (threads < 1) return 0;
    if (bytes < used + own_bytes * threads) return used + own_bytes * threads;
    used = FN(lay_out_layer)(&first, channels, hidden, memory);
    used += FN(lay_out_layer)(&second, hidden, channels, memory + used);
    used += FN(lay_out_norm)(&norm, norm_weight, norm_bias, eps, factor, channels, memory + used);
#pragma omp parallel num_threads(threads)
    {
        REAL *lines = (REAL *)(memory + used + own_bytes * omp_get_thread_num());
        REAL *answers = lines + (some + LANES) * wide, *features = answers + (some + LANES) * wide;
        FN(pack_layer)(&first, &(FN(Weights)){w1, b1});
        FN(pack_layer)(&second, &(FN(Weights)){w2, b2});
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (long piece = 0; piece < pieces; piece++) {
            const long token = piece * some, count = smaller(some, tokens - token), rows = round_up(count, ROWS);
            for (long i = 0; i < round_up(rows, LANES); i++)
                FN(read)(lines + i * wide, x, (token + smaller(i, count - 1)) * x->stride, channels);
            FN(apply)(&first, lines, wide, features, hidden_row, rows);
            for (long i = 0; i < rows; i++) {
                REAL *line = features + i * hidden_row;
                if (before && i < count) FN(write)(before, (token + i) * before->stride, line, hidden);
                for (long c = 0; c < hidden; c += LANES) FN(store)(line + c, FN(gelu_of)(FN(load)(line + c)));
            }
            FN(apply)(&second, features, hidden_row, answers, wide, rows);
            for (long i = 0; work && i < count; i++)
                FN(write)(work, (token + i) * work->stride, answers + i * wide, channels);
            for (long i = 0; i < count; i += LANES) FN(add_norm)(lines + i * wide, answers + i * wide, wide, &norm);
            for (long i = 0; i < count; i++) FN(write)(out, (token + i) * out->stride, lines + i * wide, channels);
        }
    }
    return 0;
}

/* out = x + factor * norm(last(attention(qkv(x)))), for every token. Returns 0, or the bytes it needs if `bytes` are too few.

   w_qkv: (3 channels, channels), of queries, keys and values one after the other; w_last: (channels, channels); table and
   scale as `attend` takes them; qkv, attended, work: get the products before the attention, the attended tokens and the
   norm's input, or NULL. out may be x. */
long FN(add_attention)(const Plan *plan, const Map *x, const Matrix *w_qkv, const REAL *b_qkv, const Matrix *w_last,
                       const REAL *b_last, const REAL *table, const REAL *scale, const REAL *norm_weight,
                       const REAL *norm_bias, double eps, double factor, const Map *qkv, const Map *attended,
                       const Map *work, const Map *out, long threads, char *memory, long bytes) {
    const long channels = plan->heads * plan->dim, tokens = plan->window_height * plan->window_width;
    const long windows = windows_down(plan) * windows_across(plan), tasks = plan->images * windows;
    const long wide = round_up(channels, PANEL), qkv_row = round_up(3 * channels, PANEL) + PANEL;
    const long lines_kept = round_up(tokens, ROWS) + LANES;
    FN(Layer) first, last;
    FN(Norm) norm;
    FN(Work) sizes;
    long used = FN(lay_out_layer)(&first, channels, 3 * channels, NULL) +
                FN(lay_out_layer)(&last, channels, channels, NULL) +
                FN(lay_out_norm)(&norm, norm_weight, norm_bias, eps, factor, channels, NULL);
    const long work_bytes = FN(lay_out_work)(&sizes, plan, 0, NULL);
    const long own_bytes = work_bytes + round_up(sizeof(int64_t) * tokens, 64) +
                           round_up(sizeof(REAL) * lines_kept * (2 * wide + qkv_row), 64);
    threads = smaller(threads, tasks);
    if (threads < 1) return 0;
    if (bytes < used + own_bytes * threads) return used + own_bytes * threads;
    used = FN(lay_out_layer)(&first, channels, 3 * channels, memory);
    used += FN(lay_out_layer)(&last, channels, channels, memory + used);
    used += FN(lay_out_norm)(&norm, norm_weight, norm_bias, eps, factor, channels, memory + used);
#pragma omp parallel num_threads(threads)
    {
        char *own = memory + used + own_bytes * omp_get_thread_num();
        FN(Work) own_work = {0};
        memset(own, 0, work_bytes);
        FN(lay_out_work)(&own_work, plan, 0, own);
        int64_t *place = (int64_t *)(own + work_bytes);
        REAL *lines = (REAL *)(own + work_bytes + round_up(sizeof(int64_t) * tokens, 64));
        REAL *answers = lines + lines_kept * wide, *products = answers + lines_kept * wide;
        /* The window by itself is a map that lies as the kernel of attention wants it. */
        const int64_t type = IS_DOUBLE ? F64 : F32;
        const Map q = {products, qkv_row, type}, k = {products + channels, qkv_row, type};
        const Map v = {products + 2 * channels, qkv_row, type}, answer = {answers, wide, type};
        FN(pack_layer)(&first, &(FN(Weights)){w_qkv, b_qkv});
        FN(pack_layer)(&last, &(FN(Weights)){w_last, b_last});
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (long task = 0; task < tasks; task++) {
            Window *window = &own_work.window;
            const long rows = round_up(tokens, ROWS), image = task / windows * plan->height * plan->width;
            find_window(window, plan, task % windows, own_work.window_row, own_work.window_column);
            for (long i = 0; i < rows + LANES; i++) {
                /* A filling token is a token of zeros. */
                if (i >= tokens || window->place[i] < 0) memset(lines + i * wide, 0, sizeof(REAL) * wide);
                else FN(read)(lines + i * wide, x, (image + window->place[i]) * x->stride, channels);
            }
            for (long i = 0; i < tokens; i++) place[i] = window->place[i] < 0 ? -1 : image + window->place[i];
            FN(apply)(&first, lines, wide, products, qkv_row, rows);
            for (long i = 0; i < tokens; i++) window->place[i] = i;
            for (long head = 0; head < plan->heads; head++) {
                FN(turn_table)(&own_work, table, head);
                FN(attend_window)(&own_work, plan, &q, &k, &v, scale[head], NULL, &answer, 0, head);
            }
            for (long i = 0; i < tokens; i++) {
                if (place[i] < 0) continue;
                if (qkv) FN(write)(qkv, place[i] * qkv->stride, products + i * qkv_row, 3 * channels);
                if (attended) FN(write)(attended, place[i] * attended->stride, answers + i * wide, channels);
            }
            /* The answers of the last layer take the place of the products, which are done with. */
            FN(apply)(&last, answers, wide, products, wide, rows);
            for (long i = 0; work && i < tokens; i++)
                if (place[i] >= 0) FN(write)(work, place[i] * work->stride, products + i * wide, channels);
            for (long i = 0; i < tokens; i += LANES) FN(add_norm)(lines + i * wide, products + i * wide, wide, &norm);
            for (long i = 0; i < tokens; i++)
                if (place[i] >= 0) FN(write)(out, place[i] * out->stride, lines + i * wide, channels);
        }
    }
    return 0;
}
