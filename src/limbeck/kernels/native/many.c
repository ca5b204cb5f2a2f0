/* y = x @ W.T + bias for many rows of x: products of eight-bit integers.
 *
 * Each row of x is rounded to int8 in blocks of 32 columns whose step is a power of two (codes.h): a block's sum is then
 * scaled by adding to its exponent, where a multiplication would take its turn in the pipes of the products. W's codes are
 * read from the neutral layout, PANEL rows at a time, and turned so that a row is a lane. Sums within a block are exact;
 * they are added in fp32. Where codes are taken as unsigned, what that adds, offset x the block's sum of x, is where a
 * block's sum begins.
 */
#include "matrix.h"

#include <omp.h>

#define PANEL (2 * LANES) /* rows of W turned at a time */
#define DEPTH 768         /* columns of them: so many stay in the first cache */
#define TOKENS 6          /* rows of x in one tile: twice as many vectors of sums */
#define CODE_BYTES (PAIRED ? 2 : 1)

/* What a tile reads of x for one block of columns, in the order it reads it. */
typedef struct {
    uint8_t codes[TOKENS][BLOCK * CODE_BYTES]; /* int8; 16 bits where panels hold those */
    int32_t steps[TOKENS];                     /* their exponents above the row's unit, where fp32 has its own */
    int32_t begin[TOKENS];                     /* minus offset x sum of codes */
    int32_t unused[4];
} piece;

/* LANES numbers of a row of x from column c on; past the end zeros. */
INLINE vfloat numbers(const uint8_t *x, int kind, int64_t columns, int64_t c) {
    return read_some(kind == BF16, x, c, columns - c);
}

/* One row of x to place t of its pieces, for codes of W's kind; sums: of code x step by block, in the row's unit; unit: not a
 * number where one of the row is none. largest: memory for a dword a block. */
static void quantize_row(const uint8_t *x, int kind, int64_t columns, int w_kind, int32_t offset, piece *to, int64_t t,
                         float *sums, float *unit, uint32_t *largest) {
    const int64_t blocks = up_to(columns, 64) / BLOCK;
    uint32_t whole = 0;
    for (int64_t b = 0; b < blocks; b++) {
        vfloat v[PARTS];
        UNROLL
        for (int i = 0; i < PARTS; i++) v[i] = numbers(x, kind, columns, b * BLOCK + i * LANES);
        largest[b] = block_largest(v);
        whole = largest[b] > whole ? largest[b] : whole;
    }
    const int32_t top = step_exponent(whole), base = top > RANGE ? top - RANGE : 1;
    *unit = float_of_bits(whole < 0x7f800000 ? (uint32_t)base << 23 : 0x7fc00000);
    for (int64_t b = 0; b < blocks; b++) {
        const int32_t own = step_exponent(largest[b]), e = own > base ? own : base;
        vfloat v[PARTS];
        int8_t codes[BLOCK];
        UNROLL
        for (int i = 0; i < PARTS; i++) v[i] = numbers(x, kind, columns, b * BLOCK + i * LANES);
        const int32_t total = block_round(v, float_of_bits((uint32_t)(254 - e) << 23), codes);
        if (CODE_BYTES == 2 && w_kind == INT8)
            for (int i = 0; i < BLOCK; i++) ((int16_t *)to[b].codes[t])[i] = codes[i];
        else memcpy(to[b].codes[t], codes, BLOCK);
        to[b].steps[t] = (e - base) << 23;
        to[b].begin[t] = -offset * total;
        sums[b] = (float)total * float_of_bits((uint32_t)(e - base + 127) << 23);
    }
}

/* Columns [from, to) of PANEL rows: (columns / PER_DWORD, PANEL) dwords; from is a multiple of 64. Rows past the end are
 * zeros. far: what this thread will turn next, prefetched meanwhile. */
static void fill_panel(const matrix *m, int64_t row, int64_t from, int64_t to, uint32_t *panel, const uint8_t *far) {
    const int kind = (int)m->kind;
    const int64_t step = PER_DWORD(kind) * LANES, width = bytes_of(kind, m->columns);
    for (int64_t c = from; c < to; c += step)
        for (int half = 0; half < 2; half++) {
            vuint v[LANES];
            far = prefetch(far, bytes_of(kind, step) * LANES);
            UNROLL
            for (int i = 0; i < LANES; i++) {
                const int64_t r = row + half * LANES + i;
                v[i] = (vuint){0};
                if (r >= m->rows || c >= m->columns) continue;
                const uint8_t *p = m->codes + r * width + bytes_of(kind, c);
                v[i] = kind == INT8 ? panel_dwords(INT8, p, m->columns - c) : panel_dwords(INT4, p, m->columns - c);
            }
            transpose(v);
            UNROLL
            for (int i = 0; i < LANES; i++)
                memcpy(panel + ((c - from) / PER_DWORD(kind) + i) * PANEL + half * LANES, &v[i], sizeof v[i]);
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

/* One tile: nb rows of x by PANEL rows of W, of a kind, over `blocks` blocks; per: blocks that share a scale of W. */
INLINE void block_tile(int kind, int nb, int grouped, int shifted, int64_t blocks, int64_t per, int64_t first,
                       const uint32_t *panel, const piece *x, const float *sums, int64_t ldb, const float *scales,
                       const float *zeros, float *kept, int start, const result *to) {
    const int dwords = BLOCK / PER_DWORD(kind);
    vfloat f[TOKENS][2];
    UNROLL
    for (int t = 0; t < nb; t++)
        UNROLL
        for (int h = 0; h < 2; h++) f[t][h] = start ? fill(0) : load(kept + t * PANEL + h * LANES);
    for (int64_t b = 0; b < blocks; b++) {
        vint s[TOKENS][2];
        UNROLL
        for (int t = 0; t < nb; t++) s[t][0] = s[t][1] = block_begin(x[b].begin[t]);
#pragma GCC unroll 8
        for (int k = 0; k < dwords; k++) {
            const uint32_t *p = panel + (b * dwords + k) * PANEL;
            vint w0, w1;
            memcpy(&w0, p, sizeof w0);
            memcpy(&w1, p + LANES, sizeof w1);
            UNROLL
            for (int t = 0; t < nb; t++) {
                int32_t four;
                memcpy(&four, x[b].codes[t] + k * 4, 4);
                s[t][0] = block_add(kind, s[t][0], w0, four);
                s[t][1] = block_add(kind, s[t][1], w1, four);
            }
        }
        vfloat w[2] = {{0}}, z[2] = {{0}};
        const int64_t g = (first + b) / per;
        UNROLL
        for (int h = 0; h < 2; h++) {
            if (grouped) w[h] = load(scales + g * PANEL + h * LANES);
            if (shifted) z[h] = load(zeros + g * PANEL + h * LANES);
        }
        UNROLL
        for (int t = 0; t < nb; t++)
            UNROLL
            for (int h = 0; h < 2; h++) {
                const vint total = block_end(kind, s[t][h], x[b].begin[t]);
                /* the step's exponent, added to that of 0.0, is less than 2^-90 of a unit */
                const vfloat whole = (vfloat)((vint)__builtin_convertvector(total, vfloat) + x[b].steps[t]);
                if (grouped) f[t][h] += whole * w[h];
                else f[t][h] += whole;
                if (shifted) f[t][h] += z[h] * sums[t * ldb + b];
            }
    }
    UNROLL
    for (int h = 0; h < 2; h++) {
        const int64_t left = to->rows - h * LANES;
        const vfloat scale = to->scale ? load(to->scale + h * LANES) : fill(1);
        const vfloat bias = to->bias ? read_some(0, (const uint8_t *)(to->bias + h * LANES), 0, left) : fill(0);
        UNROLL
        for (int t = 0; t < nb; t++) {
            if (!to->y) {
                store(kept + t * PANEL + h * LANES, f[t][h]);
                continue;
            }
            uint8_t *y = to->y + (t * to->ldy + h * LANES) * SIZE[to->kind];
            write_some(to->kind == BF16, y, 0, left, f[t][h] * to->units[t] * scale + bias);
        }
    }
}

typedef void tile_of_blocks(int64_t, int64_t, int64_t, const uint32_t *, const piece *, const float *, int64_t,
                            const float *, const float *, float *, int, const result *);
#define ONE(K, NB, G, Z)                                                                                               \
    static __attribute__((noinline)) void K##_##NB##_##G##_##Z(                                                        \
        int64_t blocks, int64_t per, int64_t first, const uint32_t *panel, const piece *x, const float *sums,          \
        int64_t ldb, const float *scales, const float *zeros, float *kept, int start, const result *to) {              \
        block_tile(K, NB, G, Z, blocks, per, first, panel, x, sums, ldb, scales, zeros, kept, start, to);              \
    }
#define FORMS(K, NB) ONE(K, NB, 0, 0) ONE(K, NB, 1, 0) ONE(K, NB, 1, 1)
#define KIND(K) FORMS(K, 1) FORMS(K, 2) FORMS(K, 3) FORMS(K, 4) FORMS(K, 5) FORMS(K, 6)
#define FORM(K, NB) {K##_##NB##_0_0, K##_##NB##_1_0, K##_##NB##_1_1}
#define TABLE(K) {FORM(K, 1), FORM(K, 2), FORM(K, 3), FORM(K, 4), FORM(K, 5), FORM(K, 6)}
KIND(INT4)
#if PAIRED
KIND(INT8)
static tile_of_blocks *const BLOCKS[2][TOKENS][3] = {TABLE(INT8), TABLE(INT4)};
#elif defined(USE_AVX512) && !defined(USE_VNNI)
KIND(INT8)
static tile_of_blocks *const BLOCKS[2][TOKENS][3] = {TABLE(INT8), TABLE(INT4)};
#else /* one product serves both */
static tile_of_blocks *const BLOCKS[2][TOKENS][3] = {TABLE(INT4), TABLE(INT4)};
#endif
#undef ONE
#undef FORMS
#undef KIND
#undef FORM
#undef TABLE

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
    p.each = DEPTH * PANEL * CODE_BYTES + 4 * up_to((rows + 2 * p.places) * PANEL + up_to(p.places, LANES) + LANES, LANES);
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
    const int32_t offset = m->kind == INT8 ? CODE_OFFSET : m->zeros ? 0 : 8;
    const int grouped = !p.whole || m->zeros != 0, form = m->zeros ? 2 : grouped ? 1 : 0;
    const int64_t size = SIZE[kind], panels = (m->rows + PANEL - 1) / PANEL;
    piece *pieces = (piece *)room;
    float *sums = (float *)(room + p.pieces), *units = sums + rows * ldb;
#pragma omp parallel num_threads((int)threads)
    {
        uint32_t *panel = (uint32_t *)(room + p.pieces + p.sums + omp_get_thread_num() * p.each);
        uint32_t *largest = panel + DEPTH * PANEL * CODE_BYTES / 4;
        float *kept = (float *)(largest + up_to(ldb, LANES)), *scales = kept + rows * PANEL;
        float *zeros = scales + p.places * PANEL, *line = zeros + p.places * PANEL;
#pragma omp for schedule(dynamic, TOKENS)
        for (int64_t r = 0; r < rows; r++)
            quantize_row(x + r * columns * size, (int)kind, columns, (int)m->kind, offset, pieces + r / TOKENS * ldb, r % TOKENS,
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
                    BLOCKS[m->kind == INT4][nb - 1][form]((end - c) / BLOCK, p.per, first, panel, pieces + t / TOKENS * ldb + first,
                                         sums + t * ldb + first, ldb, scales, zeros, kept + t * PANEL, c == 0, &to);
                }
            }
        }
    }
}
