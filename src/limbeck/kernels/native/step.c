/* One token of every sequence through a whole decoder: norms, matrix products, rotary positions, attention over the
 * cache, head. One parallel region for all of it; activations are fp32 whatever the weights are. */
#include "matrix.h"
#include <omp.h>

typedef struct {
    matrix qkv, out, up, down;
    const float *attention_gain, *attention_shift, *ffn_gain, *ffn_shift;
    void *keys, *values; /* (B, KV, S, D) in the cache's kind */
    float *key_scales, *value_scales; /* (B, KV, S), of an int8 cache */
    int64_t slots;            /* S */
    const int64_t *write;     /* (rows) slot of the new token */
    const int64_t *count;     /* (rows) slots to look at */
    const int64_t *seen;      /* (rows, most) which, -1 for none; or none: from the first on */
    int64_t most, sinks;      /* sinks: slots that meet the query as it is turned by the next two */
    const float *sink_cosines, *sink_sines; /* (rows, D / 2), or none: no slot does */
} layer;

typedef struct {
    int64_t layers, width, heads, kv_heads, head_width, ffn, gated, activation, rms, cache_kind, rotary;
    double eps;
    const layer *layer;
    const float *gain, *shift; /* of the last norm */
    matrix head, embed, positions; /* positions: none (codes 0) where they are rotary */
} model;

enum { GELU_TANH, GELU, SILU, RELU };

INLINE vfloat activate(int64_t kind, vfloat x) {
    if (kind == GELU_TANH) { /* x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3) */
        const vfloat u = 0.7978845608f * (x + 0.044715f * x * x * x);
        return x / (1.0f + exponential(-2.0f * u));
    }
    if (kind == SILU) return x / (1.0f + exponential(-x));
    if (kind == RELU) return pick(x > 0.0f, x, fill(0));
    for (int i = 0; i < LANES; i++) x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
    return x;
}

/* Layer norm or RMS norm of x (n, zeros behind); y is written up to n alone. */
static void normalise(const float *x, int64_t n, int rms, float eps, const float *gain, const float *shift, float *y) {
    const int64_t whole = n / LANES * LANES;
    vfloat total = fill(0), squares = fill(0);
    float middle = 0, rest = 0;
    if (!rms) {
        for (int64_t i = 0; i < n; i += LANES) total += load(x + i);
        middle = sum(total) / n;
    }
    for (int64_t i = 0; i < whole; i += LANES) {
        const vfloat away = load(x + i) - middle;
        squares += away * away;
    }
    for (int64_t i = whole; i < n; i++) rest += (x[i] - middle) * (x[i] - middle);
    const float scale = 1 / sqrtf((sum(squares) + rest) / n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - middle) * scale * gain[i] + (shift ? shift[i] : 0);
}

INLINE void store_number(int kind, float x, uint8_t *at) {
    if (kind == FP32) memcpy(at, &x, 4);
    else if (kind == BF16) {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        const uint16_t half = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        memcpy(at, &half, 2);
    } else {
        const _Float16 half = (_Float16)x;
        memcpy(at, &half, 2);
    }
}

/* Store one row (D) of keys or values; of int8 the scale goes beside it. */
static void store_kv(int64_t kind, const float *x, int64_t n, uint8_t *at, float *scale) {
    if (kind == INT8) {
        float most = 0;
        for (int64_t i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        *scale = most / 127;
        for (int64_t i = 0; i < n; i++) ((int8_t *)at)[i] = most > 0 ? (int8_t)lrintf(x[i] / *scale) : 0;
    } else if (kind == BF16)
        for (int64_t i = 0; i < n; i++) store_number(BF16, x[i], at + 2 * i);
    else if (kind == FP16)
        for (int64_t i = 0; i < n; i++) store_number(FP16, x[i], at + 2 * i);
    else memcpy(at, x, n * sizeof(float));
}

static void rope(float *x, int64_t half, const float *cosine, const float *sine) {
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[half + i] = b * cosine[i] + a * sine[i];
    }
}

/* Slots that a query looks at: ``count`` of those in ``seen``, or the first ones. The first ``sinks`` meet ``sink_q``. */
typedef struct {
    int64_t count, sinks;
    const int64_t *seen;
    const float *sink_q;
} sight;

/* Columns from c on of y: the values in sight, each by its weight; at most `n` vectors, the last may be short. */
INLINE void add_values(int kind, int n, int64_t d, int64_t c, const uint8_t *v, const float *v_scales, const sight *o,
                       const float *weights, float share, float *y) {
    const int size = SIZE[kind];
    const int64_t left = d - c < n * LANES ? d - c : n * LANES;
    vfloat part[8];
    UNROLL
    for (int i = 0; i < n; i++) part[i] = fill(0);
    for (int64_t t = 0; t < o->count; t++) {
        const int64_t at = o->seen ? o->seen[t] : t;
        if (at < 0) continue;
        const vfloat w = fill(weights[t] * (v_scales ? v_scales[at] : 1.0f));
        const uint8_t *p = v + (at * d + c) * size;
        prefetch(p + AHEAD / 4, n * LANES * size);
        UNROLL
        for (int i = 0; i < n; i++) {
            const uint8_t *q = p + i * LANES * size;
            part[i] += w * (n > 1 || left == LANES ? load_numbers(kind, q) : load_rest(kind, q, left, size));
        }
    }
    UNROLL
    for (int i = 0; i < n; i++) write_some(0, (uint8_t *)(y + c), i * LANES, left - i * LANES, part[i] * share);
}

/* One query (D, padded with zeros) over the slots in sight: y (D). ``scores`` holds ``count`` numbers. */
INLINE void attend(int kind, const float *q, int64_t d, const uint8_t *k, const uint8_t *v, const float *k_scales,
                   const float *v_scales, const sight *o, float factor, float *scores, float *y) {
    const int64_t count = o->count, *seen = o->seen;
    const int size = SIZE[kind];
    const int64_t whole = d / LANES * LANES, rest = d - whole;
    float most = -INFINITY;
    for (int64_t s = 0; s < count; s++) {
        const int64_t at = seen ? seen[s] : s;
        if (at < 0) {
            scores[s] = -INFINITY;
            continue;
        }
        const uint8_t *p = k + at * d * size;
        prefetch(p + AHEAD / 4, d * size);
        const float *x = at < o->sinks ? o->sink_q : q;
        vfloat total = fill(0);
        for (int64_t c = 0; c < whole; c += LANES) total += load(x + c) * load_numbers(kind, p + c * size);
        if (rest) total += load(x + whole) * load_rest(kind, p + whole * size, rest, size);
        const float score = sum(total) * factor * (k_scales ? k_scales[at] : 1.0f);
        scores[s] = score;
        most = score > most ? score : most;
    }
    if (most == -INFINITY) { /* nothing is seen */
        memset(y, 0, d * sizeof(float));
        return;
    }
    vfloat sums = fill(0);
    int64_t s = 0;
    for (; s + LANES <= count; s += LANES) {
        const vfloat e = exponential(load(scores + s) - most);
        store(scores + s, e);
        sums += e;
    }
    if (s < count) {
        float wide[LANES];
        for (int i = 0; i < LANES; i++) wide[i] = s + i < count ? scores[s + i] : -INFINITY;
        const vfloat e = exponential(load(wide) - most);
        store(wide, e);
        memcpy(scores + s, wide, (count - s) * sizeof(float));
        sums += e;
    }
    const float share_of = 1 / sum(sums);
    int64_t c = 0;
    for (; c + 8 * LANES <= d; c += 8 * LANES) add_values(kind, 8, d, c, v, v_scales, o, scores, share_of, y);
    for (; c + 4 * LANES <= d; c += 4 * LANES) add_values(kind, 4, d, c, v, v_scales, o, scores, share_of, y);
    for (; c < d; c += LANES) add_values(kind, 1, d, c, v, v_scales, o, scores, share_of, y);
}

static void one_query(int64_t kind, const float *q, int64_t d, const uint8_t *k, const uint8_t *v, const float *ks,
                      const float *vs, const sight *o, float factor, float *scores, float *y) {
    switch (kind) {
    case FP32: attend(FP32, q, d, k, v, 0, 0, o, factor, scores, y); break;
    case BF16: attend(BF16, q, d, k, v, 0, 0, o, factor, scores, y); break;
    case FP16: attend(FP16, q, d, k, v, 0, 0, o, factor, scores, y); break;
    default: attend(INT8, q, d, k, v, ks, vs, o, factor, scores, y);
    }
}

/* Rows of threads: a thread's share of ``blocks`` of ``unit`` rows out of ``total``. */
INLINE void portion(int64_t total, int64_t unit, int64_t t, int64_t n, int64_t *from, int64_t *to) {
    const int64_t blocks = (total + unit - 1) / unit;
    *from = blocks * t / n * unit;
    *to = blocks * (t + 1) / n * unit;
    if (*to > total) *to = total;
    if (*from > total) *from = total;
}

int64_t limbeck_widest(const model *m) {
    int64_t most = m->width > m->ffn ? m->width : m->ffn;
    const int64_t q = m->heads * m->head_width;
    return up_to(q > most ? q : most, UNIT);
}

/* Floats of one thread; the last part is for integers: a quarter for codes, two halves for what goes with them. */
static int64_t limbeck_own(const model *m, int64_t rows, int64_t slots) {
    const int64_t widest = limbeck_widest(m), integers = rows * (up_to(widest, 128) / 4 + up_to(widest, 128) / 2 + 64);
    return up_to(2 * rows * widest + 8 * widest + slots + 4 * up_to(m->head_width, UNIT) + 12 * UNIT + integers, UNIT);
}

/* Floats of scratch that ``limbeck_step`` wants, for ``rows`` sequences, ``threads`` and at most ``slots``. */
int64_t limbeck_scratch(const model *m, int64_t rows, int64_t slots, int64_t threads) {
    const int64_t qkv = (m->heads + 2 * m->kv_heads) * m->head_width;
    const int64_t shared = rows * (up_to(qkv, UNIT) + up_to(m->heads * m->head_width, UNIT) +
                                   2 * up_to(m->ffn, UNIT));
    return shared + threads * limbeck_own(m, rows, slots);
}

/* Run ``each`` tokens of every sequence, one after the other; ``rows`` counts all of them.
 *
 * tokens, positions: (rows), a sequence's own beside each other; so are what the layers' places are told by. x: (rows, up_to(width, UNIT)), zeros behind the width. cosines, sines: (rows, D / 2), or
 * none. logits: (rows, V). scratch: zeros at the first call. */
void limbeck_step(const model *m, int64_t rows, int64_t each, const int64_t *tokens, const int64_t *positions, float *x,
                  const float *cosines, const float *sines, float *logits,
                  float *scratch, int64_t slots, int64_t threads) {
    const int64_t d = m->head_width, q_width = m->heads * d, kv_width = m->kv_heads * d, qkv_width = q_width + 2 * kv_width;
    const int64_t ldx = up_to(m->width, UNIT), ldqkv = up_to(qkv_width, UNIT), lda = up_to(q_width, UNIT);
    const int64_t ldf = up_to(m->ffn, UNIT), widest = limbeck_widest(m), group = m->heads / m->kv_heads;
    const float factor = (float)(1 / sqrt((double)d));
    float *qkv = scratch, *mixed = qkv + rows * ldqkv, *inner = mixed + rows * lda, *gates = inner + rows * ldf;
    const int64_t own = limbeck_own(m, rows, slots);
    for (int64_t b = 0; b < rows; b++) {
        memset(x + b * ldx, 0, m->width * sizeof(float));
        add_row(&m->embed, tokens[b], x + b * ldx);
        if (m->positions.codes) add_row(&m->positions, positions[b], x + b * ldx);
    }
#pragma omp parallel num_threads((int)threads)
    {
        const int64_t t = omp_get_thread_num(), n = omp_get_num_threads();
        float *p = gates + rows * ldf + t * own;
        float *normed = p;
        thread_scratch o = {.sums = normed + rows * widest};
        o.scales = o.sums + rows * (widest / 2);
        o.halves = (uint16_t *)(o.sums); /* never both: halves are for bf16 codes, sums for integers */
        float *query = o.sums + rows * widest + 8 * widest, *sink_query = query + 2 * up_to(d, UNIT);
        float *scores = sink_query + 2 * up_to(d, UNIT);
        const int64_t laid = up_to(widest, 128);
        o.steps = scores + slots + UNIT;
        o.begin = (int32_t *)(o.steps + rows * (laid / 4));
        o.codes = (int8_t *)(o.begin + rows * (laid / 4));
        int64_t from, to;
        for (int64_t i = 0; i < m->layers; i++) {
            const layer *l = m->layer + i;
            for (int64_t b = 0; b < rows; b++)
                normalise(x + b * ldx, m->width, (int)m->rms, (float)m->eps, l->attention_gain, l->attention_shift,
                          normed + b * ldx);
            portion(qkv_width, 4, t, n, &from, &to);
            share(&o, &l->qkv, rows, normed, ldx, qkv, ldqkv, 0, from, to);
#pragma omp barrier
            portion(rows / each * m->kv_heads, 1, t, n, &from, &to);
            for (int64_t turn_of = from * each; turn_of < to * each; turn_of++) {
                const int64_t pair = turn_of / each, sequence = pair / m->kv_heads, h = pair % m->kv_heads;
                const int64_t b = sequence * each + turn_of % each; /* its own earlier tokens are stored by now */
                float *row = qkv + b * ldqkv, *key = row + q_width + h * d, *value = key + kv_width;
                const int64_t base = (sequence * m->kv_heads + h) * l->slots, size = SIZE[m->cache_kind] * d;
                const int64_t slot = base + l->write[b];
                if (m->rotary) rope(key, d / 2, cosines + b * (d / 2), sines + b * (d / 2));
                store_kv(m->cache_kind, key, d, (uint8_t *)l->keys + slot * size, l->key_scales ? l->key_scales + slot : 0);
                store_kv(m->cache_kind, value, d, (uint8_t *)l->values + slot * size,
                     l->value_scales ? l->value_scales + slot : 0);
                const sight sees = {l->count[b], l->sink_cosines ? l->sinks : 0, l->seen ? l->seen + b * l->most : 0,
                                    sink_query};
                for (int64_t g = h * group; g < (h + 1) * group; g++) {
                    memcpy(query, row + g * d, d * sizeof(float));
                    if (l->sink_cosines) {
                        memcpy(sink_query, query, d * sizeof(float));
                        rope(sink_query, d / 2, l->sink_cosines + b * (d / 2), l->sink_sines + b * (d / 2));
                    }
                    if (m->rotary) rope(query, d / 2, cosines + b * (d / 2), sines + b * (d / 2));
                    one_query(m->cache_kind, query, d, (uint8_t *)l->keys + base * size,
                              (uint8_t *)l->values + base * size, l->key_scales ? l->key_scales + base : 0,
                              l->value_scales ? l->value_scales + base : 0, &sees, factor, scores,
                              mixed + b * lda + g * d);
                }
            }
#pragma omp barrier
            portion(m->width, 4, t, n, &from, &to);
            share(&o, &l->out, rows, mixed, lda, x, ldx, 1, from, to);
#pragma omp barrier
            for (int64_t b = 0; b < rows; b++)
                normalise(x + b * ldx, m->width, (int)m->rms, (float)m->eps, l->ffn_gain, l->ffn_shift,
                          normed + b * ldx);
            portion(m->ffn, LANES, t, n, &from, &to);
            if (m->gated) { /* gate in the first rows of the matrix, up in the last */
                share(&o, &l->up, rows, normed, ldx, gates, ldf, 0, from, to);
                /* y is shifted so that row ffn + r of the matrix lands at r */
                share(&o, &l->up, rows, normed, ldx, inner - m->ffn, ldf, 0, m->ffn + from, m->ffn + to);
            } else share(&o, &l->up, rows, normed, ldx, inner, ldf, 0, from, to);
            for (int64_t b = 0; b < rows; b++)
                for (int64_t c = from; c < to; c += LANES) { /* from is a multiple of LANES, and so is ldf */
                    float *y = inner + b * ldf + c;
                    const vfloat up = load(y);
                    vfloat value = m->gated ? activate(m->activation, load(gates + b * ldf + c)) * up
                                            : activate(m->activation, up);
                    store(y, value);
                }
#pragma omp barrier
            portion(m->width, 4, t, n, &from, &to);
            share(&o, &l->down, rows, inner, ldf, x, ldx, 1, from, to);
#pragma omp barrier
        }
        for (int64_t b = 0; b < rows; b++)
            normalise(x + b * ldx, m->width, (int)m->rms, (float)m->eps, m->gain, m->shift, normed + b * ldx);
        portion(m->head.rows, 4, t, n, &from, &to);
        share(&o, &m->head, rows, normed, ldx, logits, m->head.rows, 0, from, to);
    }
}
