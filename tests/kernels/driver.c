/* Multiply with the C kernels on random shapes, kinds and scales, and compare with plain loops: for sanitizers and for other
 * processors (tests/kernels/test_driver.py). Print what differs and return 1; argument: how many cases. Buffers have their exact
 * sizes, so that a sanitizer sees every read past an end. */
#include <stdio.h>
#include <stdlib.h>

#include "matrix.h"

int64_t limbeck_many_room(const matrix *, int64_t, int64_t);
void limbeck_many(const matrix *, const float *, int64_t, int64_t, const uint8_t *, uint8_t *, uint8_t *, int64_t);
int64_t limbeck_widened_room(const matrix *, int64_t, int64_t);
void limbeck_widened(const matrix *, const float *, int64_t, int64_t, const uint8_t *, uint8_t *, float *, int64_t);

static uint64_t state = 1;

static uint32_t draw(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

static float number(void) { return ((int32_t)draw(20001) - 10000) / 10000.0f; }

static uint8_t *room_of(int64_t bytes) { return malloc((size_t)bytes); }

static int product(void) {
    static const int kinds[] = {BF16, FP16, INT8, INT4, E4M3, E5M2}, spans[] = {0, 16, 32, 64, 128};
    matrix m = {0};
    m.kind = kinds[draw(6)], m.rows = 1 + draw(70), m.columns = 1 + draw(500);
    const int64_t rows = 1 + draw(14), threads = 1 + draw(3), span = spans[draw(5)];
    const int scaled = m.kind != BF16 && m.kind != FP16;
    m.span = scaled ? (span < m.columns ? span : m.columns) : -1;
    const int64_t groups = m.span > 0 ? (m.columns + m.span - 1) / m.span : 1, scales = m.span > 0 ? m.rows * groups : 1;
    const int64_t bytes = m.rows * bytes_of((int)m.kind, m.columns), integer = m.kind == INT8 || m.kind == INT4;
    uint8_t *codes = room_of(bytes);
    for (int64_t i = 0; i < bytes; i++) codes[i] = (uint8_t)draw(256);
    if (!integer) /* numbers below 2: no infinity, nothing that is no number */
        for (int64_t i = 0; i < bytes; i++)
            if (SIZE[m.kind] == 1 || i % 2) codes[i] = (uint8_t)((codes[i] & 0x80) | (codes[i] & 0x3f));
    float *scale = (float *)room_of(scales * 4), *zero = (float *)room_of(scales * 4);
    for (int64_t i = 0; i < scales; i++) scale[i] = 0.01f + fabsf(number()), zero[i] = number();
    m.codes = codes;
    if (scaled) m.scales = scale;
    if (scaled && draw(2)) m.zeros = zero;
    float *x = (float *)room_of(rows * m.columns * 4), *y = (float *)room_of(rows * m.rows * 4);
    float *bias = draw(2) ? (float *)room_of(m.rows * 4) : 0;
    for (int64_t i = 0; i < rows * m.columns; i++) x[i] = number();
    for (int64_t i = 0; bias && i < m.rows; i++) bias[i] = number();
    const int many = integer && (m.kind == INT4 || draw(2));
    const int64_t size = many ? limbeck_many_room(&m, rows, threads) : limbeck_widened_room(&m, rows, threads);
    int wrong = 0;
    if (size) {
        void *room = aligned_alloc(64, (size_t)up_to(size, 64));
        if (many) limbeck_many(&m, bias, rows, FP32, (uint8_t *)x, (uint8_t *)y, room, threads);
        else limbeck_widened(&m, bias, rows, FP32, (uint8_t *)x, (uint8_t *)y, room, threads);
        free(room);
        float *w = (float *)room_of(m.columns * 4);
        for (int64_t r = 0; r < m.rows; r++) {
            memset(w, 0, (size_t)m.columns * 4);
            add_row(&m, r, w);
            for (int64_t b = 0; b < rows; b++) {
                double total = bias ? bias[r] : 0, most = 1e-3;
                for (int64_t c = 0; c < m.columns; c++) {
                    total += (double)w[c] * x[b * m.columns + c];
                    most += fabs((double)w[c] * x[b * m.columns + c]);
                }
                if (!(fabs(total - y[b * m.rows + r]) <= (many ? 1.0 / 64 : 1e-5) * (most + fabs(total)))) {
                    if (!wrong++) printf("kind %ld rows %ld columns %ld span %ld x %ld: %g for %g\n", (long)m.kind, (long)m.rows,
                                         (long)m.columns, (long)m.span, (long)rows, y[b * m.rows + r], total);
                }
            }
        }
        free(w);
    }
    free(codes), free(scale), free(zero), free(x), free(y), free(bias);
    return wrong;
}

int main(int count, char **given) {
    int wrong = 0;
    for (int i = 0; i < (count > 1 ? atoi(given[1]) : 200); i++) wrong += product() > 0;
    printf("%d wrong\n", wrong);
    return wrong > 0;
}
