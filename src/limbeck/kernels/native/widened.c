/* y = x @ W.T + bias for many rows of x, in fp32, where W is stored in fewer bits: bf16, fp16 or fp8.
 *
 * PANEL rows of W are widened DEPTH columns at a time into the first cache, scales applied, and turned so that a row is a
 * lane; TOKENS rows of x lie interleaved. Each tile then loads a weight once for TOKENS products (Goto and van de Geijn
 * 2008). Written out whole, a layer of fp32 weights would pass through memory twice.
 */
#include "matrix.h"

#include <omp.h>

#define PANEL (2 * LANES) /* rows of W turned at a time */
#define DEPTH 384         /* columns of them */
#define TOKENS 6          /* rows of x in one tile: twice as many vectors of sums */
#define FEW 4             /* rows of x for which W is read once, row by row: turning it would take longer */

/* How the memory of one call is divided: x in fp32 (tiles of TOKENS rows, interleaved), then of every thread a panel and the
 * sums of all rows of x. Few rows of x are padded instead, their results and W's scales and sums of groups follow. Counts
 * are of fp32 numbers; total is 0 where W is of no such kind. */
typedef struct {
    int64_t span, groups, few, x, y, sums, panel, kept, each, total;
} plan;

static plan plan_of(const matrix *m, int64_t rows, int64_t threads) {
    plan p = {0};
    p.span = m->span > 0 && m->span < m->columns ? m->span : m->columns;
    const int whole = p.span == m->columns;
    if (m->kind < BF16 || m->kind == INT4 || (!whole && p.span % LANES)) return p;
    p.groups = (m->columns + p.span - 1) / p.span;
    p.few = rows <= FEW && m->kind != INT8 && (whole || p.span % UNIT == 0);
    if (p.few) {
        p.x = rows * up_to(m->columns, UNIT);
        p.y = rows * up_to(m->rows, UNIT);
        p.sums = up_to(rows * up_to(p.groups, LANES), UNIT);
        p.each = 4 * up_to(p.groups, UNIT) + UNIT;
    } else {
        p.x = up_to(up_to(rows, TOKENS) * m->columns, UNIT);
        p.panel = DEPTH * PANEL;
        p.kept = up_to(rows, TOKENS) * PANEL;
        p.each = p.panel + p.kept;
    }
    p.total = p.x + p.y + p.sums + threads * p.each;
    return p;
}

/* Bytes that limbeck_widened needs beside; 0 where there is no such product for this layout. */
int64_t limbeck_widened_room(const matrix *m, int64_t rows, int64_t threads) {
    return plan_of(m, rows, threads).total * (int64_t)sizeof(float);
}

/* `count` rows of x, a tile: one number of each in turn. */
static void interleave(const uint8_t *x, int kind, int64_t columns, int64_t count, float *to) {
    for (int64_t c = 0; c < columns; c += LANES) {
        vuint v[LANES] = {{0}};
        UNROLL
        for (int i = 0; i < TOKENS; i++)
            if (i < count) v[i] = (vuint)read_some(kind == BF16, x + i * columns * SIZE[kind], c, columns - c);
        transpose(v);
        UNROLL
        for (int i = 0; i < LANES; i++)
            if (c + i < columns) memcpy(to + (c + i) * TOKENS, &v[i], TOKENS * sizeof(float));
    }
}

/* What a number of a row's group is multiplied by, and what is added to it. */
static void scale_of(const matrix *m, const plan *p, int64_t row, int64_t group, float *scale, float *zero) {
    const int64_t place = m->span == 0 ? 0 : row * p->groups + group;
    *scale = 1;
    *zero = 0;
    if (m->span >= 0) widen(m->scales, (int)m->half_scales, place, 1, scale);
    if (m->zeros) widen(m->zeros, (int)m->half_scales, place, 1, zero);
}

/* Columns [from, to) of PANEL rows of W: (to - from, PANEL), up to LANES - 1 zeros behind. Past W's last row it is repeated. */
INLINE void fill_panel(int kind, const matrix *m, const plan *p, int64_t row, int64_t from, int64_t to, float *panel,
                       const uint8_t *far) {
    const int64_t size = SIZE[kind], width = m->columns * size;
    for (int half = 0; half < 2; half++) {
        const uint8_t *rows[LANES];
        float scales[LANES], zeros[LANES];
        for (int i = 0; i < LANES; i++) {
            const int64_t r = row + half * LANES + i;
            rows[i] = m->codes + (r < m->rows ? r : m->rows - 1) * width;
        }
        for (int64_t c = from; c < to; c += LANES) {
            vuint v[LANES];
            const int64_t left = m->columns - c;
            far = prefetch(far, LANES * LANES * size);
            UNROLL
            for (int i = 0; i < LANES; i++) {
                const uint8_t *at = rows[i] + c * size;
                v[i] = (vuint)(left >= LANES ? load_numbers(kind, at) : load_rest(kind, at, left, (int)size));
            }
            if (m->span >= 0) {
                if (c == from || c % p->span == 0)
                    for (int64_t i = 0; i < LANES; i++) {
                        const int64_t r = row + half * LANES + i;
                        scale_of(m, p, r < m->rows ? r : m->rows - 1, c / p->span, scales + i, zeros + i);
                    }
                UNROLL
                for (int i = 0; i < LANES; i++) v[i] = (vuint)((vfloat)v[i] * scales[i] + zeros[i]);
            }
            transpose(v);
            UNROLL
            for (int i = 0; i < LANES; i++) memcpy(panel + (c - from + i) * PANEL + half * LANES, &v[i], sizeof v[i]);
        }
    }
}

/* Where the sums of a tile go once they are whole; before that y is null and they are kept. */
typedef struct {
    uint8_t *y;
    const float *bias;
    int64_t ldy, rows, half;
} result;

/* Sums of nb rows of x by PANEL rows of W over `columns`, added to those kept (nb, PANEL) unless they are the first. */
INLINE void float_tile(int nb, int64_t columns, const float *panel, const float *x, float *kept, int first,
                       const result *to) {
    vfloat part[TOKENS][2];
    UNROLL
    for (int t = 0; t < nb; t++)
        UNROLL
        for (int h = 0; h < 2; h++) part[t][h] = first ? fill(0) : load(kept + t * PANEL + h * LANES);
    for (int64_t c = 0; c < columns; c++) {
        const vfloat low = load(panel + c * PANEL), high = load(panel + c * PANEL + LANES);
        UNROLL
        for (int t = 0; t < nb; t++) {
            const vfloat all = fill(x[c * TOKENS + t]);
            part[t][0] += low * all;
            part[t][1] += high * all;
        }
    }
    UNROLL
    for (int h = 0; h < 2; h++) {
        const int64_t left = to->rows - h * LANES;
        const vfloat bias = to->y && to->bias ? read_some(0, (const uint8_t *)to->bias, h * LANES, left) : fill(0);
        UNROLL
        for (int t = 0; t < nb; t++) {
            if (to->y) write_some((int)to->half, to->y, t * to->ldy + h * LANES, left, part[t][h] + bias);
            else store(kept + t * PANEL + h * LANES, part[t][h]);
        }
    }
}

/* One function a case, so that each has the registers to itself. */
typedef void float_tile_of(int64_t, const float *, const float *, float *, int, const result *);
#define ONE(NB)                                                                                                        \
    static __attribute__((noinline)) void float_##NB(int64_t columns, const float *panel, const float *x, float *kept, \
                                                     int first, const result *to) {                                    \
        float_tile(NB, columns, panel, x, kept, first, to);                                                            \
    }
ONE(1) ONE(2) ONE(3) ONE(4) ONE(5) ONE(6)
#undef ONE
static float_tile_of *const TILE_OF[TOKENS] = {float_1, float_2, float_3, float_4, float_5, float_6};

#define ONE(KIND)                                                                                                      \
    static __attribute__((noinline)) void fill_##KIND(const matrix *m, const plan *p, int64_t row, int64_t from,       \
                                                      int64_t to, float *panel, const uint8_t *far) {                  \
        fill_panel(KIND, m, p, row, from, to, panel, far);                                                             \
    }
ONE(BF16) ONE(FP16) ONE(INT8) ONE(E4M3) ONE(E5M2)
#undef ONE
typedef void filler(const matrix *, const plan *, int64_t, int64_t, int64_t, float *, const uint8_t *);
static filler *const FILL[] = {
    [BF16] = fill_BF16, [FP16] = fill_FP16, [INT8] = fill_INT8, [E4M3] = fill_E4M3, [E5M2] = fill_E5M2};

/* Few rows of x: each thread does some rows of W as they lie. */
static void multiply_few(const matrix *m, const plan *p, int64_t rows, int64_t kind, const uint8_t *x, uint8_t *y, float *room,
                         int64_t threads) {
    const int64_t columns = m->columns, ldx = up_to(columns, UNIT), ldy = up_to(m->rows, UNIT), lds = up_to(p->groups, LANES);
    const int half = kind == BF16;
    float *wide = room, *out = wide + p->x, *sums = out + p->y;
    for (int64_t b = 0; b < rows; b++)
        for (int64_t c = 0; c < ldx; c += LANES)
            store(wide + b * ldx + c, read_some(half, x + b * columns * SIZE[kind], c, columns - c));
    if (m->zeros) sum_groups(m, rows, wide, ldx, sums, lds);
#pragma omp parallel num_threads((int)threads)
    {
        const int64_t t = omp_get_thread_num(), n = omp_get_num_threads(), blocks = ldy / UNIT;
        const int64_t from = blocks * t / n * UNIT, end = blocks * (t + 1) / n * UNIT, to = end < m->rows ? end : m->rows;
        multiply(m, from, to, rows, wide, ldx, sums, lds, sums + p->sums + t * p->each, out, ldy, 0);
        for (int64_t b = 0; b < rows; b++)
            for (int64_t r = from; r < to; r += LANES)
                write_some(half, y + b * m->rows * SIZE[kind], r, to - r, load(out + b * ldy + r));
    }
}

/* kind: of x and y, FP32 or BF16; bias (rows of W) or null; room: limbeck_widened_room's bytes. */
void limbeck_widened(const matrix *m, const float *bias, int64_t rows, int64_t kind, const uint8_t *x, uint8_t *y,
                     float *room, int64_t threads) {
    const plan p = plan_of(m, rows, threads);
    const int64_t columns = m->columns, size = SIZE[kind], panels = (m->rows + PANEL - 1) / PANEL;
    filler *const fill_rows = FILL[m->kind];
    if (p.few) {
        matrix with_bias = *m;
        with_bias.bias = bias;
        multiply_few(&with_bias, &p, rows, kind, x, y, room, threads);
        return;
    }
#pragma omp parallel num_threads((int)threads)
    {
        float *panel = room + p.x + omp_get_thread_num() * p.each, *kept = panel + p.panel;
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < rows; t += TOKENS)
            interleave(x + t * columns * size, (int)kind, columns, rows - t, room + t * columns);
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < panels; n++) {
            const int64_t row = n * PANEL, count = m->rows - row < PANEL ? m->rows - row : PANEL;
            const uint8_t *next = m->codes + (row + threads * PANEL) * columns * SIZE[m->kind];
            result to = {0, bias ? bias + row : 0, m->rows, count, kind == BF16};
            for (int64_t c = 0; c < columns; c += DEPTH) {
                const int64_t end = c + DEPTH < columns ? c + DEPTH : columns;
                fill_rows(m, &p, row, c, end, panel, next + c * PANEL * SIZE[m->kind]);
                for (int64_t t = 0; t < rows; t += TOKENS) {
                    const int64_t nb = rows - t < TOKENS ? rows - t : TOKENS;
                    if (end == columns) to.y = y + (t * m->rows + row) * size;
                    TILE_OF[nb - 1](end - c, panel, room + t * columns + c * TOKENS, kept + t * PANEL, c == 0, &to);
                }
            }
        }
    }
}
