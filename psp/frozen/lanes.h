/* What the parts of lanes.c share: a vector of images in either type, the program, and how an output of a convolution is
 * finished.
 */
#include "registers.h"

#if defined(BFLOAT16) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
enum { PARTS = 2, STEP = 2 };
typedef uint16_t element;
typedef uint16_t stored __attribute__((vector_size(4 * LANES), may_alias));

/* The images of `a` and `b` as pairs: of images 0–3, 8–11, … in the first vector, of the others in the second. */
static inline void interleave(stored a, stored b, vec *parts) {
    parts[0] = (vec)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b);
    parts[1] = (vec)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b);
}
static inline void widen(stored x, vec *parts) { interleave((stored){0}, x, parts); } /* the upper half of a float */
static inline __m512i rounded(vec x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x)); }
static inline stored narrow(const vec *x) { return (stored)_mm512_packus_epi32(rounded(x[0]), rounded(x[1])); }
static inline void columns(const stored *window, const int32_t *offset, vec *parts) {
    interleave(window[offset[0]], window[offset[1]], parts);
}
static inline vec add_product(vec sum, vec x, float two) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)_mm512_set1_ps(two));
}
#else
enum { PARTS = 1, STEP = 1 };
typedef float element;
typedef vec stored;

static inline void widen(stored x, vec *parts) { parts[0] = x; }
static inline stored narrow(const vec *parts) { return parts[0]; }
static inline void columns(const stored *window, const int32_t *offset, vec *parts) { parts[0] = window[*offset]; }
static inline vec add_product(vec sum, vec x, float weight) { return sum + x * weight; }
#endif
enum { IMAGES = LANES * PARTS };

/* A map in a thread's memory: where it begins, in vectors, and how far an output pixel steps in it. */
typedef struct {
    int64_t begin, height, width, channels, stride_h, stride_w;
    const int32_t *index; /* of every output channel its channel here, or −1 */
} map;

/* Output pixels of which all have the same columns: their distances, and the weights, in groups of outputs. */
typedef struct {
    int64_t top, bottom, left, right, steps; /* a step is STEP columns */
    const int32_t *offset;
    const float *weight;
} region;

typedef struct {
    int64_t kind, activation, regions, own, out, out_h, out_w, out_c, kernel_h, kernel_w, pad_h, pad_w, count_padding;
    const region *region; /* own: every output has columns of its own, and a group is one output */
    const float *bias, *scale;
    const int32_t *table;
    map x, other; /* `other` begins at −1 where there is none */
} operation;

typedef struct {
    int64_t images, operations, memory, threads; /* memory: vectors a thread; x, y: where the maps begin */
    int64_t x, channels, height, width, stride_n, stride_c, stride_h, stride_w, y, outputs;
    const operation *operation;
} program;

typedef struct {
    const program *p;
    const element *x;
    void *y, *memory;
    int64_t next, thread; /* the first images that nobody has taken, and the first free part of the memory */
} job;

static inline const stored *at(const map *m, const stored *memory, int64_t y, int64_t z) {
    return memory + m->begin + (y * m->stride_h * m->width + z * m->stride_w) * m->channels;
}

static inline stored finish(vec *sum, int64_t activation) {
    for (int p = 0; activation && p < PARTS; p++) sum[p] = rectified(sum[p], activation);
    return narrow(sum);
}
