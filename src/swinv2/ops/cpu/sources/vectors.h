/* SIMD vectors of REAL, mathematical functions of them, and conversion of maps to and from REAL.

   This file is included once for each REAL. SUFFIX is the suffix of all names; IS_DOUBLE is 1 for double. */

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, SUFFIX)
#define INLINE static inline __attribute__((always_inline))

#define Vector FN(Vector)
#define Bits FN(Bits)
#define LANES ((long)(VECTOR_BYTES / sizeof(REAL)))

typedef REAL Vector __attribute__((vector_size(VECTOR_BYTES)));
#if IS_DOUBLE
typedef int64_t Bits __attribute__((vector_size(VECTOR_BYTES)));
#else
typedef int32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
#endif

INLINE Vector FN(load)(const REAL *from) {
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void FN(store)(REAL *to, Vector v) { memcpy(to, &v, sizeof v); }

INLINE Vector FN(broadcast)(REAL x) { return x - (Vector){0}; }

INLINE Vector FN(where)(Bits mask, Vector yes, Vector no) {
    return (Vector)(((Bits)yes & mask) | ((Bits)no & ~mask));
}

INLINE Vector FN(larger)(Vector a, Vector b) { return FN(where)(a > b, a, b); }

INLINE Vector FN(smaller)(Vector a, Vector b) { return FN(where)(a < b, a, b); }

#if IS_DOUBLE
/* Transposes LANES vectors in place. */
INLINE void FN(transpose)(Vector *rows) {
    REAL numbers[LANES][LANES];
    memcpy(numbers, rows, sizeof numbers);
    for (long row = 0; row < LANES; row++)
        for (long column = 0; column < LANES; column++) rows[row][column] = numbers[column][row];
}
#else
/* Indices for __builtin_shuffle; the lanes of the second vector follow those of the first. Moves inside 16 bytes are the
   fastest. The indices are literals, because compilers do not make constants of computed ones. */
#if VECTOR_BYTES == 16
#define LOW_NUMBERS ((Bits){0, 4, 1, 5})
#define HIGH_NUMBERS ((Bits){2, 6, 3, 7})
#define LOW_PAIRS ((Bits){0, 1, 4, 5})
#define HIGH_PAIRS ((Bits){2, 3, 6, 7})
#elif VECTOR_BYTES == 32
#define LOW_NUMBERS ((Bits){0, 8, 1, 9, 4, 12, 5, 13})
#define HIGH_NUMBERS ((Bits){2, 10, 3, 11, 6, 14, 7, 15})
#define LOW_PAIRS ((Bits){0, 1, 8, 9, 4, 5, 12, 13})
#define HIGH_PAIRS ((Bits){2, 3, 10, 11, 6, 7, 14, 15})
#define LOW_FOURS ((Bits){0, 1, 2, 3, 8, 9, 10, 11})
#define HIGH_FOURS ((Bits){4, 5, 6, 7, 12, 13, 14, 15})
#elif VECTOR_BYTES == 64
#define LOW_NUMBERS ((Bits){0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29})
#define HIGH_NUMBERS ((Bits){2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31})
#define LOW_PAIRS ((Bits){0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29})
#define HIGH_PAIRS ((Bits){2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31})
#define LOW_FOURS ((Bits){0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27})
#define HIGH_FOURS ((Bits){4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31})
#define LOW_EIGHTS ((Bits){0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23})
#define HIGH_EIGHTS ((Bits){8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31})
#endif

INLINE void FN(swap)(Vector *a, Vector *b, Bits low, Bits high) {
    Vector upper = __builtin_shuffle(*a, *b, low);
    *b = __builtin_shuffle(*a, *b, high);
    *a = upper;
}

/* Transposes LANES vectors in place. */
INLINE void FN(transpose)(Vector *rows) {
#ifdef LOW_EIGHTS
#pragma GCC unroll 16
    for (long i = 0; i < 8; i++) FN(swap)(rows + i, rows + i + 8, LOW_EIGHTS, HIGH_EIGHTS);
#endif
#ifdef LOW_FOURS
#pragma GCC unroll 16
    for (long i = 0; i < LANES; i++)
        if (!(i & 4)) FN(swap)(rows + i, rows + i + 4, LOW_FOURS, HIGH_FOURS);
#endif
#pragma GCC unroll 16
    for (long i = 0; i < LANES; i += 4) {
        FN(swap)(rows + i, rows + i + 1, LOW_NUMBERS, HIGH_NUMBERS);
        FN(swap)(rows + i + 2, rows + i + 3, LOW_NUMBERS, HIGH_NUMBERS);
        FN(swap)(rows + i, rows + i + 2, LOW_PAIRS, HIGH_PAIRS);
        FN(swap)(rows + i + 1, rows + i + 3, LOW_PAIRS, HIGH_PAIRS);
        /* The order is now 0, 2, 1, 3. */
        Vector second = rows[i + 1];
        rows[i + 1] = rows[i + 2];
        rows[i + 2] = second;
    }
}
#endif

/* The sum, or the maximum, of each of LANES vectors, as one vector. The input is overwritten. */
INLINE Vector FN(sums)(Vector *vectors) {
    FN(transpose)(vectors);
    Vector sum = vectors[0];
#pragma GCC unroll 16
    for (long i = 1; i < LANES; i++) sum += vectors[i];
    return sum;
}

INLINE Vector FN(maxima)(Vector *vectors) {
    FN(transpose)(vectors);
    Vector maxima = vectors[0];
#pragma GCC unroll 16
    for (long i = 1; i < LANES; i++) maxima = FN(larger)(maxima, vectors[i]);
    return maxima;
}

INLINE REAL FN(sum)(Vector v) {
    REAL sum = 0;
    for (long i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

INLINE REAL FN(root)(REAL x) { return IS_DOUBLE ? sqrt(x) : sqrtf(x); }

INLINE Vector FN(roots)(Vector x) {
    for (long i = 0; i < LANES; i++) x[i] = FN(root)(x[i]);
    return x;
}

#if IS_DOUBLE
#define LEAST_EXPONENT -700.0
#define ROUNDING 6755399441056767.0 /* 1.5 * 2^52 + 1023: adding it rounds; the low bits are the exponent of a power of 2 */
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
#define MANTISSA 52

/* exp(r) for |r| <= log(2) / 2, by its Taylor series. */
INLINE Vector FN(small_exp)(Vector r) {
    static const double factor[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                    1.0 / 40320,      1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,
                                    1.0 / 6,          0.5,             1.0,            1.0};
    Vector power = FN(broadcast)(factor[0]);
#pragma GCC unroll 16
    for (unsigned i = 1; i < sizeof factor / sizeof *factor; i++) power = power * r + factor[i];
    return power;
}
#else
#define LEAST_EXPONENT -86.0f
#define ROUNDING 12583039.0f /* 1.5 * 2^23 + 127 */
#define LN2_HIGH 0.693145751953125f
#define LN2_LOW 1.42860682030941723212e-6f
#define MANTISSA 23

/* exp(r) for |r| <= log(2) / 2: a polynomial fitted by least squares, weighted for the smallest relative error, 2e-9.
   Terms are added in pairs, which shortens the chain of dependent instructions. */
INLINE Vector FN(small_exp)(Vector r) {
    Vector r2 = r * r;
    Vector low = (1 + r) + (0.4999999206f + 0.1666641968f * r) * r2;
    return low + r2 * r2 * (0.04166822886f + 0.008374857087f * r + 0.001383678251f * r2);
}
#endif

/* exp(x) for x <= 0; 0 if x < LEAST_EXPONENT, also for -infinity. */
INLINE Vector FN(exp)(Vector x) {
    Vector shifted = x * (REAL)1.4426950408889634 + ROUNDING, whole = shifted - ROUNDING;
    Vector power = (Vector)((Bits)shifted << MANTISSA) * FN(small_exp)(x - whole * LN2_HIGH - whole * LN2_LOW);
    return FN(where)(x < LEAST_EXPONENT, (Vector){0}, power);
}

#undef LEAST_EXPONENT
#undef ROUNDING
#undef LN2_HIGH
#undef LN2_LOW
#undef MANTISSA

/* The exact GELU: x times the normal distribution function at x. */
INLINE Vector FN(gelu_of)(Vector x) {
#if IS_DOUBLE
    Vector output;
    for (long i = 0; i < LANES; i++) output[i] = x[i] * 0.5 * erfc(-x[i] * 0.70710678118654752440);
    return output;
#else
    /* The distribution function is 1/2 + x p(x^2) / q(x^2), with x clamped to +-5.7; fitted like exp, absolute error
       1.2e-8. */
    Vector within = FN(smaller)(FN(larger)(x, FN(broadcast)(-5.7f)), FN(broadcast)(5.7f)), u = within * within, u2 = u * u;
    Vector p = (0.398942206f + 0.0349408339f * u) + (0.00474081003f + 0.00017939084f * u) * u2;
    Vector q = (1 + 0.254249152f * u) + (0.0292605048f + 0.00194453568f * u) * u2;
    p += (6.3741709e-06f + 2.15805734e-08f * u) * (u2 * u2);
    q += (7.67669269e-05f + 1.16496944e-06f * u) * (u2 * u2);
    return x * FN(larger)(0.5f + within * p / q, FN(broadcast)(0));
#endif
}

/* The normal distribution function at x, and the normal density at x. */
INLINE void FN(normal)(Vector x, Vector *below, Vector *density) {
#if IS_DOUBLE
    for (long i = 0; i < LANES; i++) {
        (*below)[i] = 0.5 * erfc(-x[i] * 0.70710678118654752440);
        (*density)[i] = exp(-0.5 * x[i] * x[i]) * 0.39894228040143267794;
    }
#else
    Vector bell = FN(exp)(x * x * -0.5f), distance = (Vector)((Bits)x & 0x7fffffff);
    /* erfc(z) exp(z^2) / 2 at z = |x| / sqrt(2), as a polynomial of t = 1 / (1 + 0.375 z), fitted like exp; the relative
       error is 1.2e-8 for z from 0 to 10. */
    Vector t = 1 / (1 + 0.265165043f * distance), t2 = t * t, t4 = t2 * t2;
    Vector low = (0.105806737f + 0.10532484f * t) + (0.102656624f + 0.0607529747f * t) * t2;
    Vector high = (0.136861101f - 0.114704781f * t) + (0.216197563f - 0.143664151f * t) * t2;
    Vector tail = (low + (high + 0.0307690946f * t4) * t4) * (t * bell);
    *below = FN(where)(x < 0, tail, 1 - tail);
    *density = bell * 0.39894228f;
#endif
}

INLINE void FN(read)(REAL *to, const Map *map, long at, long n) {
    if (map->type == (IS_DOUBLE ? F64 : F32) && n % LANES == 0) { /* faster than a call of memcpy */
        const REAL *from = (const REAL *)map->data + at;
        for (long i = 0; i < n; i += LANES) FN(store)(to + i, FN(load)(from + i));
    } else if (map->type == F32) {
        const float *from = (const float *)map->data + at;
        for (long i = 0; i < n; i++) to[i] = from[i];
    } else if (map->type == BF16) {
        const uint16_t *from = (const uint16_t *)map->data + at;
        for (long i = 0; i < n; i++) to[i] = from_bf16(from[i]);
    } else if (map->type == F16) {
        const uint16_t *from = (const uint16_t *)map->data + at;
#if IS_DOUBLE
        for (long i = 0; i < n; i++) to[i] = from_f16(from[i]);
#else
        read_f16(to, from, n);
#endif
    } else {
        const double *from = (const double *)map->data + at;
        for (long i = 0; i < n; i++) to[i] = from[i];
    }
}

INLINE void FN(write)(const Map *map, long at, const REAL *from, long n) {
    if (map->type == (IS_DOUBLE ? F64 : F32) && n % LANES == 0) {
        REAL *to = (REAL *)map->data + at;
        for (long i = 0; i < n; i += LANES) FN(store)(to + i, FN(load)(from + i));
    } else if (map->type == F32) {
        float *to = (float *)map->data + at;
        for (long i = 0; i < n; i++) to[i] = from[i];
    } else if (map->type == BF16) {
        uint16_t *to = (uint16_t *)map->data + at;
        for (long i = 0; i < n; i++) to[i] = to_bf16(from[i]);
    } else if (map->type == F16) {
        uint16_t *to = (uint16_t *)map->data + at;
#if IS_DOUBLE
        for (long i = 0; i < n; i++) to[i] = to_f16(from[i]);
#else
        write_f16(to, from, n);
#endif
    } else {
        double *to = (double *)map->data + at;
        for (long i = 0; i < n; i++) to[i] = from[i];
    }
}
