/* Products of large matrices, with what follows them: bias, sum and GELU are done while numbers are still in the cache.

   One matrix is cut into blocks of rows, the other one is packed into panels of columns, which all threads read. */

#define BLOCK 48           /* rows, a multiple of ROWS */
#define DEPTH 1024         /* numbers of a sum at a time */
#define BLOCK_BYTES 262144 /* of a block: it should stay in a core's own cache */

/* What follows a product. Each may be NULL. */
typedef struct {
    const REAL *bias;    /* to be added to every row */
    const Matrix *base;  /* to be added; may be out */
    const Matrix *out;   /* gets the sum */
    const Matrix *after; /* gets the GELU of the sum */
} FN(Ending);

INLINE void FN(read_line)(REAL *to, const Matrix *matrix, long row, long column, long n) {
    Map line = {matrix->data, 0, matrix->type};
    FN(read)(to, &line, row * matrix->row + column, n);
}

INLINE void FN(write_line)(const Matrix *matrix, long row, long column, const REAL *line, long n) {
    Map to = {matrix->data, 0, matrix->type};
    FN(write)(&to, row * matrix->row + column, line, n);
}

/* Reads LANES lines of n numbers, lines from to from + there of them, zeros for the others, and turns them: [n][LANES],
   step numbers apart. */
INLINE void FN(turn_lines)(REAL *to, long step, const Matrix *matrix, long from, long there, long column, long n) {
    REAL part[LANES * LANES];
    for (long i = 0; i < n; i += LANES) {
        long width = smaller(LANES, n - i);
        Vector lines[VECTOR_BYTES / sizeof(REAL)];
        int is_plain = matrix->type == (IS_DOUBLE ? F64 : F32) && width == LANES;
#pragma GCC unroll 16
        for (long j = 0; j < LANES; j++) {
            if (j >= there) lines[j] = (Vector){0};
            else if (is_plain) lines[j] = FN(load)((const REAL *)matrix->data + (from + j) * matrix->row + column + i);
            else {
                FN(read_line)(part + j * LANES, matrix, from + j, column + i, width);
                lines[j] = FN(load)(part + j * LANES);
            }
        }
        FN(transpose)(lines);
        for (long j = 0; j < width; j++) FN(store)(to + (i + j) * step, lines[j]);
    }
}

/* Copies count rows, of the columns from a column on, as they lie: to [count][k], or to [count / ROWS][k][ROWS] if the
   matrix has its columns side by side. Zeros from the row `rows` on. */
static void FN(copy_rows)(REAL *to, const Matrix *matrix, long from, long count, long rows, long column, long k) {
    long there = smaller(count, rows - from);
    if (matrix->column == 1) {
        for (long i = 0; i < there; i++) FN(read_line)(to + i * k, matrix, from + i, column, k);
        memset(to + there * k, 0, sizeof(REAL) * (count - there) * k);
        return;
    }
    Matrix turned = {matrix->data, matrix->column, matrix->row, matrix->type};
    REAL line[BLOCK + 16] = {0};
    for (long step = 0; step < k; step++) {
        FN(read_line)(line, &turned, column + step, from, there);
        for (long i = 0; i < count; i += ROWS) memcpy(to + i * k + step * ROWS, line + i, sizeof(REAL) * ROWS);
    }
}

/* Packs PANEL columns, of the rows from a row on, to [k][PANEL]; zeros from the column `columns` on. */
static void FN(pack_panel)(REAL *to, const Matrix *matrix, long from, long columns, long row, long k) {
    long there = smaller(PANEL, columns - from);
    if (matrix->column == 1) {
        if (there < PANEL) memset(to, 0, sizeof(REAL) * PANEL * k);
        for (long step = 0; step < k; step++) FN(read_line)(to + step * PANEL, matrix, row + step, from, there);
        return;
    }
    Matrix turned = {matrix->data, matrix->column, matrix->row, matrix->type};
    for (long i = 0; i < PANEL; i += LANES) FN(turn_lines)(to + i, PANEL, &turned, from + i, there - i, row, k);
}

/* Finishes a part of the answer, rows x columns from a row and a column on; `line` is memory for one of its rows. */
INLINE void FN(finish)(const REAL *part, long part_row, const FN(Ending) *end, long row, long column, long rows,
                       long columns, REAL *line) {
    const Matrix *base = end->base, *out = end->out, *after = end->after;
    const REAL *bias = end->bias ? end->bias + column : NULL;
    for (long i = 0; i < rows; i++, part += part_row) {
        if (base) FN(read_line)(line, base, row + i, column, columns);
        for (long j = 0; j < columns; j += LANES) {
            Vector sum = FN(load)(part + j);
            if (bias) sum += FN(load)(bias + j);
            if (base) sum += FN(load)(line + j);
            FN(store)(line + j, sum);
        }
        if (out) FN(write_line)(out, row + i, column, line, columns);
        if (!after) continue;
        for (long j = 0; j < columns; j += LANES) FN(store)(line + j, FN(gelu_of)(FN(load)(line + j)));
        FN(write_line)(after, row + i, column, line, columns);
    }
}

/* The same for a whole panel that has its bias and is stored as it was computed. */
INLINE void FN(finish_panel)(const REAL *part, REAL *out, long out_row, REAL *after, long after_row, long rows) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < PANEL; j += LANES) {
            Vector x = FN(load)(part + i * PANEL + j);
            if (out) FN(store)(out + i * out_row + j, x);
            FN(store)(after + i * after_row + j, FN(gelu_of)(x));
        }
}

/* left (m, k) times right (k, n), bias added, base added. Returns 0, or the bytes it needs if `bytes` are too few.

   bias: n numbers, or NULL; base, out, after: (m, n), whose rows have their numbers side by side; see Ending. */
long FN(matmul)(long m, long n, long k, const Matrix *left, const Matrix *right, const REAL *bias, const Matrix *base,
               const Matrix *out, const Matrix *after, long threads, char *memory, long bytes) {
    if (m < 1 || n < 1) return 0;
    const long type = IS_DOUBLE ? F64 : F32;
    /* One is packed. If that is the left one, the answer is computed turned, which pays if it is much the smaller. */
    Matrix left_turned = {left->data, left->column, left->row, left->type};
    Matrix right_turned = {right->data, right->column, right->row, right->type};
    int lies_in_rows = left->column == 1, turned = lies_in_rows ? 2 * m * (k + n) < n * k : m > n;
    /* Whether numbers are stored as they are computed, so that panels need not be finished one row after the other. */
    int is_plain = !turned && (!base || base->type == type) && (!out || out->type == type) &&
                   (!after || (after->type == type && !base));
    const Matrix *blocks = turned ? &right_turned : left, *panels = turned ? &left_turned : right;
    long rows = turned ? n : m, columns = turned ? m : n, panel_count = (columns + PANEL - 1) / PANEL;
    lies_in_rows = blocks->column == 1;
    /* A long sum is cut, if its parts can be kept as exactly as they are computed. */
    long depth = out && !after && out->type == type ? smaller(k, DEPTH) : k;
    depth = depth < 1 ? 1 : depth;
    long block = smaller(BLOCK, BLOCK_BYTES / (long)sizeof(REAL) / (depth + 1) / ROWS * ROWS);
    block = block < 2 * ROWS ? 2 * ROWS : block;
    long block_count = (rows + block - 1) / block;
    /* As many groups of panels as give every thread something to do. */
    long groups = smaller(panel_count, (2 * threads + block_count - 1) / block_count);
    long packed_bytes = round_up(sizeof(REAL) * panel_count * PANEL * (depth + 1), 64);
    long bias_bytes = round_up(sizeof(REAL) * (n + BLOCK + PANEL), 64);
    long block_bytes = round_up(sizeof(REAL) * block * (depth + 1), 64), part_bytes = sizeof(REAL) * BLOCK * PANEL;
    long thread_bytes = round_up(block_bytes + 2 * part_bytes + sizeof(REAL) * (BLOCK + PANEL) + VECTOR_BYTES, 64);
    long needed = packed_bytes + bias_bytes + thread_bytes * threads;
    if (bytes < needed) return needed;
    REAL *packed = (REAL *)memory, *biases = (REAL *)(memory + packed_bytes);
    if (bias) memcpy(biases, bias, sizeof(REAL) * n);
#pragma omp parallel num_threads(threads)
    {
        char *own = memory + packed_bytes + bias_bytes + thread_bytes * omp_get_thread_num();
        REAL *copied = (REAL *)own, *part = (REAL *)(own + block_bytes), *other = part + BLOCK * PANEL;
        REAL *line = other + BLOCK * PANEL;
        for (long start = 0; start == 0 || start < k; start += depth) {
            long length = smaller(depth, k - start);
            FN(Ending) end = {bias && !start ? biases : NULL, start ? out : base, out, after};
#pragma omp for
            for (long i = 0; i < panel_count; i++)
                FN(pack_panel)(packed + i * PANEL * length, panels, i * PANEL, columns, start, length);
#pragma omp for schedule(dynamic)
            for (long task = 0; task < block_count * groups; task++) {
                long row = task / groups * block, count = smaller(block, rows - row), rounded = round_up(count, ROWS);
                const REAL *a = copied;
                long a_row = lies_in_rows ? length : 1, a_block = ROWS * length;
                if (lies_in_rows && blocks->type == type && rounded == count) {
                    a = (const REAL *)blocks->data + row * blocks->row + start;
                    a_row = blocks->row, a_block = ROWS * blocks->row;
                } else
                    FN(copy_rows)(copied, blocks, row, rounded, rows, start, length);
                long first = share(panel_count, task % groups, groups), last = share(panel_count, task % groups + 1, groups);
                for (long column = first * PANEL; column < last * PANEL; column += PANEL) {
                    long there = smaller(PANEL, columns - column);
                    const REAL *b = packed + column * length;
                    int is_whole = is_plain && there == PANEL && rounded == count;
                    REAL *to = is_whole && out ? (REAL *)out->data + row * out->row + column : NULL;
                    REAL *c = is_whole && !after ? to : part;
                    long c_row = is_whole && !after ? out->row : PANEL, base_row = is_whole && end.base ? end.base->row : 0;
                    const REAL *bias_at = is_whole && end.bias ? end.bias + column : NULL;
                    const REAL *base_at = base_row ? (REAL *)end.base->data + row * base_row + column : NULL;
                    for (long i = 0; i < rounded / ROWS; i++, c += ROWS * c_row) {
                        if (lies_in_rows)
                            FN(tile)(length, a + i * a_block, a_row, 1, b, PANEL, bias_at, base_at, base_row, c, c_row);
                        else
                            FN(tile)(length, a + i * a_block, 1, ROWS, b, PANEL, bias_at, base_at, base_row, c, c_row);
                        if (base_at) base_at += ROWS * base_row;
                    }
                    if (is_whole && after)
                        FN(finish_panel)(part, to, out ? out->row : 0, (REAL *)after->data + row * after->row + column, after->row, count);
                    else if (is_whole)
                        continue;
                    else if (!turned)
                        FN(finish)(part, PANEL, &end, row, column, count, there, line);
                    else {
                        for (long r = 0; r < rounded; r++)
                            for (long c = 0; c < PANEL; c++) other[c * BLOCK + r] = part[r * PANEL + c];
                        FN(finish)(other, BLOCK, &end, column, row, there, count, line);
                    }
                }
            }
        }
    }
    return 0;
}
