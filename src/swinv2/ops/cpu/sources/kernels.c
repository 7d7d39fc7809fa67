/* The kernels for CPUs: one file to compile, each kernel in single and in double precision.

   Numbers of 16 bits are stored as such and computed in single precision. Kernels allocate nothing: they work in memory
   that they are given, 64 bytes aligned, and that whoever calls may keep for the next call. The same sources make kernels for every width
   of vector that a processor has; the compiler is told which (-march). */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "numbers.h"
#include "windows.h"

/* Rows and vectors of a matrix product that the registers hold. */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
enum { ROWS = 8, VECTORS = 2 };
#elif defined(__AVX__)
#define VECTOR_BYTES 32
enum { ROWS = 6, VECTORS = 2 };
#else
#define VECTOR_BYTES 16
enum { ROWS = 6, VECTORS = 4 };
#endif

#define IS_DOUBLE 0
#define REAL float
#define SUFFIX f32
#include "vectors.h"
#include "products.h"
#include "attention.h"
#include "rows.h"
#include "blocks.h"
#include "gradients.h"
#undef IS_DOUBLE
#undef REAL
#undef SUFFIX

#define IS_DOUBLE 1
#define REAL double
#define SUFFIX f64
#include "vectors.h"
#include "products.h"
#include "attention.h"
#include "rows.h"
#include "blocks.h"
#include "gradients.h"

/* Whether pairs of buffers hold the same bytes. */
long are_equal(long pairs, const void *const *left, const void *const *right, const int64_t *bytes) {
    for (long i = 0; i < pairs; i++)
        if (memcmp(left[i], right[i], bytes[i])) return 0;
    return 1;
}

/* Tells which sources this was made of. */
const char swinv2_sources[] = SOURCES;
