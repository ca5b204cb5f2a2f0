// The next token of each row of logits: penalty, temperature, top-k, top-p, min-p and the draw, with nothing allocated.
//
// The arithmetic is fp64 and the rules are those of decode/sample.py: of equal scores at a border the earlier ones of the
// vocabulary stay. A weight is e^((score - largest score) / temperature); 0 stands for what cannot be drawn.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HEAP 2048 // most largest weights that are found by a heap; beyond, all are sorted

// e^x for x <= 0 to about 1 ulp, written so that the compiler makes vectors of it; not a number stays one.
static inline double power(double x) {
    const double shift = 0x1.8p52;
    double turned = x * 1.4426950408889634 + shift, k = turned - shift;
    double r = (x - k * 0x1.62e42fefa38p-1) - k * 0x1.ef35793c7673p-45;
    double p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t bits;
    memcpy(&bits, &turned, 8);
    bits = (bits << 52) + 0x3ff0000000000000; // the low bits of `turned` are k
    double scale;
    memcpy(&scale, &bits, 8);
    return x < -700 ? 0.0 : p * scale;
}

static double sum(const double *w, int64_t n) {
    double part[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) part[j] += w[i + j];
    for (; i < n; i++) part[0] += w[i];
    return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

static float largest_of(const float *x, int64_t n) {
    float best[16];
    for (int j = 0; j < 16; j++) best[j] = -INFINITY;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) best[j] = x[i + j] > best[j] ? x[i + j] : best[j];
    for (; i < n; i++) best[0] = x[i] > best[0] ? x[i] : best[0];
    for (int j = 1; j < 16; j++) best[0] = best[j] > best[0] ? best[j] : best[0];
    return best[0];
}

static void sink(double *heap, int64_t at, int64_t n) {
    double x = heap[at];
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= x) break;
        heap[at] = heap[child];
    }
    heap[at] = x;
}

static int falling(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

// The m largest of n weights into `out` (n), falling; returns m.
static int64_t largest(const double *w, int64_t n, int64_t m, double *out) {
    if (m >= n || m > HEAP) {
        memcpy(out, w, n * sizeof *out);
        qsort(out, n, sizeof *out, falling);
        return m < n ? m : n;
    }
    memcpy(out, w, m * sizeof *out);
    for (int64_t i = m / 2; i-- > 0;) sink(out, i, m);
    for (int64_t i = m; i < n; i++)
        if (w[i] > out[0]) {
            out[0] = w[i];
            sink(out, 0, m);
        }
    qsort(out, m, sizeof *out, falling);
    return m;
}

// Keep what is above the last of `kept` falling weights, and of its equals as many as stand among them.
static void cut(double *w, int64_t n, const double *falling_weights, int64_t kept) {
    double border = falling_weights[kept - 1];
    int64_t equal = 0;
    while (equal < kept && falling_weights[kept - 1 - equal] == border) equal++;
    for (int64_t i = 0; i < n; i++)
        if (w[i] < border || (w[i] == border && equal-- <= 0)) w[i] = 0;
}

static void keep_top_p(double *w, int64_t n, double p, double *sorted) {
    double needed = p * sum(w, n);
    for (int64_t m = HEAP / 8;; m = m < HEAP ? m * 8 : n) {
        int64_t found = largest(w, n, m, sorted), kept = 0;
        double before = 0;
        while (kept < found && (kept == 0 || before < needed)) before += sorted[kept++];
        if (kept == n) return;
        if (kept < found) {
            cut(w, n, sorted, kept);
            return;
        }
    }
}

static int64_t drawn(const double *w, int64_t n, double uniform) {
    enum { BLOCK = 1024 };
    double place = uniform * sum(w, n), before = 0;
    int64_t last = 0;
    for (int64_t at = 0; at < n; at += BLOCK) {
        int64_t stop = at + BLOCK < n ? at + BLOCK : n;
        double block = sum(w + at, stop - at);
        if (stop < n && before + block <= place) {
            before += block;
            if (block > 0)
                for (last = stop - 1; w[last] == 0;) last--;
            continue;
        }
        for (int64_t i = at; i < stop; i++) {
            if (w[i] == 0) continue;
            before += w[last = i];
            if (before > place) return i;
        }
    }
    return last; // two sums of the same weights differ by rounding
}

// logits (rows, n); seen: ids of row r from seen[starts[r]] to seen[starts[r + 1]], each once; uniform NULL: greedy.
// scratch: (rows, 2 n) doubles. tokens (rows); log_probs (rows): of the model itself, before penalty and filters.
void limbeck_choose(const float *logits, int64_t rows, int64_t n, const int64_t *seen, const int64_t *starts, double penalty,
                    double temperature, int64_t top_k, double top_p, double min_p, const double *uniform, double *scratch,
                    int64_t *tokens, double *log_probs) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (int64_t r = 0; r < rows; r++) {
        const float *x = logits + r * n;
        double *w = scratch + r * 2 * n, *sorted = w + n, total, best = largest_of(x, n);
        for (int64_t i = 0; i < n; i++) w[i] = power(x[i] - best);
        total = sum(w, n);
        double normaliser = best + log(total);
        float *scores = (float *)sorted; // a copy only where there is something to penalise
        const float *from = x;
        if (starts != NULL && starts[r + 1] > starts[r]) {
            memcpy(scores, x, n * sizeof *scores);
            for (int64_t s = starts[r]; s < starts[r + 1]; s++) {
                float *one = scores + seen[s];
                *one = *one < 0 ? *one * (float)penalty : *one / (float)penalty;
            }
            from = scores;
            best = largest_of(from, n);
        }
        int64_t token = 0;
        if (uniform == NULL || !(total > 0)) {
            while (token < n - 1 && from[token] != (float)best) token++;
        } else {
            if (from != x || temperature != 1)
                for (int64_t i = 0; i < n; i++) w[i] = power((from[i] - best) / temperature);
            if (top_k > 0 && top_k < n) cut(w, n, sorted, largest(w, n, top_k, sorted));
            if (top_p < 1) keep_top_p(w, n, top_p, sorted);
            if (min_p > 0)
                for (int64_t i = 0; i < n; i++) w[i] = w[i] < min_p ? 0 : w[i]; // the likeliest weighs 1
            token = drawn(w, n, uniform[r]);
        }
        tokens[r] = token;
        log_probs[r] = x[token] - normaliser;
    }
}
