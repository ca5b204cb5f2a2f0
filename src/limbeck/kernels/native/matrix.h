/* y = x @ W.T on the neutral layout's own codes (docs/quantized-layout.md), no repacking, for a few rows of x.
 *
 * int8 and int4 codes multiply x rounded to eight-bit integers (codes.h); all others are widened to fp32. Rows of x are
 * padded with zeros to a multiple of UNIT columns. Each thread does some rows of W. */
#ifndef LIMBECK_MATRIX_H
#define LIMBECK_MATRIX_H

#include "codes.h"

#ifndef AHEAD
#define AHEAD 8192 /* bytes: how much later a tile reads what it prefetches */
#endif
#define UNIT 32 /* columns at a time */
#define PARTS (UNIT / LANES)

typedef struct {
    int64_t kind, rows, columns, span; /* span: columns of a scale, 0: one for the whole matrix, -1: no scales */
    int64_t half_scales;
    const uint8_t *codes;
    const void *scales, *zeros;
    const float *bias;
} matrix;

/* Scratch of one thread: sums of x by group, scales of four rows, x in bf16; and x as integers: codes, and by lane of
 * each step where a sum of products begins and its scale. */
typedef struct {
    float *sums, *scales;
    uint16_t *halves;
    int8_t *codes;
    int32_t *begin;
    float *steps;
} thread_scratch;

static const int SIZE[] = {4, 2, 2, 1, 0, 1, 1};
enum { WHOLE, GROUPS };

/* Prefetch `bytes` that are read later into the second cache; returns their end. A tile takes its rows side by side, but
 * they lie one behind the other: prefetched in that order, memory is one stream (docs/lab-notes.md). */
INLINE const uint8_t *prefetch(const uint8_t *far, int64_t bytes) {
    UNROLL
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(far + i, 0, 2);
    return far + bytes;
}

INLINE int64_t up_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
INLINE int64_t bytes_of(int kind, int64_t columns) { return kind == INT4 ? (columns + 1) / 2 : columns * SIZE[kind]; }

INLINE void widen(const void *from, int half, int64_t first, int64_t count, float *to) {
    if (!half) {
        memcpy(to, (const float *)from + first, count * sizeof(float));
        return;
    }
    const uint16_t *p = (const uint16_t *)from + first;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load_numbers(FP16, (const uint8_t *)(p + i)));
    if (i < count) {
        uint16_t rest[LANES] = {0};
        float wide[LANES];
        memcpy(rest, p + i, (count - i) * sizeof(uint16_t));
        store(wide, load_numbers(FP16, (const uint8_t *)rest));
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
                     vfloat *part, vfloat *other) {
    UNROLL
    for (int k = 0; k < PARTS; k++) {
        vfloat w[4];
        UNROLL
        for (int i = 0; i < mr; i++) w[i] = load_numbers(kind, p[i] + at + k * LANES * SIZE[kind]);
        UNROLL
        for (int b = 0; b < nb; b++) {
            const vfloat v = load(x + b * ldx + k * LANES);
            UNROLL
            for (int i = 0; i < mr; i++) {
                if (nb == 1 && k % 2) other[i] += w[i] * v;
                else part[i * nb + b] += w[i] * v;
            }
        }
    }
}

INLINE void add_rest(int kind, int mr, int nb, const uint8_t *const *p, int64_t at, int64_t width, const float *x,
                     int64_t ldx, vfloat *part, vfloat *other) {
    uint8_t rest[4][UNIT * 4] = {{0}};
    const uint8_t *q[4];
    UNROLL
    for (int i = 0; i < mr; i++) {
        memcpy(rest[i], p[i] + at, width - at);
        q[i] = rest[i];
    }
    add_unit(kind, mr, nb, q, 0, x, ldx, part, other);
}

INLINE void tile(int kind, int mode, int mr, int nb, const matrix *m, int64_t row, const float *x, int64_t ldx,
                 const float *sums, float *scales, float *out) {
    const int64_t columns = m->columns, width = bytes_of(kind, columns), step = bytes_of(kind, UNIT);
    const int64_t span = mode == GROUPS ? m->span : columns;
    const int64_t groups = (columns + span - 1) / span, units = columns / UNIT, rest = columns % UNIT;
    const int64_t one = m->span == 0;
    const uint8_t *p[4];
    vfloat total[16];
    UNROLL
    for (int i = 0; i < mr * nb; i++) total[i] = fill(0);
    UNROLL
    for (int i = 0; i < mr; i++) {
        p[i] = m->codes + (row + i) * width;
        if (m->span >= 0) widen(m->scales, m->half_scales, one ? 0 : (row + i) * groups, groups, scales + i * groups);
    }
    const uint8_t *far = p[0] + AHEAD;
    int64_t u = 0;
    for (int64_t g = 0; g < groups; g++) {
        vfloat part[16], other[4];
        UNROLL
        for (int i = 0; i < mr * nb; i++) part[i] = fill(0);
        UNROLL
        for (int i = 0; i < mr; i++) other[i] = fill(0);
        const int64_t end = g + 1 < groups ? (g + 1) * (span / UNIT) : units;
        for (; u < end; u++) {
            far = prefetch(far, mr * step);
            add_unit(kind, mr, nb, p, u * step, x + u * UNIT, ldx, part, other);
        }
        if (rest && g + 1 == groups) add_rest(kind, mr, nb, p, u * step, width, x + u * UNIT, ldx, part, other);
        UNROLL
        for (int i = 0; i < mr; i++)
            UNROLL
            for (int b = 0; b < nb; b++) {
                const vfloat both = nb == 1 ? part[i * nb + b] + other[i] : part[i * nb + b];
                if (mode == GROUPS) total[i * nb + b] += both * scales[i * groups + g];
                else total[i * nb + b] = both;
            }
    }
    UNROLL
    for (int i = 0; i < mr; i++)
        UNROLL
        for (int b = 0; b < nb; b++) {
            float y = sum(total[i * nb + b]);
            if (mode == WHOLE && m->span >= 0) y *= scales[i];
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
SHAPES(FP32, WHOLE) SHAPES(BF16, WHOLE) SHAPES(FP16, WHOLE)
SHAPES(E4M3, WHOLE) SHAPES(E4M3, GROUPS) SHAPES(E5M2, WHOLE) SHAPES(E5M2, GROUPS)
#define ROW(K, M) {K##_##M##_1_1, K##_##M##_4_1, K##_##M##_2_2, K##_##M##_1_4, K##_##M##_2_4}
/* Casts have no scales, and integers are multiplied elsewhere. */
static tile_of *const TILES[7][2][5] = {
    [FP32] = {ROW(FP32, WHOLE)}, [BF16] = {ROW(BF16, WHOLE)}, [FP16] = {ROW(FP16, WHOLE)},
    [E4M3] = {ROW(E4M3, WHOLE), ROW(E4M3, GROUPS)}, [E5M2] = {ROW(E5M2, WHOLE), ROW(E5M2, GROUPS)}};
#undef ONE
#undef SHAPES
#undef ROW

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
    const int mode = m->span <= 0 || m->span >= m->columns ? WHOLE : GROUPS;
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

#if defined(USE_AVX512) && defined(__AVX512BF16__)
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
        far = prefetch(far, mr * 64);
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

/* Products of integers. A step is 4 x LANES bytes of W: so many codes of int8, of int4 twice as many, all even columns
 * first, then the odd ones. */
INLINE int64_t step_columns(int kind) { return (kind == INT4 ? 8 : 4) * LANES; }

/* Round one row of x (zeros behind it up to UNIT columns); offset: what is taken off again of W's unsigned codes. */
static void lay_integers(int kind, int offset, const float *x, int64_t columns, int64_t span, int8_t *codes,
                         int32_t *begin, float *scales, float *sums) {
    const int64_t step = step_columns(kind), lanes = kind == INT4 ? 4 : 8; /* that share a block */
    for (int64_t c = 0; c < columns; c += step)
        for (int64_t b = 0; b < step / BLOCK; b++) {
            const int64_t first = c + b * BLOCK;
            int8_t at[BLOCK] = {0}, *to = codes + c;
            float scale = 0;
            if (first < columns) {
                vfloat v[PARTS];
                UNROLL
                for (int i = 0; i < PARTS; i++) v[i] = load(x + first + i * LANES);
                const uint32_t largest = block_largest(v);
                const int32_t e = step_exponent(largest), held = e > 1 ? e : 1;
                block_round(v, float_of_bits((uint32_t)(254 - held) << 23), at);
                scale = float_of_bits(largest < 0x7f800000 ? (uint32_t)held << 23 : 0x7fc00000); /* NaN stays NaN */
            }
            if (kind == INT4)
                for (int i = 0; i < BLOCK / 2; i++) {
                    to[b * (BLOCK / 2) + i] = at[2 * i];
                    to[4 * LANES + b * (BLOCK / 2) + i] = at[2 * i + 1];
                }
            else memcpy(to + b * BLOCK, at, BLOCK);
            int32_t whole = 0;
            for (int64_t l = 0; l < lanes; l++) {
                int32_t total = 0;
                for (int64_t i = 0; i < BLOCK / lanes; i++) total += at[l * (BLOCK / lanes) + i];
                whole += total;
                begin[c / step * LANES + b * lanes + l] = -offset * total;
                scales[c / step * LANES + b * lanes + l] = scale;
            }
            if (sums && first < columns) sums[first / span] += (float)whole * scale; /* as W's codes see x */
        }
}

/* Scales of the blocks of one step, by lane. */
INLINE vfloat spread_scales(int kind, const float *scales) {
#if defined(USE_AVX512)
    const __m512i places = kind == INT4 ? _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0)
                                        : _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    return (vfloat)_mm512_permutexvar_ps(places, _mm512_castps128_ps512(_mm_loadu_ps(scales)));
#elif defined(USE_AVX2)
    if (kind == INT8) return fill(scales[0]);
    const __m256 both = _mm256_castpd_ps(_mm256_broadcast_sd((const double *)scales));
    return (vfloat)_mm256_permutevar_ps(both, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
#else
    vfloat v;
    for (int i = 0; i < LANES; i++) v[i] = scales[i / (kind == INT4 ? 4 : 8)];
    return v;
#endif
}

/* One step of mr rows of W; bytes: how many of the step's there are. */
INLINE void step_integers(int kind, int grouped, int mr, int nb, const uint8_t *p, int64_t width, int64_t bytes,
                          const int8_t *codes, int64_t ldc, const int32_t *begin, const float *steps, int64_t lds,
                          const float *scales, int64_t blocks, vfloat *total) {
    UNROLL
    for (int i = 0; i < mr; i++) {
        const vcodes w = bytes < 4 * LANES ? load_some_codes(p + i * width, bytes) : load_codes(p + i * width);
        vfloat spread = fill(0);
        if (grouped) spread = spread_scales(kind, scales + i * blocks);
        UNROLL
        for (int b = 0; b < nb; b++) {
            const int8_t *x = codes + b * ldc;
            vint acc = {0};
            if (kind == INT4 || CODE_OFFSET) memcpy(&acc, begin + b * lds, sizeof acc);
            if (kind == INT4) acc = dot_int4(acc, w, load_codes(x), load_codes(x + 4 * LANES));
            else acc = dot_int8(acc, w, load_codes(x));
            vfloat scale = load(steps + b * lds);
            if (grouped) scale *= spread;
            total[i * nb + b] += __builtin_convertvector(acc, vfloat) * scale;
        }
    }
}

INLINE void tile_integers(int kind, int grouped, int mr, int nb, const matrix *m, int64_t row, const int8_t *codes,
                          int64_t ldc, const int32_t *begin, const float *steps, int64_t lds, const float *scales,
                          int64_t blocks, float *out) {
    const int64_t bytes = 4 * LANES, width = bytes_of(kind, m->columns), whole = width / bytes;
    const int64_t each = step_columns(kind), per = each / BLOCK;
    const uint8_t *p = m->codes + row * width;
    vfloat total[16];
    UNROLL
    for (int i = 0; i < mr * nb; i++) total[i] = fill(0);
    const uint8_t *far = p + AHEAD;
    for (int64_t s = 0; s < whole; s++) {
        far = prefetch(far, mr * bytes);
        step_integers(kind, grouped, mr, nb, p + s * bytes, width, bytes, codes + s * each, ldc, begin + s * LANES,
                      steps + s * LANES, lds, scales + s * per, blocks, total);
    }
    if (whole * bytes < width)
        step_integers(kind, grouped, mr, nb, p + whole * bytes, width, width - whole * bytes, codes + whole * each, ldc,
                      begin + whole * LANES, steps + whole * LANES, lds, scales + whole * per, blocks, total);
    UNROLL
    for (int i = 0; i < mr * nb; i++) out[i] = sum(total[i]);
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
static void multiply_integers(const thread_scratch *o, const matrix *m, int64_t rows, int64_t from, int64_t to, float *y, int64_t ldy,
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

/* Sums of x over each group of W's columns: what W's zeros are multiplied by. */
static void sum_groups(const matrix *m, int64_t rows, const float *x, int64_t ldx, float *sums, int64_t lds) {
    const int64_t span = m->span > 0 && m->span < m->columns ? m->span : m->columns;
    for (int64_t b = 0; b < rows; b++)
        for (int64_t g = 0; g * span < m->columns; g++) {
            const int64_t end = (g + 1) * span < m->columns ? (g + 1) * span : m->columns;
            float total = 0;
            for (int64_t c = g * span; c < end; c++) total += x[b * ldx + c];
            sums[b * lds + g] = total;
        }
}

/* Rows [from, to) of y = x @ W.T + bias, or y += that. */
static void share(const thread_scratch *o, const matrix *m, int64_t rows, const float *x, int64_t ldx, float *y, int64_t ldy,
                  int add, int64_t from, int64_t to) {
    const int64_t span = m->span > 0 && m->span < m->columns ? m->span : m->columns;
    const int64_t groups = (m->columns + span - 1) / span, lds = up_to(groups, LANES);
    if (m->zeros) sum_groups(m, rows, x, ldx, o->sums, lds);
#if defined(USE_AVX512) && defined(__AVX512BF16__)
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
    if (in_integers(m)) {
        const int64_t step = step_columns((int)m->kind), steps = (m->columns + step - 1) / step;
        const int offset = m->kind == INT8 ? CODE_OFFSET : m->zeros ? 0 : 8;
        if (m->zeros) memset(o->sums, 0, rows * lds * sizeof(float));
        for (int64_t b = 0; b < rows; b++)
            lay_integers((int)m->kind, offset, x + b * ldx, m->columns, span, o->codes + b * steps * step,
                         o->begin + b * steps * LANES, o->steps + b * steps * LANES, m->zeros ? o->sums + b * lds : 0);
        multiply_integers(o, m, rows, from, to, y, ldy, add, o->sums, lds);
        return;
    }
    multiply(m, from, to, rows, x, ldx, o->sums, lds, o->scales, y, ldy, add);
}

#endif
