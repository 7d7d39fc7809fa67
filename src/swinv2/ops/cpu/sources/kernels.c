/* The kernels for CPUs: the file to compile. It includes each kernel in single and in double precision.

   16-bit numbers are stored in 16 bits and computed in single precision. Kernels allocate no memory: the caller gives them
   a workspace, aligned to 64 bytes, which it may keep for the next call. The same sources serve all vector widths; a
   compiler flag selects the width. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#ifdef __clang__
#error "compile the kernels with gcc: clang calls functions of OpenMP that the runtime of torch does not have"
#endif

/* The first version of the C library's exp. It gives the same numbers as that of glibc 2.29, which older systems do not
   have: a library that asks for it cannot be loaded there. */
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver exp, exp@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver exp, exp@GLIBC_2.17");
#endif

#include "numbers.h"
#include "windows.h"

/* Size of a tile of a matrix product, in rows and vectors, that fits the registers. */
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

/* The fingerprint of the sources, which Python checks. */
const char swinv2_sources[] = SOURCES;
