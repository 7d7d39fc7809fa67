/* Small matrix products, in registers. The caller rounds sizes up: rows to ROWS, columns to PANEL. */

#define PANEL (VECTORS * LANES)

/* c[ROWS][PANEL] = a[ROWS][k] b[k][PANEL] + bias[PANEL] + base[ROWS][PANEL]; bias and base may be NULL, and base may be
   c. a_row and a_step are a's strides. Bias and base are added last: a sum that begins with a large number has larger
   rounding errors. */
INLINE void FN(tile)(long k, const REAL *a, long a_row, long a_step, const REAL *b, long b_row, const REAL *bias,
                     const REAL *base, long base_row, REAL *c, long c_row) {
    Vector sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (long i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (long j = 0; j < VECTORS; j++) sum[i][j] = (Vector){0};
    for (long step = 0; step < k; step++) {
        Vector right[VECTORS];
#pragma GCC unroll 4
        for (long j = 0; j < VECTORS; j++) right[j] = FN(load)(b + step * b_row + j * LANES);
#pragma GCC unroll 16
        for (long i = 0; i < ROWS; i++) {
            REAL left = a[i * a_row + step * a_step];
#pragma GCC unroll 4
            for (long j = 0; j < VECTORS; j++) sum[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 16
    for (long i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (long j = 0; j < VECTORS; j++) {
            if (bias) sum[i][j] += FN(load)(bias + j * LANES);
            if (base) sum[i][j] += FN(load)(base + i * base_row + j * LANES);
            FN(store)(c + i * c_row + j * LANES, sum[i][j]);
        }
}

/* c[m][n] = a[m][k] b[k][n], plus c if `adds`. a_row and a_step are a's strides; b_panel is the stride of b's panels. */
INLINE void FN(multiply)(long m, long n, long k, const REAL *a, long a_row, long a_step, const REAL *b, long b_row,
                         long b_panel, REAL *c, long c_row, int adds) {
    for (long j = 0; j < n / PANEL; j++)
        for (long i = 0; i < m; i += ROWS) {
            REAL *to = c + i * c_row + j * PANEL;
            FN(tile)(k, a + i * a_row, a_row, a_step, b + j * b_panel, b_row, NULL, adds ? to : NULL, c_row, to, c_row);
        }
}
