/* The gradients of a branch, a chunk of its tokens at a time: what is computed between two products stays in the cache.

   Here the features of a token lie side by side, as they do in the map. Then a product with a weight that is not transposed
   reads its rows as they lie, and the gradient of a weight is a product of what one thread after the other has made of
   the tokens. All threads work on a chunk together: each on some tokens, some columns or some heads, and on some rows of
   the weights' gradients, whose sums are so the same for any number of threads. */

#define PIECE_TOKENS 256 /* for every thread, unless a window has more */

/* What one thread works with. */
typedef struct {
    FN(Lines) lines;   /* for the norm */
    FN(Work) work;     /* for the attention */
    int64_t *position;    /* of each token of the chunk in the map */
    int64_t *start;    /* of each window: its first token among these */
    REAL *columns;     /* [CHUNK][PANEL], of a weight */
    REAL *rows;        /* [CHUNK][HEIGHT], of a weight's gradient */
    REAL *part, *line; /* [ROWS][PANEL], of an answer; PANEL numbers */
} FN(Tools);

/* What all threads work with: for each token of a chunk a row of each. */
typedef struct {
    REAL *grad;         /* of the sum, then of x */
    REAL *x, *grad_branch_out;   /* what the branch was given, and the gradients of the norm's input */
    REAL *seen, *inner; /* what the last layer was given, and the gradients of that */
    REAL *qkv, *into;   /* queries, keys and values, and the gradients of what the first layers made; may be `inner` */
    long row, wide_row, deep_row; /* from token to token: of channels, of `seen` and of `into` */
    double *into_bias;
    REAL *value_bias;
} FN(Chunk);

/* How the work is cut. */
typedef struct {
    const Plan *plan;
    long channels, seen, into; /* features of a token: of x, of the last layer and of the first ones' answer */
    long windows, tokens;      /* of a chunk, at most */
    int attends;
} FN(Cut);

#define TAKE(field, count)                                                                                             \
    do {                                                                                                               \
        field = memory ? (void *)(memory + used) : NULL;                                                               \
        used = round_up(used + (long)sizeof *field * (count), 64);                                                     \
    } while (0)

/* Cut memory. Return the bytes; with no memory that is all they do. */
static long FN(lay_out_tools)(FN(Tools) *tools, const FN(Cut) *cut, char *memory) {
    long used = round_up(FN(lay_out_lines)(&tools->lines, cut->channels, memory), 64);
    if (cut->attends)
        used = round_up(used + FN(lay_out_work)(&tools->work, cut->plan, 1, memory ? memory + used : NULL), 64);
    TAKE(tools->position, cut->tokens + LANES);
    TAKE(tools->start, cut->windows + 1);
    TAKE(tools->columns, CHUNK * PANEL);
    TAKE(tools->rows, CHUNK * HEIGHT);
    TAKE(tools->part, ROWS * PANEL);
    TAKE(tools->line, PANEL);
    return used;
}

/* An odd number of the cache's lines: rows that lie a power of two apart would crowd a few of them. */
INLINE long FN(odd_row)(long features) { return (round_up(features, PANEL) / LINE | 1) * LINE; }

static long FN(lay_out_chunk)(FN(Chunk) *chunk, const FN(Cut) *cut, char *memory) {
    const long tokens = cut->tokens + (ROWS > LANES ? ROWS : LANES);
    long used = 0;
    chunk->row = FN(odd_row)(cut->channels);
    chunk->wide_row = FN(odd_row)(cut->seen), chunk->deep_row = FN(odd_row)(cut->into);
    TAKE(chunk->into_bias, cut->into);
    TAKE(chunk->value_bias, cut->channels);
    TAKE(chunk->grad, tokens * chunk->row + PANEL);
    TAKE(chunk->x, tokens * chunk->row + PANEL);
    TAKE(chunk->grad_branch_out, tokens * chunk->row + PANEL);
    TAKE(chunk->seen, tokens * chunk->wide_row + PANEL);
    TAKE(chunk->into, tokens * chunk->deep_row + PANEL);
    chunk->inner = chunk->into;
    if (cut->attends) {
        TAKE(chunk->inner, tokens * chunk->wide_row + PANEL);
        TAKE(chunk->qkv, tokens * chunk->deep_row + PANEL);
    }
    return used;
}
#undef TAKE

INLINE void FN(copy)(REAL *to, const REAL *from, long n) {
    for (long i = 0; i < n; i += LANES) FN(store)(to + i, FN(load)(from + i));
}

/* A product of tokens with a weight that is not transposed: what was the layer's answer becomes its input. */
typedef struct {
    const Linear *layer;
    long in, out; /* rows and columns of the weight */
    const REAL *from;
    long from_row;
    REAL *to;
    long to_row;
    int adds;
    const Map *before;  /* the input of a GELU whose answer's gradients are the product, or NULL; */
    REAL *after;        /* gets its answer then, in rows as those of `to`, which get its input's gradients */
    const Map *written; /* gets the product, or NULL */
} FN(UntransposedProduct);

/* Does what follows a product, for some tokens and a panel of columns. */
static void FN(follow)(const FN(UntransposedProduct) *job, const FN(Tools) *tools, long token, long end, long column, long n) {
    for (; token < end; token++) {
        REAL *to = job->to + token * job->to_row + column;
        if (job->written) FN(write)(job->written, tools->position[token] * job->written->stride + column, to, n);
        if (!job->before) continue;
        REAL *after = job->after + token * job->to_row + column;
        FN(read)(after, job->before, tools->position[token] * job->before->stride + column, n);
        for (long c = 0; c < n; c += LANES) {
            Vector x = FN(load)(after + c), below, density;
            FN(normal)(x, &below, &density);
            FN(store)(to + c, FN(load)(to + c) * (below + x * density));
            FN(store)(after + c, x * below);
        }
    }
}

/* A thread's part of a product. The parts of products of as many tokens and columns are the same. */
static void FN(apply_untransposed)(const FN(UntransposedProduct) *job, long tokens, FN(Tools) *tools, long me, long team) {
    const Linear *layer = job->layer;
    const long panels = (job->out + PANEL - 1) / PANEL, tiles = (tokens + ROWS - 1) / ROWS;
    /* As many groups of tokens as give every thread something to do. */
    const long groups = team == 1 ? 1 : smaller(tiles, (2 * team + panels - 1) / panels), tasks = panels * groups;
    for (long task = share(tasks, me, team); task < share(tasks, me + 1, team); task++) {
        const long column = task / groups * PANEL, there = smaller(PANEL, job->out - column), group = task % groups;
        const long first = share(tiles, group, groups), last = share(tiles, group + 1, groups);
        /* Columns that are read again and again are read side by side. */
        const int is_plain = layer->type == (IS_DOUBLE ? F64 : F32);
        const int lies_ready = is_plain && there == PANEL && last - first <= 2;
        const Map weight = {(void *)layer->data, 0, layer->type};
        for (long start = 0; start < job->in; start += CHUNK) {
            const long length = smaller(CHUNK, job->in - start);
            const REAL *columns = (const REAL *)layer->data + start * layer->row + column;
            /* What is read next comes from far away: it is asked for while these are multiplied. */
            const REAL *next = start + length < job->in ? columns + length * layer->row : columns - start * layer->row + PANEL;
            const long asks = is_plain ? (CHUNK + last - first - 1) / (last - first) : 0;
            for (long i = 0; !lies_ready && i < length; i++)
                FN(read)(tools->columns + i * PANEL, &weight, (start + i) * layer->row + column, there);
            if (!lies_ready) columns = tools->columns;
            for (long i = first * ROWS; i < last * ROWS; i += ROWS) {
                REAL *to = job->to + i * job->to_row + column;
                for (long n = 0; n < asks; n++, next += layer->row)
                    for (long c = 0; c < PANEL; c += LINE) __builtin_prefetch(next + c);
                FN(tile)(length, job->from + i * job->from_row + start, job->from_row, 1, columns,
                         lies_ready ? layer->row : PANEL, NULL, start || job->adds ? to : NULL, job->to_row, to, job->to_row);
            }
        }
        FN(follow)(job, tools, first * ROWS, smaller(last * ROWS, tokens), column, there);
    }
}

/* The gradient of a layer: left (tokens, m) transposed, times right (tokens, n), and the sums of all tokens of left. */
typedef struct {
    const REAL *left, *right;
    long left_row, right_row, m, n;
    REAL *sums;   /* (m, n), or NULL */
    double *bias; /* (m), or NULL */
    int adds;     /* to these sums; else they begin here */
} FN(TransposedProduct);

/* A thread's rows of it. */
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
                const long there = smaller(PANEL, n - column);
                for (long i = 0; i < count; i += ROWS) {
                    const int is_whole = there == PANEL && i + ROWS <= count;
                    REAL *to = job->sums + (row + i) * n + column, *c = is_whole ? to : tools->part;
                    FN(tile)(length, tools->rows + i, 1, HEIGHT, right, job->right_row, NULL, is_whole && adds ? to : NULL,
                             n, c, is_whole ? n : PANEL);
                    for (long r = 0; !is_whole && r < ROWS && i + r < count; r++)
                        for (long j = 0; j < there; j++) to[r * n + j] = c[r * PANEL + j] + (adds ? to[r * n + j] : 0);
                }
            }
        }
}

/* What a call is about. */
typedef struct {
    FN(Cut) cut;
    const Block *block;
    const Map *grad, *x, *work;
    const Saved *saved;
    const Gradients *to;
} FN(Slopes);

/* Finds the tokens of some windows of all images. Returns how many. */
static long FN(gather_positions)(FN(Tools) *tools, const FN(Cut) *cut, long first, long windows) {
    const Plan *plan = cut->plan;
    const long in_image = windows_down(plan) * windows_across(plan);
    long tokens = 0;
    if (!cut->attends)
        for (; tokens < windows; tokens++) tools->position[tokens] = first + tokens;
    for (long w = 0; cut->attends && w < windows; w++) {
        const long number = first + w, image = number / in_image * plan->height * plan->width;
        const Window *window = &tools->work.window;
        find_window(&tools->work.window, plan, number % in_image, tools->work.window_row, tools->work.window_column);
        tools->start[w] = tokens;
        for (long i = 0; i < window->queries; i++) tools->position[tokens++] = image + window->position[window->query[i]];
    }
    return tokens;
}

/* Reads a token of the chunk, with zeros after its numbers. */
INLINE void FN(read_row)(REAL *to, const Map *map, long position, long n) {
    FN(read)(to, map, position * map->stride, n);
    for (long c = n; c < round_up(n, LANES); c++) to[c] = 0;
}

/* Reads tokens of a chunk, and goes back through the norm. */
static void FN(begin_tokens)(const FN(Slopes) *task, const FN(Chunk) *chunk, FN(Tools) *tools, long first, long end) {
    const FN(Cut) *cut = &task->cut;
    const Norm *norm = cut->attends ? &task->block->attention_norm : &task->block->mlp_norm;
    const long channels = cut->channels, row = chunk->row, wide = tools->lines.wide;
    for (long token = first, done = 0; token < end; token += LANES) {
        const long count = smaller(LANES, end - token);
        for (long j = 0; j < LANES; j++) {
            const long at = token + smaller(j, count - 1), position = tools->position[at];
            FN(read_row)(tools->lines.work + j * wide, task->work, position, channels);
            FN(read_row)(tools->lines.grad + j * wide, task->grad, position, channels);
            if (j >= count) continue;
            FN(copy)(chunk->grad + at * row, tools->lines.grad + j * wide, wide);
            FN(read_row)(chunk->x + at * row, task->x, position, channels);
            if (!cut->attends) continue;
            FN(read_row)(chunk->seen + at * chunk->wide_row, &task->saved->attended, position, channels);
            FN(read_row)(chunk->qkv + at * chunk->deep_row, &task->saved->qkv, position, 3 * channels);
        }
        FN(norm_backward)(&tools->lines, tools->lines.work, tools->lines.grad, wide, count, channels, norm->eps, norm->factor);
        for (long j = 0; j < count; j++)
            FN(copy)(chunk->grad_branch_out + (token + j) * row, tools->lines.grad + j * wide, wide);
        done += LANES;
        if (done % TOKENS_AT_ONCE == 0) FN(add_up)(&tools->lines, 3, channels);
    }
    FN(add_up)(&tools->lines, 3, channels);
}

/* The attention's part of a chunk: some windows and heads of it. */
static void FN(attend_chunk)(const FN(Slopes) *task, const FN(Chunk) *chunk, FN(Tools) *tools, long first, long windows,
                             long me, long team) {
    const Plan *plan = task->cut.plan;
    const Block *block = task->block;
    const long type = IS_DOUBLE ? F64 : F32, channels = task->cut.channels, tasks = windows * plan->heads;
    const long in_image = windows_down(plan) * windows_across(plan);
    const Map grad = {chunk->inner, chunk->wide_row, type};
    Map from[3], to[3];
    for (long i = 0; i < 3; i++) {
        from[i] = (Map){chunk->qkv + i * channels, chunk->deep_row, type};
        to[i] = (Map){chunk->into + i * channels, chunk->deep_row, type};
    }
    const FN(Maps) maps = {from, from + 1, from + 2, &grad, to, to + 1, to + 2};
    FN(Work) *work = &tools->work;
    for (long i = share(tasks, me, team), begin = i; i < share(tasks, me + 1, team); i++) {
        const long head = i % plan->heads, w = i / plan->heads;
        FN(move_to)(work, plan, (first + w) % in_image, head, block->table.data, i == begin);
        /* The tokens of a window lie one after the other in the chunk. */
        for (long j = 0; (i == begin || head == 0) && j < work->window.queries; j++)
            work->window.position[work->window.query[j]] = tools->start[w] + j;
        FN(attend_window_backward)(work, plan, &maps, ((const REAL *)block->scale.data)[head],
                                   block->value.bias.data ? chunk->value_bias : NULL, 0, head, task->to->table != NULL);
    }
}

/* A chunk of tokens, from one of the windows on. */
static void FN(run_chunk)(const FN(Slopes) *task, const FN(Chunk) *chunk, FN(Tools) *tools, long first, long windows,
                          int is_first, long me, long team) {
    const FN(Cut) *cut = &task->cut;
    const Block *block = task->block;
    const Gradients *to = task->to;
    const long channels = cut->channels, row = chunk->row, tokens = FN(gather_positions)(tools, cut, first, windows);
    FN(begin_tokens)(task, chunk, tools, share(tokens, me, team), share(tokens, me + 1, team));
    FN(meet)(team);
    const FN(UntransposedProduct) inner = {
        cut->attends ? &block->output : &block->fc2, channels, cut->seen, chunk->grad_branch_out, row, chunk->inner,
        chunk->wide_row, 0, cut->attends ? NULL : &task->saved->hidden, chunk->seen, NULL,
    };
    FN(apply_untransposed)(&inner, tokens, tools, me, team);
    FN(meet)(team);
    if (cut->attends) {
        FN(attend_chunk)(task, chunk, tools, first, windows, me, team);
        FN(meet)(team);
    }
    const FN(TransposedProduct) last = {chunk->grad_branch_out, chunk->seen, row, chunk->wide_row, channels, cut->seen, to->out_proj, NULL, !is_first};
    FN(sum_layer)(&last, tokens, tools, me, team);
    const FN(TransposedProduct) into = {chunk->into, chunk->x, chunk->deep_row, row, cut->into, channels, to->in_proj, chunk->into_bias,
                             !is_first};
    FN(sum_layer)(&into, tokens, tools, me, team);
    const Linear *layers[] = {&block->query, &block->key, &block->value};
    const long count = cut->attends ? 3 : 1, wide = cut->into / count;
    for (long i = 0; to->x.data && i < count; i++) {
        const FN(UntransposedProduct) outer = {
            cut->attends ? layers[i] : &block->fc1, wide, channels, chunk->into + i * wide, chunk->deep_row, chunk->grad,
            row, 1, NULL, NULL, i == count - 1 ? &to->x : NULL,
        };
        FN(apply_untransposed)(&outer, tokens, tools, me, team);
    }
    FN(meet)(team);
}

/* The gradients of a branch: of an attention if the block has a query layer, else of an MLP. Returns 0, or the bytes it
   needs if `bytes` are too few.

   whole: cuts the map; grad: of the answer; x: what the branch was given; saved: what it saved; to: gets the gradients. */
long FN(run_backward)(const Plan *whole, const Block *block, const Map *grad, const Map *x, const Saved *saved,
                      const Gradients *to, long threads, char *memory, long bytes) {
    Plan plan = *whole;
    const int attends = block->query.data != NULL;
    const long channels = plan.heads * plan.dim, all_tokens = plan.images * plan.height * plan.width;
    const long seen = attends ? channels : block->hidden, deep = attends ? 3 * channels : block->hidden;
    if (!attends) plan.window_height = plan.window_width = 1; /* each token by itself */
    threads = smaller(threads, 1 + 2 * all_tokens * channels * (seen + deep) / PRODUCTS_A_THREAD);
    const long there = smaller(plan.height, plan.window_height) * smaller(plan.width, plan.window_width);
    const long windows = plan.images * windows_down(&plan) * windows_across(&plan);
    const long most = PIECE_TOKENS * threads, at_once = smaller(windows, there && there < most ? most / there : 1);
    FN(Slopes) task = {{&plan, channels, seen, deep, at_once, at_once * there, attends}, block, grad, x,
                       attends ? &saved->attention_work : &saved->mlp_work, saved, to};
    FN(Tools) tools_sizes;
    FN(Chunk) chunk;
    const long own_bytes = FN(lay_out_tools)(&tools_sizes, &task.cut, NULL);
    const long shared_bytes = FN(lay_out_chunk)(&chunk, &task.cut, NULL), needed = shared_bytes + own_bytes * threads;
    if (bytes < needed) return needed;
    FN(lay_out_chunk)(&chunk, &task.cut, memory);
    long members = 1;
    if (attends && block->value.bias.data) FN(read_numbers)(chunk.value_bias, &block->value.bias, 0, channels);
    if (all_tokens < 1) {
        if (to->out_proj) memset(to->out_proj, 0, sizeof(REAL) * channels * seen);
        if (to->in_proj) memset(to->in_proj, 0, sizeof(REAL) * channels * deep);
        memset(chunk.into_bias, 0, sizeof(double) * deep);
    }
#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        char *mine = memory + shared_bytes + own_bytes * me;
        FN(Tools) tools;
        FN(lay_out_tools)(&tools, &task.cut, mine);
        memset(mine, 0, (char *)tools.position - mine); /* what comes first has sums, and numbers beyond ends */
        FN(read_numbers)(tools.lines.weight, attends ? &block->attention_norm.weight : &block->mlp_norm.weight, 0, channels);
        if (me == 0) members = team;
        for (long window = 0; window < windows; window += at_once)
            FN(run_chunk)(&task, &chunk, &tools, window, smaller(at_once, windows - window), window == 0, me, team);
    }
    /* What threads have summed, in their order, so that the same call gives the same answer. */
    FN(Tools) tools;
    FN(lay_out_tools)(&tools, &task.cut, memory + shared_bytes);
    for (int i = 0; i < 3; i++) FN(add_members)((REAL *)to->epilogue + i * channels, tools.lines.sums[i], channels, members, own_bytes);
    if (attends) {
        const long padded = deep - channels;
        FN(add_members)(to->table, tools.work.grad_table, plan.heads * tools.work.table, members, own_bytes);
        FN(add_members)(to->scale, tools.work.grad_scale, plan.heads, members, own_bytes);
        FN(add_members)(chunk.value_bias, tools.work.grad_padded, channels, members, own_bytes);
        for (long c = 0; c < channels; c++) chunk.into_bias[padded + c] += chunk.value_bias[c];
    }
    for (long i = 0; i < deep; i++) ((REAL *)to->in_proj_bias)[i] = chunk.into_bias[i];
    return 0;
}
