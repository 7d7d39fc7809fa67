/* What all kernels are given: maps of tokens, in whatever type they are stored. */

#ifndef SWINV2_NUMBERS_H
#define SWINV2_NUMBERS_H

#include <stdint.h>
#include <string.h>

enum { F32, BF16, F16, F64 };

/* A map of tokens: images, rows and columns, one after another. */
typedef struct {
    void *data;
    int64_t stride; /* from token to token, in numbers; the numbers of a token lie side by side */
    int64_t type;
} Map;

/* Numbers side by side. */
typedef struct {
    const void *data;
    int64_t type;
} Numbers;

/* A linear layer: weight (out, in), whose rows have their numbers side by side, and bias, NULL if there is none. */
typedef struct {
    const void *data;
    int64_t row, type; /* from row to row */
    Numbers bias;
} Linear;

/* A layer norm, and what its answer is multiplied by. */
typedef struct {
    Numbers weight, bias;
    double eps, factor;
} Norm;

/* A block of the network. Without a query layer it is an MLP only, without a widening layer an attention only. */
typedef struct {
    int64_t shift_height, shift_width, hidden;
    Linear query, key, value, output;
    Numbers table, scale; /* as `attend` takes them, in REAL */
    Norm attention_norm;
    Linear fc1, fc2;
    Norm mlp_norm, extra_norm; /* the last one, of the whole sum, if it has a weight */
} Block;

/* Maps that get what the gradients need, where they have data: queries, keys and values one after the other, the attended
   tokens, the inputs of norms, and that of the GELU. */
typedef struct {
    Map qkv, attended, attention_work, hidden, mlp_work;
} Saved;

/* What gets the gradients of a branch, each in REAL and NULL if it is not wanted: of its first layer, or of those of
   queries, keys and values one after the other; of the weight of its last layer; of its norm's weight and bias and the last
   layer's bias; and of the attention's bias table and scale. */
typedef struct {
    Map x;
    void *in_proj, *in_proj_bias, *out_proj, *epilogue, *table, *scale;
} Gradients;

static inline float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

static inline uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x != x ? 0x7fc0 : rounded;
}

/* Numbers of 16 bits with 5 of them for the exponent: processors know them. */
#ifdef __F16C__
#include <immintrin.h>

static inline float from_f16(uint16_t bits) { return _cvtsh_ss(bits); }

static inline uint16_t to_f16(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
#else
static inline float from_f16(uint16_t bits) {
    __fp16 half;
    memcpy(&half, &bits, sizeof half);
    return half;
}

static inline uint16_t to_f16(float x) {
    __fp16 half = x;
    uint16_t bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}
#endif

static inline void read_f16(float *to, const uint16_t *from, long n) {
    long i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#endif
    for (; i < n; i++) to[i] = from_f16(from[i]);
}

static inline void write_f16(uint16_t *to, const float *from, long n) {
    long i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) to[i] = to_f16(from[i]);
}

static inline long round_up(long n, long step) { return (n + step - 1) / step * step; }

static inline long smaller(long a, long b) { return a < b ? a : b; }

/* The part of `count` items that a thread does: from share(count, me, team) to share(count, me + 1, team). */
static inline long share(long count, long me, long team) { return count * me / team; }

#endif
