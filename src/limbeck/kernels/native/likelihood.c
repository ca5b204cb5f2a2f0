/* Negative log-likelihood of a label under each row of logits, and the row's gradient in the logits' place.
 *
 * A row is read twice, for its largest and for its exponentials, while it lies in the core's cache. Arithmetic is fp32,
 * sums of 1,024 exponentials are added in double precision.
 */
#include "vectors.h"

#ifdef __AVX512BW__

#define BLOCK 1024 /* numbers whose exponentials are added in fp32 */

INLINE float largest(int half, const uint8_t *x, int64_t n) {
    __m512 top[4];
    UNROLL
    for (int j = 0; j < 4; j++) top[j] = _mm512_set1_ps(-INFINITY);
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        UNROLL
        for (int j = 0; j < 4; j++) top[j] = _mm512_max_ps(top[j], (__m512)read_lanes(half, x, i + j * LANES, 0xffff));
    }
    for (; i < n; i += LANES) {
        const __mmask16 keep = first_lanes(n - i);
        top[0] = _mm512_mask_max_ps(top[0], keep, top[0], (__m512)read_lanes(half, x, i, keep));
    }
    return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3])));
}

/* Sum of exp(x - top), which are left in x's place where ``write``. What is no number makes the sum none. */
INLINE double exponentials(int half, int write, uint8_t *x, int64_t n, float top) {
    double total = 0;
    for (int64_t block = 0; block < n; block += BLOCK) {
        const int64_t stop = block + BLOCK < n ? block + BLOCK : n;
        f32x16 part = fill(0);
        for (int64_t i = block; i < stop; i += LANES) {
            const __mmask16 keep = first_lanes(stop - i);
            const f32x16 e = exponential(read_lanes(half, x, i, keep) - top);
            if (write) write_lanes(half, x, i, keep, e);
            part += (f32x16)_mm512_maskz_mov_ps(keep, (__m512)e);
        }
        total += sum(part);
    }
    return total;
}

INLINE void row(int half, int write, uint8_t *x, int64_t n, int64_t label, float *nll, float *partition, float *sums) {
    const float top = largest(half, x, n), chosen = label < 0 ? 0 : read_lanes(half, x, label, 1)[0];
    const double total = exponentials(half, write, x, n, top), log_total = log(total);
    *nll = label < 0 ? 0 : (float)(log_total - (chosen - top));
    *partition = (float)(log_total + top);
    *sums = (float)total;
    if (write && label >= 0) write_lanes(half, x, label, 1, exponential(fill(chosen - top)) - (float)total);
}

/* logits (rows, n), fp32 or bf16 where ``half``; labels below 0 are ignored: their nll is 0. sums (rows) of
 * exp(logits - max); where ``write``, logits become exp(logits - max) less that sum at the label, which is the gradient
 * of nll times the sum. Returns 0 where this processor lacks the instructions.
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

#else

int64_t limbeck_likelihood(int64_t half, int64_t write, int64_t rows, int64_t n, uint8_t *logits, const int64_t *labels,
                           float *nll, float *partition, float *sums, int64_t threads) {
    (void)half, (void)write, (void)rows, (void)n, (void)logits, (void)labels, (void)nll, (void)partition, (void)sums;
    (void)threads;
    return 0;
}

#endif
