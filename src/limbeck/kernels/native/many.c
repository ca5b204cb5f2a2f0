/* y = x @ W.T + bias for many rows of x: products of eight-bit integers, four a lane and instruction (AVX-512 VNNI).
 *
 * Each row of x is rounded to int8 in blocks of 32 columns whose step is a power of two, as in MXINT8 (Open Compute Project,
 * microscaling formats, 2023): a block's sum is then scaled by adding to its exponent, where a multiplication would take
 * its turn in the pipes of the products. W's codes are read from the neutral layout, 32 rows at a time, and turned so that
 * a row is a lane. Sums within a block are exact; they are added in fp32. Codes are taken as unsigned (int8 plus 128,
 * nibbles as they are), and what that adds, offset x the block's sum of x, is where a block's sum begins.
 */
#include "matrix.h"

#include <omp.h>

#ifdef __AVX512VNNI__

#define PANEL 32      /* rows of W turned at a time */
#define DEPTH 768     /* columns of them: 24 KiB, so that they stay in the first cache */
#define TOKENS 6      /* rows of x in one tile: 12 sums of integers and 12 of floats in registers */
#define BLOCK 32      /* columns of x that share a step */
#define RANGE 30      /* a block's step is no smaller than 2^-RANGE of the largest in its row */

/* What a tile reads of x for one block of columns, in the order it reads it. */
typedef struct {
    int8_t codes[TOKENS][BLOCK];
    int32_t steps[TOKENS]; /* their exponents above the row's unit, where fp32 has its own */
    int32_t begin[TOKENS]; /* minus offset x sum of codes */
    int32_t unused[4];     /* 256 bytes */
} piece;

/* Sixteen numbers of a row of x from column c on; past the end zeros. */
INLINE __m512 sixteen(const uint8_t *x, int kind, int64_t columns, int64_t c) {
    const int64_t left = columns - c, size = SIZE[kind];
    return (__m512)(left >= LANES ? load16(kind, x + c * size)
                    : left > 0    ? load_rest(kind, x + c * size, left, (int)size)
                                  : fill(0));
}

/* The first and the ninth of sixteen dwords. */
INLINE void store_two(int32_t *to, __m512i v) {
    _mm_storel_epi64((__m128i *)to, _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x0101, v)));
}

/* The largest magnitudes of 64 numbers' two blocks, as bits: they order as numbers do, and what is none comes last. */
INLINE __m512i largest_of(const __m512 v[4]) {
    const __m512i plain = _mm512_set1_epi32(0x7fffffff);
    __m512i m[4];
    UNROLL
    for (int i = 0; i < 4; i++) m[i] = _mm512_and_si512((__m512i)v[i], plain);
    const __m512i a = _mm512_max_epu32(m[0], m[1]), b = _mm512_max_epu32(m[2], m[3]);
    __m512i both = _mm512_max_epu32(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
    both = _mm512_max_epu32(both, _mm512_shuffle_i64x2(both, both, 0xb1));
    both = _mm512_max_epu32(both, _mm512_shuffle_epi32(both, 0x4e));
    return _mm512_max_epu32(both, _mm512_shuffle_epi32(both, 0xb1));
}

/* One row of x to place t of its pieces; sums: of code x step by block, in the row's unit; unit: not a number where one of
 * the row is none. largest: memory for a dword a block, up to a multiple of 16 of them. */
static void quantize_row(const uint8_t *x, int kind, int64_t columns, int32_t offset, piece *to, int64_t t, float *sums,
                         float *unit, int32_t *largest) {
    __m512i most = _mm512_setzero_si512();
    for (int64_t c = 0; c < columns; c += 64) {
        __m512 v[4];
        UNROLL
        for (int i = 0; i < 4; i++) v[i] = sixteen(x, kind, columns, c + i * LANES);
        const __m512i both = largest_of(v);
        most = _mm512_max_epu32(most, both);
        store_two(largest + c / BLOCK, both);
    }
    const uint32_t whole = _mm512_reduce_max_epu32(most);
    const int32_t top = _mm512_cvtsi512_si32(step_exponent(_mm512_set1_epi32((int32_t)whole)));
    const int32_t base = top > RANGE ? top - RANGE : 1, bits = whole < 0x7f800000 ? base << 23 : 0x7fc00000;
    memcpy(unit, &bits, 4);
    for (int64_t c = 0; c < columns; c += LANES * BLOCK) { /* sixteen blocks, as many steps */
        const int64_t left = (up_to(columns, 64) - c) / BLOCK, blocks = left < LANES ? left : LANES;
        float inverse[LANES];
        int32_t steps[LANES], total[LANES];
        const __m512i e =
            _mm512_max_epi32(step_exponent(_mm512_loadu_si512(largest + c / BLOCK)), _mm512_set1_epi32(base));
        _mm512_storeu_si512(inverse, _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(254), e), 23));
        _mm512_storeu_si512(steps, _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(base)), 23));
        piece *at = to + c / BLOCK;
        for (int64_t b = 0; b < blocks; b += 2) {
            __m512i q[4];
            UNROLL
            for (int i = 0; i < 4; i++) {
                const __m512 v = sixteen(x, kind, columns, c + b * BLOCK + i * LANES);
                q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(inverse[b + i / 2])));
            }
            const __m512i mixed = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
            const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            const __m512i codes = _mm512_permutexvar_epi32(order, mixed);
            _mm256_storeu_si256((__m256i *)at[b].codes[t], _mm512_castsi512_si256(codes));
            _mm256_storeu_si256((__m256i *)at[b + 1].codes[t], _mm512_extracti64x4_epi64(codes, 1));
            __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), codes);
            sum = _mm512_add_epi32(sum, _mm512_shuffle_i64x2(sum, sum, 0xb1));
            sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, 0x4e));
            store_two(total + b, _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, 0xb1)));
        }
        for (int64_t b = 0; b < blocks; b++) {
            const int32_t one = steps[b] + (127 << 23);
            float step;
            memcpy(&step, &one, 4);
            at[b].steps[t] = steps[b];
            at[b].begin[t] = -offset * total[b];
            sums[c / BLOCK + b] = (float)total[b] * step;
        }
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

/* Columns [from, to) of PANEL rows: (columns / 4, PANEL, 4); from is a multiple of 64. Rows past the end are zeros. far:
 * what this thread will turn next, asked for meanwhile. */
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

/* Where a tile's sums go once they are whole; before that y is null and they are kept. */
typedef struct {
    uint8_t *y;
    const float *units, *scale, *bias; /* of rows of x; of rows of W or null; likewise */
    int64_t ldy, rows;
    int kind;
} result;

/* One tile: nb rows of x by PANEL rows of W over `blocks` blocks; per: blocks that share a scale of W. */
INLINE void block_tile(int nb, int grouped, int shifted, int64_t blocks, int64_t per, int64_t first,
                       const uint8_t *panel, const piece *x, const float *sums, int64_t ldb, const float *scales,
                       const float *zeros, float *kept, int start, const result *to) {
    __m512 f[TOKENS][2];
    UNROLL
    for (int t = 0; t < nb; t++)
        UNROLL
        for (int h = 0; h < 2; h++) f[t][h] = start ? _mm512_setzero_ps() : _mm512_loadu_ps(kept + t * PANEL + h * 16);
    for (int64_t b = 0; b < blocks; b++) {
        __m512i s[TOKENS][2];
        UNROLL
        for (int t = 0; t < nb; t++) s[t][0] = s[t][1] = _mm512_set1_epi32(x[b].begin[t]);
#pragma GCC unroll 8
        for (int k = 0; k < BLOCK / 4; k++) {
            const uint8_t *p = panel + (b * (BLOCK / 4) + k) * PANEL * 4;
            const __m512i w0 = _mm512_load_si512(p), w1 = _mm512_load_si512(p + 64);
            UNROLL
            for (int t = 0; t < nb; t++) {
                int32_t four;
                memcpy(&four, x[b].codes[t] + k * 4, 4);
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
            const __m512i step = _mm512_set1_epi32(x[b].steps[t]); /* added to 0.0 it is less than 2^-90 of a unit */
            UNROLL
            for (int h = 0; h < 2; h++) {
                const __m512 whole = (__m512)_mm512_add_epi32((__m512i)_mm512_cvtepi32_ps(s[t][h]), step);
                f[t][h] = grouped ? _mm512_fmadd_ps(whole, w[h], f[t][h]) : _mm512_add_ps(whole, f[t][h]);
                if (shifted) f[t][h] = _mm512_fmadd_ps(z[h], _mm512_set1_ps(sums[t * ldb + b]), f[t][h]);
            }
        }
    }
    UNROLL
    for (int h = 0; h < 2; h++) {
        const int64_t left = to->rows - h * 16;
        const __mmask16 keep = left >= 16 ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
        const __m512 scale = to->scale ? _mm512_loadu_ps(to->scale + h * 16) : _mm512_set1_ps(1);
        const __m512 bias = to->bias ? _mm512_maskz_loadu_ps(keep, to->bias + h * 16) : _mm512_setzero_ps();
        UNROLL
        for (int t = 0; t < nb; t++) {
            if (!to->y) {
                _mm512_storeu_ps(kept + t * PANEL + h * 16, f[t][h]);
                continue;
            }
            const __m512 v = _mm512_fmadd_ps(_mm512_mul_ps(f[t][h], _mm512_set1_ps(to->units[t])), scale, bias);
            uint8_t *y = to->y + (t * to->ldy + h * 16) * SIZE[to->kind];
            if (to->kind == FP32) _mm512_mask_storeu_ps((float *)y, keep, v);
            else _mm256_mask_storeu_epi16(y, keep, to_bf16(v));
        }
    }
}

typedef void tile_of_blocks(int64_t, int64_t, int64_t, const uint8_t *, const piece *, const float *, int64_t,
                            const float *, const float *, float *, int, const result *);
#define ONE(NB, G, Z)                                                                                                  \
    static __attribute__((noinline)) void blocks_##NB##_##G##_##Z(                                                     \
        int64_t blocks, int64_t per, int64_t first, const uint8_t *panel, const piece *x, const float *sums,           \
        int64_t ldb, const float *scales, const float *zeros, float *kept, int start, const result *to) {              \
        block_tile(NB, G, Z, blocks, per, first, panel, x, sums, ldb, scales, zeros, kept, start, to);                 \
    }
#define FORMS(NB) ONE(NB, 0, 0) ONE(NB, 1, 0) ONE(NB, 1, 1)
FORMS(1) FORMS(2) FORMS(3) FORMS(4) FORMS(5) FORMS(6)
#define FORM(NB) {blocks_##NB##_0_0, blocks_##NB##_1_0, blocks_##NB##_1_1}
static tile_of_blocks *const BLOCKS[TOKENS][3] = {FORM(1), FORM(2), FORM(3), FORM(4), FORM(5), FORM(6)};
#undef ONE
#undef FORMS
#undef FORM

/* How the memory of one call is divided; bytes is 0 where the layout does not allow it. */
typedef struct {
    int64_t whole, span, groups, per;  /* per: blocks that share a scale of W */
    int64_t ldx, ldb, places;          /* padded columns and blocks of a row of x; scales of a row of W, padded */
    int64_t pieces, sums, each, bytes; /* of the pieces of x; of their sums and units; of one thread; of all */
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
    p.pieces = up_to(rows, TOKENS) / TOKENS * p.ldb * (int64_t)sizeof(piece);
    p.sums = up_to(4 * rows * (p.ldb + 1), 64);
    p.each = DEPTH * PANEL + 4 * up_to((rows + 2 * p.places) * PANEL + up_to(p.places, LANES) + LANES, LANES);
    p.each += 4 * up_to(p.ldb, LANES);
    p.bytes = p.pieces + p.sums + threads * p.each;
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
    piece *pieces = (piece *)room;
    float *sums = (float *)(room + p.pieces), *units = sums + rows * ldb;
#pragma omp parallel num_threads((int)threads)
    {
        uint8_t *panel = room + p.pieces + p.sums + omp_get_thread_num() * p.each;
        int32_t *largest = (int32_t *)(panel + DEPTH * PANEL);
        float *kept = (float *)(largest + up_to(ldb, LANES)), *scales = kept + rows * PANEL;
        float *zeros = scales + p.places * PANEL, *line = zeros + p.places * PANEL;
#pragma omp for schedule(dynamic, TOKENS)
        for (int64_t r = 0; r < rows; r++)
            quantize_row(x + r * columns * size, (int)kind, columns, offset, pieces + r / TOKENS * ldb, r % TOKENS,
                         sums + r * ldb, units + r, largest);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < panels; n++) {
            const int64_t row = n * PANEL, count = m->rows - row < PANEL ? m->rows - row : PANEL;
            const uint8_t *next = m->codes + (row + threads * PANEL) * bytes_of((int)m->kind, columns);
            fill_scales(m, m->scales, row, p.groups, p.places, scales, line);
            if (m->zeros) fill_scales(m, m->zeros, row, p.groups, p.places, zeros, line);
            result to = {0, 0, grouped ? 0 : scales, bias ? bias + row : 0, m->rows, count, (int)kind};
            for (int64_t c = 0; c < columns; c += DEPTH) {
                const int64_t end = c + DEPTH < ldx ? c + DEPTH : ldx, first = c / BLOCK;
                fill_panel(m, row, c, end, panel, next + PANEL * bytes_of((int)m->kind, c));
                for (int64_t t = 0; t < rows; t += TOKENS) {
                    const int64_t nb = rows - t < TOKENS ? rows - t : TOKENS;
                    if (end == ldx) to.y = y + (t * m->rows + row) * size, to.units = units + t;
                    BLOCKS[nb - 1][form]((end - c) / BLOCK, p.per, first, panel, pieces + t / TOKENS * ldb + first,
                                         sums + t * ldb + first, ldb, scales, zeros, kept + t * PANEL, c == 0, &to);
                }
            }
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
