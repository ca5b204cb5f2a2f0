/* Activations x sigmoid(a(x)): GELU in its tanh form, a = x (c1 + c3 x^2), and SiLU, a = x; alone, or times a second half.
 *
 * Arithmetic is fp32 and a result is rounded once, also of f(gate) x up, which is otherwise rounded between.
 */
#include "vectors.h"

#define LINEAR 1.5957691216057308f /* 2 sqrt(2 / pi) */
#define CUBIC 0.07135481282553108f /* that times 0.044715 */

enum { GELU_TANH, SILU };

INLINE vfloat sigmoid(int kind, vfloat x) {
    const vfloat a = kind == SILU ? x : x * (x * x * CUBIC + LINEAR);
    return 1.0f / (1.0f + exponential(-a));
}

/* d/dx of x s, where s = sigmoid(a(x)). */
INLINE vfloat slope(int kind, vfloat x, vfloat s) {
    const vfloat rest = x * (1.0f - s);
    return s * (1.0f + (kind == SILU ? rest : rest * (x * x * (3 * CUBIC) + LINEAR)));
}

INLINE void forward(int kind, int half, int gated, const uint8_t *x, int64_t n, uint8_t *y) {
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t left = n - i;
        const vfloat v = read_some(half, x, i, left), f = v * sigmoid(kind, v);
        write_some(half, y, i, left, gated ? f * read_some(half, x, n + i, left) : f);
    }
}

INLINE void backward(int kind, int half, int gated, const uint8_t *x, const uint8_t *grad, int64_t n, uint8_t *y) {
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t left = n - i;
        const vfloat v = read_some(half, x, i, left), s = sigmoid(kind, v), g = read_some(half, grad, i, left);
        const vfloat d = g * slope(kind, v, s);
        if (gated) {
            const vfloat up = read_some(half, x, n + i, left);
            write_some(half, y, n + i, left, g * v * s);
            write_some(half, y, i, left, d * up);
        } else write_some(half, y, i, left, d);
    }
}

#define CASES(CALL)                                                                                                    \
    if (kind == SILU) {                                                                                                \
        if (half) CALL(SILU, 1);                                                                                       \
        else CALL(SILU, 0);                                                                                            \
    } else if (half) CALL(GELU_TANH, 1);                                                                               \
    else CALL(GELU_TANH, 0)

/* x (rows, n), or (rows, 2 n) where gated; y (rows, n). */
int64_t limbeck_activate(int64_t kind, int64_t half, int64_t gated, int64_t rows, int64_t n, const uint8_t *x,
                         uint8_t *y, int64_t threads) {
    const int64_t size = half ? 2 : 4;
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *from = x + r * (gated ? 2 : 1) * n * size;
        uint8_t *to = y + r * n * size;
#define CALL(K, H) gated ? forward(K, H, 1, from, n, to) : forward(K, H, 0, from, n, to)
        CASES(CALL);
#undef CALL
    }
    return 1;
}

/* grad (rows, n) of the result to that of x, y of its shape. */
int64_t limbeck_activate_backward(int64_t kind, int64_t half, int64_t gated, int64_t rows, int64_t n, const uint8_t *x,
                                  const uint8_t *grad, uint8_t *y, int64_t threads) {
    const int64_t size = half ? 2 : 4, wide = (gated ? 2 : 1) * n * size;
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *from = x + r * wide, *incoming = grad + r * n * size;
        uint8_t *to = y + r * wide;
#define CALL(K, H) gated ? backward(K, H, 1, from, incoming, n, to) : backward(K, H, 0, from, incoming, n, to)
        CASES(CALL);
#undef CALL
    }
    return 1;
}
