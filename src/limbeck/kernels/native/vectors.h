/* Vectors of LANES numbers and the operations that kernels are written in: one source for every instruction set.
 *
 * LANES is 16 with AVX-512 and 8 elsewhere (AVX2, NEON, or whatever the compiler makes of GCC's vectors). Most operations are
 * the compiler's own; those that have an instruction of their own somewhere have one form for each set, and a portable
 * one. LIMBECK_PORTABLE_LANES takes the portable forms with so many lanes, for tests of either width on any machine. */
#ifndef LIMBECK_VECTORS_H
#define LIMBECK_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef LIMBECK_PORTABLE_LANES
#define LANES LIMBECK_PORTABLE_LANES
#elif defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define USE_AVX512 1
#define LANES 16
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define USE_AVX2 1
#define LANES 8
#else
#define LANES 8
#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define USE_NEON 1
#endif
#endif

#if defined(USE_AVX512) && defined(__AVX512VNNI__)
#define USE_VNNI 1
#define DOT_BYTES(acc, u, s) _mm512_dpbusd_epi32(acc, u, s)
#elif defined(USE_AVX2) && defined(__AVXVNNI__)
#define USE_VNNI 1
#define DOT_BYTES(acc, u, s) _mm256_dpbusd_avx_epi32(acc, u, s)
#endif

#define INLINE static inline __attribute__((always_inline))
/* Loops over accumulators: rolled ones would keep them in memory. */
#define UNROLL _Pragma("GCC unroll 16")

typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int32_t vint __attribute__((vector_size(4 * LANES)));
typedef uint32_t vuint __attribute__((vector_size(4 * LANES)));
typedef uint16_t vhalf __attribute__((vector_size(2 * LANES))); /* LANES numbers of two bytes */
typedef uint8_t vbyte __attribute__((vector_size(LANES)));      /* LANES numbers of one byte */
typedef int8_t vsbyte __attribute__((vector_size(LANES)));
typedef int8_t vcodes __attribute__((vector_size(4 * LANES))); /* 4 x LANES codes */
typedef int16_t vpairs __attribute__((vector_size(4 * LANES)));

enum { FP32, BF16, FP16, INT8, INT4, E4M3, E5M2 };

INLINE vfloat load(const float *p) {
    vfloat v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vfloat v) { memcpy(p, &v, sizeof v); }

INLINE vfloat fill(float x) { return x - (vfloat){0}; }

INLINE vint fill_int(int32_t x) { return x - (vint){0}; }

INLINE vfloat pick(vint where, vfloat yes, vfloat no) { return (vfloat)(((vint)yes & where) | ((vint)no & ~where)); }

/* Lanes below ``count``, as a mask. */
INLINE vint first_lanes(int64_t count) {
    vint place;
    UNROLL
    for (int i = 0; i < LANES; i++) place[i] = i;
    return place < fill_int(count > LANES ? LANES : count < 0 ? 0 : (int32_t)count);
}

/* max(a, b); b where one of them is not a number. */
INLINE vfloat maximum(vfloat a, vfloat b) {
#if defined(USE_AVX512)
    return (vfloat)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(USE_AVX2)
    return (vfloat)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return pick(a > b, a, b);
#endif
}

INLINE float sum(vfloat v) {
#ifdef USE_AVX512
    return _mm512_reduce_add_ps((__m512)v);
#elif defined(USE_AVX2)
    __m128 h = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
#else
    float total = 0;
    for (int i = 0; i < LANES / 2; i++) v[i] += v[i + LANES / 2];
    for (int i = 0; i < LANES / 4; i++) v[i] += v[i + LANES / 4];
    for (int i = 0; i < LANES / 4; i++) total += v[i];
    return total;
#endif
}

INLINE float largest_lane(vfloat v) {
#ifdef USE_AVX512
    return _mm512_reduce_max_ps((__m512)v);
#else
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
#endif
}

/* Bits of a small float, moved to the place of fp32's, times what the other exponent bias lacks: subnormals too. */
INLINE vfloat small_float(vuint bits, int sign, int shift, float missing) {
    vfloat magnitude = (vfloat)((bits & ((1u << sign) - 1)) << shift) * missing;
    return (vfloat)((vuint)magnitude | ((bits >> sign) << 31));
}

#if defined(USE_AVX512)
INLINE vuint widen_bytes(vbyte v) { return (vuint)_mm512_cvtepu8_epi32((__m128i)v); }
INLINE vuint widen_halves(vhalf v) { return (vuint)_mm512_cvtepu16_epi32((__m256i)v); }
INLINE vint widen_integers(vsbyte v) { return (vint)_mm512_cvtepi8_epi32((__m128i)v); }
INLINE vfloat float_of_fp16(vhalf v) { return (vfloat)_mm512_cvtph_ps((__m256i)v); }
#elif defined(USE_AVX2)
INLINE __m128i eight_bytes(const void *p) { return _mm_loadl_epi64((const __m128i *)p); }
INLINE vuint widen_bytes(vbyte v) { return (vuint)_mm256_cvtepu8_epi32(eight_bytes(&v)); }
INLINE vuint widen_halves(vhalf v) { return (vuint)_mm256_cvtepu16_epi32((__m128i)v); }
INLINE vint widen_integers(vsbyte v) { return (vint)_mm256_cvtepi8_epi32(eight_bytes(&v)); }
INLINE vfloat float_of_fp16(vhalf v) { return (vfloat)_mm256_cvtph_ps((__m128i)v); }
#else
INLINE vuint widen_bytes(vbyte v) { return __builtin_convertvector(v, vuint); }
INLINE vuint widen_halves(vhalf v) { return __builtin_convertvector(v, vuint); }
INLINE vint widen_integers(vsbyte v) { return __builtin_convertvector(v, vint); }
INLINE vfloat float_of_fp16(vhalf v) {
    const vuint bits = widen_halves(v);
    return pick((vint)(bits & 0x7c00) == 0x7c00, (vfloat)((bits & 0x3ff) << 13 | (bits & 0x8000) << 16 | 0x7f800000),
                small_float(bits, 15, 13, 0x1p112f));
}
#endif

/* LANES numbers of a kind other than int4, as floats; scales are not applied. */
INLINE vfloat load_numbers(int kind, const uint8_t *p) {
    vhalf wide;
    vbyte narrow;
    vsbyte integers;
    switch (kind) {
    case BF16:
        memcpy(&wide, p, sizeof wide);
        return (vfloat)(widen_halves(wide) << 16);
    case FP16:
        memcpy(&wide, p, sizeof wide);
        return float_of_fp16(wide);
    case INT8:
        memcpy(&integers, p, sizeof integers);
        return __builtin_convertvector(widen_integers(integers), vfloat);
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

/* The last ``count`` (0 to LANES) of a row, zeros behind them. */
INLINE vfloat load_rest(int kind, const uint8_t *p, int64_t count, int size) {
    uint8_t rest[LANES * 4] = {0};
    if (count > 0) memcpy(rest, p, (size_t)(count < LANES ? count : LANES) * size);
    return load_numbers(kind, rest);
}

/* Rounded to nearest, ties to even; what is no number stays none. AVX-512's instruction takes what is below 1e-38 for 0. */
INLINE vhalf to_bf16(vfloat v) {
#if defined(USE_AVX512) && defined(__AVX512BF16__)
    return (vhalf)_mm512_cvtneps_pbh((__m512)v);
#else
    const vuint bits = (vuint)v;
    vuint up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    up = (vuint)pick(v == v, (vfloat)up, (vfloat)fill_int(0x7fc0));
#if defined(USE_AVX512)
    return (vhalf)_mm512_cvtepi32_epi16((__m512i)up);
#elif defined(USE_AVX2)
    const __m256i packed = _mm256_packus_epi32((__m256i)up, (__m256i)up);
    return (vhalf)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
    return __builtin_convertvector(up, vhalf);
#endif
#endif
}

/* Up to LANES numbers of fp32, or of bf16 where ``half``, from place ``at``: those from ``count`` on are read as 0. */
INLINE vfloat read_some(int half, const uint8_t *p, int64_t at, int64_t count) {
#ifdef USE_AVX512
    const __mmask16 keep = count >= LANES ? 0xffff : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
    if (!half) return (vfloat)_mm512_maskz_loadu_ps(keep, (const float *)p + at);
    return (vfloat)(widen_halves((vhalf)_mm256_maskz_loadu_epi16(keep, (const uint16_t *)p + at)) << 16);
#else
    const int kind = half ? BF16 : FP32, size = half ? 2 : 4;
    return count >= LANES ? load_numbers(kind, p + at * size) : load_rest(kind, p + at * size, count, size);
#endif
}

/* The same the other way: numbers from ``count`` on are not written. */
INLINE void write_some(int half, uint8_t *p, int64_t at, int64_t count, vfloat v) {
#ifdef USE_AVX512
    const __mmask16 keep = count >= LANES ? 0xffff : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
    if (half) _mm256_mask_storeu_epi16((uint16_t *)p + at, keep, (__m256i)to_bf16(v));
    else _mm512_mask_storeu_ps((float *)p + at, keep, (__m512)v);
#else
    const int64_t n = count >= LANES ? LANES : count > 0 ? count : 0;
    if (half) {
        const vhalf narrow = to_bf16(v);
        if (n == LANES) memcpy(p + 2 * at, &narrow, sizeof narrow);
        else memcpy(p + 2 * at, &narrow, (size_t)n * 2);
    } else if (n == LANES) memcpy(p + 4 * at, &v, sizeof v);
    else memcpy(p + 4 * at, &v, (size_t)n * 4);
#endif
}

/* LANES vectors of LANES dwords: rows become columns. */
INLINE void transpose(vuint v[LANES]) {
#if defined(USE_AVX512)
    __m512i t[16], u[16];
    UNROLL
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32((__m512i)v[2 * i], (__m512i)v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32((__m512i)v[2 * i], (__m512i)v[2 * i + 1]);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        v[i] = (vuint)_mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        v[8 + i] = (vuint)_mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        v[4 + i] = (vuint)_mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        v[12 + i] = (vuint)_mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
#elif defined(USE_AVX2)
    __m256i t[8], u[8];
    UNROLL
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_epi32((__m256i)v[2 * i], (__m256i)v[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32((__m256i)v[2 * i], (__m256i)v[2 * i + 1]);
    }
    UNROLL
    for (int i = 0; i < 2; i++) {
        u[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        v[i] = (vuint)_mm256_permute2x128_si256(u[i], u[4 + i], 0x20);
        v[4 + i] = (vuint)_mm256_permute2x128_si256(u[i], u[4 + i], 0x31);
    }
#else
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < i; j++) {
            const uint32_t one = v[i][j];
            v[i][j] = v[j][i];
            v[j][i] = one;
        }
#endif
}

/* The nearest integers, ties to even, of numbers below 2^22. */
INLINE vint nearest(vfloat v) { return (vint)(v + 12582912.0f) - 0x4b400000; /* 1.5 x 2^23 */ }

/* exp(x) to about one unit in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; 0 below -87. */
INLINE vfloat exponential(vfloat x) {
    const vint tiny = x < -87.0f;
    x = pick(x > 88.0f, fill(88.0f), pick(tiny, fill(-87.0f), x));
    vfloat n = x * 1.44269504f + 12582912.0f; /* the sum is rounded to an integer */
    const vint power = (vint)n - 0x4b400000;
    n -= 12582912.0f;
    x = x - n * 0.693359375f;
    x = x + n * 2.12194440e-4f;
    vfloat y = fill(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    y = (vfloat)((vint)y + (power << 23));
    return pick(x == x, pick(tiny, fill(0), y), x); /* what is no number stays none */
}
#endif
