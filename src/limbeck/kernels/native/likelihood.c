/* Negative log-likelihood of a label under each row of logits, and the row's gradient in the logits' place.
 *
 * A row is read twice, for its largest and for its exponentials, while it lies in the core's cache. Arithmetic is fp32,
 * sums of 1,024 exponentials are added in double precision.
 */
#include "vectors.h"

#define BLOCK 1024 /* numbers whose exponentials are added in fp32 */

INLINE float largest(int half, const uint8_t *x, int64_t n) {
    vfloat top[4];
    UNROLL
    for (int j = 0; j < 4; j++) top[j] = fill(-INFINITY);
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        UNROLL
        for (int j = 0; j < 4; j++) top[j] = maximum(top[j], read_some(half, x, i + j * LANES, LANES));
    }
    for (; i < n; i += LANES)
        top[0] = maximum(top[0], pick(first_lanes(n - i), read_some(half, x, i, n - i), fill(-INFINITY)));
    return largest_lane(maximum(maximum(top[0], top[1]), maximum(top[2], top[3])));
}

/* Sum of exp(x - top), which are left in x's place where ``write``. What is no number makes the sum none. */
INLINE double exponentials(int half, int write, uint8_t *x, int64_t n, float top) {
    double total = 0;
    for (int64_t block = 0; block < n; block += BLOCK) {
        const int64_t stop = block + BLOCK < n ? block + BLOCK : n;
        vfloat part = fill(0);
        for (int64_t i = block; i < stop; i += LANES) {
            const int64_t left = stop - i;
            const vfloat e = exponential(read_some(half, x, i, left) - top);
            if (write) write_some(half, x, i, left, e);
            part += left >= LANES ? e : pick(first_lanes(left), e, fill(0));
        }
        total += sum(part);
    }
    return total;
}

INLINE void row(int half, int write, uint8_t *x, int64_t n, int64_t label, float *nll, float *partition, float *sums) {
    const float top = largest(half, x, n), chosen = label < 0 ? 0 : read_some(half, x, label, 1)[0];
    const double total = exponentials(half, write, x, n, top), log_total = log(total);
    *nll = label < 0 ? 0 : (float)(log_total - (chosen - top));
    *partition = (float)(log_total + top);
    *sums = (float)total;
    if (write && label >= 0) write_some(half, x, label, 1, exponential(fill(chosen - top)) - (float)total);
}

/* logits (rows, n), fp32 or bf16 where ``half``; labels below 0 are ignored: their nll is 0. sums (rows) of
 * exp(logits - max); where ``write``, logits become exp(logits - max) less that sum at the label, which is the gradient
 * of nll times the sum.
 */
int64_t limbeck_likelihood(int64_t half, int64_t write, int64_t rows, int64_t n, uint8_t *logits, const int64_t *labels,
                           float *nll, float *partition, float *sums, int64_t threads) {
    const int64_t size = half ? 2 : 4;
#pragma omp parallel for num_threads((int)threads) schedule(dynamic, 8)
    for (int64_t r = 0; r < rows; r++) {
        uint8_t *x = logits + r * n * size;
#define CALL(H, W) row(H, W, x, n, labels[r], nll + r, partition + r, sums + r)
        if (half) write ? CALL(1, 1) : CALL(1, 0);
        else write ? CALL(0, 1) : CALL(0, 0);
#undef CALL
    }
    return 1;
}
