/* Arguments of all kernels: maps of tokens, vectors and layers, of any type of number; and conversion of these types. */

#ifndef SWINV2_NUMBERS_H
#define SWINV2_NUMBERS_H

#include <stdint.h>
#include <string.h>

enum { F32, BF16, F16, F64 };

/* A map of tokens, in the order image, row, column. */
typedef struct {
    void *data;
    int64_t stride; /* from token to token, in numbers; the numbers of a token are contiguous */
    int64_t type;
} Map;

/* A contiguous vector. */
typedef struct {
    const void *data;
    int64_t type;
} Numbers;

/* A linear layer: weight (out, in) with contiguous rows, and bias or NULL. */
typedef struct {
    const void *data;
    int64_t row, type; /* row: stride from row to row */
    Numbers bias;
} Linear;

/* A layer norm, and a factor of its output. */
typedef struct {
    Numbers weight, bias;
    double eps, factor;
} Norm;

/* A block of the network. Without a query layer it is only an MLP; without fc1 it is only an attention. */
typedef struct {
    int64_t shift_frames, shift_rows, shift_columns, hidden;
    Linear query, key, value, out_proj;
    Numbers table, scale; /* see `attend`, in REAL */
    Norm attention_norm;
    Linear fc1, fc2;
    Norm mlp_norm, extra_norm; /* extra_norm: of the block's output, if it has a weight */
} Block;

/* The maps saved for backward; those without data are not written. qkv: queries, keys and values of a token one after the
   other; attended: the attended map; attention_out, mlp_out: inputs of the norms; hidden: input of the GELU. */
typedef struct {
    Map qkv, attended, attention_out, hidden, mlp_out;
} Saved;

/* Buffers for the gradients of a branch, in REAL, or NULL. in_proj, in_proj_bias: of the first layer, or of the layers of
   queries, keys and values one after the other; out_proj: of the last layer's weight; epilogue: of the norm's weight, the
   norm's bias and the last layer's bias; table, scale: of the attention's bias table and scale. */
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

/* fp16, for which processors have instructions. */
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

/* Thread `me` of `team` threads computes items share(count, me, team) to share(count, me + 1, team) - 1 of `count`. */
static inline long share(long count, long me, long team) { return count * me / team; }

#endif
