/* y = x @ W.T + bias for many rows of x: products of eight-bit integers, four a lane and instruction (AVX-512 VNNI).
 *
 * Each row of x is rounded to int8 in blocks of 32 columns with a scale of their own, as llama.cpp does for its Q8_0; W's
 * codes are read from the neutral layout, 32 rows at a time, and turned so that a row is a lane. Sums within a block are
 * exact; a block's sum is scaled and added in fp32. Codes are taken as unsigned (int8 plus 128, nibbles as they are),
 * and what that adds, offset x the block's sum of x, is where a block's sum begins.
 */
#include "matrix.h"

#include <omp.h>

#ifdef __AVX512VNNI__

#define PANEL 32      /* rows of W turned at a time */
#define DEPTH 512     /* columns of them: 16 KiB, so that they stay in the first cache */
#define TOKENS 6      /* rows of x in one tile: 12 sums of integers and 12 of floats in registers */
#define BLOCK 32      /* columns of x that share a scale */

/* One row of x: codes (columns, padded), scales, sums of code x scale, and minus offset x sum of codes, by block. */
INLINE void quantize_row(const uint8_t *x, int kind, int64_t columns, int32_t offset, int8_t *codes, float *scales,
                         float *sums, int32_t *begin) {
    const int64_t size = SIZE[kind];
    for (int64_t c = 0, b = 0; c < columns; c += BLOCK, b++) {
        f32x16 v[2];
        for (int i = 0; i < 2; i++) {
            const int64_t at = c + i * LANES, left = columns - at;
            v[i] = left >= LANES ? load16(kind, x + at * size)
                   : left > 0    ? load_rest(kind, x + at * size, left, (int)size)
                                 : fill(0);
        }
        __m512i q[2];
        const float scale = round_block(v, q);
        const int32_t total = _mm512_reduce_add_epi32(_mm512_add_epi32(q[0], q[1]));
        for (int i = 0; i < 2; i++)
            _mm_storeu_si128((__m128i *)(codes + c + i * LANES), _mm512_cvtsepi32_epi8(q[i]));
        scales[b] = scale;
        begin[b] = -offset * total;
        sums[b] = (float)total * scale;
    }
}

/* 64 codes of one row from column c on as unsigned bytes; columns past the end are whatever, as x is 0 there. */
INLINE __m512i codes_of(const matrix *m, int64_t row, int64_t c) {
    const int64_t left = m->columns - c;
    if (m->kind == INT4) {
        const uint8_t *p = m->codes + row * bytes_of(INT4, m->columns) + c / 2;
        const int64_t bytes = (left + 1) / 2;
        const __mmask32 keep = bytes >= 32 ? 0xffffffffu : (1u << bytes) - 1;
        const __m512i wide = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(keep, p));
        return _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi8(15));
    }
    const __mmask64 keep = left >= 64 ? ~0ull : (1ull << left) - 1;
    const __m512i bytes = _mm512_maskz_loadu_epi8(keep, m->codes + row * m->columns + c);
    return _mm512_xor_si512(bytes, _mm512_set1_epi8((char)0x80));
}

/* Columns [from, to) of PANEL rows: (columns / 4, PANEL, 4); from is a multiple of 64. Rows past the end are zeros. far: what this
 * thread will turn next, asked for meanwhile. */
static void fill_panel(const matrix *m, int64_t row, int64_t from, int64_t to, uint8_t *panel, const uint8_t *far) {
    for (int64_t c = from; c < to; c += 64)
        for (int half = 0; half < PANEL / 16; half++) {
            __m512i v[16];
            far = ask(far, bytes_of((int)m->kind, 64) * 16);
            UNROLL
            for (int i = 0; i < 16; i++) {
                const int64_t r = row + half * 16 + i;
                v[i] = r < m->rows ? codes_of(m, r, c) : _mm512_setzero_si512();
            }
            transpose(v);
            UNROLL
            for (int i = 0; i < 16; i++)
                _mm512_store_si512((__m512i *)(panel + ((c - from) / 4 + i) * PANEL * 4 + half * 64), v[i]);
        }
}

/* What W's scales are by lane: (room, PANEL), zeros likewise; what lies past the end has none. */
static void fill_scales(const matrix *m, const void *from, int64_t row, int64_t groups, int64_t room, float *to,
                        float *line) {
    memset(to, 0, room * PANEL * sizeof(float));
    for (int64_t i = 0; i < PANEL && row + i < m->rows; i++) {
        const int64_t r = row + i;
        if (m->span == 0) widen(from, (int)m->half_scales, 0, 1, line);
        else widen(from, (int)m->half_scales, r * groups, groups, line);
        for (int64_t g = 0; g < groups; g++) to[g * PANEL + i] = line[g];
    }
}

/* One tile: nb rows of x by PANEL rows of W over `blocks` blocks; per (one scale for many blocks) or not. */
INLINE void block_tile(int nb, int grouped, int shifted, int64_t blocks, int64_t per, int64_t first,
                       const uint8_t *panel, const int8_t *x, int64_t ldx, const float *xs, const int32_t *begin,
                       const float *sums, int64_t ldb, const float *scales, const float *zeros, float *total, int start) {
    __m512 f[TOKENS][2];
    UNROLL
    for (int t = 0; t < nb; t++)
        UNROLL
        for (int h = 0; h < 2; h++) f[t][h] = start ? _mm512_setzero_ps() : _mm512_loadu_ps(total + t * PANEL + h * 16);
    for (int64_t b = 0; b < blocks; b++) {
        __m512i s[TOKENS][2];
        UNROLL
        for (int t = 0; t < nb; t++) s[t][0] = s[t][1] = _mm512_set1_epi32(begin[t * ldb + b]);
#pragma GCC unroll 8
        for (int k = 0; k < BLOCK / 4; k++) {
            const uint8_t *p = panel + (b * (BLOCK / 4) + k) * PANEL * 4;
            const __m512i w0 = _mm512_load_si512(p), w1 = _mm512_load_si512(p + 64);
            UNROLL
            for (int t = 0; t < nb; t++) {
                int32_t four;
                memcpy(&four, x + t * ldx + b * BLOCK + k * 4, 4);
                const __m512i v = _mm512_set1_epi32(four);
                s[t][0] = _mm512_dpbusd_epi32(s[t][0], w0, v);
                s[t][1] = _mm512_dpbusd_epi32(s[t][1], w1, v);
            }
        }
        __m512 w[2] = {{0}}, z[2] = {{0}};
        const int64_t g = (first + b) / per;
        UNROLL
        for (int h = 0; h < 2; h++) {
            if (grouped) w[h] = _mm512_loadu_ps(scales + g * PANEL + h * 16);
            if (shifted) z[h] = _mm512_loadu_ps(zeros + g * PANEL + h * 16);
        }
        UNROLL
        for (int t = 0; t < nb; t++) {
            const __m512 a = _mm512_set1_ps(xs[t * ldb + b]);
            UNROLL
            for (int h = 0; h < 2; h++) {
                const __m512 whole = _mm512_cvtepi32_ps(s[t][h]);
                f[t][h] = _mm512_fmadd_ps(grouped ? _mm512_mul_ps(whole, w[h]) : whole, a, f[t][h]);
                if (shifted) f[t][h] = _mm512_fmadd_ps(z[h], _mm512_set1_ps(sums[t * ldb + b]), f[t][h]);
            }
        }
    }
    UNROLL
    for (int t = 0; t < nb; t++)
        UNROLL
        for (int h = 0; h < 2; h++) _mm512_storeu_ps(total + t * PANEL + h * 16, f[t][h]);
}

typedef void tile_of_blocks(int64_t, int64_t, int64_t, const uint8_t *, const int8_t *, int64_t, const float *,
                            const int32_t *, const float *, int64_t, const float *, const float *, float *, int);
#define ONE(NB, G, Z)                                                                                                  \
    static __attribute__((noinline)) void blocks_##NB##_##G##_##Z(                                                     \
        int64_t blocks, int64_t per, int64_t first, const uint8_t *panel, const int8_t *x, int64_t ldx,                \
        const float *xs, const int32_t *begin, const float *sums, int64_t ldb, const float *scales,                    \
        const float *zeros, float *total, int start) {                                                                 \
        block_tile(NB, G, Z, blocks, per, first, panel, x, ldx, xs, begin, sums, ldb, scales, zeros, total, start);    \
    }
#define FORMS(NB) ONE(NB, 0, 0) ONE(NB, 1, 0) ONE(NB, 1, 1)
FORMS(1) FORMS(2) FORMS(3) FORMS(4) FORMS(5) FORMS(6)
#define FORM(NB) {blocks_##NB##_0_0, blocks_##NB##_1_0, blocks_##NB##_1_1}
static tile_of_blocks *const BLOCKS[TOKENS][3] = {FORM(1), FORM(2), FORM(3), FORM(4), FORM(5), FORM(6)};
#undef ONE
#undef FORMS
#undef FORM

INLINE void put(float *total, int64_t t, const float *scale, const float *bias, int64_t rows, int kind, uint8_t *y) {
    for (int h = 0; h < 2 && rows > h * 16; h++) {
        const int64_t left = rows - h * 16;
        const __mmask16 keep = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512 v = _mm512_loadu_ps(total + t * PANEL + h * 16);
        if (scale) v = _mm512_mul_ps(v, _mm512_loadu_ps(scale + h * 16));
        if (bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(keep, bias + h * 16));
        if (kind == FP32) _mm512_mask_storeu_ps((float *)y + h * 16, keep, v);
        else _mm256_mask_storeu_epi16((uint16_t *)y + h * 16, keep, to_bf16(v));
    }
}

/* How the memory of one call is divided; bytes is 0 where the layout does not allow it. */
typedef struct {
    int64_t whole, span, groups, per; /* per: blocks that share a scale of W */
    int64_t ldx, ldb, places;         /* padded columns and blocks of a row of x; scales of a row of W, padded */
    int64_t rows, each, bytes;        /* of the rows of x; of one thread; of all */
} plan;

static plan plan_of(const matrix *m, int64_t rows, int64_t threads) {
    plan p = {0};
    p.whole = m->span <= 0 || m->span >= m->columns;
    p.span = p.whole ? m->columns : m->span;
    if ((m->kind != INT8 && m->kind != INT4) || m->span < 0 || (!p.whole && p.span % BLOCK)) return p;
    p.groups = (m->columns + p.span - 1) / p.span;
    p.ldx = up_to(m->columns, 64);
    p.ldb = p.ldx / BLOCK;
    p.per = p.whole ? p.ldb : p.span / BLOCK;
    p.places = p.ldb / p.per + 1 > p.groups ? p.ldb / p.per + 1 : p.groups;
    p.rows = up_to(rows * (p.ldx + 12 * p.ldb), 64);
    p.each = up_to((DEPTH + 4 * rows + 8 * p.places) * PANEL + 4 * (up_to(p.places, LANES) + LANES), 64);
    p.bytes = p.rows + threads * p.each;
    return p;
}

/* Bytes that limbeck_many needs beside; 0 where there is no such product for this layout on this processor. */
int64_t limbeck_many_room(const matrix *m, int64_t rows, int64_t threads) { return plan_of(m, rows, threads).bytes; }

/* kind: of x and y, FP32 or BF16; bias (rows of W) or null; room: limbeck_many_room's bytes, at a multiple of 64. */
void limbeck_many(const matrix *m, const float *bias, int64_t rows, int64_t kind, const uint8_t *x, uint8_t *y,
                  uint8_t *room, int64_t threads) {
    const plan p = plan_of(m, rows, threads);
    const int64_t columns = m->columns, ldx = p.ldx, ldb = p.ldb;
    const int32_t offset = m->kind == INT8 ? 128 : m->zeros ? 0 : 8;
    const int grouped = !p.whole || m->zeros != 0, form = m->zeros ? 2 : grouped ? 1 : 0;
    const int64_t size = SIZE[kind], panels = (m->rows + PANEL - 1) / PANEL;
    int8_t *codes = (int8_t *)room;
    float *steps = (float *)(room + rows * ldx), *sums = steps + rows * ldb;
    int32_t *begin = (int32_t *)(sums + rows * ldb);
#pragma omp parallel num_threads((int)threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            memset(codes + r * ldx + columns / BLOCK * BLOCK, 0, ldx - columns / BLOCK * BLOCK);
            memset(steps + (r + 1) * ldb - 2, 0, 2 * sizeof(float));
            memset(sums + (r + 1) * ldb - 2, 0, 2 * sizeof(float));
            memset(begin + (r + 1) * ldb - 2, 0, 2 * sizeof(int32_t));
            quantize_row(x + r * columns * size, (int)kind, columns, offset, codes + r * ldx, steps + r * ldb,
                         sums + r * ldb, begin + r * ldb);
        }
        uint8_t *panel = room + p.rows + omp_get_thread_num() * p.each;
        float *total = (float *)(panel + DEPTH * PANEL), *scales = total + rows * PANEL;
        float *zeros = scales + p.places * PANEL, *line = zeros + p.places * PANEL;
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < panels; n++) {
            const int64_t row = n * PANEL, count = m->rows - row < PANEL ? m->rows - row : PANEL;
            const uint8_t *next = m->codes + (row + threads * PANEL) * bytes_of((int)m->kind, columns);
            fill_scales(m, m->scales, row, p.groups, p.places, scales, line);
            if (m->zeros) fill_scales(m, m->zeros, row, p.groups, p.places, zeros, line);
            for (int64_t c = 0; c < columns; c += DEPTH) {
                const int64_t end = c + DEPTH < ldx ? c + DEPTH : ldx, first = c / BLOCK;
                fill_panel(m, row, c, end, panel, next + PANEL * bytes_of((int)m->kind, c));
                for (int64_t t = 0; t < rows; t += TOKENS) {
                    const int64_t nb = rows - t < TOKENS ? rows - t : TOKENS, at = t * ldb + first;
                    BLOCKS[nb - 1][form]((end - c) / BLOCK, p.per, first, panel, codes + t * ldx + c, ldx, steps + at,
                                         begin + at, sums + at, ldb, scales, zeros, total + t * PANEL, c == 0);
                }
            }
            for (int64_t t = 0; t < rows; t++)
                put(total, t, grouped ? 0 : scales, bias ? bias + row : 0, count, (int)kind,
                    y + (t * m->rows + row) * size);
        }
    }
}

#else

int64_t limbeck_many_room(const matrix *m, int64_t rows, int64_t threads) {
    (void)m, (void)rows, (void)threads;
    return 0;
}

void limbeck_many(const matrix *m, const float *bias, int64_t rows, int64_t kind, const uint8_t *x, uint8_t *y,
                  uint8_t *room, int64_t threads) {
    (void)m, (void)bias, (void)rows, (void)kind, (void)x, (void)y, (void)room, (void)threads;
}

#endif
