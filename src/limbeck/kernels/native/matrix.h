/* y = x @ W.T on the neutral layout's own codes (docs/quantized-layout.md), no repacking, fp32 activations.
 *
 * Rows of x are padded with zeros to a multiple of UNIT columns. Each thread does some rows of W. */
#ifndef LIMBECK_MATRIX_H
#define LIMBECK_MATRIX_H

#include "vectors.h"

#ifndef AHEAD
#define AHEAD 8192 /* bytes: how much later a tile reads what it asks for */
#endif
#define UNIT 32 /* columns at a time: sixteen bytes of int4 */

typedef struct {
    int64_t kind, rows, columns, span; /* span: columns of a scale, 0: one for the whole matrix, -1: no scales */
    int64_t half_scales;
    const uint8_t *codes;
    const void *scales, *zeros;
    const float *bias;
} matrix;

/* What one thread needs beside: activations in the codes' order, their sums by group, scales of four rows; and as
 * integers: codes, and by lane of each step what they begin with and their scales. */
typedef struct {
    float *turned, *sums, *scales;
    uint16_t *halves;
    int8_t *codes;
    int32_t *begin;
    float *steps;
} room;

static const int SIZE[] = {4, 2, 2, 1, 0, 1, 1};
enum { WHOLE, GROUPS, UNITS };

/* Ask for `bytes` that are read later, into the second cache; returns their end. A tile takes its rows side by side, but
 * they lie one behind the other: asked for in that order, memory is one stream (docs/lab-notes.md). */
INLINE const uint8_t *ask(const uint8_t *far, int64_t bytes) {
    UNROLL
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(far + i, 0, 2);
    return far + bytes;
}

INLINE int64_t up_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
INLINE int64_t bytes_of(int kind, int64_t columns) { return kind == INT4 ? (columns + 1) / 2 : columns * SIZE[kind]; }

/* What a nibble stands for, before its scale: 0..15 where there is a zero beside the scale, else -8..7. */
INLINE f32x16 nibbles_of(const matrix *m) {
    const f32x16 counted = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return m->zeros ? counted : counted - 8.0f;
}

/* Of int4 the even columns come first, then the odd ones, and so must what they are multiplied by. */
INLINE void load_unit(int kind, const uint8_t *p, f32x16 nibbles, f32x16 w[2]) {
    if (kind == INT4) {
        u8x16 bytes;
        memcpy(&bytes, p, sizeof bytes);
        const u32x16 pairs = widen_bytes(bytes);
#ifdef __AVX512F__ /* looked up: the index is the low four bits, whatever stands above */
        w[0] = (f32x16)_mm512_permutexvar_ps((__m512i)pairs, (__m512)nibbles);
        w[1] = (f32x16)_mm512_permutexvar_ps((__m512i)(pairs >> 4), (__m512)nibbles);
#else
        w[0] = __builtin_convertvector((i32x16)(pairs & 15), f32x16) + nibbles[0];
        w[1] = __builtin_convertvector((i32x16)(pairs >> 4), f32x16) + nibbles[0];
#endif
    } else {
        w[0] = load16(kind, p);
        w[1] = load16(kind, p + LANES * SIZE[kind]);
    }
}

INLINE void widen(const void *from, int half, int64_t first, int64_t count, float *to) {
    if (!half) {
        memcpy(to, (const float *)from + first, count * sizeof(float));
        return;
    }
    const uint16_t *p = (const uint16_t *)from + first;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load16(FP16, (const uint8_t *)(p + i)));
#if defined(__AVX512BW__) && defined(__AVX512VL__) /* a full vector is written: what lies behind is overwritten by the next row, or room to spare */
    if (i < count) {
        const __mmask16 keep = (__mmask16)((1u << (count - i)) - 1);
        store(to + i, (f32x16)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(keep, p + i)));
        return;
    }
#endif
    if (i < count) {
        uint16_t rest[LANES] = {0};
        float wide[LANES];
        memcpy(rest, p + i, (count - i) * sizeof(uint16_t));
        store(wide, load16(FP16, (const uint8_t *)rest));
        memcpy(to + i, wide, (count - i) * sizeof(float));
    }
}

/* One row of the matrix as floats, added to ``to`` (columns). */
static void add_row(const matrix *m, int64_t row, float *to) {
    const int64_t columns = m->columns, size = SIZE[m->kind];
    const int64_t span = m->span > 0 && m->span < columns ? m->span : columns, groups = (columns + span - 1) / span;
    const uint8_t *p = m->codes + row * bytes_of((int)m->kind, columns);
    for (int64_t g = 0; g < groups; g++) {
        float scale = 1, zero = 0, wide[LANES];
        const int64_t at = m->span == 0 ? 0 : row * groups + g, end = (g + 1) * span < columns ? (g + 1) * span : columns;
        if (m->span >= 0) {
            widen(m->scales, (int)m->half_scales, at, 1, wide);
            scale = wide[0];
        }
        if (m->zeros) {
            widen(m->zeros, (int)m->half_scales, at, 1, wide);
            zero = wide[0];
        }
        if (m->kind == INT4) {
            const int offset = m->zeros ? 0 : 8;
            for (int64_t c = g * span; c < end; c++)
                to[c] += (float)((c % 2 ? p[c / 2] >> 4 : p[c / 2] & 15) - offset) * scale + zero;
            continue;
        }
        for (int64_t c = g * span; c < end; c += LANES) {
            const int64_t count = end - c < LANES ? end - c : LANES;
            store(wide, load_rest((int)m->kind, p + c * size, count, (int)size) * scale + zero);
            for (int64_t i = 0; i < count; i++) to[c + i] += wide[i];
        }
    }
}

INLINE void add_unit(int kind, int mr, int nb, const uint8_t *const *p, int64_t at, const float *x, int64_t ldx,
                     f32x16 nibbles, f32x16 *part, f32x16 *other) {
    f32x16 w[4][2];
    UNROLL
    for (int i = 0; i < mr; i++) load_unit(kind, p[i] + at, nibbles, w[i]);
    UNROLL
    for (int b = 0; b < nb; b++) {
        const f32x16 even = load(x + b * ldx), odd = load(x + b * ldx + LANES);
        UNROLL
        for (int i = 0; i < mr; i++) {
            part[i * nb + b] += w[i][0] * even;
            if (nb == 1) other[i] += w[i][1] * odd;
            else part[i * nb + b] += w[i][1] * odd;
        }
    }
}

INLINE void add_rest(int kind, int mr, int nb, const uint8_t *const *p, int64_t at, int64_t width, const float *x,
                     int64_t ldx, f32x16 nibbles, f32x16 *part, f32x16 *other) {
    uint8_t rest[4][UNIT * 4] = {{0}};
    const uint8_t *q[4];
    UNROLL
    for (int i = 0; i < mr; i++) {
        memcpy(rest[i], p[i] + at, width - at);
        q[i] = rest[i];
    }
    add_unit(kind, mr, nb, q, 0, x, ldx, nibbles, part, other);
}

INLINE void tile(int kind, int mode, int mr, int nb, const matrix *m, int64_t row, const float *x, int64_t ldx,
                 const float *sums, float *scales, float *out) {
    const int64_t columns = m->columns, width = bytes_of(kind, columns), step = bytes_of(kind, UNIT);
    const int64_t span = mode == UNITS ? UNIT : mode == GROUPS ? m->span : columns;
    const int64_t groups = (columns + span - 1) / span, units = columns / UNIT, rest = columns % UNIT;
    const int64_t one = m->span == 0;
    const int grouped = mode != WHOLE;
    const uint8_t *p[4];
    f32x16 total[16];
    UNROLL
    for (int i = 0; i < mr * nb; i++) total[i] = fill(0);
    UNROLL
    for (int i = 0; i < mr; i++) {
        p[i] = m->codes + (row + i) * width;
        if (m->span >= 0) widen(m->scales, m->half_scales, one ? 0 : (row + i) * groups, groups, scales + i * groups);
    }
    const f32x16 nibbles = nibbles_of(m);
    const uint8_t *far = p[0] + AHEAD;
    int64_t u = 0, g = 0;
    if (mode == UNITS) /* a scale every 32 columns: no sums between */
        for (; g < units; g++) {
            f32x16 even[4], odd[4];
            far = ask(far, mr * step);
            UNROLL
            for (int b = 0; b < nb; b++) {
                even[b] = load(x + b * ldx + g * UNIT);
                odd[b] = load(x + b * ldx + g * UNIT + LANES);
                HOLD(even[b]);
                HOLD(odd[b]);
            }
            UNROLL
            for (int i = 0; i < mr; i++) {
                f32x16 w[2];
                load_unit(kind, p[i] + g * step, nibbles, w);
                const f32x16 scale = fill(scales[i * groups + g]);
                UNROLL
                for (int b = 0; b < nb; b++) {
                    f32x16 both = w[0] * even[b];
                    both += w[1] * odd[b];
                    total[i * nb + b] += both * scale;
                }
            }
        }
    for (; g < groups; g++) {
        f32x16 part[16], other[4];
        UNROLL
        for (int i = 0; i < mr * nb; i++) part[i] = fill(0);
        UNROLL
        for (int i = 0; i < mr; i++) other[i] = fill(0);
        if (mode == UNITS) {
            add_rest(kind, mr, nb, p, g * step, width, x + g * UNIT, ldx, nibbles, part, other);
        } else {
            const int64_t end = g + 1 < groups ? (g + 1) * (span / UNIT) : units;
            for (; u < end; u++) {
                far = ask(far, mr * step);
                add_unit(kind, mr, nb, p, u * step, x + u * UNIT, ldx, nibbles, part, other);
            }
            if (rest && g + 1 == groups) add_rest(kind, mr, nb, p, u * step, width, x + u * UNIT, ldx, nibbles, part, other);
        }
        UNROLL
        for (int i = 0; i < mr; i++)
            UNROLL
            for (int b = 0; b < nb; b++) {
                const f32x16 both = nb == 1 ? part[i * nb + b] + other[i] : part[i * nb + b];
                if (grouped) total[i * nb + b] += both * scales[i * groups + g];
                else total[i * nb + b] = both;
            }
    }
    UNROLL
    for (int i = 0; i < mr; i++)
        UNROLL
        for (int b = 0; b < nb; b++) {
            float y = sum(total[i * nb + b]);
            if (!grouped && m->span >= 0) y *= scales[i];
            out[i * nb + b] = y;
        }
    if (m->zeros)
        UNROLL
        for (int i = 0; i < mr; i++) {
            widen(m->zeros, m->half_scales, one ? 0 : (row + i) * groups, groups, scales);
            UNROLL
            for (int b = 0; b < nb; b++)
                for (int64_t g = 0; g < groups; g++)
                    out[i * nb + b] += scales[g] * sums[b * up_to(groups, LANES) + g];
        }
}

/* One function a case, so that each has the registers to itself: inlined beside each other, they spill. */
typedef void tile_of(const matrix *, int64_t, const float *, int64_t, const float *, float *, float *);
#define ONE(KIND, MODE, MR, NB)                                                                                        \
    static __attribute__((noinline)) void KIND##_##MODE##_##MR##_##NB(                                                 \
        const matrix *m, int64_t row, const float *x, int64_t ldx, const float *sums, float *scales, float *out) {     \
        tile(KIND, MODE, MR, NB, m, row, x, ldx, sums, scales, out);                                                   \
    }
#define SHAPES(KIND, MODE)                                                                                             \
    ONE(KIND, MODE, 1, 1) ONE(KIND, MODE, 4, 1) ONE(KIND, MODE, 2, 2) ONE(KIND, MODE, 1, 4) ONE(KIND, MODE, 2, 4)
#define MODES(KIND) SHAPES(KIND, WHOLE) SHAPES(KIND, GROUPS) SHAPES(KIND, UNITS)
MODES(FP32) MODES(BF16) MODES(FP16) MODES(INT8) MODES(INT4) MODES(E4M3) MODES(E5M2)
#define ROW(K, M) {K##_##M##_1_1, K##_##M##_4_1, K##_##M##_2_2, K##_##M##_1_4, K##_##M##_2_4}
#define ROWS(K) {ROW(K, WHOLE), ROW(K, GROUPS), ROW(K, UNITS)}
static tile_of *const TILES[7][3][5] = {ROWS(FP32), ROWS(BF16), ROWS(FP16), ROWS(INT8), ROWS(INT4), ROWS(E4M3), ROWS(E5M2)};
#undef ONE
#undef SHAPES
#undef MODES
#undef ROW
#undef ROWS

/* mr rows of W by nb of x, and where the products go. */
INLINE void put_tile(tile_of *f, int mr, int nb, const matrix *m, int64_t r, const float *x, int64_t ldx,
                     const float *sums, float *scales, float *y, int64_t ldy, int add) {
    float out[16];
    f(m, r, x, ldx, sums, scales, out);
    for (int i = 0; i < mr; i++)
        for (int k = 0; k < nb; k++) {
            const float value = out[i * nb + k] + (m->bias ? m->bias[r + i] : 0);
            float *place = y + k * ldy + r + i;
            *place = add ? *place + value : value;
        }
}

static void multiply(const matrix *m, int64_t from, int64_t to, int64_t rows, const float *x, int64_t ldx,
                     const float *sums, int64_t lds, float *scales, float *y, int64_t ldy, int add) {
    const int mode = m->span <= 0 || m->span >= m->columns ? WHOLE : m->span == UNIT ? UNITS : GROUPS;
    tile_of *const *f = TILES[m->kind][mode];
#define AT(F, MR, NB, R) put_tile(f[F], MR, NB, m, R, x + b * ldx, ldx, sums + b * lds, scales, y + b * ldy, ldy, add)
    for (int64_t r = from; r < to;) {
        const int four = r + 4 <= to;
        for (int64_t b = 0; b < rows;) {
            if (rows - b >= 4) {
                if (four) {
                    AT(4, 2, 4, r);
                    AT(4, 2, 4, r + 2);
                } else AT(3, 1, 4, r);
                b += 4;
            } else if (rows - b >= 2 && four) {
                AT(2, 2, 2, r);
                AT(2, 2, 2, r + 2);
                b += 2;
            } else {
                if (four) AT(1, 4, 1, r);
                else AT(0, 1, 1, r);
                b += 1;
            }
        }
        r += four ? 4 : 1;
    }
#undef AT
}

#ifdef __AVX512BF16__
/* Several rows of x by bf16 codes: both rounded to bf16, products summed in fp32, two a lane and instruction. */
INLINE void tile_bf16(int mr, int nb, const matrix *m, int64_t row, const uint16_t *x, int64_t ldx, float *y,
                      int64_t ldy, int add) {
    const int64_t columns = m->columns;
    const uint16_t *w = (const uint16_t *)m->codes + row * columns;
    __m512 total[16];
    UNROLL
    for (int i = 0; i < mr * nb; i++) total[i] = _mm512_setzero_ps();
    const uint8_t *far = (const uint8_t *)w + AHEAD;
    for (int64_t c = 0; c < columns; c += UNIT) {
        far = ask(far, mr * 64);
        const __mmask32 keep = columns - c >= UNIT ? 0xffffffffu : (1u << (columns - c)) - 1;
        __m512bh rows[4];
        UNROLL
        for (int i = 0; i < mr; i++) rows[i] = (__m512bh)_mm512_maskz_loadu_epi16(keep, w + i * columns + c);
        UNROLL
        for (int b = 0; b < nb; b++) {
            const __m512bh v = (__m512bh)_mm512_loadu_si512(x + b * ldx + c);
            UNROLL
            for (int i = 0; i < mr; i++) total[i * nb + b] = _mm512_dpbf16_ps(total[i * nb + b], rows[i], v);
        }
    }
    UNROLL
    for (int i = 0; i < mr; i++)
        UNROLL
        for (int b = 0; b < nb; b++) {
            const float value = _mm512_reduce_add_ps(total[i * nb + b]) + (m->bias ? m->bias[row + i] : 0);
            float *place = y + b * ldy + row + i;
            *place = add ? *place + value : value;
        }
}

#define ONE(MR, NB)                                                                                                    \
    static __attribute__((noinline)) void dot_##MR##_##NB(const matrix *m, int64_t row, const uint16_t *x,             \
                                                          int64_t ldx, float *y, int64_t ldy, int add) {               \
        tile_bf16(MR, NB, m, row, x, ldx, y, ldy, add);                                                                \
    }
ONE(4, 4) ONE(1, 4) ONE(4, 1) ONE(1, 1)
#undef ONE

static void multiply_bf16(const matrix *m, int64_t from, int64_t to, int64_t rows, const uint16_t *x, int64_t ldx,
                          float *y, int64_t ldy, int add) {
    for (int64_t r = from; r < to;) {
        const int four = r + 4 <= to;
        for (int64_t b = 0; b < rows;) {
            const uint16_t *p = x + b * ldx;
            float *q = y + b * ldy;
            if (rows - b >= 4) {
                if (four) dot_4_4(m, r, p, ldx, q, ldy, add);
                else dot_1_4(m, r, p, ldx, q, ldy, add);
                b += 4;
            } else {
                if (four) dot_4_1(m, r, p, ldx, q, ldy, add);
                else dot_1_1(m, r, p, ldx, q, ldy, add);
                b += 1;
            }
        }
        r += four ? 4 : 1;
    }
}
#endif

#ifdef __AVX512VNNI__
/* Eight-bit integers: x rounded in blocks of 32 columns, W's codes taken as unsigned, what that adds taken off before. A
 * step is 64 codes of int8, of int4 128: 64 even columns, then 64 odd ones. */
INLINE int64_t step_columns(int kind) { return kind == INT4 ? 128 : 64; }

static void lay_integers(int kind, int offset, const float *x, int64_t columns, int64_t span, int8_t *codes,
                         int32_t *begin, float *scales, float *sums) {
    const int64_t step = step_columns(kind), lanes = kind == INT4 ? 4 : 8; /* that share a block */
    for (int64_t c = 0; c < columns; c += step)
        for (int64_t b = 0; b < step / 32; b++) {
            int8_t at[32], *to = codes + c;
            __m512i q[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
            float scale = 0;
            f32x16 v[2];
            for (int i = 0; i < 2; i++) { /* zeros lie behind the row up to UNIT columns */
                const int64_t first = c + b * 32 + i * LANES;
                v[i] = first < up_to(columns, UNIT) ? load(x + first) : fill(0);
            }
            scale = round_block(v, q);
            for (int i = 0; i < 2; i++) _mm_storeu_si128((__m128i *)(at + i * LANES), _mm512_cvtsepi32_epi8(q[i]));
            if (kind == INT4)
                for (int i = 0; i < 16; i++) {
                    to[b * 16 + i] = at[2 * i];
                    to[64 + b * 16 + i] = at[2 * i + 1];
                }
            else memcpy(to + b * 32, at, 32);
            int32_t whole = 0;
            for (int64_t l = 0; l < lanes; l++) {
                int32_t total = 0;
                for (int64_t i = 0; i < 32 / lanes; i++) total += at[l * (32 / lanes) + i];
                whole += total;
                begin[c / step * LANES + b * lanes + l] = -offset * total;
                scales[c / step * LANES + b * lanes + l] = scale;
            }
            if (sums && c + b * 32 < columns) sums[(c + b * 32) / span] += (float)whole * scale; /* as W's codes see x */
        }
}

/* One step of mr rows of W, keep: which of their 64 bytes there are. */
INLINE void step_integers(int kind, int grouped, int mr, int nb, const uint8_t *p, int64_t width, __mmask64 keep,
                          const int8_t *codes, int64_t ldc, const int32_t *begin, const float *steps, int64_t lds,
                          const float *scales, int64_t blocks, __m512 *total) {
    const __m512i places = kind == INT4 ? _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0)
                                        : _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i low = _mm512_set1_epi8(15), sign = _mm512_set1_epi8((char)0x80);
    UNROLL
    for (int i = 0; i < mr; i++) {
        const __m512i v = ~keep ? _mm512_maskz_loadu_epi8(keep, p + i * width) : _mm512_loadu_si512(p + i * width);
        __m512 w = _mm512_setzero_ps();
        if (grouped) w = _mm512_permutexvar_ps(places, _mm512_castps128_ps512(_mm_loadu_ps(scales + i * blocks)));
        UNROLL
        for (int b = 0; b < nb; b++) {
            const int8_t *x = codes + b * ldc;
            __m512i sum = _mm512_loadu_si512(begin + b * lds);
            if (kind == INT4) {
                sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(v, low), _mm512_loadu_si512(x));
                sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(_mm512_srli_epi16(v, 4), low), _mm512_loadu_si512(x + 64));
            } else sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(v, sign), _mm512_loadu_si512(x));
            __m512 scale = _mm512_loadu_ps(steps + b * lds);
            if (grouped) scale = _mm512_mul_ps(scale, w);
            total[i * nb + b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, total[i * nb + b]);
        }
    }
}

INLINE void tile_integers(int kind, int grouped, int mr, int nb, const matrix *m, int64_t row, const int8_t *codes,
                          int64_t ldc, const int32_t *begin, const float *steps, int64_t lds, const float *scales,
                          int64_t blocks, float *out) {
    const int64_t width = bytes_of(kind, m->columns), whole = width / 64, each = step_columns(kind), per = each / 32;
    const uint8_t *p = m->codes + row * width;
    __m512 total[16];
    UNROLL
    for (int i = 0; i < mr * nb; i++) total[i] = _mm512_setzero_ps();
    const uint8_t *far = p + AHEAD;
    for (int64_t s = 0; s < whole; s++) {
        far = ask(far, mr * 64);
        step_integers(kind, grouped, mr, nb, p + s * 64, width, ~0ull, codes + s * each, ldc, begin + s * LANES,
                      steps + s * LANES, lds, scales + s * per, blocks, total);
    }
    if (whole * 64 < width)
        step_integers(kind, grouped, mr, nb, p + whole * 64, width, (1ull << (width - whole * 64)) - 1,
                      codes + whole * each, ldc, begin + whole * LANES, steps + whole * LANES, lds, scales + whole * per,
                      blocks, total);
    UNROLL
    for (int i = 0; i < mr * nb; i++) out[i] = _mm512_reduce_add_ps(total[i]);
}

typedef void tile_of_integers(const matrix *, int64_t, const int8_t *, int64_t, const int32_t *, const float *, int64_t,
                              const float *, int64_t, float *);
#define ONE(KIND, G, MR, NB)                                                                                           \
    static __attribute__((noinline)) void integers_##KIND##_##G##_##MR##_##NB(                                         \
        const matrix *m, int64_t row, const int8_t *codes, int64_t ldc, const int32_t *begin, const float *steps,      \
        int64_t lds, const float *scales, int64_t blocks, float *out) {                                                \
        tile_integers(KIND, G, MR, NB, m, row, codes, ldc, begin, steps, lds, scales, blocks, out);                    \
    }
#define SHAPES(KIND, G) ONE(KIND, G, 1, 1) ONE(KIND, G, 4, 1) ONE(KIND, G, 1, 4) ONE(KIND, G, 4, 4)
SHAPES(INT8, 0) SHAPES(INT8, 1) SHAPES(INT4, 0) SHAPES(INT4, 1)
#define ROW(K, G) {integers_##K##_##G##_1_1, integers_##K##_##G##_4_1, integers_##K##_##G##_1_4, integers_##K##_##G##_4_4}
static tile_of_integers *const INTEGERS[2][2][4] = {{ROW(INT8, 0), ROW(INT8, 1)}, {ROW(INT4, 0), ROW(INT4, 1)}};
#undef ONE
#undef SHAPES
#undef ROW

INLINE int in_integers(const matrix *m) {
    return (m->kind == INT8 || m->kind == INT4) && m->span >= 0 &&
           (m->span == 0 || m->span >= m->columns || m->span % 32 == 0);
}

/* Rows [from, to) of y = x @ W.T, from x laid out in `o`. */
static void multiply_integers(const room *o, const matrix *m, int64_t rows, int64_t from, int64_t to, float *y, int64_t ldy,
                              int add, const float *sums, int64_t ldsums) {
    const int64_t columns = m->columns, step = step_columns((int)m->kind), steps = (columns + step - 1) / step;
    const int64_t ldc = steps * step, lds = steps * LANES, blocks = steps * step / 32;
    const int64_t span = m->span > 0 && m->span < columns ? m->span : columns, groups = (columns + span - 1) / span;
    const int grouped = groups > 1, one = m->span == 0, half = (int)m->half_scales;
    tile_of_integers *const *f = INTEGERS[m->kind == INT4][grouped];
    for (int64_t r = from; r < to;) {
        const int64_t mr = r + 4 <= to ? 4 : 1;
        float *own = o->scales, *line = o->scales + 4 * blocks; /* by blocks, and one row's as they are stored */
        for (int64_t i = 0; i < mr; i++) {
            if (!grouped) {
                widen(m->scales, half, one ? 0 : r + i, 1, line);
                own[i] = line[0];
                continue;
            }
            float *at = own + i * blocks;
            widen(m->scales, half, (r + i) * groups, groups, span == 32 ? at : line);
            if (span > 32)
                for (int64_t g = 0, b = 0; g < groups; g++)
                    for (int64_t k = 0; k < span / 32 && b < blocks; k++, b++) at[b] = line[g];
            for (int64_t b = (columns + 31) / 32; b < blocks; b++) at[b] = 0;
        }
        for (int64_t b = 0; b < rows;) {
            const int64_t nb = rows - b >= 4 ? 4 : 1;
            float out[16];
            f[(nb == 4) * 2 + (mr == 4)](m, r, o->codes + b * ldc, ldc, o->begin + b * lds, o->steps + b * lds, lds, own,
                                         blocks, out);
            for (int64_t i = 0; i < mr; i++)
                for (int64_t k = 0; k < nb; k++) {
                    float value = out[i * nb + k] * (grouped ? 1 : own[i]) + (m->bias ? m->bias[r + i] : 0);
                    float *place = y + (b + k) * ldy + r + i;
                    *place = add ? *place + value : value;
                }
            b += nb;
        }
        if (m->zeros)
            for (int64_t i = 0; i < mr; i++) {
                widen(m->zeros, half, one ? 0 : (r + i) * groups, groups, line);
                for (int64_t b = 0; b < rows; b++)
                    for (int64_t g = 0; g < groups; g++) y[b * ldy + r + i] += line[g] * sums[b * ldsums + g];
            }
        r += mr;
    }
}
#endif

/* Rows [from, to) of y = x @ W.T + bias, or y += that. */
static void share(const room *o, const matrix *m, int64_t rows, const float *x, int64_t ldx, float *y, int64_t ldy,
                  int add, int64_t from, int64_t to) {
    const int64_t span = m->span > 0 && m->span < m->columns ? m->span : m->columns;
    const int64_t groups = (m->columns + span - 1) / span, lds = up_to(groups, LANES);
    if (m->zeros)
        for (int64_t b = 0; b < rows; b++)
            for (int64_t g = 0; g < groups; g++) {
                float total = 0;
                const int64_t end = (g + 1) * span < m->columns ? (g + 1) * span : m->columns;
                for (int64_t c = g * span; c < end; c++) total += x[b * ldx + c];
                o->sums[b * lds + g] = total;
            }
#ifdef __AVX512BF16__
    if (m->kind == BF16 && m->span < 0 && rows >= 4) {
        const int64_t w = up_to(m->columns, UNIT);
        for (int64_t b = 0; b < rows; b++)
            for (int64_t c = 0; c < w; c += LANES) {
                const __m256bh half = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + b * ldx + c));
                memcpy(o->halves + b * w + c, &half, sizeof half);
            }
        multiply_bf16(m, from, to, rows, o->halves, w, y, ldy, add);
        return;
    }
#endif
#ifdef __AVX512VNNI__
    if (in_integers(m)) {
        const int64_t step = step_columns((int)m->kind), steps = (m->columns + step - 1) / step;
        const int offset = m->kind == INT8 ? 128 : m->zeros ? 0 : 8;
        if (m->zeros) memset(o->sums, 0, rows * lds * sizeof(float));
        for (int64_t b = 0; b < rows; b++)
            lay_integers((int)m->kind, offset, x + b * ldx, m->columns, span, o->codes + b * steps * step,
                         o->begin + b * steps * LANES, o->steps + b * steps * LANES, m->zeros ? o->sums + b * lds : 0);
        multiply_integers(o, m, rows, from, to, y, ldy, add, o->sums, lds);
        return;
    }
#endif
    if (m->kind == INT4) {
        const int64_t w = up_to(m->columns, UNIT);
        for (int64_t b = 0; b < rows; b++)
            for (int64_t c = 0; c < w; c += UNIT)
                for (int i = 0; i < LANES; i++) {
                    o->turned[b * w + c + i] = x[b * ldx + c + 2 * i];
                    o->turned[b * w + c + LANES + i] = x[b * ldx + c + 2 * i + 1];
                }
        x = o->turned, ldx = w;
    }
    multiply(m, from, to, rows, x, ldx, o->sums, lds, o->scales, y, ldy, add);
}

#endif
