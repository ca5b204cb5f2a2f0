/* Vectors of sixteen floats in GCC's portable extension: one source for AVX-512, AVX2, NEON and the rest. */
#ifndef LIMBECK_VECTORS_H
#define LIMBECK_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
/* Loops over accumulators: rolled ones would keep them in memory. */
#define UNROLL _Pragma("GCC unroll 16")

/* Keep a loaded vector in a register: the compiler would rather load it again for each use. */
#ifdef __AVX512F__
#define HOLD(v) __asm__("" : "+v"(v))
#else
#define HOLD(v) (void)(v)
#endif

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

enum { FP32, BF16, FP16, INT8, INT4, E4M3, E5M2 };

INLINE f32x16 load(const float *p) {
    f32x16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, f32x16 v) { memcpy(p, &v, sizeof v); }

INLINE f32x16 fill(float x) { return x - (f32x16){0}; }

INLINE f32x16 pick(i32x16 where, f32x16 yes, f32x16 no) {
    return (f32x16)(((i32x16)yes & where) | ((i32x16)no & ~where));
}

INLINE float sum(f32x16 v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#endif
    float total = 0;
    for (int i = 0; i < LANES / 2; i++) v[i] += v[i + 8];
    for (int i = 0; i < LANES / 4; i++) v[i] += v[i + 4];
    for (int i = 0; i < LANES / 4; i++) total += v[i];
    return total;
}

/* Bits of a small float, moved to the place of fp32's, times what the other exponent bias lacks: subnormals too. */
INLINE f32x16 small_float(u32x16 bits, int sign, int shift, float missing) {
    f32x16 magnitude = (f32x16)((bits & ((1u << sign) - 1)) << shift) * missing;
    return (f32x16)((u32x16)magnitude | ((bits >> sign) << 31));
}

/* Widening: one instruction each where there is AVX-512; gcc 12 makes a dozen of the portable form. */
#ifdef __AVX512F__
INLINE u32x16 widen_bytes(u8x16 v) { return (u32x16)_mm512_cvtepu8_epi32((__m128i)v); }
INLINE i32x16 widen_integers(i8x16 v) { return (i32x16)_mm512_cvtepi8_epi32((__m128i)v); }
INLINE u32x16 widen_halves(u16x16 v) { return (u32x16)_mm512_cvtepu16_epi32((__m256i)v); }
INLINE f32x16 float_of_fp16(u16x16 v) { return (f32x16)_mm512_cvtph_ps((__m256i)v); }
#else
INLINE u32x16 widen_bytes(u8x16 v) { return __builtin_convertvector(v, u32x16); }
INLINE i32x16 widen_integers(i8x16 v) { return __builtin_convertvector(v, i32x16); }
INLINE u32x16 widen_halves(u16x16 v) { return __builtin_convertvector(v, u32x16); }
INLINE f32x16 float_of_fp16(u16x16 v) { return small_float(widen_halves(v), 15, 13, 0x1p112f); }
#endif

/* Sixteen numbers of a kind other than int4, as floats; scales are not applied. */
INLINE f32x16 load16(int kind, const uint8_t *p) {
    u16x16 wide;
    u8x16 narrow;
    i8x16 integers;
    switch (kind) {
    case BF16:
        memcpy(&wide, p, sizeof wide);
        return (f32x16)(widen_halves(wide) << 16);
    case FP16:
        memcpy(&wide, p, sizeof wide);
        return float_of_fp16(wide);
    case INT8:
        memcpy(&integers, p, sizeof integers);
        return __builtin_convertvector(widen_integers(integers), f32x16);
    case E4M3:
        memcpy(&narrow, p, sizeof narrow);
        return small_float(widen_bytes(narrow), 7, 20, 0x1p120f);
    case E5M2:
        memcpy(&narrow, p, sizeof narrow);
        return small_float(widen_bytes(narrow), 7, 21, 0x1p112f);
    default:
        return load((const float *)p);
    }
}

/* The last ``count`` of a row, zeros behind them. */
INLINE f32x16 load_rest(int kind, const uint8_t *p, int64_t count, int size) {
    uint8_t rest[LANES * 4] = {0};
    memcpy(rest, p, count * size);
    return load16(kind, rest);
}

#ifdef __AVX512BW__
/* Sixteen vectors of sixteen dwords: rows become columns. */
INLINE void transpose(__m512i v[16]) {
    __m512i t[16];
    UNROLL
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        v[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        v[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        v[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        v[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        v[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        v[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        v[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

/* Rounded to nearest, ties to even; what is no number stays none. The instruction takes what is below 1e-38 for 0. */
INLINE __m256i to_bf16(__m512 v) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(v);
#endif
    const __m512i bits = (__m512i)v, odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    up = _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    return _mm512_cvtepi32_epi16(up);
}

/* Lanes of the next sixteen numbers where ``left`` are left: none where that is not above 0. */
INLINE __mmask16 first_lanes(int64_t left) {
    return left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
}

/* Sixteen numbers of fp32, or of bf16 where ``half``, those of ``keep``: others are read as 0 and not written. */
INLINE f32x16 read_lanes(int half, const uint8_t *p, int64_t at, __mmask16 keep) {
    if (!half) return (f32x16)_mm512_maskz_loadu_ps(keep, (const float *)p + at);
    return (f32x16)(widen_halves((u16x16)_mm256_maskz_loadu_epi16(keep, (const uint16_t *)p + at)) << 16);
}

INLINE void write_lanes(int half, uint8_t *p, int64_t at, __mmask16 keep, f32x16 v) {
    if (half) _mm256_mask_storeu_epi16((uint16_t *)p + at, keep, to_bf16((__m512)v));
    else _mm512_mask_storeu_ps((float *)p + at, keep, (__m512)v);
}
#endif

/* exp(x) to about one unit in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; 0 below -87. */
INLINE f32x16 exponential(f32x16 x) {
    const i32x16 tiny = x < -87.0f;
    x = pick(x > 88.0f, fill(88.0f), pick(tiny, fill(-87.0f), x));
    f32x16 n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum is rounded to an integer */
    const i32x16 power = (i32x16)n - 0x4b400000;
    n -= 12582912.0f;
    x = x - n * 0.693359375f;
    x = x + n * 2.12194440e-4f;
    f32x16 y = fill(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    y = (f32x16)((i32x16)y + (power << 23));
    return pick(x == x, pick(tiny, fill(0), y), x); /* what is no number stays none */
}

#ifdef __AVX512VNNI__
/* By bits of magnitudes: the exponent, as fp32 has it, of the smallest power of two whose 127 multiples hold it. */
INLINE __m512i step_exponent(__m512i largest) {
    const __m512 above = _mm512_mul_ps((__m512)largest, _mm512_set1_ps(128 / 127.49f)); /* 127.5 would round to 128 */
    return _mm512_sub_epi32(_mm512_srli_epi32((__m512i)above, 23), _mm512_set1_epi32(6));
}

/* 32 numbers to int8, two halves of sixteen, as dwords: returns the step; what is no number stays none. */
INLINE float round_block(const f32x16 v[2], __m512i codes[2]) {
    const __m512i a = (__m512i)_mm512_abs_ps((__m512)v[0]), b = (__m512i)_mm512_abs_ps((__m512)v[1]);
    const uint32_t largest = _mm512_reduce_max_epu32(_mm512_max_epu32(a, b)); /* magnitudes order as their bits */
    const int32_t e = _mm512_cvtsi512_si32(step_exponent(_mm512_set1_epi32((int32_t)largest)));
    const int32_t bits[2] = {(254 - (e > 1 ? e : 1)) << 23, largest < 0x7f800000 ? (e > 1 ? e : 1) << 23 : 0x7fc00000};
    float scale[2];
    memcpy(scale, bits, sizeof scale);
    for (int i = 0; i < 2; i++) codes[i] = _mm512_cvtps_epi32((__m512)(v[i] * scale[0]));
    return scale[1];
}
#endif
#endif
