/* Positions of a window's tokens in the map, and their regions; see ops/windows.py. */

#ifndef SWINV2_WINDOWS_H
#define SWINV2_WINDOWS_H

#include "numbers.h"

/* Sizes of maps, windows and heads. */
typedef struct {
    int64_t images, height, width, window_height, window_width, shift_height, shift_width, mask_padding, heads, dim;
} Plan;

enum { MAIN, WRAPPED, PADDING };

/* One window. position: for each of its tokens, row by row, its index in the image, -1 for padding; query: indices in the
   window of the tokens that are not padding, `queries` of them; row_region, column_region: region of each row and column. */
typedef struct {
    int64_t *position, *query;
    long queries;
    unsigned char *row_region, *column_region;
    int has_regions; /* whether there is more than one region */
} Window;

static inline long windows_down(const Plan *plan) {
    return (plan->height + plan->window_height - 1) / plan->window_height;
}

static inline long windows_across(const Plan *plan) {
    return (plan->width + plan->window_width - 1) / plan->window_width;
}

/* Along one axis: regions of the window's tokens, and their positions before the shift. Returns whether regions differ. */
static int lay_out(long first, long window, long shift, long size, long padded, int mask_padding, unsigned char *region,
                   int64_t *token) {
    int differ = 0;
    for (long i = 0; i < window; i++) {
        token[i] = (first + i + shift) % padded;
        region[i] = mask_padding && token[i] >= size ? PADDING : first + i >= padded - shift ? WRAPPED : MAIN;
        differ |= region[i] != region[0];
    }
    return differ;
}

/* Sets `window` to window `number`, counted row by row. `row` and `column` are buffers for its height and width. */
static void find_window(Window *window, const Plan *plan, long number, int64_t *row, int64_t *column) {
    long height = plan->window_height, width = plan->window_width, across = windows_across(plan);
    int rows_differ = lay_out(number / across * height, height, plan->shift_height, plan->height,
                              windows_down(plan) * height, plan->mask_padding, window->row_region, row);
    int columns_differ = lay_out(number % across * width, width, plan->shift_width, plan->width, across * width,
                                 plan->mask_padding, window->column_region, column);
    window->has_regions = rows_differ || columns_differ;
    window->queries = 0;
    for (long y = 0; y < height; y++)
        for (long x = 0; x < width; x++) {
            int is_real = row[y] < plan->height && column[x] < plan->width;
            window->position[y * width + x] = is_real ? row[y] * plan->width + column[x] : -1;
            if (is_real) window->query[window->queries++] = y * width + x;
        }
}

#endif
