/* Causal attention within documents, bf16, forward and backward: what kernels/attention.py says in torch, in one pass.
 *
 * Keys and values of a document are laid out once for products of pairs (AVX-512 BF16): keys so that a lane is a key, values
 * so that a lane is a column. Then each block of queries walks the keys up to its own, 64 at a time, with the running
 * maximum and sum of Dao et al. 2022 (algorithm 1). Scores and sums are fp32; weights are rounded to bf16 for the product
 * with the values, as a matrix product of the same dtype would. The backward walks the key tiles, and for each the blocks of
 * queries behind it, with the weights computed again from the forward's log-sums (algorithm 4).
 */
#include "vectors.h"

#include <omp.h>

#ifdef __AVX512BF16__

#define TILE 64  /* keys at a time: four vectors */
#define TOGETHER 6 /* queries in one product: 24 sums in registers */
#define QUERIES 24 /* queries of a block: scores, weights and sums of it stay in the first cache */

/* What a call works on: tensors (B, H or KV, T, D) by strides in elements, D contiguous; out is (B, T, H, D), whole. */
typedef struct {
    int64_t heads, kv_heads, length, width; /* length: T of out */
    int64_t q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token;
    const uint16_t *q, *k, *v;
    uint16_t *out;
    float *sums; /* (B, H, T): log2 of the sum of 2^(score x log2 e); the forward writes it where it is not null */
    double scale;
} problem;

/* What the backward is given and gives beside: the gradient of out by its strides, and dq, dk, dv, laid out as out. */
typedef struct {
    int64_t row, head, token;
    const uint16_t *grad;
    uint16_t *dq, *dk, *dv;
} gradients;

/* One document: tokens start to stop of a row; tile: its first tile in the memory of laid out keys and values. */
typedef struct {
    int64_t row, start, stop, tile;
} document;

INLINE int64_t tiles_of(const document *d) { return (d->stop - d->start + TILE - 1) / TILE; }
INLINE int64_t padded(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

/* Keys of one tile, (width / 2, TILE) pairs: past the end zeros. */
static void lay_keys(const problem *p, const document *d, int64_t head, int64_t tile, uint32_t *to) {
    const uint16_t *k = p->k + d->row * p->k_row + head * p->k_head;
    const int64_t pairs = p->width / 2;
    for (int64_t from = 0; from < TILE; from += LANES)
        for (int64_t c = 0; c < pairs; c += LANES) {
            const int64_t count = pairs - c < LANES ? pairs - c : LANES;
            const __mmask16 keep = (__mmask16)((1u << count) - 1);
            __m512i v[LANES];
            UNROLL
            for (int i = 0; i < LANES; i++) {
                const int64_t t = d->start + tile * TILE + from + i;
                v[i] = t < d->stop ? _mm512_maskz_loadu_epi32(keep, k + t * p->k_token + 2 * c) : _mm512_setzero_si512();
            }
            transpose(v);
            UNROLL
            for (int i = 0; i < LANES; i++)
                if (i < count) _mm512_storeu_si512(to + (c + i) * TILE + from, v[i]);
        }
}

/* Values of one tile of `size`, (size / 2, padded width) pairs of neighbouring keys: past the end zeros. */
static void lay_values(const problem *p, const document *d, int64_t head, int64_t tile, int64_t size, uint32_t *to) {
    const uint16_t *v = p->v + d->row * p->v_row + head * p->v_head;
    const int64_t wide = padded(p->width);
    for (int64_t j = 0; j < size / 2; j++)
        for (int64_t c = 0; c < wide; c += LANES) {
            const int64_t count = p->width - c < LANES ? p->width - c : LANES, t = d->start + tile * size + 2 * j;
            const __mmask16 keep = (__mmask16)((1u << count) - 1);
            const __mmask16 first = t < d->stop ? keep : 0, second = t + 1 < d->stop ? keep : 0;
            const uint16_t *at = v + t * p->v_token + c;
            const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first, at));
            const __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, at + p->v_token));
            _mm512_storeu_si512(to + j * wide + c, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
}

/* (TOGETHER, n vectors) sums of pairs broadcast from x[i], ldx a step, by what lies at y, ldy a step; added to, or new. */
INLINE void product(int n, int add, int64_t steps, const uint16_t *const *x, int64_t ldx, const uint32_t *y, int64_t ldy,
                    float *to, int64_t ldt) {
    __m512 sum[TOGETHER][4];
    UNROLL
    for (int i = 0; i < TOGETHER; i++)
        UNROLL
        for (int j = 0; j < n; j++) sum[i][j] = add ? _mm512_loadu_ps(to + i * ldt + j * LANES) : _mm512_setzero_ps();
    for (int64_t s = 0; s < steps; s++) {
        __m512bh column[4];
        UNROLL
        for (int j = 0; j < n; j++) column[j] = (__m512bh)_mm512_loadu_si512(y + s * ldy + j * LANES);
        UNROLL
        for (int i = 0; i < TOGETHER; i++) {
            int32_t pair;
            memcpy(&pair, x[i] + 2 * ldx * s, 4);
            const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            UNROLL
            for (int j = 0; j < n; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], both, column[j]);
        }
    }
    UNROLL
    for (int i = 0; i < TOGETHER; i++)
        UNROLL
        for (int j = 0; j < n; j++) _mm512_storeu_ps(to + i * ldt + j * LANES, sum[i][j]);
}

typedef void product_of(int64_t, const uint16_t *const *, int64_t, const uint32_t *, int64_t, float *, int64_t);
#define ONE(N, ADD)                                                                                                    \
    static __attribute__((noinline)) void product_##N##_##ADD(int64_t steps, const uint16_t *const *x, int64_t ldx,    \
                                                              const uint32_t *y, int64_t ldy, float *to, int64_t ldt) { \
        product(N, ADD, steps, x, ldx, y, ldy, to, ldt);                                                               \
    }
ONE(1, 0) ONE(2, 0) ONE(3, 0) ONE(4, 0) ONE(1, 1) ONE(2, 1) ONE(3, 1) ONE(4, 1)
static product_of *const PRODUCTS[2][4] = {{product_1_0, product_2_0, product_3_0, product_4_0},
                                           {product_1_1, product_2_1, product_3_1, product_4_1}};
#undef ONE

/* (rows, width) sums added to by ``steps`` pairs: every vector of the width in turn. Rows are a multiple of TOGETHER. */
static void add_product(int64_t rows, int64_t wide, int64_t steps, const uint16_t *const *x, int64_t ldx,
                        const uint32_t *y, float *to) {
    for (int64_t i = 0; i < rows; i += TOGETHER)
        for (int64_t c = 0; c < wide; c += TILE) {
            const int64_t n = wide - c < TILE ? (wide - c) / LANES : TILE / LANES;
            PRODUCTS[1][n - 1](steps, x + i, ldx, y + c, wide, to + i * wide + c, wide);
        }
}

/* 2^x for x <= 0 to 3e-6 of itself, which is then rounded to bf16; 0 below -149; what is no number stays none. */
INLINE f32x16 power(f32x16 x) {
    const __m512 y = _mm512_max_ps(_mm512_set1_ps(-200), (__m512)x), n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT);
    const f32x16 f = (f32x16)_mm512_sub_ps(y, n);
    f32x16 p = fill(1.33335581e-3f);
    p = p * f + 9.61812911e-3f;
    p = p * f + 5.55041087e-2f;
    p = p * f + 2.40226507e-1f;
    p = p * f + 6.93147181e-1f;
    p = p * f + 1.0f;
    return (f32x16)_mm512_scalef_ps((__m512)p, n);
}

/* One row of sums times a factor, rounded. */
INLINE void put_row(const float *from, float factor, int64_t width, uint16_t *to) {
    for (int64_t c = 0; c < width; c += LANES)
        write_lanes(1, (uint8_t *)to, c, first_lanes(width - c), load(from + c) * factor);
}

/* What a block of queries knows of itself; maxima are of scores times log2(e). */
typedef struct {
    float scores[QUERIES][TILE];
    uint16_t weights[QUERIES][TILE];
    float most[QUERIES], total[QUERIES];
} block;

/* Scores of query i to weights; `seen` keys of the tile are seen. The sums in `read` shrink to the new maximum. */
INLINE void weigh(block *o, int64_t i, int64_t seen, int64_t vectors, float scale, float *read, int64_t wide) {
    f32x16 s[TILE / LANES], most = fill(-INFINITY);
    for (int64_t j = 0; j < vectors; j++) {
        s[j] = load(o->scores[i] + j * LANES) * scale;
        const int64_t left = seen - j * LANES;
        if (left < LANES)
            s[j] = (f32x16)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), first_lanes(left), (__m512)s[j]);
        most = (f32x16)_mm512_max_ps((__m512)most, (__m512)s[j]);
    }
    const float largest = _mm512_reduce_max_ps((__m512)most), before = o->most[i];
    if (largest > before) {
        const float shrink = power(fill(before - largest))[0];
        o->most[i] = largest;
        o->total[i] *= shrink;
        for (int64_t c = 0; c < wide; c += LANES) store(read + c, load(read + c) * shrink);
    }
    f32x16 total = fill(0);
    for (int64_t j = 0; j < vectors; j++) {
        const f32x16 w = power(s[j] - o->most[i]);
        total += w;
        const __m256i half = to_bf16((__m512)w);
        memcpy(o->weights[i] + j * LANES, &half, sizeof half);
    }
    o->total[i] += sum(total);
}

/* A block of queries of one head, from its place in the document on. */
static void attend_block(const problem *p, const document *d, int64_t head, int64_t from, const uint32_t *keys,
                         const uint32_t *values, float *read) {
    block o;
    const int64_t wide = padded(p->width), length = d->stop - d->start;
    const int64_t count = length - from < QUERIES ? length - from : QUERIES;
    const int64_t group = p->heads / p->kv_heads, kv = head / group, each = tiles_of(d);
    const uint16_t *q = p->q + d->row * p->q_row + head * p->q_head + (d->start + from) * p->q_token;
    const uint16_t *rows[QUERIES], *weights[QUERIES];
    for (int64_t i = 0; i < QUERIES; i++) {
        rows[i] = q + (i < count ? i : count - 1) * p->q_token; /* past the end the last one again */
        weights[i] = o.weights[i];
        o.most[i] = -INFINITY;
        o.total[i] = 0;
    }
    const float scale = (float)(p->scale * 1.4426950408889634);
    memset(read, 0, QUERIES * wide * sizeof(float));
    keys += (d->tile * p->kv_heads + kv * each) * (p->width / 2) * TILE;
    values += (d->tile * p->kv_heads + kv * each) * (TILE / 2) * wide;
    for (int64_t tile = 0; tile * TILE < from + count; tile++) {
        const int64_t first = tile * TILE, last = from + count - first; /* keys of the tile seen by the last query */
        const int64_t vectors = last >= TILE ? TILE / LANES : (last + LANES - 1) / LANES;
        const uint32_t *k = keys + tile * (p->width / 2) * TILE, *v = values + tile * (TILE / 2) * wide;
        for (int64_t i = 0; i < count; i += TOGETHER)
            PRODUCTS[0][vectors - 1](p->width / 2, rows + i, 1, k, TILE, o.scores[i], TILE);
        for (int64_t i = 0; i < count; i++) {
            const int64_t seen = from + i + 1 - first;
            weigh(&o, i, seen < TILE ? seen : TILE, vectors, scale, read + i * wide, wide);
        }
        add_product((count + TOGETHER - 1) / TOGETHER * TOGETHER, wide, vectors * LANES / 2, weights, 1, v, read);
    }
    for (int64_t i = 0; i < count; i++) {
        const int64_t t = d->start + from + i;
        put_row(read + i * wide, 1 / o.total[i], p->width, p->out + ((d->row * p->length + t) * p->heads + head) * p->width);
        if (p->sums) p->sums[(d->row * p->heads + head) * p->length + t] = o.most[i] + log2f(o.total[i]);
    }
}

/* Bytes of memory that a call needs for documents of so many tiles in all; 0 where this processor cannot. */
int64_t limbeck_attend_room(const problem *p, int64_t tiles, int64_t threads) {
    const int64_t wide = padded(p->width);
    return tiles * p->kv_heads * TILE * (p->width + wide) * 2 + threads * QUERIES * wide * 4;
}

/* room: limbeck_attend_room's bytes at a multiple of 64. Documents must not overlap; what lies in none is left alone. */
void limbeck_attend(const problem *p, int64_t count, const document *documents, uint8_t *room, int64_t threads) {
    const int64_t wide = padded(p->width), last = count - 1;
    const int64_t tiles = documents[last].tile + tiles_of(documents + last);
    uint32_t *keys = (uint32_t *)room, *values = keys + tiles * p->kv_heads * (p->width / 2) * TILE;
    float *reads = (float *)(values + tiles * p->kv_heads * (TILE / 2) * wide);
#pragma omp parallel num_threads((int)threads)
    {
        float *read = reads + omp_get_thread_num() * QUERIES * wide;
        for (int64_t n = 0; n < count; n++) {
            const document *d = documents + n;
            const int64_t each = tiles_of(d);
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < p->kv_heads * each; i++) {
                const int64_t at = d->tile * p->kv_heads + i;
                lay_keys(p, d, i / each, i % each, keys + at * (p->width / 2) * TILE);
                lay_values(p, d, i / each, i % each, TILE, values + at * (TILE / 2) * wide);
            }
        }
#pragma omp barrier
        for (int64_t n = 0; n < count; n++) {
            const document *d = documents + n;
            const int64_t blocks = (d->stop - d->start + QUERIES - 1) / QUERIES;
#pragma omp for schedule(dynamic) nowait
            for (int64_t i = 0; i < p->heads * blocks; i++) /* the longest first */
                attend_block(p, d, i % p->heads, (blocks - 1 - i / p->heads) * QUERIES, keys, values, read);
        }
    }
}

/* Up to sixteen numbers, zeros behind them. */
INLINE f32x16 some(const uint16_t *p, int64_t left) { return read_lanes(1, (const uint8_t *)p, 0, first_lanes(left)); }

#define BEHIND 48 /* queries of a block in the backward */
#define KEYS 66   /* keys of a tile, padded to a multiple of TOGETHER */

/* Memory of one thread for one head of keys in the backward, all of it for a document of some length. */
typedef struct {
    uint32_t *keys, *values, *key_rows, *query_rows, *grad_rows; /* laid out as lay_keys or lay_values do */
    float *dq, *dk, *dv, *share;                                 /* share: what softmax's gradient takes off, a query */
} behind;

static int64_t behind_bytes(const problem *p, int64_t longest) {
    const int64_t wide = padded(p->width), group = p->heads / p->kv_heads;
    const int64_t tiles = (longest + TILE - 1) / TILE * TILE, rows = (longest + BEHIND - 1) / BEHIND * BEHIND;
    const int64_t laid = tiles * (2 * p->width + wide) + group * rows * wide * 2; /* two bytes each */
    return ((laid * 2 + (group * rows * (wide + 1) + (TOGETHER + 2 * KEYS) * wide) * 4) + 63) / 64 * 64;
}

static behind divided(const problem *p, int64_t length, uint8_t *room) {
    const int64_t wide = padded(p->width), group = p->heads / p->kv_heads;
    const int64_t tiles = (length + TILE - 1) / TILE * TILE, rows = (length + BEHIND - 1) / BEHIND * BEHIND;
    behind o;
    o.dq = (float *)room;
    o.dk = o.dq + (group * rows + TOGETHER) * wide; /* the last product of queries may end past the last */
    o.dv = o.dk + KEYS * wide;
    o.keys = (uint32_t *)(o.dv + KEYS * wide);
    o.values = o.keys + tiles / 2 * p->width;
    o.key_rows = o.values + tiles / 2 * p->width;
    o.query_rows = o.key_rows + tiles / 2 * wide;
    o.grad_rows = o.query_rows + group * rows / 2 * wide;
    o.share = (float *)(o.grad_rows + group * rows / 2 * wide);
    return o;
}

/* What one block of queries and one tile of keys exchange. */
typedef struct {
    float scores[BEHIND][TILE], slopes[BEHIND][TILE];
    uint16_t rows[BEHIND][TILE];                                      /* gradients of scores, for dq */
    uint32_t weights[BEHIND / 2][TILE + 2], turned[BEHIND / 2][TILE + 2]; /* weights, and the gradients, queries in pairs */
} exchange;

/* Scores and gradients of weights of two queries to weights and gradients of scores; those past `seen` keys are 0. */
INLINE void slope_pair(exchange *e, int64_t i, int64_t seen, int64_t count, int64_t vectors, float scale,
                       const float *sums, const float *share) {
    for (int64_t j = 0; j < vectors; j++) {
        u32x16 pair[2] = {{0}}, turned[2] = {{0}};
        for (int h = 0; h < 2; h++) {
            const int64_t left = i + h < count ? seen + h - j * LANES : 0;
            const __mmask16 keep = first_lanes(left);
            f32x16 w = power(load(e->scores[i + h] + j * LANES) * scale - sums[i + h]);
            w = (f32x16)_mm512_maskz_mov_ps(keep, (__m512)w);
            f32x16 g = w * (load(e->slopes[i + h] + j * LANES) - share[i + h]);
            g = (f32x16)_mm512_maskz_mov_ps(keep, (__m512)g);
            const __m256i slope = to_bf16((__m512)g);
            memcpy(e->rows[i + h] + j * LANES, &slope, sizeof slope);
            pair[h] = (u32x16)_mm512_cvtepu16_epi32(to_bf16((__m512)w));
            turned[h] = (u32x16)_mm512_cvtepu16_epi32(slope);
        }
        const u32x16 both = pair[0] | pair[1] << 16, slopes = turned[0] | turned[1] << 16;
        memcpy(e->weights[i / 2] + j * LANES, &both, sizeof both);
        memcpy(e->turned[i / 2] + j * LANES, &slopes, sizeof slopes);
    }
    if (vectors < TILE / LANES) { /* a product of keys may end in the next vector */
        memset(e->weights[i / 2] + vectors * LANES, 0, LANES * sizeof(uint32_t));
        memset(e->turned[i / 2] + vectors * LANES, 0, LANES * sizeof(uint32_t));
    }
}

/* Gradients of one head of keys of one document. */
static void attend_behind(const problem *p, const gradients *g, const document *d, int64_t kv, uint8_t *room) {
    const int64_t wide = padded(p->width), width = p->width, group = p->heads / p->kv_heads;
    const int64_t length = d->stop - d->start, rows = (length + BEHIND - 1) / BEHIND * BEHIND, tiles = tiles_of(d);
    const behind o = divided(p, length, room);
    const float scale = (float)(p->scale * 1.4426950408889634);
    /* lay_keys and lay_values read p's k and v: other tensors are laid out under their names */
    problem values = *p, queries = *p, incoming = *p;
    values.k = p->v, values.k_row = p->v_row, values.k_head = p->v_head, values.k_token = p->v_token;
    values.v = p->k, values.v_row = p->k_row, values.v_head = p->k_head, values.v_token = p->k_token;
    queries.v = p->q, queries.v_row = p->q_row, queries.v_head = p->q_head, queries.v_token = p->q_token;
    incoming.v = g->grad, incoming.v_row = g->row, incoming.v_head = g->head, incoming.v_token = g->token;
    for (int64_t t = 0; t < tiles; t++) {
        lay_keys(p, d, kv, t, o.keys + t * TILE / 2 * width);
        lay_keys(&values, d, kv, t, o.values + t * TILE / 2 * width);
        lay_values(&values, d, kv, t, TILE, o.key_rows + t * TILE / 2 * wide);
    }
    memset(o.dq, 0, (group * rows + TOGETHER) * wide * sizeof(float));
    for (int64_t n = 0; n < group; n++) {
        const int64_t head = kv * group + n;
        for (int64_t b = 0; b < rows / BEHIND; b++) {
            const int64_t at = (n * rows + b * BEHIND) / 2 * wide;
            lay_values(&queries, d, head, b, BEHIND, o.query_rows + at);
            lay_values(&incoming, d, head, b, BEHIND, o.grad_rows + at);
        }
        for (int64_t t = 0; t < length; t++) {
            const uint16_t *grad = g->grad + d->row * g->row + head * g->head + (d->start + t) * g->token;
            const uint16_t *out = p->out + ((d->row * p->length + d->start + t) * p->heads + head) * width;
            f32x16 total = fill(0);
            for (int64_t c = 0; c < width; c += LANES) total += some(grad + c, width - c) * some(out + c, width - c);
            o.share[n * rows + t] = sum(total);
        }
    }
    exchange e;
    memset(&e, 0, sizeof e);
    const uint16_t *weights[KEYS], *turned[KEYS], *slopes[BEHIND];
    for (int64_t i = 0; i < KEYS; i++) {
        weights[i] = (const uint16_t *)(e.weights[0] + i);
        turned[i] = (const uint16_t *)(e.turned[0] + i);
    }
    for (int64_t i = 0; i < BEHIND; i++) slopes[i] = e.rows[i];
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t first = tile * TILE, keys = length - first < TILE ? length - first : TILE;
        const uint32_t *k = o.keys + first / 2 * width, *v = o.values + first / 2 * width;
        memset(o.dk, 0, 2 * KEYS * wide * sizeof(float));
        for (int64_t n = 0; n < group; n++) {
            const int64_t head = kv * group + n;
            const uint16_t *q = p->q + d->row * p->q_row + head * p->q_head + d->start * p->q_token;
            const uint16_t *grad = g->grad + d->row * g->row + head * g->head + d->start * g->token;
            const float *sums = p->sums + (d->row * p->heads + head) * p->length + d->start;
            for (int64_t from = first; from < length; from += BEHIND) {
                const int64_t count = length - from < BEHIND ? length - from : BEHIND;
                const int64_t queries = (count + TOGETHER - 1) / TOGETHER * TOGETHER;
                const int64_t seen = from + count - first < keys ? from + count - first : keys; /* by the last query */
                const int64_t vectors = (seen + LANES - 1) / LANES;
                const int64_t columns = (vectors * LANES + TOGETHER - 1) / TOGETHER * TOGETHER;
                const uint16_t *queries_at[BEHIND], *grads_at[BEHIND];
                for (int64_t i = 0; i < BEHIND; i++) {
                    const int64_t t = from + (i < count ? i : count - 1);
                    queries_at[i] = q + t * p->q_token;
                    grads_at[i] = grad + t * g->token;
                }
                for (int64_t i = 0; i < count; i += TOGETHER) {
                    PRODUCTS[0][vectors - 1](width / 2, queries_at + i, 1, k, TILE, e.scores[i], TILE);
                    PRODUCTS[0][vectors - 1](width / 2, grads_at + i, 1, v, TILE, e.slopes[i], TILE);
                }
                float own[BEHIND] = {0}, share[BEHIND] = {0};
                memcpy(own, sums + from, count * sizeof(float));
                memcpy(share, o.share + n * rows + from, count * sizeof(float));
                for (int64_t i = 0; i < queries; i += 2)
                    slope_pair(&e, i, from + i + 1 - first, count, vectors, scale, own, share);
                const int64_t at = (n * rows + from) / 2 * wide;
                add_product(columns, wide, (count + 1) / 2, weights, TILE + 2, o.grad_rows + at, o.dv);
                add_product(columns, wide, (count + 1) / 2, turned, TILE + 2, o.query_rows + at, o.dk);
                add_product(queries, wide, vectors * LANES / 2, slopes, 1, o.key_rows + first / 2 * wide,
                            o.dq + (n * rows + from) * wide);
            }
        }
        for (int64_t i = 0; i < keys; i++) {
            const int64_t at = ((d->row * p->length + d->start + first + i) * p->kv_heads + kv) * width;
            put_row(o.dk + i * wide, (float)p->scale, width, g->dk + at);
            put_row(o.dv + i * wide, 1, width, g->dv + at);
        }
    }
    for (int64_t n = 0; n < group; n++)
        for (int64_t t = 0; t < length; t++)
            put_row(o.dq + (n * rows + t) * wide, (float)p->scale, width,
                    g->dq + ((d->row * p->length + d->start + t) * p->heads + kv * group + n) * width);
}

/* Bytes of memory that the backward needs for documents of up to ``longest`` tokens; 0 where this processor cannot. */
int64_t limbeck_attend_backward_room(const problem *p, int64_t longest, int64_t threads) {
    return behind_bytes(p, longest) * threads;
}

/* The gradients of every document; ``p`` as in the forward, with its out and sums. */
void limbeck_attend_backward(const problem *p, const gradients *g, int64_t count, const document *documents,
                             int64_t longest, uint8_t *room, int64_t threads) {
    const int64_t each = behind_bytes(p, longest);
#pragma omp parallel num_threads((int)threads)
    {
        uint8_t *own = room + omp_get_thread_num() * each;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count * p->kv_heads; i++)
            attend_behind(p, g, documents + i / p->kv_heads, i % p->kv_heads, own);
    }
}

#else

typedef struct problem problem;
typedef struct gradients gradients;
typedef struct document document;

int64_t limbeck_attend_room(const problem *p, int64_t tiles, int64_t threads) {
    (void)p, (void)tiles, (void)threads;
    return 0;
}

void limbeck_attend(const problem *p, int64_t count, const document *documents, uint8_t *room, int64_t threads) {
    (void)p, (void)count, (void)documents, (void)room, (void)threads;
}

int64_t limbeck_attend_backward_room(const problem *p, int64_t longest, int64_t threads) {
    (void)p, (void)longest, (void)threads;
    return 0;
}

void limbeck_attend_backward(const problem *p, const gradients *g, int64_t count, const document *documents,
                             int64_t longest, uint8_t *room, int64_t threads) {
    (void)p, (void)g, (void)count, (void)documents, (void)longest, (void)room, (void)threads;
}

#endif
