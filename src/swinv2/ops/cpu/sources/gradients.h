/* The gradients of a branch, for a chunk of tokens at a time. Intermediate results stay in the cache.

   The features of a token are contiguous, as in the map. So a product with a weight that is not transposed reads the
   weight's rows in place, and the gradient of a weight is a product of two buffers of tokens, one of them transposed. All
   threads work on the same chunk. Each computes some tokens, some columns or some heads, and some rows of the weights'
   gradients, so the sums are the same for any number of threads. */

#define CHUNK_TOKENS 256 /* of a chunk for every thread, unless a window has more */

/* The workspace of one thread. */
typedef struct {
    FN(Lines) lines;    /* for the norm */
    FN(Workspace) work; /* for the attention */
    int64_t *position;  /* of each token of the chunk in the map */
    int64_t *start;     /* of each window: index of its first token in the chunk */
    REAL *columns;      /* [CHUNK][PANEL], of a weight */
    REAL *rows;         /* [CHUNK][HEIGHT], transposed rows of a weight's gradient */
    REAL *part, *line;  /* [ROWS][PANEL], of a product; PANEL numbers */
} FN(Tools);

/* The workspace of all threads: one row for each token of a chunk. */
typedef struct {
    REAL *grad;                           /* gradient of the sum, then of x */
    REAL *x, *grad_branch_out;            /* input of the branch; gradient of the norm's input */
    REAL *last_in, *grad_last_in;         /* input of the last layer, and its gradient */
    REAL *qkv, *grad_first_out;           /* queries, keys and values; gradient of the first layers' output */
    long row, last_in_row, first_out_row; /* strides of tokens: of channels, `last_in` and `grad_first_out` */
    double *grad_first_bias;
    REAL *value_bias;
} FN(Chunk);

/* Sizes of the branch and of its chunks. */
typedef struct {
    const Plan *plan;
    long channels, last_in, first_out; /* features of x, of the last layer's input, of the first layers' output */
    long windows, tokens;              /* of a chunk, at most */
    int attends;
} FN(ChunkSizes);

/* Both functions lay out a workspace in memory and return its bytes; if memory is NULL, they only count them. */
static long FN(lay_out_tools)(FN(Tools) *tools, const FN(ChunkSizes) *sizes, char *memory) {
    long used = round_up(FN(lay_out_lines)(&tools->lines, sizes->channels, memory), 64);
    if (sizes->attends)
        used = round_up(used + FN(lay_out_workspace)(&tools->work, sizes->plan, 1, memory ? memory + used : NULL), 64);
    TAKE(tools->position, sizes->tokens + LANES);
    TAKE(tools->start, sizes->windows + 1);
    TAKE(tools->columns, CHUNK * PANEL);
    TAKE(tools->rows, CHUNK * HEIGHT);
    TAKE(tools->part, ROWS * PANEL);
    TAKE(tools->line, PANEL);
    return used;
}

/* The stride of a row, an odd number of cache lines: strides of a power of two would use only a few cache sets. */
INLINE long FN(odd_row)(long features) { return (round_up(features, PANEL) / LINE | 1) * LINE; }

static long FN(lay_out_chunk)(FN(Chunk) *chunk, const FN(ChunkSizes) *sizes, char *memory) {
    const long tokens = sizes->tokens + (ROWS > LANES ? ROWS : LANES);
    long used = 0;
    chunk->row = FN(odd_row)(sizes->channels);
    chunk->last_in_row = FN(odd_row)(sizes->last_in), chunk->first_out_row = FN(odd_row)(sizes->first_out);
    TAKE(chunk->grad_first_bias, sizes->first_out);
    TAKE(chunk->value_bias, sizes->channels);
    TAKE(chunk->grad, tokens * chunk->row + PANEL);
    TAKE(chunk->x, tokens * chunk->row + PANEL);
    TAKE(chunk->grad_branch_out, tokens * chunk->row + PANEL);
    TAKE(chunk->last_in, tokens * chunk->last_in_row + PANEL);
    TAKE(chunk->grad_first_out, tokens * chunk->first_out_row + PANEL);
    chunk->grad_last_in = chunk->grad_first_out;
    if (sizes->attends) {
        TAKE(chunk->grad_last_in, tokens * chunk->last_in_row + PANEL);
        TAKE(chunk->qkv, tokens * chunk->first_out_row + PANEL);
    }
    return used;
}
#undef TAKE

INLINE void FN(copy)(REAL *to, const REAL *from, long n) {
    for (long i = 0; i < n; i += LANES) FN(store)(to + i, FN(load)(from + i));
}

/* A product of tokens with a weight that is not transposed: from the layer's outputs to its inputs. */
typedef struct {
    const Linear *layer;
    long in, out; /* rows and columns of the weight */
    const REAL *from;
    long from_row;
    REAL *to;
    long to_row;
    int adds;
    const Map *gelu_in; /* or NULL. Otherwise the product is the gradient of a GELU's output, gelu_in is its input, */
    REAL *gelu_out;     /* gelu_out receives its output, and `to` the gradient of its input; rows as those of `to` */
    const Map *written; /* receives the product, or NULL */
} FN(UntransposedProduct);

/* The epilogue of a product (copy, GELU's gradient), for some tokens and a panel of columns. */
static void FN(apply_epilogue)(const FN(UntransposedProduct) *job, const FN(Tools) *tools, long token, long end, long column,
                               long n) {
    for (; token < end; token++) {
        REAL *to = job->to + token * job->to_row + column;
        if (job->written) FN(write)(job->written, tools->position[token] * job->written->stride + column, to, n);
        if (!job->gelu_in) continue;
        REAL *gelu_out = job->gelu_out + token * job->to_row + column;
        FN(read)(gelu_out, job->gelu_in, tools->position[token] * job->gelu_in->stride + column, n);
        for (long c = 0; c < n; c += LANES) {
            Vector x = FN(load)(gelu_out + c), below, density;
            FN(normal)(x, &below, &density);
            FN(store)(to + c, FN(load)(to + c) * (below + x * density));
            FN(store)(gelu_out + c, x * below);
        }
    }
}

/* A thread's part of a product. Products with the same numbers of tokens and columns have the same parts. */
static void FN(apply_untransposed)(const FN(UntransposedProduct) *job, long tokens, FN(Tools) *tools, long me, long team) {
    const Linear *layer = job->layer;
    const long panels = (job->out + PANEL - 1) / PANEL, tiles = (tokens + ROWS - 1) / ROWS;
    /* Enough groups of tokens to give every thread a task. */
    const long groups = team == 1 ? 1 : smaller(tiles, (2 * team + panels - 1) / panels), tasks = panels * groups;
    for (long task = share(tasks, me, team); task < share(tasks, me + 1, team); task++) {
        const long column = task / groups * PANEL, valid = smaller(PANEL, job->out - column), group = task % groups;
        const long first = share(tiles, group, groups), last = share(tiles, group + 1, groups);
        /* Columns that are read several times are first copied to contiguous memory. */
        const int is_plain = layer->type == (IS_DOUBLE ? F64 : F32);
        const int is_in_place = is_plain && valid == PANEL && last - first <= 2;
        const Map weight = {(void *)layer->data, 0, layer->type};
        for (long start = 0; start < job->in; start += CHUNK) {
            const long length = smaller(CHUNK, job->in - start);
            const REAL *columns = (const REAL *)layer->data + start * layer->row + column;
            /* The next part of the weight is prefetched during the products. */
            const REAL *next = start + length < job->in ? columns + length * layer->row : columns - start * layer->row + PANEL;
            const long prefetches = is_plain ? (CHUNK + last - first - 1) / (last - first) : 0;
            for (long i = 0; !is_in_place && i < length; i++)
                FN(read)(tools->columns + i * PANEL, &weight, (start + i) * layer->row + column, valid);
            if (!is_in_place) columns = tools->columns;
            for (long i = first * ROWS; i < last * ROWS; i += ROWS) {
                REAL *to = job->to + i * job->to_row + column;
                for (long n = 0; n < prefetches; n++, next += layer->row)
                    for (long c = 0; c < PANEL; c += LINE) __builtin_prefetch(next + c);
                FN(tile)(length, job->from + i * job->from_row + start, job->from_row, 1, columns,
                         is_in_place ? layer->row : PANEL, NULL, start || job->adds ? to : NULL, job->to_row, to, job->to_row);
            }
        }
        FN(apply_epilogue)(job, tools, first * ROWS, smaller(last * ROWS, tokens), column, valid);
    }
}

/* The gradient of a layer: left.T @ right, where left is (tokens, m) and right (tokens, n); and the sum of left's tokens. */
typedef struct {
    const REAL *left, *right;
    long left_row, right_row, m, n;
    REAL *sums;   /* (m, n), or NULL */
    double *bias; /* (m), or NULL */
    int adds;     /* whether to add to sums and bias or to overwrite them */
} FN(TransposedProduct);

/* A thread's rows of the gradient of a layer. */
static void FN(sum_layer)(const FN(TransposedProduct) *job, long tokens, FN(Tools) *tools, long me, long team) {
    const long tiles = (job->m + ROWS - 1) / ROWS, end = smaller(share(tiles, me + 1, team) * ROWS, job->m), n = job->n;
    if (!job->sums && !job->bias) return;
    for (long row = share(tiles, me, team) * ROWS; row < end; row += HEIGHT)
        for (long start = 0; start < tokens; start += CHUNK) {
            const long count = smaller(HEIGHT, end - row), length = smaller(CHUNK, tokens - start);
            const int adds = job->adds || start;
            for (long i = 0; i < length; i++) {
                const REAL *from = job->left + (start + i) * job->left_row + row;
                FN(copy)(tools->rows + i * HEIGHT, from, count);
            }
            for (long c = 0; job->bias && c < count; c += LANES) {
                Vector sum = {0};
                for (long i = 0; i < length; i++) sum += FN(load)(tools->rows + i * HEIGHT + c);
                for (long j = 0; j < LANES && c + j < count; j++)
                    job->bias[row + c + j] = sum[j] + (adds ? job->bias[row + c + j] : 0);
            }
            for (long column = 0; job->sums && column < n; column += PANEL) {
                const REAL *right = job->right + start * job->right_row + column;
                const long valid = smaller(PANEL, n - column);
                for (long i = 0; i < count; i += ROWS) {
                    const int is_whole = valid == PANEL && i + ROWS <= count;
                    REAL *to = job->sums + (row + i) * n + column, *c = is_whole ? to : tools->part;
                    FN(tile)(length, tools->rows + i, 1, HEIGHT, right, job->right_row, NULL, is_whole && adds ? to : NULL,
                             n, c, is_whole ? n : PANEL);
                    for (long r = 0; !is_whole && r < ROWS && i + r < count; r++)
                        for (long j = 0; j < valid; j++) to[r * n + j] = c[r * PANEL + j] + (adds ? to[r * n + j] : 0);
                }
            }
        }
}

/* The arguments of a call. */
typedef struct {
    FN(ChunkSizes) sizes;
    const Block *block;
    const Map *grad, *x, *branch_out;
    const Saved *saved;
    const Gradients *to;
} FN(BackwardTask);

/* Finds the tokens of `windows` windows, counted through all images. Returns the number of tokens. */
static long FN(gather_positions)(FN(Tools) *tools, const FN(ChunkSizes) *sizes, long first, long windows) {
    const Plan *plan = sizes->plan;
    const long in_image = windows_of(plan);
    long tokens = 0;
    if (!sizes->attends)
        for (; tokens < windows; tokens++) tools->position[tokens] = first + tokens;
    for (long w = 0; sizes->attends && w < windows; w++) {
        const long number = first + w, image = number / in_image * map_tokens(plan);
        const Window *window = &tools->work.window;
        find_window(&tools->work.window, plan, number % in_image);
        tools->start[w] = tokens;
        for (long i = 0; i < window->queries; i++) tools->position[tokens++] = image + window->position[window->query[i]];
    }
    return tokens;
}

/* Reads a token of the chunk, padded with zeros. */
INLINE void FN(read_row)(REAL *to, const Map *map, long position, long n) {
    FN(read)(to, map, position * map->stride, n);
    for (long c = n; c < round_up(n, LANES); c++) to[c] = 0;
}

/* Reads tokens of a chunk, and computes the gradient of the norm's input. */
static void FN(begin_tokens)(const FN(BackwardTask) *task, const FN(Chunk) *chunk, FN(Tools) *tools, long first, long end) {
    const FN(ChunkSizes) *sizes = &task->sizes;
    const Norm *norm = sizes->attends ? &task->block->attention_norm : &task->block->mlp_norm;
    const long channels = sizes->channels, row = chunk->row, wide = tools->lines.wide;
    for (long token = first, done = 0; token < end; token += LANES) {
        const long count = smaller(LANES, end - token);
        for (long j = 0; j < LANES; j++) {
            const long at = token + smaller(j, count - 1), position = tools->position[at];
            FN(read_row)(tools->lines.branch_out + j * wide, task->branch_out, position, channels);
            FN(read_row)(tools->lines.grad + j * wide, task->grad, position, channels);
            if (j >= count) continue;
            FN(copy)(chunk->grad + at * row, tools->lines.grad + j * wide, wide);
            FN(read_row)(chunk->x + at * row, task->x, position, channels);
            if (!sizes->attends) continue;
            FN(read_row)(chunk->last_in + at * chunk->last_in_row, &task->saved->attended, position, channels);
            FN(read_row)(chunk->qkv + at * chunk->first_out_row, &task->saved->qkv, position, 3 * channels);
        }
        FN(norm_backward)(&tools->lines, tools->lines.branch_out, tools->lines.grad, wide, count, channels, norm->eps,
                          norm->factor);
        for (long j = 0; j < count; j++)
            FN(copy)(chunk->grad_branch_out + (token + j) * row, tools->lines.grad + j * wide, wide);
        done += LANES;
        if (done % TOKENS_AT_ONCE == 0) FN(add_up)(&tools->lines, 3, channels);
    }
    FN(add_up)(&tools->lines, 3, channels);
}

/* The gradients of the attention, for a thread's windows and heads of a chunk. */
static void FN(attend_chunk)(const FN(BackwardTask) *task, const FN(Chunk) *chunk, FN(Tools) *tools, long first, long windows,
                             long me, long team) {
    const Plan *plan = task->sizes.plan;
    const Block *block = task->block;
    const long type = IS_DOUBLE ? F64 : F32, channels = task->sizes.channels, tasks = windows * plan->heads;
    const long in_image = windows_of(plan);
    const Map grad = {chunk->grad_last_in, chunk->last_in_row, type};
    Map from[3], to[3];
    for (long i = 0; i < 3; i++) {
        from[i] = (Map){chunk->qkv + i * channels, chunk->first_out_row, type};
        to[i] = (Map){chunk->grad_first_out + i * channels, chunk->first_out_row, type};
    }
    const FN(Maps) maps = {from, from + 1, from + 2, &grad, to, to + 1, to + 2};
    FN(Workspace) *work = &tools->work;
    for (long i = share(tasks, me, team), begin = i; i < share(tasks, me + 1, team); i++) {
        const long head = i % plan->heads, w = i / plan->heads;
        FN(move_to)(work, plan, (first + w) % in_image, head, block->table.data, i == begin);
        /* The tokens of a window are consecutive in the chunk. */
        for (long j = 0; (i == begin || head == 0) && j < work->window.queries; j++)
            work->window.position[work->window.query[j]] = tools->start[w] + j;
        FN(attend_window_backward)(work, plan, &maps, ((const REAL *)block->scale.data)[head],
                                   block->value.bias.data ? chunk->value_bias : NULL, 0, head, task->to->table != NULL);
    }
}

/* The gradients of a chunk: `windows` windows, beginning with window `first`. */
static void FN(run_chunk)(const FN(BackwardTask) *task, const FN(Chunk) *chunk, FN(Tools) *tools, long first, long windows,
                          int is_first, long me, long team) {
    const FN(ChunkSizes) *sizes = &task->sizes;
    const Block *block = task->block;
    const Gradients *to = task->to;
    const long channels = sizes->channels, row = chunk->row, tokens = FN(gather_positions)(tools, sizes, first, windows);
    FN(begin_tokens)(task, chunk, tools, share(tokens, me, team), share(tokens, me + 1, team));
    FN(wait_for_team)(team);
    const FN(UntransposedProduct) through_last = {
        sizes->attends ? &block->out_proj : &block->fc2, channels, sizes->last_in, chunk->grad_branch_out, row,
        chunk->grad_last_in, chunk->last_in_row, 0, sizes->attends ? NULL : &task->saved->hidden, chunk->last_in, NULL,
    };
    FN(apply_untransposed)(&through_last, tokens, tools, me, team);
    FN(wait_for_team)(team);
    if (sizes->attends) {
        FN(attend_chunk)(task, chunk, tools, first, windows, me, team);
        FN(wait_for_team)(team);
    }
    const FN(TransposedProduct) last_layer = {
        chunk->grad_branch_out, chunk->last_in, row, chunk->last_in_row, channels, sizes->last_in, to->out_proj, NULL,
        !is_first,
    };
    FN(sum_layer)(&last_layer, tokens, tools, me, team);
    const FN(TransposedProduct) first_layer = {
        chunk->grad_first_out, chunk->x, chunk->first_out_row, row, sizes->first_out, channels, to->in_proj,
        chunk->grad_first_bias, !is_first,
    };
    FN(sum_layer)(&first_layer, tokens, tools, me, team);
    const Linear *layers[] = {&block->query, &block->key, &block->value};
    const long count = sizes->attends ? 3 : 1, wide = sizes->first_out / count;
    for (long i = 0; to->x.data && i < count; i++) {
        const FN(UntransposedProduct) through_first = {
            sizes->attends ? layers[i] : &block->fc1, wide, channels, chunk->grad_first_out + i * wide, chunk->first_out_row,
            chunk->grad, row, 1, NULL, NULL, i == count - 1 ? &to->x : NULL,
        };
        FN(apply_untransposed)(&through_first, tokens, tools, me, team);
    }
    FN(wait_for_team)(team);
}

/* The gradients of a branch: of an attention if the block has a query layer, otherwise of an MLP. Returns 0, or the bytes
   it needs if `bytes` is too small.

   whole: the plan of the map; grad: of the output; x: the input of the branch; saved: the maps that `run_blocks` saved; to:
   receives the gradients. */
long FN(run_backward)(const Plan *whole, const Block *block, const Map *grad, const Map *x, const Saved *saved,
                      const Gradients *to, long threads, char *memory, long bytes) {
    Plan plan = *whole;
    const int attends = block->query.data != NULL;
    const long channels = plan.heads * plan.dim, all_tokens = plan.images * map_tokens(&plan);
    const long last_in = attends ? channels : block->hidden, first_out = attends ? 3 * channels : block->hidden;
    if (!attends) plan.frames.window = plan.rows.window = plan.columns.window = 1; /* each token is a window */
    threads = smaller(threads, 1 + 2 * all_tokens * channels * (last_in + first_out) / PRODUCTS_A_THREAD);
    const long valid = valid_tokens(&plan), windows = plan.images * windows_of(&plan);
    const long max_tokens = CHUNK_TOKENS * threads;
    const long at_once = smaller(windows, valid && valid < max_tokens ? max_tokens / valid : 1);
    FN(BackwardTask) task = {{&plan, channels, last_in, first_out, at_once, at_once * valid, attends}, block, grad, x,
                       attends ? &saved->attention_out : &saved->mlp_out, saved, to};
    FN(Tools) tools_sizes;
    FN(Chunk) chunk;
    const long own_bytes = FN(lay_out_tools)(&tools_sizes, &task.sizes, NULL);
    const long shared_bytes = FN(lay_out_chunk)(&chunk, &task.sizes, NULL), needed = shared_bytes + own_bytes * threads;
    if (bytes < needed) return needed;
    FN(lay_out_chunk)(&chunk, &task.sizes, memory);
    long members = 1;
    if (attends && block->value.bias.data) FN(read_numbers)(chunk.value_bias, &block->value.bias, 0, channels);
    if (all_tokens < 1) {
        if (to->out_proj) memset(to->out_proj, 0, sizeof(REAL) * channels * last_in);
        if (to->in_proj) memset(to->in_proj, 0, sizeof(REAL) * channels * first_out);
        memset(chunk.grad_first_bias, 0, sizeof(double) * first_out);
    }
#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        char *mine = memory + shared_bytes + own_bytes * me;
        FN(Tools) tools;
        FN(lay_out_tools)(&tools, &task.sizes, mine);
        memset(mine, 0, (char *)tools.position - mine); /* clears sums and padding */
        FN(read_numbers)(tools.lines.weight, attends ? &block->attention_norm.weight : &block->mlp_norm.weight, 0, channels);
        if (me == 0) members = team;
        for (long window = 0; window < windows; window += at_once)
            FN(run_chunk)(&task, &chunk, &tools, window, smaller(at_once, windows - window), window == 0, me, team);
    }
    /* The sums of all threads are added in the order of threads, so that the result is deterministic. */
    FN(Tools) tools;
    FN(lay_out_tools)(&tools, &task.sizes, memory + shared_bytes);
    for (int i = 0; i < 3; i++)
        FN(add_members)((REAL *)to->epilogue + i * channels, tools.lines.sums[i], channels, members, own_bytes);
    if (attends) {
        const long padded = first_out - channels;
        FN(add_members)(to->table, tools.work.grad_table, plan.heads * tools.work.table, members, own_bytes);
        FN(add_members)(to->scale, tools.work.grad_scale, plan.heads, members, own_bytes);
        FN(add_members)(chunk.value_bias, tools.work.grad_padded, channels, members, own_bytes);
        for (long c = 0; c < channels; c++) chunk.grad_first_bias[padded + c] += chunk.value_bias[c];
    }
    for (long i = 0; i < first_out; i++) ((REAL *)to->in_proj_bias)[i] = chunk.grad_first_bias[i];
    return 0;
}
