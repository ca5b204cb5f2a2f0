/* Products of eight-bit integers, and the rounding of activations to them, in blocks of BLOCK columns.
 *
 * An activation is rounded to int8 in blocks of 32 whose step is a power of two, as in MXINT8 (Open Compute Project,
 * microscaling formats, 2023). Codes of W are int8, or nibbles 0..15. VPDPBUSD multiplies unsigned by signed bytes, so int8
 * codes are taken plus 128 there and the sum of 128 x is taken off (CODE_OFFSET); AVX2's VPMADDUBSW would overflow on
 * them, so that it multiplies magnitudes of W by x with W's signs, or pairs of 16 bits; NEON multiplies signed bytes. */
#ifndef LIMBECK_CODES_H
#define LIMBECK_CODES_H

#include "vectors.h"

#define BLOCK 32 /* columns of x that share a step */
#define RANGE 30 /* in products of many rows a block's step is no smaller than 2^-RANGE of the largest in its row */

#ifdef USE_VNNI
#define CODE_OFFSET 128
#else
#define CODE_OFFSET 0
#endif
#if defined(USE_AVX2) && !defined(USE_VNNI)
#define PAIRED 1 /* panels of int8 codes hold 16 bits each */
#else
#define PAIRED 0
#endif

INLINE vcodes load_codes(const void *p) {
    vcodes v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* The first ``count`` bytes, zeros behind them. */
INLINE vcodes load_some_codes(const void *p, int64_t count) {
#ifdef USE_AVX512
    return (vcodes)_mm512_maskz_loadu_epi8(count >= 64 ? ~0ull : (1ull << count) - 1, p);
#else
    int8_t bytes[4 * LANES] = {0};
    memcpy(bytes, p, (size_t)(count < 4 * LANES ? count : 4 * LANES));
    return load_codes(bytes);
#endif
}

#if !defined(USE_VNNI) && !defined(USE_AVX2) && !defined(USE_AVX512)
INLINE vint dot_signed(vint acc, vcodes w, vcodes x) {
#ifdef USE_NEON
    for (int h = 0; h < 2; h++) {
        int32x4_t part = vld1q_s32((int32_t *)&acc + 4 * h);
        part = vdotq_s32(part, vld1q_s8((int8_t *)&w + 16 * h), vld1q_s8((int8_t *)&x + 16 * h));
        vst1q_s32((int32_t *)&acc + 4 * h, part);
    }
    return acc;
#else
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < 4; j++) acc[i] += (int32_t)w[4 * i + j] * x[4 * i + j];
    return acc;
#endif
}
#endif

/* acc + sums by lane of four products of int8 codes, as they are stored, and x; less CODE_OFFSET times the sum of x. */
INLINE vint dot_int8(vint acc, vcodes w, vcodes x) {
#if defined(USE_VNNI) && LANES == 16
    return (vint)DOT_BYTES((__m512i)acc, _mm512_xor_si512((__m512i)w, _mm512_set1_epi8((char)0x80)), (__m512i)x);
#elif defined(USE_VNNI)
    return (vint)DOT_BYTES((__m256i)acc, _mm256_xor_si256((__m256i)w, _mm256_set1_epi8((char)0x80)), (__m256i)x);
#elif defined(USE_AVX512)
    const __mmask64 minus = _mm512_movepi8_mask((__m512i)w);
    const __m512i turned = _mm512_mask_sub_epi8((__m512i)x, minus, _mm512_setzero_si512(), (__m512i)x);
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8((__m512i)w), turned);
    return acc + (vint)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(USE_AVX2)
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), _mm256_sign_epi8((__m256i)x, (__m256i)w));
    return acc + (vint)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    return dot_signed(acc, w, x);
#endif
}

/* acc + sums by lane of the low nibbles of w times ``even`` and of the high ones times ``odd``. */
INLINE vint dot_int4(vint acc, vcodes w, vcodes even, vcodes odd) {
    const vcodes low = w & 15, high = (vcodes)((vpairs)w >> 4) & 15;
#if defined(USE_VNNI) && LANES == 16
    acc = (vint)DOT_BYTES((__m512i)acc, (__m512i)low, (__m512i)even);
    return (vint)DOT_BYTES((__m512i)acc, (__m512i)high, (__m512i)odd);
#elif defined(USE_VNNI)
    acc = (vint)DOT_BYTES((__m256i)acc, (__m256i)low, (__m256i)even);
    return (vint)DOT_BYTES((__m256i)acc, (__m256i)high, (__m256i)odd);
#elif defined(USE_AVX512)
    const __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16((__m512i)low, (__m512i)even),
                                           _mm512_maddubs_epi16((__m512i)high, (__m512i)odd));
    return acc + (vint)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(USE_AVX2)
    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16((__m256i)low, (__m256i)even),
                                           _mm256_maddubs_epi16((__m256i)high, (__m256i)odd));
    return acc + (vint)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    return dot_signed(dot_signed(acc, low, even), high, odd);
#endif
}

/* In a panel a dword of a lane holds PER_DWORD(kind) columns of a row; sums of a block are kept as the next three say. */
#define PER_DWORD(kind) (PAIRED && (kind) == INT8 ? 2 : 4)

INLINE vint block_begin(int32_t begin) { return PAIRED ? (vint){0} : fill_int(begin); }

INLINE vint block_add(int kind, vint acc, vint w, int32_t x) {
    const vint all = fill_int(x);
#if PAIRED
    if (kind == INT8) acc += (vint)_mm256_madd_epi16((__m256i)w, (__m256i)all);
    else acc = (vint)((vpairs)acc + (vpairs)_mm256_maddubs_epi16((__m256i)w, (__m256i)all)); /* 8 x 2 x 15 x 127 < 2^15 */
    __asm__("" : "+x"(acc)); /* else gcc adds products in another order and keeps them all in memory meanwhile */
    return acc;
#elif defined(USE_VNNI) && LANES == 16
    return (vint)DOT_BYTES((__m512i)acc, (__m512i)w, (__m512i)all);
#elif defined(USE_VNNI)
    return (vint)DOT_BYTES((__m256i)acc, (__m256i)w, (__m256i)all);
#elif defined(USE_AVX512)
    if (kind == INT8) return dot_int8(acc, (vcodes)w, (vcodes)all);
    return acc + (vint)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)w, (__m512i)all), _mm512_set1_epi16(1));
#else
    return dot_signed(acc, (vcodes)w, (vcodes)all);
#endif
}

INLINE vint block_end(int kind, vint acc, int32_t begin) {
#if PAIRED
    if (kind == INT8) return acc;
    return (vint)_mm256_madd_epi16((__m256i)acc, _mm256_set1_epi16(1)) + begin;
#else
    (void)kind, (void)begin;
    return acc;
#endif
}

/* LANES dwords of a panel's row: columns c on of one row of codes; what lies past ``left`` columns is whatever. */
INLINE vuint panel_dwords(int kind, const uint8_t *p, int64_t left) {
    enum { HALF = 2 * LANES };
    if (kind == INT8 && !PAIRED) {
        vcodes v = left >= 4 * LANES ? load_codes(p) : load_some_codes(p, left);
        return (vuint)(CODE_OFFSET ? v ^ (int8_t)0x80 : v);
    }
    typedef uint8_t narrow __attribute__((vector_size(HALF)));
    typedef uint16_t wide __attribute__((vector_size(2 * HALF)));
    const int64_t there = kind == INT8 ? left : (left + 1) / 2;
    narrow v = {0};
    if (there >= HALF) memcpy(&v, p, HALF);
    else memcpy(&v, p, (size_t)there);
#if defined(USE_AVX512)
    const wide spread = (wide)_mm512_cvtepu8_epi16((__m256i)v);
#elif defined(USE_AVX2)
    if (kind == INT8) return (vuint)_mm256_cvtepi8_epi16((__m128i)v);
    const wide spread = (wide)_mm256_cvtepu8_epi16((__m128i)v);
#else
    const wide spread = __builtin_convertvector(v, wide);
#endif
    return (vuint)((spread | spread << 4) & 0x0f0f);
}

/* By bits of a magnitude: the exponent, as fp32 has it, of the smallest power of two whose 127 multiples hold it. */
INLINE int32_t step_exponent(uint32_t largest) {
    float value;
    memcpy(&value, &largest, 4);
    value *= 128 / 127.49f; /* 127.5 would round to 128 */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (int32_t)(bits >> 23) - 6;
}

INLINE float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* The largest magnitude of BLOCK numbers, as bits: they order as numbers do, and what is none comes last. */
INLINE uint32_t block_largest(const vfloat *v) {
    vint most = (vint)v[0] & 0x7fffffff;
    UNROLL
    for (int i = 1; i < BLOCK / LANES; i++) {
        const vint m = (vint)v[i] & 0x7fffffff;
#if defined(USE_AVX512)
        most = (vint)_mm512_max_epi32((__m512i)most, (__m512i)m);
#elif defined(USE_AVX2)
        most = (vint)_mm256_max_epi32((__m256i)most, (__m256i)m);
#else
        most = (vint)pick(most > m, (vfloat)most, (vfloat)m);
#endif
    }
#if defined(USE_AVX512)
    return (uint32_t)_mm512_reduce_max_epi32((__m512i)most);
#elif defined(USE_AVX2)
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128((__m256i)most), _mm256_extracti128_si256((__m256i)most, 1));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
#else
    int32_t whole = most[0];
    for (int i = 1; i < LANES; i++) whole = most[i] > whole ? most[i] : whole;
    return (uint32_t)whole;
#endif
}

/* BLOCK numbers times ``inverse`` to int8; returns the sum of the codes. */
INLINE int32_t block_round(const vfloat *v, float inverse, int8_t *codes) {
    vint q[BLOCK / LANES], total = {0};
    UNROLL
    for (int i = 0; i < BLOCK / LANES; i++) {
        q[i] = nearest(v[i] * inverse);
        total += q[i];
    }
#if defined(USE_AVX512)
    UNROLL
    for (int i = 0; i < 2; i++) _mm_storeu_si128((__m128i *)(codes + 16 * i), _mm512_cvtepi32_epi8((__m512i)q[i]));
    return _mm512_reduce_add_epi32((__m512i)total);
#elif defined(USE_AVX2)
    const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32((__m256i)q[0], (__m256i)q[1]),
                                             _mm256_packs_epi32((__m256i)q[2], (__m256i)q[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i *)codes, _mm256_permutevar8x32_epi32(mixed, order));
    __m128i h = _mm_add_epi32(_mm256_castsi256_si128((__m256i)total), _mm256_extracti128_si256((__m256i)total, 1));
    h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
#else
    int32_t whole = 0;
    for (int i = 0; i < BLOCK; i++) codes[i] = (int8_t)q[i / LANES][i % LANES];
    for (int i = 0; i < LANES; i++) whole += total[i];
    return whole;
#endif
}
#endif
