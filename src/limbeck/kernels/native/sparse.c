/* Attention over sinks, bands of distances and single distances, fp32, forward and backward: what kernels/sparse.py says
 * in torch, without its copies. Work and memory grow with the keys that are seen, never with the square of the length.
 *
 * A block is sixteen queries of one head, one query a lane. A band of many distances is read key by key: its score with
 * all sixteen queries is one row of lanes, and where the band does not reach a query the score is -inf. A band of few
 * distances is read as diagonals: sixteen dot products of a query and the key that far behind. Scores of a block are kept
 * (slots, 16) until its softmax is known; the backward computes them again from the forward's log-sums and walks the
 * blocks of one key head one after the other, so that key and value gradients need no locks.
 */
#include "vectors.h"

#include <omp.h>

#define BLOCK 16 /* queries of a block: one or two vectors */
#define NARROW 16 /* a band of fewer distances is cheaper as diagonals */
#define PARTS (BLOCK / LANES)
#define KEYS 4 /* keys that share a walk over the queries' columns */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vec get(const float *p) { return *(const vec *)p; }
INLINE void put(float *p, vec v) { *(vec *)p = v; }
INLINE vec all(float x) { return x - (vec){0}; }

/* Tensors (B, H or KV, T, D) by strides in floats, D contiguous and a multiple of 16. out, dq, dk, dv: (B, T, heads, D). */
typedef struct {
    int64_t heads, kv_heads, length, width; /* length: T */
    int64_t q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token, s_row, s_head, s_token;
    const float *q, *k, *v, *s; /* s: queries as sinks see them, or none: q */
    float *out, *sums;          /* sums: (B, H, T) log of the sum of exponentials */
    double scale;
    int64_t sinks, bands;
    const int64_t *band; /* (bands, 2): from a distance, below another */
} problem;

/* Gradients of out by strides, and of sums (B, H, T) or none; dq, dk, dv, ds to fill, dk and dv with zeros at the start. */
typedef struct {
    int64_t row, head, token;
    const float *out, *sums;
    float *dq, *dk, *dv, *ds;
} gradients;

typedef struct {
    int64_t row, start, stop;
} document;

/* Keys from one on (a band), or those at one distance (a diagonal, keys 0); first slot of their scores. */
typedef struct {
    int64_t key, keys, distance, slot, low, high, sink;
} piece;

/* Slots of scores and pieces that a block needs at most. */
static void most(const problem *p, int64_t *slots, int64_t *pieces) {
    *slots = p->sinks;
    *pieces = 1;
    for (int64_t b = 0; b < p->bands; b++) {
        const int64_t wide = p->band[2 * b + 1] - p->band[2 * b];
        *slots += wide < NARROW ? wide : wide + BLOCK - 1;
        *pieces += wide < NARROW ? wide : 1;
    }
}

/* What queries from..from + count - 1 of a document see, as pieces; returns their number. */
static int64_t divide(const problem *p, int64_t from, int64_t count, piece *to, int64_t *slots) {
    int64_t n = 0, slot = 0;
    if (p->sinks) {
        const int64_t keys = p->sinks < from + count ? p->sinks : from + count;
        to[n++] = (piece){0, keys, 0, slot, 0, 0, 1};
        slot += keys;
    }
    for (int64_t b = 0; b < p->bands; b++) {
        const int64_t low = p->band[2 * b], high = p->band[2 * b + 1], last = from + count - 1;
        if (high - low < NARROW) {
            for (int64_t d = low; d < high && last - d >= p->sinks; d++) to[n++] = (piece){0, 0, d, slot++, 0, 0, 0};
            continue;
        }
        const int64_t first = from - high + 1 > p->sinks ? from - high + 1 : p->sinks, end = last - low + 1;
        if (end <= first) continue;
        to[n++] = (piece){first, end - first, 0, slot, low, high, 0};
        slot += end - first;
    }
    *slots = slot;
    return n;
}

/* Memory of one thread. Columns are (D, 16), a query a lane; rows are (16, D). */
typedef struct {
    float *q, *s, *out, *outs; /* columns: queries times the scale, as sinks see them; sums of the result, of sinks' gradient */
    float *rows, *row_s, *grad, *grads, *sum; /* queries, as sinks see them, gradient of the result; its columns; row sums */
    float *scores, *slopes;
    piece *pieces;
} memory;

static int64_t floats_of(const problem *p) {
    int64_t slots, pieces;
    most(p, &slots, &pieces);
    const int64_t bytes = 9 * BLOCK * p->width * 4 + 2 * slots * BLOCK * 4 + pieces * (int64_t)sizeof(piece);
    return (bytes + 63) / 64 * 16;
}

static memory divided(const problem *p, float *room) {
    int64_t slots, pieces;
    most(p, &slots, &pieces);
    const int64_t each = BLOCK * p->width;
    memory m;
    m.q = room, m.s = m.q + each, m.out = m.s + each, m.outs = m.out + each, m.rows = m.outs + each;
    m.row_s = m.rows + each, m.grad = m.row_s + each, m.grads = m.grad + each, m.sum = m.grads + each;
    m.scores = m.sum + each, m.slopes = m.scores + slots * BLOCK;
    m.pieces = (piece *)(m.slopes + slots * BLOCK);
    return m;
}

/* Copy rows of a tensor, zeros past count, and their transpose times a factor. */
static void take(const float *from, int64_t token, int64_t count, int64_t width, float factor, float *rows, float *columns) {
    for (int64_t i = 0; i < BLOCK; i++) {
        if (i < count) memcpy(rows + i * width, from + i * token, width * sizeof(float));
        else memset(rows + i * width, 0, width * sizeof(float));
    }
    for (int64_t c = 0; c < width; c++)
        for (int64_t i = 0; i < BLOCK; i++) columns[c * BLOCK + i] = rows[i * width + c] * factor;
}

/* scores (n, 16): products of the columns (D, 16) with n rows. */
static void score_keys(const float *columns, int64_t width, const float *rows, int64_t token, int64_t n, float *scores) {
    for (int64_t j = 0; j < n; j += KEYS) {
        const float *r[KEYS];
        vec sum[KEYS][PARTS];
        UNROLL
        for (int i = 0; i < KEYS; i++) {
            r[i] = rows + (j + i < n ? j + i : n - 1) * token; /* past the end the last one again */
            UNROLL
            for (int o = 0; o < PARTS; o++) sum[i][o] = all(0);
        }
        for (int64_t c = 0; c < width; c++) {
            vec column[PARTS];
            UNROLL
            for (int o = 0; o < PARTS; o++) column[o] = get(columns + c * BLOCK + o * LANES);
            UNROLL
            for (int i = 0; i < KEYS; i++) {
                const vec x = all(r[i][c]);
                UNROLL
                for (int o = 0; o < PARTS; o++) sum[i][o] += x * column[o];
            }
        }
        UNROLL
        for (int i = 0; i < KEYS; i++)
            if (j + i < n) {
                UNROLL
                for (int o = 0; o < PARTS; o++) put(scores + (j + i) * BLOCK + o * LANES, sum[i][o]);
            }
    }
}

/* columns (D, 16) += sum over n rows of weights (n, 16) times the row. */
static void add_keys(const float *weights, int64_t n, const float *rows, int64_t token, int64_t width, float *columns) {
    int64_t j = 0;
    for (; j + KEYS <= n; j += KEYS) {
        vec w[KEYS][PARTS];
        UNROLL
        for (int i = 0; i < KEYS; i++) {
            UNROLL
            for (int o = 0; o < PARTS; o++) w[i][o] = get(weights + (j + i) * BLOCK + o * LANES);
        }
        const float *r = rows + j * token;
        for (int64_t c = 0; c < width; c++) {
            UNROLL
            for (int o = 0; o < PARTS; o++) {
                vec sum = get(columns + c * BLOCK + o * LANES);
                UNROLL
                for (int i = 0; i < KEYS; i++) sum += w[i][o] * all(r[i * token + c]);
                put(columns + c * BLOCK + o * LANES, sum);
            }
        }
    }
    for (; j < n; j++)
        for (int64_t c = 0; c < width; c++) {
            const vec x = all(rows[j * token + c]);
            UNROLL
            for (int o = 0; o < PARTS; o++) {
                float *to = columns + c * BLOCK + o * LANES;
                put(to, get(to) + x * get(weights + j * BLOCK + o * LANES));
            }
        }
}

/* n rows, `token` apart, += sum over the sixteen queries of weights (n, 16) times their rows (16, D). */
static void add_queries(const float *weights, int64_t n, const float *rows, int64_t width, float *to, int64_t token) {
    for (int64_t j = 0; j < n; j++)
        for (int64_t c = 0; c < width; c += 16) {
            vec sum[PARTS];
            float *at = to + j * token + c;
            UNROLL
            for (int o = 0; o < PARTS; o++) sum[o] = get(at + o * LANES);
            UNROLL
            for (int i = 0; i < BLOCK; i++) {
                const vec w = all(weights[j * BLOCK + i]);
                UNROLL
                for (int o = 0; o < PARTS; o++) sum[o] += w * get(rows + i * width + c + o * LANES);
            }
            UNROLL
            for (int o = 0; o < PARTS; o++) put(at + o * LANES, sum[o]);
        }
}

INLINE float dot(const float *x, const float *y, int64_t width) {
    vec sum[PARTS];
    for (int o = 0; o < PARTS; o++) sum[o] = all(0);
    for (int64_t c = 0; c < width; c += 16) {
        UNROLL
        for (int o = 0; o < PARTS; o++) sum[o] += get(x + c + o * LANES) * get(y + c + o * LANES);
    }
    float total = 0;
    for (int o = 1; o < PARTS; o++) sum[0] += sum[o];
    for (int i = 0; i < LANES; i++) total += sum[0][i];
    return total;
}

INLINE void add_row(float w, const float *x, float *y, int64_t width) {
    for (int64_t c = 0; c < width; c += LANES) put(y + c, get(y + c) + all(w) * get(x + c));
}

/* Does query i of a block from `from` see the key at slot j of a band? */
INLINE int seen(const problem *p, const piece *o, int64_t from, int64_t i, int64_t j) {
    const int64_t away = from + i - (o->key + j);
    return o->sink ? away >= 0 : away >= o->low && away < o->high;
}

/* Products of all pieces of a block with its queries (what = 0: queries and keys, else gradients of out and values). */
static void products(const problem *p, const memory *m, int64_t n, int64_t from, int64_t count, int what,
                     const float *base, int64_t token, float *to) {
    const float factor = what ? 1 : (float)p->scale, *rows = what ? m->grad : m->rows;
    for (int64_t a = 0; a < n; a++) {
        const piece *o = m->pieces + a;
        float *x = to + o->slot * BLOCK;
        if (o->keys) {
            score_keys(what ? m->grads : o->sink ? m->s : m->q, p->width, base + o->key * token, token, o->keys, x);
            continue;
        }
        for (int64_t i = 0; i < BLOCK; i++) {
            const int64_t key = from + i - o->distance;
            x[i] = i < count && key >= p->sinks ? dot(rows + i * p->width, base + key * token, p->width) * factor : 0;
        }
    }
}

/* -inf over what is not seen. */
static void hide(const problem *p, const memory *m, int64_t n, int64_t from) {
    for (int64_t a = 0; a < n; a++) {
        const piece *o = m->pieces + a;
        float *x = m->scores + o->slot * BLOCK;
        if (!o->keys) {
            for (int64_t i = 0; i < BLOCK; i++)
                if (from + i - o->distance < p->sinks) x[i] = -INFINITY;
            continue;
        }
        for (int64_t j = 0; j < o->keys; j++) {
            if (seen(p, o, from, 0, j) && seen(p, o, from, BLOCK - 1, j)) continue;
            for (int64_t i = 0; i < BLOCK; i++)
                if (!seen(p, o, from, i, j)) x[j * BLOCK + i] = -INFINITY;
        }
    }
}

/* Take a block's queries in, and the scores of what they see; returns the number of pieces. */
static int64_t begin(const problem *p, const document *d, int64_t head, int64_t from, int64_t count, const memory *m,
                     int64_t *slots) {
    const int64_t kv = head / (p->heads / p->kv_heads), t = d->start + from;
    const float *k = p->k + d->row * p->k_row + kv * p->k_head + d->start * p->k_token;
    take(p->q + d->row * p->q_row + head * p->q_head + t * p->q_token, p->q_token, count, p->width, (float)p->scale,
         m->rows, m->q);
    if (p->s && p->sinks)
        take(p->s + d->row * p->s_row + head * p->s_head + t * p->s_token, p->s_token, count, p->width,
             (float)p->scale, m->row_s, m->s);
    else if (p->sinks) memcpy(m->s, m->q, BLOCK * p->width * sizeof(float));
    const int64_t n = divide(p, from, count, m->pieces, slots);
    products(p, m, n, from, count, 0, k, p->k_token, m->scores);
    hide(p, m, n, from);
    return n;
}

/* Add columns (D, 16), transposed, to rows, times a factor a row, and write them. */
static void finish(const float *columns, const float *rows, const float *factor, int64_t count, int64_t width, float *to,
                   int64_t token) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t c = 0; c < width; c++)
            to[i * token + c] = (columns[c * BLOCK + i] + rows[i * width + c]) * (factor ? factor[i] : 1);
}

static void attend_block(const problem *p, const document *d, int64_t head, int64_t from, const memory *m) {
    const int64_t length = d->stop - d->start, count = length - from < BLOCK ? length - from : BLOCK, w = p->width;
    const int64_t kv = head / (p->heads / p->kv_heads), each = p->heads * w;
    int64_t slots;
    const int64_t n = begin(p, d, head, from, count, m, &slots);
    float share[BLOCK], top[BLOCK];
    for (int h = 0; h < BLOCK; h += LANES) {
        vfloat most = fill(-INFINITY), total = fill(0);
        for (int64_t j = 0; j < slots; j++) {
            const vfloat x = load(m->scores + j * BLOCK + h);
            most = pick(x > most, x, most);
        }
        for (int64_t j = 0; j < slots; j++) {
            const vfloat e = exponential(load(m->scores + j * BLOCK + h) - most);
            store(m->scores + j * BLOCK + h, e);
            total += e;
        }
        store(share + h, 1 / total);
        store(top + h, most);
    }
    const float *v = p->v + d->row * p->v_row + kv * p->v_head + d->start * p->v_token;
    memset(m->out, 0, BLOCK * w * sizeof(float));
    memset(m->sum, 0, BLOCK * w * sizeof(float));
    for (int64_t a = 0; a < n; a++) {
        const piece *o = m->pieces + a;
        const float *x = m->scores + o->slot * BLOCK;
        if (o->keys) add_keys(x, o->keys, v + o->key * p->v_token, p->v_token, w, m->out);
        else
            for (int64_t i = 0; i < count; i++)
                if (from + i - o->distance >= p->sinks)
                    add_row(x[i], v + (from + i - o->distance) * p->v_token, m->sum + i * w, w);
    }
    const int64_t t = d->start + from;
    finish(m->out, m->sum, share, count, w, p->out + (d->row * p->length + t) * each + head * w, each);
    if (p->sums)
        for (int64_t i = 0; i < count; i++)
            p->sums[(d->row * p->heads + head) * p->length + t + i] = top[i] - logf(share[i]);
}

static void attend_backward_block(const problem *p, const gradients *g, const document *d, int64_t head, int64_t from,
                                  const memory *m) {
    const int64_t length = d->stop - d->start, count = length - from < BLOCK ? length - from : BLOCK, w = p->width;
    const int64_t kv = head / (p->heads / p->kv_heads), each = p->heads * w, kv_each = p->kv_heads * w;
    const int64_t t = d->start + from, at = (d->row * p->heads + head) * p->length + t;
    const float *k = p->k + d->row * p->k_row + kv * p->k_head + d->start * p->k_token;
    const float *v = p->v + d->row * p->v_row + kv * p->v_head + d->start * p->v_token;
    float *dk = g->dk + (d->row * p->length + d->start) * kv_each + kv * w;
    float *dv = g->dv + (d->row * p->length + d->start) * kv_each + kv * w;
    const float *out = p->out + (d->row * p->length + t) * each + head * w;
    int64_t slots;
    take(g->out + d->row * g->row + head * g->head + t * g->token, g->token, count, w, 1, m->grad, m->grads);
    const int64_t n = begin(p, d, head, from, count, m, &slots);
    float off[BLOCK] = {0}, sums[BLOCK];
    for (int64_t i = 0; i < BLOCK; i++) {
        sums[i] = i < count ? p->sums[at + i] : INFINITY; /* rows past the end weigh nothing */
        if (i < count) off[i] = dot(m->grad + i * w, out + i * each, w) - (g->sums ? g->sums[at + i] : 0);
    }
    products(p, m, n, from, count, 1, v, p->v_token, m->slopes);
    for (int64_t j = 0; j < slots; j++)
        for (int h = 0; h < BLOCK; h += LANES) {
            const vfloat e = exponential(load(m->scores + j * BLOCK + h) - load(sums + h));
            store(m->scores + j * BLOCK + h, e);
            store(m->slopes + j * BLOCK + h, e * (load(m->slopes + j * BLOCK + h) - load(off + h)) * (float)p->scale);
        }
    memset(m->out, 0, BLOCK * w * sizeof(float));
    memset(m->outs, 0, BLOCK * w * sizeof(float));
    memset(m->sum, 0, BLOCK * w * sizeof(float));
    for (int64_t a = 0; a < n; a++) {
        const piece *o = m->pieces + a;
        const float *x = m->scores + o->slot * BLOCK, *y = m->slopes + o->slot * BLOCK;
        if (o->keys) {
            const int apart = p->s && o->sink;
            add_keys(y, o->keys, k + o->key * p->k_token, p->k_token, w, apart ? m->outs : m->out);
            add_queries(y, o->keys, apart ? m->row_s : m->rows, w, dk + o->key * kv_each, kv_each);
            add_queries(x, o->keys, m->grad, w, dv + o->key * kv_each, kv_each);
            continue;
        }
        for (int64_t i = 0; i < count; i++) {
            const int64_t key = from + i - o->distance;
            if (key < p->sinks) continue;
            add_row(y[i], k + key * p->k_token, m->sum + i * w, w);
            add_row(y[i], m->rows + i * w, dk + key * kv_each, w);
            add_row(x[i], m->grad + i * w, dv + key * kv_each, w);
        }
    }
    finish(m->out, m->sum, 0, count, w, g->dq + (d->row * p->length + t) * each + head * w, each);
    if (p->s && g->ds) {
        memset(m->sum, 0, BLOCK * w * sizeof(float));
        finish(m->outs, m->sum, 0, count, w, g->ds + (d->row * p->length + t) * each + head * w, each);
    }
}

/* Floats of memory that a call needs. */
int64_t limbeck_sparse_room(const problem *p, int64_t threads) { return threads * floats_of(p); }

/* Documents must not overlap; what lies in none is left alone. */
void limbeck_sparse(const problem *p, int64_t count, const document *documents, float *room, int64_t threads) {
#pragma omp parallel num_threads((int)threads)
    {
        const memory m = divided(p, room + omp_get_thread_num() * floats_of(p));
        for (int64_t n = 0; n < count; n++) {
            const document *d = documents + n;
            const int64_t blocks = (d->stop - d->start + BLOCK - 1) / BLOCK;
#pragma omp for schedule(dynamic, 16) nowait
            for (int64_t i = 0; i < p->heads * blocks; i++)
                attend_block(p, d, i / blocks, i % blocks * BLOCK, &m);
        }
    }
}

/* One thread walks all queries of a key head of a document. */
void limbeck_sparse_backward(const problem *p, const gradients *g, int64_t count, const document *documents, float *room,
                             int64_t threads) {
    const int64_t group = p->heads / p->kv_heads;
#pragma omp parallel num_threads((int)threads)
    {
        const memory m = divided(p, room + omp_get_thread_num() * floats_of(p));
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count * p->kv_heads; i++) {
            const document *d = documents + i / p->kv_heads;
            const int64_t first = i % p->kv_heads * group;
            for (int64_t head = first; head < first + group; head++)
                for (int64_t from = 0; from < d->stop - d->start; from += BLOCK)
                    attend_backward_block(p, g, d, head, from, &m);
        }
    }
}
