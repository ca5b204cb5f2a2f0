/* What this library was compiled for. */
#include "codes.h"

const char *limbeck_instructions(void) {
#if defined(USE_AVX512) && defined(__AVX512BF16__)
    return CODE_OFFSET ? "AVX-512, VNNI, BF16" : "AVX-512, BF16";
#elif defined(USE_AVX512)
    return CODE_OFFSET ? "AVX-512, VNNI" : "AVX-512";
#elif defined(USE_AVX2)
    return CODE_OFFSET ? "AVX2, VNNI" : "AVX2";
#elif defined(USE_NEON)
    return "NEON, dotprod";
#else
    return "no vector instructions of their own";
#endif
}
