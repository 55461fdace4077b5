/* What lanes.c and pixels.c share: the registers of this processor, the kinds of operations of psp.frozen.values, and
 * how PyTorch's own threads are started.
 */
#include <math.h>
#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, REGISTERS = 32 };
#elif defined(__AVX__)
enum { LANES = 8, REGISTERS = 16 };
#else
enum { LANES = 4, REGISTERS = 32 }; /* of NEON; SSE2, with 16 of them, is right and slow */
#endif
enum { GROUP = 8 }; /* outputs that are computed together */
enum { CONV, COMBINE, POOL_MAX, POOL_MEAN, MULTIPLY, NORM, RESIZE, SHUFFLE };

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES), may_alias));
typedef void parallel_fn(void (*work)(void *), void *argument, unsigned threads, unsigned flags);

static inline vec inverse_root(vec x) {
    for (int i = 0; i < LANES; i++) x[i] = 1 / sqrtf(x[i]);
    return x;
}

#include "activation.h"
