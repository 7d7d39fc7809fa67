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

/* A matrix: the strides from row to row and from column to column, in numbers; one of them is 1. */
typedef struct {
    void *data;
    int64_t row, column, type;
} Matrix;

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

/* Numbers of 16 bits with 5 of them for the exponent, by the usual tricks with bits (Maratyszcza, FP16): compilers know a
   type for them on some machines only. */
static inline float from_f16(uint16_t half) {
    uint32_t wide = (uint32_t)half << 16, twice = wide + wide, bits = (twice >> 4) + (0xE0u << 23), small_bits;
    float normal, small;
    memcpy(&normal, &bits, sizeof normal);
    normal *= 0x1.0p-112f;
    small_bits = (twice >> 17) | (126u << 23);
    memcpy(&small, &small_bits, sizeof small);
    small -= 0.5f;
    float size = twice < (1u << 27) ? small : normal;
    memcpy(&bits, &size, sizeof bits);
    bits |= wide & 0x80000000u;
    memcpy(&size, &bits, sizeof size);
    return size;
}

static inline uint16_t to_f16(float x) {
    uint32_t bits, sign, bias, result;
    memcpy(&bits, &x, sizeof bits);
    sign = bits & 0x80000000u;
    uint32_t twice = bits + bits;
    float size, base;
    uint32_t magnitude = bits & 0x7fffffffu;
    memcpy(&size, &magnitude, sizeof size);
    base = size * 0x1.0p+112f * 0x1.0p-110f;
    bias = twice & 0xFF000000u;
    bias = bias < 0x71000000u ? 0x71000000u : bias;
    uint32_t shifted = (bias >> 1) + 0x07800000u;
    float shift;
    memcpy(&shift, &shifted, sizeof shift);
    base += shift;
    memcpy(&result, &base, sizeof result);
    uint32_t nonsign = ((result >> 13) & 0x7c00u) + (result & 0x0fffu);
    return (sign >> 16) | (twice > 0xFF000000u ? 0x7e00u : nonsign);
}

static inline long round_up(long n, long step) { return (n + step - 1) / step * step; }

static inline long smaller(long a, long b) { return a < b ? a : b; }

/* The part of `count` items that a thread does: from share(count, me, team) to share(count, me + 1, team). */
static inline long share(long count, long me, long team) { return count * me / team; }

#endif
