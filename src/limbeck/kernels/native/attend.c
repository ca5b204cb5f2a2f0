/* Causal attention within documents, forward and backward: what kernels/attention.py says in torch, in one pass.
 *
 * Keys and values of a document are laid out once for products (attend_numbers.h): keys so that a lane is a key, values so
 * that a lane is a column. Then each block of queries walks the keys up to its own, 64 at a time, with the running maximum
 * and sum of Dao et al. 2022 (algorithm 1). Scores and sums are fp32; weights are rounded to the inputs' dtype for the
 * product with the values, as a matrix product of that dtype would. The backward walks the key tiles, and for each the
 * blocks of queries behind it, with the weights computed again from the forward's log-sums (algorithm 4).
 *
 * Numbers are fp32, or bf16 where the processor multiplies pairs of them.
 */
#include "vectors.h"

#include <omp.h>

#define TILE 64     /* keys at a time */
#define TOGETHER 6  /* queries in one product */
#define VECTORS (LANES == 16 ? 4 : 2) /* vectors in one product: TOGETHER x VECTORS sums in registers */
#define QUERIES 24  /* queries of a block: scores, weights and sums of it stay in the first cache */
#define BEHIND 48   /* queries of a block in the backward */
#define KEYS 66     /* keys of a tile, padded to a multiple of TOGETHER */

/* What a call works on: tensors (B, H or KV, T, D) by strides in elements, D contiguous; out is (B, T, H, D), whole. */
typedef struct {
    int64_t half;                           /* bf16, else fp32 */
    int64_t heads, kv_heads, length, width; /* length: T of out */
    int64_t q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token;
    const void *q, *k, *v;
    void *out;
    float *sums; /* (B, H, T): log2 of the sum of 2^(score x log2 e); the forward writes it where it is not null */
    double scale;
} problem;

/* What the backward is given and gives beside: the gradient of out by its strides, and dq, dk, dv, laid out as out. */
typedef struct {
    int64_t row, head, token;
    const void *grad;
    void *dq, *dk, *dv;
} gradients;

/* One document: tokens start to stop of a row; tile: its first tile in the memory of laid out keys and values. */
typedef struct {
    int64_t row, start, stop, tile;
} document;

INLINE int64_t tiles_of(const document *d) { return (d->stop - d->start + TILE - 1) / TILE; }
INLINE int64_t padded(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

/* 2^x for x <= 0, to 3e-6 of itself, or 2e-7; 0 below -126; what is no number stays none. */
INLINE vfloat power(vfloat x, int rough) {
    const vfloat y = maximum(fill(-126), x), shifted = y + 12582912.0f, f = y - (shifted - 12582912.0f);
    vfloat p = rough ? fill(1.33335581e-3f) : f * 1.54035304e-4f + 1.33335581e-3f;
    p = p * f + 9.61812911e-3f;
    p = p * f + 5.55041087e-2f;
    p = p * f + 2.40226507e-1f;
    p = p * f + 6.93147181e-1f;
    p = p * f + 1.0f;
    const vfloat scaled = (vfloat)((vint)p + (((vint)shifted - 0x4b400000) << 23));
    return pick(x == x, pick(x > -126.0f, scaled, fill(0)), x);
}

#define HALF 0
#define NAME(x) x##_fp32
#include "attend_numbers.h"
#undef HALF
#undef NAME

#if defined(USE_AVX512) && defined(__AVX512BF16__)
#define HALF 1
#define NAME(x) x##_bf16
#include "attend_numbers.h"
#define BY_KIND(p, call, ...) ((p)->half ? call##_bf16(__VA_ARGS__) : call##_fp32(__VA_ARGS__))
#define SERVES(p) 1
#else
#define BY_KIND(p, call, ...) call##_fp32(__VA_ARGS__)
#define SERVES(p) (!(p)->half)
#endif

/* Bytes of memory that a call needs for documents of so many tiles in all; 0 where this processor cannot. */
int64_t limbeck_attend_room(const problem *p, int64_t tiles, int64_t threads) {
    const int64_t wide = padded(p->width), size = p->half ? 2 : 4;
    return SERVES(p) ? tiles * p->kv_heads * TILE * (p->width + wide) * size + threads * QUERIES * wide * 4 : 0;
}

/* room: limbeck_attend_room's bytes at a multiple of 64. Documents must not overlap; what lies in none is left alone. */
void limbeck_attend(const problem *p, int64_t count, const document *documents, uint8_t *room, int64_t threads) {
    BY_KIND(p, attend_all, p, count, documents, room, threads);
}

/* Bytes of memory that the backward needs for documents of up to ``longest`` tokens; 0 where this processor cannot. */
int64_t limbeck_attend_backward_room(const problem *p, int64_t longest, int64_t threads) {
    return SERVES(p) ? BY_KIND(p, behind_bytes, p, longest) * threads : 0;
}

/* The gradients of every document; ``p`` as in the forward, with its out and sums. */
void limbeck_attend_backward(const problem *p, const gradients *g, int64_t count, const document *documents,
                             int64_t longest, uint8_t *room, int64_t threads) {
    BY_KIND(p, attend_all_behind, p, g, count, documents, longest, room, threads);
}
