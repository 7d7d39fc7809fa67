/* Positions of a window's tokens in the map, and their regions; see ops/windows.py. */

#ifndef SWINV2_WINDOWS_H
#define SWINV2_WINDOWS_H

#include "numbers.h"

/* Along one axis: tokens of the map and of a window, and the shift. */
typedef struct {
    int64_t size, window, shift;
} Axis;

/* Sizes of maps, windows and heads. A map of an image has one frame. */
typedef struct {
    int64_t images;
    Axis frames, rows, columns;
    int64_t mask_padding, heads, dim;
} Plan;

/* The region of a token has two bits for each axis. */
enum { MAIN, WRAPPED, PADDING, HIDDEN = PADDING << 4 | PADDING << 2 | PADDING };

/* One window. position: for each of its tokens, row by row, its index in the image, -1 for padding; query: indices in the
   window of the tokens that are not padding, `queries` of them; region: of each token. token, along: for each frame, row
   and column of the window, its position and its region. */
typedef struct {
    int64_t *position, *query, *token;
    long queries;
    unsigned char *region, *along;
    int has_regions; /* whether there is more than one region */
} Window;

static inline long windows_along(const Axis *axis) { return (axis->size + axis->window - 1) / axis->window; }

/* Windows of an image. */
static inline long windows_of(const Plan *plan) {
    return windows_along(&plan->frames) * windows_along(&plan->rows) * windows_along(&plan->columns);
}

/* Tokens of an image. */
static inline long map_tokens(const Plan *plan) { return plan->frames.size * plan->rows.size * plan->columns.size; }

static inline long window_tokens(const Plan *plan) {
    return plan->frames.window * plan->rows.window * plan->columns.window;
}

/* The most tokens of a window that are not padding. */
static inline long valid_tokens(const Plan *plan) {
    long tokens = 1;
    for (const Axis *axis = &plan->frames; axis <= &plan->columns; axis++)
        tokens *= axis->size < axis->window ? axis->size : axis->window;
    return tokens;
}

/* The number of all frames, rows and columns of a window. */
static inline long window_lines(const Plan *plan) {
    return plan->frames.window + plan->rows.window + plan->columns.window;
}

/* The size of the bias table of one head. */
static inline long table_size(const Plan *plan) {
    return (2 * plan->frames.window - 1) * (2 * plan->rows.window - 1) * (2 * plan->columns.window - 1);
}

/* The index in the bias table of a token of the window: that of query q and key k is centre + table_at(q) - table_at(k),
   where centre is the index of the last token. */
static inline long table_at(const Plan *plan, long frame, long row, long column) {
    return (frame * (2 * plan->rows.window - 1) + row) * (2 * plan->columns.window - 1) + column;
}

static inline long table_at_token(const Plan *plan, long token) {
    const long width = plan->columns.window, row = token / width, height = plan->rows.window;
    return table_at(plan, row / height, row % height, token % width);
}

/* Along one axis: regions of a window's tokens, and their positions before the shift. Returns whether regions differ. */
static int lay_out(const Axis *axis, long index, int hides_padding, unsigned char *region, int64_t *token) {
    const long first = index * axis->window, padded = windows_along(axis) * axis->window;
    int differ = 0;
    for (long i = 0; i < axis->window; i++) {
        token[i] = (first + i + axis->shift) % padded;
        region[i] = hides_padding && token[i] >= axis->size ? PADDING : first + i >= padded - axis->shift ? WRAPPED : MAIN;
        differ |= region[i] != region[0];
    }
    return differ;
}

/* Sets `window` to window `number` of an image, counted row by row. Padding frames are always hidden. */
static void find_window(Window *window, const Plan *plan, long number) {
    const Axis *frames = &plan->frames, *rows = &plan->rows, *columns = &plan->columns;
    const long down = windows_along(rows), across = windows_along(columns);
    int64_t *frame = window->token, *row = frame + frames->window, *column = row + rows->window;
    unsigned char *of_frame = window->along, *of_row = of_frame + frames->window, *of_column = of_row + rows->window;
    window->has_regions = lay_out(frames, number / across / down, 1, of_frame, frame);
    window->has_regions |= lay_out(rows, number / across % down, plan->mask_padding, of_row, row);
    window->has_regions |= lay_out(columns, number % across, plan->mask_padding, of_column, column);
    window->queries = 0;
    for (long t = 0, i = 0; t < frames->window; t++)
        for (long y = 0; y < rows->window; y++) {
            const int is_inside = frame[t] < frames->size && row[y] < rows->size;
            const long start = (frame[t] * rows->size + row[y]) * columns->size;
            const unsigned char region = of_frame[t] << 4 | of_row[y] << 2;
            for (long x = 0; x < columns->window; x++, i++) {
                const int is_real = is_inside && column[x] < columns->size;
                window->position[i] = is_real ? start + column[x] : -1;
                window->region[i] = region | of_column[x];
                if (is_real) window->query[window->queries++] = i;
            }
        }
}

#endif
