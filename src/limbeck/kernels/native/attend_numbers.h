/* The passes of attend.c for one kind of numbers: HALF chooses bf16 or fp32, NAME ends every name.
 *
 * Laid out, numbers are words of four bytes: one of fp32, or GROUP = 2 of bf16 that a product takes together. */
#if HALF
#define GROUP 2
#define NUMBER uint16_t
#else
#define GROUP 1
#define NUMBER float
#endif

/* Keys of one tile, (width / GROUP, TILE) words: past the end zeros. */
static void NAME(lay_keys)(const problem *p, const document *d, int64_t head, int64_t tile, uint32_t *to) {
    const NUMBER *k = (const NUMBER *)p->k + d->row * p->k_row + head * p->k_head;
    const int64_t words = p->width / GROUP;
    for (int64_t from = 0; from < TILE; from += LANES)
        for (int64_t c = 0; c < words; c += LANES) {
            const int64_t count = words - c < LANES ? words - c : LANES;
            vuint v[LANES];
            UNROLL
            for (int i = 0; i < LANES; i++) {
                const int64_t t = d->start + tile * TILE + from + i;
                v[i] = (vuint){0};
                if (t < d->stop) v[i] = (vuint)read_some(0, (const uint8_t *)(k + t * p->k_token + GROUP * c), 0, count);
            }
            transpose(v);
            UNROLL
            for (int i = 0; i < LANES; i++)
                if (i < count) memcpy(to + (c + i) * TILE + from, &v[i], sizeof v[i]);
        }
}

/* Values of one tile of `size`, (size / GROUP, padded width) words of neighbouring keys: past the end zeros. */
static void NAME(lay_values)(const problem *p, const document *d, int64_t head, int64_t tile, int64_t size,
                             uint32_t *to) {
    const NUMBER *v = (const NUMBER *)p->v + d->row * p->v_row + head * p->v_head;
    const int64_t wide = padded(p->width);
    for (int64_t j = 0; j < size / GROUP; j++)
        for (int64_t c = 0; c < wide; c += LANES) {
            const int64_t left = p->width - c, t = d->start + tile * size + GROUP * j;
            const uint8_t *at = (const uint8_t *)(v + t * p->v_token + c);
            vuint word = {0};
#if HALF /* a bf16 is the upper half of its fp32 */
            if (t < d->stop) word = (vuint)read_some(1, at, 0, left) >> 16;
            if (t + 1 < d->stop) word |= (vuint)read_some(1, at + 2 * p->v_token, 0, left);
#else
            if (t < d->stop) word = (vuint)read_some(0, at, 0, left);
#endif
            memcpy(to + j * wide + c, &word, sizeof word);
        }
}

/* (TOGETHER, n vectors) sums of words broadcast from x[i], ldx a step, by what lies at y, ldy a step; added to, or new. */
INLINE void NAME(product)(int n, int add, int64_t steps, const NUMBER *const *x, int64_t ldx, const uint32_t *y,
                          int64_t ldy, float *to, int64_t ldt) {
    vfloat sum[TOGETHER][VECTORS];
    UNROLL
    for (int i = 0; i < TOGETHER; i++)
        UNROLL
        for (int j = 0; j < n; j++) sum[i][j] = add ? load(to + i * ldt + j * LANES) : fill(0);
    for (int64_t s = 0; s < steps; s++) {
        vfloat column[VECTORS];
        UNROLL
        for (int j = 0; j < n; j++) column[j] = load((const float *)(y + s * ldy + j * LANES));
        UNROLL
        for (int i = 0; i < TOGETHER; i++) {
#if HALF
            int32_t pair;
            memcpy(&pair, x[i] + 2 * ldx * s, 4);
            UNROLL
            for (int j = 0; j < n; j++)
                sum[i][j] = (vfloat)_mm512_dpbf16_ps((__m512)sum[i][j], (__m512bh)fill_int(pair), (__m512bh)column[j]);
#else
            const float one = x[i][ldx * s];
            UNROLL
            for (int j = 0; j < n; j++) sum[i][j] += one * column[j];
#endif
        }
    }
    UNROLL
    for (int i = 0; i < TOGETHER; i++)
        UNROLL
        for (int j = 0; j < n; j++) store(to + i * ldt + j * LANES, sum[i][j]);
}

typedef void NAME(product_of)(int64_t, const NUMBER *const *, int64_t, const uint32_t *, int64_t, float *, int64_t);
#define ONE(N, ADD)                                                                                                    \
    static __attribute__((noinline)) void NAME(product_##N##_##ADD)(                                                   \
        int64_t steps, const NUMBER *const *x, int64_t ldx, const uint32_t *y, int64_t ldy, float *to, int64_t ldt) {  \
        NAME(product)(N, ADD, steps, x, ldx, y, ldy, to, ldt);                                                         \
    }
ONE(1, 0) ONE(2, 0) ONE(1, 1) ONE(2, 1)
#if VECTORS == 4
ONE(3, 0) ONE(4, 0) ONE(3, 1) ONE(4, 1)
static NAME(product_of) *const NAME(PRODUCTS)[2][VECTORS] = {
    {NAME(product_1_0), NAME(product_2_0), NAME(product_3_0), NAME(product_4_0)},
    {NAME(product_1_1), NAME(product_2_1), NAME(product_3_1), NAME(product_4_1)}};
#else
static NAME(product_of) *const NAME(PRODUCTS)[2][VECTORS] = {{NAME(product_1_0), NAME(product_2_0)},
                                                             {NAME(product_1_1), NAME(product_2_1)}};
#endif
#undef ONE

/* (rows, TILE) new sums, the first `vectors` of each row. Rows are a multiple of TOGETHER. */
static void NAME(new_product)(int64_t rows, int64_t vectors, int64_t steps, const NUMBER *const *x, const uint32_t *y,
                              float *to) {
    for (int64_t i = 0; i < rows; i += TOGETHER)
        for (int64_t j = 0; j < vectors; j += VECTORS) {
            const int64_t n = vectors - j < VECTORS ? vectors - j : VECTORS;
            NAME(PRODUCTS)[0][n - 1](steps, x + i, 1, y + j * LANES, TILE, to + i * TILE + j * LANES, TILE);
        }
}

/* (rows, width) sums added to by ``steps`` words: every vector of the width in turn. Rows are a multiple of TOGETHER. */
static void NAME(add_product)(int64_t rows, int64_t wide, int64_t steps, const NUMBER *const *x, int64_t ldx,
                              const uint32_t *y, float *to) {
    for (int64_t i = 0; i < rows; i += TOGETHER)
        for (int64_t c = 0; c < wide; c += VECTORS * LANES) {
            const int64_t n = wide - c < VECTORS * LANES ? (wide - c) / LANES : VECTORS;
            NAME(PRODUCTS)[1][n - 1](steps, x + i, ldx, y + c, wide, to + i * wide + c, wide);
        }
}

/* One row of sums times a factor, rounded. */
INLINE void NAME(put_row)(const float *from, float factor, int64_t width, NUMBER *to) {
    for (int64_t c = 0; c < width; c += LANES)
        write_some(HALF, (uint8_t *)to, c, width - c, load(from + c) * factor);
}

/* What a block of queries knows of itself; maxima are of scores times log2(e). */
typedef struct {
    float scores[QUERIES][TILE];
    NUMBER weights[QUERIES][TILE];
    float most[QUERIES], total[QUERIES];
} NAME(block);

/* Scores of query i to weights; `seen` keys of the tile are seen. The sums in `read` shrink to the new maximum. */
INLINE void NAME(weigh)(NAME(block) *o, int64_t i, int64_t seen, int64_t vectors, float scale, float *read, int64_t wide) {
    vfloat s[TILE / LANES], most = fill(-INFINITY);
    for (int64_t j = 0; j < vectors; j++) {
        s[j] = load(o->scores[i] + j * LANES) * scale;
        const int64_t left = seen - j * LANES;
        if (left < LANES) s[j] = pick(first_lanes(left), s[j], fill(-INFINITY));
        most = maximum(most, s[j]);
    }
    const float largest = largest_lane(most), before = o->most[i];
    if (largest > before) {
        const float shrink = power(fill(before - largest), HALF)[0];
        o->most[i] = largest;
        o->total[i] *= shrink;
        for (int64_t c = 0; c < wide; c += LANES) store(read + c, load(read + c) * shrink);
    }
    vfloat total = fill(0);
    for (int64_t j = 0; j < vectors; j++) {
        const vfloat w = power(s[j] - o->most[i], HALF);
        total += w;
        write_some(HALF, (uint8_t *)o->weights[i], j * LANES, LANES, w);
    }
    o->total[i] += sum(total);
}

/* A block of queries of one head, from its place in the document on. */
static void NAME(attend_block)(const problem *p, const document *d, int64_t head, int64_t from, const uint32_t *keys,
                         const uint32_t *values, float *read) {
    NAME(block) o;
    const int64_t wide = padded(p->width), length = d->stop - d->start;
    const int64_t count = length - from < QUERIES ? length - from : QUERIES;
    const int64_t group = p->heads / p->kv_heads, kv = head / group, each = tiles_of(d);
    const NUMBER *q = (const NUMBER *)p->q + d->row * p->q_row + head * p->q_head + (d->start + from) * p->q_token;
    const NUMBER *rows[QUERIES], *weights[QUERIES];
    for (int64_t i = 0; i < QUERIES; i++) {
        rows[i] = q + (i < count ? i : count - 1) * p->q_token; /* past the end the last one again */
        weights[i] = o.weights[i];
        o.most[i] = -INFINITY;
        o.total[i] = 0;
    }
    const float scale = (float)(p->scale * 1.4426950408889634);
    memset(read, 0, QUERIES * wide * sizeof(float));
    keys += (d->tile * p->kv_heads + kv * each) * (p->width / GROUP) * TILE;
    values += (d->tile * p->kv_heads + kv * each) * (TILE / GROUP) * wide;
    for (int64_t tile = 0; tile * TILE < from + count; tile++) {
        const int64_t first = tile * TILE, last = from + count - first; /* keys of the tile seen by the last query */
        const int64_t vectors = last >= TILE ? TILE / LANES : (last + LANES - 1) / LANES;
        const uint32_t *k = keys + tile * (p->width / GROUP) * TILE, *v = values + tile * (TILE / GROUP) * wide;
        const int64_t queries = (count + TOGETHER - 1) / TOGETHER * TOGETHER;
        NAME(new_product)(queries, vectors, p->width / GROUP, rows, k, o.scores[0]);
        for (int64_t i = 0; i < count; i++) {
            const int64_t seen = from + i + 1 - first;
            NAME(weigh)(&o, i, seen < TILE ? seen : TILE, vectors, scale, read + i * wide, wide);
        }
        NAME(add_product)(queries, wide, vectors * LANES / GROUP, weights, 1, v, read);
    }
    for (int64_t i = 0; i < count; i++) {
        const int64_t t = d->start + from + i;
        NAME(put_row)(read + i * wide, 1 / o.total[i], p->width,
                      (NUMBER *)p->out + ((d->row * p->length + t) * p->heads + head) * p->width);
        if (p->sums) p->sums[(d->row * p->heads + head) * p->length + t] = o.most[i] + log2f(o.total[i]);
    }
}

/* Up to LANES numbers, zeros behind them. */
INLINE vfloat NAME(some)(const NUMBER *p, int64_t left) { return read_some(HALF, (const uint8_t *)p, 0, left); }

/* Memory of one thread for one head of keys in the backward, all of it for a document of some length. */
typedef struct {
    uint32_t *keys, *values, *key_rows, *query_rows, *grad_rows; /* laid out as lay_keys or lay_values do */
    float *dq, *dk, *dv, *share;                                 /* share: what softmax's gradient takes off, a query */
} NAME(behind);

static int64_t NAME(behind_bytes)(const problem *p, int64_t longest) {
    const int64_t wide = padded(p->width), group = p->heads / p->kv_heads;
    const int64_t tiles = (longest + TILE - 1) / TILE * TILE, rows = (longest + BEHIND - 1) / BEHIND * BEHIND;
    const int64_t laid = tiles * (2 * p->width + wide) + group * rows * wide * 2;
    return ((laid * (4 / GROUP) + (group * rows * (wide + 1) + (TOGETHER + 2 * KEYS) * wide) * 4) + 63) / 64 * 64;
}

static NAME(behind) NAME(divided)(const problem *p, int64_t length, uint8_t *room) {
    const int64_t wide = padded(p->width), group = p->heads / p->kv_heads;
    const int64_t tiles = (length + TILE - 1) / TILE * TILE, rows = (length + BEHIND - 1) / BEHIND * BEHIND;
    NAME(behind) o;
    o.dq = (float *)room;
    o.dk = o.dq + (group * rows + TOGETHER) * wide; /* the last product of queries may end past the last */
    o.dv = o.dk + KEYS * wide;
    o.keys = (uint32_t *)(o.dv + KEYS * wide);
    o.values = o.keys + tiles / GROUP * p->width;
    o.key_rows = o.values + tiles / GROUP * p->width;
    o.query_rows = o.key_rows + tiles / GROUP * wide;
    o.grad_rows = o.query_rows + group * rows / GROUP * wide;
    o.share = (float *)(o.grad_rows + group * rows / GROUP * wide);
    return o;
}

/* What one block of queries and one tile of keys exchange. */
typedef struct {
    float scores[BEHIND][TILE], slopes[BEHIND][TILE];
    NUMBER rows[BEHIND][TILE]; /* gradients of scores, for dq */
    uint32_t weights[BEHIND / GROUP][TILE + 2], turned[BEHIND / GROUP][TILE + 2]; /* weights, and the gradients: words */
} NAME(exchange);

/* Scores and gradients of weights of GROUP queries to weights and gradients of scores; those past `seen` keys are 0. */
INLINE void NAME(slopes_of)(NAME(exchange) *e, int64_t i, int64_t seen, int64_t count, int64_t vectors, float scale,
                            const float *sums, const float *share) {
    for (int64_t j = 0; j < vectors; j++) {
        vuint weights = {0}, slopes = {0};
        for (int h = 0; h < GROUP; h++) {
            const vint keep = first_lanes(i + h < count ? seen + h - j * LANES : 0);
            vfloat w = power(load(e->scores[i + h] + j * LANES) * scale - sums[i + h], HALF);
            w = pick(keep, w, fill(0));
            const vfloat g = pick(keep, w * (load(e->slopes[i + h] + j * LANES) - share[i + h]), fill(0));
#if HALF
            const vhalf narrow = to_bf16(g);
            memcpy(e->rows[i + h] + j * LANES, &narrow, sizeof narrow);
            weights |= widen_halves(to_bf16(w)) << (16 * h);
            slopes |= widen_halves(narrow) << (16 * h);
#else
            store(e->rows[i] + j * LANES, g);
            weights = (vuint)w;
            slopes = (vuint)g;
#endif
        }
        memcpy(e->weights[i / GROUP] + j * LANES, &weights, sizeof weights);
        memcpy(e->turned[i / GROUP] + j * LANES, &slopes, sizeof slopes);
    }
    if (vectors < TILE / LANES) { /* a product of keys may end in the next vector */
        memset(e->weights[i / GROUP] + vectors * LANES, 0, LANES * sizeof(uint32_t));
        memset(e->turned[i / GROUP] + vectors * LANES, 0, LANES * sizeof(uint32_t));
    }
}

/* Gradients of one head of keys of one document. */
static void NAME(attend_behind)(const problem *p, const gradients *g, const document *d, int64_t kv, uint8_t *room) {
    const int64_t wide = padded(p->width), width = p->width, group = p->heads / p->kv_heads;
    const int64_t length = d->stop - d->start, rows = (length + BEHIND - 1) / BEHIND * BEHIND, tiles = tiles_of(d);
    const NAME(behind) o = NAME(divided)(p, length, room);
    const float scale = (float)(p->scale * 1.4426950408889634);
    /* lay_keys and lay_values read p's k and v: other tensors are laid out under their names */
    problem values = *p, queries = *p, incoming = *p;
    values.k = p->v, values.k_row = p->v_row, values.k_head = p->v_head, values.k_token = p->v_token;
    values.v = p->k, values.v_row = p->k_row, values.v_head = p->k_head, values.v_token = p->k_token;
    queries.v = p->q, queries.v_row = p->q_row, queries.v_head = p->q_head, queries.v_token = p->q_token;
    incoming.v = g->grad, incoming.v_row = g->row, incoming.v_head = g->head, incoming.v_token = g->token;
    for (int64_t t = 0; t < tiles; t++) {
        NAME(lay_keys)(p, d, kv, t, o.keys + t * TILE / GROUP * width);
        NAME(lay_keys)(&values, d, kv, t, o.values + t * TILE / GROUP * width);
        NAME(lay_values)(&values, d, kv, t, TILE, o.key_rows + t * TILE / GROUP * wide);
    }
    memset(o.dq, 0, (group * rows + TOGETHER) * wide * sizeof(float));
    for (int64_t n = 0; n < group; n++) {
        const int64_t head = kv * group + n;
        for (int64_t b = 0; b < rows / BEHIND; b++) {
            const int64_t at = (n * rows + b * BEHIND) / GROUP * wide;
            NAME(lay_values)(&queries, d, head, b, BEHIND, o.query_rows + at);
            NAME(lay_values)(&incoming, d, head, b, BEHIND, o.grad_rows + at);
        }
        for (int64_t t = 0; t < length; t++) {
            const NUMBER *grad = (const NUMBER *)g->grad + d->row * g->row + head * g->head + (d->start + t) * g->token;
            const NUMBER *out = (const NUMBER *)p->out + ((d->row * p->length + d->start + t) * p->heads + head) * width;
            vfloat total = fill(0);
            for (int64_t c = 0; c < width; c += LANES) total += NAME(some)(grad + c, width - c) * NAME(some)(out + c, width - c);
            o.share[n * rows + t] = sum(total);
        }
    }
    NAME(exchange) e;
    memset(&e, 0, sizeof e);
    const NUMBER *weights[KEYS], *turned[KEYS], *slopes[BEHIND];
    for (int64_t i = 0; i < KEYS; i++) {
        weights[i] = (const NUMBER *)(e.weights[0] + i);
        turned[i] = (const NUMBER *)(e.turned[0] + i);
    }
    for (int64_t i = 0; i < BEHIND; i++) slopes[i] = e.rows[i];
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t first = tile * TILE, keys = length - first < TILE ? length - first : TILE;
        const uint32_t *k = o.keys + first / GROUP * width, *v = o.values + first / GROUP * width;
        memset(o.dk, 0, 2 * KEYS * wide * sizeof(float));
        for (int64_t n = 0; n < group; n++) {
            const int64_t head = kv * group + n;
            const NUMBER *q = (const NUMBER *)p->q + d->row * p->q_row + head * p->q_head + d->start * p->q_token;
            const NUMBER *grad = (const NUMBER *)g->grad + d->row * g->row + head * g->head + d->start * g->token;
            const float *sums = p->sums + (d->row * p->heads + head) * p->length + d->start;
            for (int64_t from = first; from < length; from += BEHIND) {
                const int64_t count = length - from < BEHIND ? length - from : BEHIND;
                const int64_t queries = (count + TOGETHER - 1) / TOGETHER * TOGETHER;
                const int64_t seen = from + count - first < keys ? from + count - first : keys; /* by the last query */
                const int64_t vectors = (seen + LANES - 1) / LANES;
                const int64_t columns = (vectors * LANES + TOGETHER - 1) / TOGETHER * TOGETHER;
                const NUMBER *queries_at[BEHIND], *grads_at[BEHIND];
                for (int64_t i = 0; i < BEHIND; i++) {
                    const int64_t t = from + (i < count ? i : count - 1);
                    queries_at[i] = q + t * p->q_token;
                    grads_at[i] = grad + t * g->token;
                }
                NAME(new_product)(queries, vectors, width / GROUP, queries_at, k, e.scores[0]);
                NAME(new_product)(queries, vectors, width / GROUP, grads_at, v, e.slopes[0]);
                float own[BEHIND] = {0}, share[BEHIND] = {0};
                memcpy(own, sums + from, count * sizeof(float));
                memcpy(share, o.share + n * rows + from, count * sizeof(float));
                for (int64_t i = 0; i < queries; i += GROUP)
                    NAME(slopes_of)(&e, i, from + i + 1 - first, count, vectors, scale, own, share);
                const int64_t at = (n * rows + from) / GROUP * wide;
                NAME(add_product)(columns, wide, (count + GROUP - 1) / GROUP, weights, TILE + 2, o.grad_rows + at, o.dv);
                NAME(add_product)(columns, wide, (count + GROUP - 1) / GROUP, turned, TILE + 2, o.query_rows + at, o.dk);
                NAME(add_product)(queries, wide, vectors * LANES / GROUP, slopes, 1, o.key_rows + first / GROUP * wide,
                            o.dq + (n * rows + from) * wide);
            }
        }
        for (int64_t i = 0; i < keys; i++) {
            const int64_t at = ((d->row * p->length + d->start + first + i) * p->kv_heads + kv) * width;
            NAME(put_row)(o.dk + i * wide, (float)p->scale, width, (NUMBER *)g->dk + at);
            NAME(put_row)(o.dv + i * wide, 1, width, (NUMBER *)g->dv + at);
        }
    }
    for (int64_t n = 0; n < group; n++)
        for (int64_t t = 0; t < length; t++)
            NAME(put_row)(o.dq + (n * rows + t) * wide, (float)p->scale, width,
                    (NUMBER *)g->dq + ((d->row * p->length + d->start + t) * p->heads + kv * group + n) * width);
}

/* The forward over documents of one call. */
static void NAME(attend_all)(const problem *p, int64_t count, const document *documents, uint8_t *room, int64_t threads) {
    const int64_t wide = padded(p->width), last = count - 1;
    const int64_t tiles = documents[last].tile + tiles_of(documents + last);
    uint32_t *keys = (uint32_t *)room, *values = keys + tiles * p->kv_heads * (p->width / GROUP) * TILE;
    float *reads = (float *)(values + tiles * p->kv_heads * (TILE / GROUP) * wide);
#pragma omp parallel num_threads((int)threads)
    {
        float *read = reads + omp_get_thread_num() * QUERIES * wide;
        for (int64_t n = 0; n < count; n++) {
            const document *d = documents + n;
            const int64_t each = tiles_of(d);
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < p->kv_heads * each; i++) {
                const int64_t at = d->tile * p->kv_heads + i;
                NAME(lay_keys)(p, d, i / each, i % each, keys + at * (p->width / GROUP) * TILE);
                NAME(lay_values)(p, d, i / each, i % each, TILE, values + at * (TILE / GROUP) * wide);
            }
        }
#pragma omp barrier
        for (int64_t n = 0; n < count; n++) {
            const document *d = documents + n;
            const int64_t blocks = (d->stop - d->start + QUERIES - 1) / QUERIES;
#pragma omp for schedule(dynamic) nowait
            for (int64_t i = 0; i < p->heads * blocks; i++) /* the longest first */
                NAME(attend_block)(p, d, i % p->heads, (blocks - 1 - i / p->heads) * QUERIES, keys, values, read);
        }
    }
}

/* The gradients of every document; ``p`` as in the forward, with its out and sums. */
static void NAME(attend_all_behind)(const problem *p, const gradients *g, int64_t count, const document *documents,
                             int64_t longest, uint8_t *room, int64_t threads) {
    const int64_t each = NAME(behind_bytes)(p, longest);
#pragma omp parallel num_threads((int)threads)
    {
        uint8_t *own = room + omp_get_thread_num() * each;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count * p->kv_heads; i++)
            NAME(attend_behind)(p, g, documents + i / p->kv_heads, i % p->kv_heads, own);
    }
}

#undef GROUP
#undef NUMBER
