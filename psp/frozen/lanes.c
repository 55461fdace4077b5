/* A whole network on the CPU, many images at a time: one lane of a vector register is one image.
 *
 * Where the lanes are output channels, a layer of 3 channels wastes 13 lanes of 16. Where they are images none is
 * wasted, whatever is pruned: each weight that is left is one number, which multiplies a vector. A thread takes a
 * vector of images through the whole network, so that the maps between layers stay in its cache. A map H×W×C is an
 * array of vectors, the channels of a pixel side by side; a window of it is a table of distances from where it begins,
 * one for each column of the weight. At the border fewer columns are inside: an output map is divided into regions with
 * the same columns, so that there is no padding anywhere.
 * Compiled twice, for float32 and with BFLOAT16. There a vector holds twice as many images, its sums are two vectors
 * of float32, and one instruction adds the products of two columns.
 * The program, made by `psp.frozen.planner`, is a list of operations, each followed by a ReLU where that is wanted:
 *     CONV       out[k] = bias[k] + Σ_j weight[k, j] · x[window j] + other[index[k]]
 *     COMBINE    out[k] = bias[k] + scale[k] · x[index[k]] + other[index[k]]      (a zero for an index of −1)
 *     POOL_MAX, POOL_MEAN of a window
 * Written in the vector extensions of GCC and Clang.
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

/* Pixels to a block of so many outputs: their sums, their values of a column and one weight fill the registers. */
#define FITTING(group) ((REGISTERS - 1) / PARTS / ((group) + 1))
#define MANY(group) (FITTING(group) < 8 ? FITTING(group) : 8)
#define GROUPS(o) (((o)->out_c + GROUP - 1) / GROUP)
#define UNROLLED _Pragma("GCC unroll 8")
/* Compilers like to fetch a value from memory anew for every product, for which there is no time. */
#if defined(__x86_64__) || defined(__i386__)
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#elif defined(__aarch64__)
#define IN_REGISTER(x) __asm__("" : "+w"(x))
#else
#define IN_REGISTER(x) (void)(x)
#endif

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
    int64_t kind, relu, regions, out, out_h, out_w, out_c, kernel_h, kernel_w, pad_h, pad_w, count_padding;
    const region *region;
    const float *bias, *scale;
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

static inline stored finish(vec *sum, int64_t relu) {
    for (int p = 0; relu && p < PARTS; p++) sum[p] = (vec)((bits)sum[p] & ~(bits)(sum[p] < 0)); /* a NaN stays */
    return narrow(sum);
}

/* `many` pixels × `group` outputs from `first` on, both constants wherever this is inlined: all of it is registers. */
static inline __attribute__((always_inline)) void tile(const int group, const int many, const operation *o,
                                                       const region *r, int64_t first, const stored **window,
                                                       const stored **other, stored **out) {
    const float *weight = r->weight + first * r->steps, *bias = o->bias + first;
    const int32_t *offset = r->offset;
    vec sum[MANY(1)][GROUP][PARTS];
    UNROLLED for (int i = 0; i < many; i++)
        UNROLLED for (int k = 0; k < group; k++)
            UNROLLED for (int p = 0; p < PARTS; p++) sum[i][k][p] = (vec){0} + bias[k];
    for (int64_t j = 0; j < r->steps; j++, offset += STEP, weight += group) {
        vec x[MANY(1)][PARTS];
        UNROLLED for (int i = 0; i < many; i++) {
            columns(window[i], offset, x[i]);
            UNROLLED for (int p = 0; p < PARTS; p++) IN_REGISTER(x[i][p]);
        }
        UNROLLED for (int k = 0; k < group; k++)
            UNROLLED for (int i = 0; i < many; i++)
                UNROLLED for (int p = 0; p < PARTS; p++) sum[i][k][p] = add_product(sum[i][k][p], x[i][p], weight[k]);
    }
    UNROLLED for (int i = 0; i < many; i++)
        UNROLLED for (int k = 0; k < group; k++) {
            const int32_t index = o->other.begin < 0 ? -1 : o->other.index[first + k];
            vec more[PARTS];
            if (index >= 0) widen(other[i][index], more);
            for (int p = 0; index >= 0 && p < PARTS; p++) sum[i][k][p] += more[p];
            out[i][first + k] = finish(sum[i][k], o->relu);
        }
}

/* All outputs of `many` pixels from number `done` on, in groups of `group`, the last of them smaller by one. */
static inline __attribute__((always_inline)) void block(const int group, const int many, const operation *o,
                                                        const region *r, stored *memory, int64_t done) {
    const int64_t full = o->out_c - GROUPS(o) * (group - 1), width = r->right - r->left;
    const stored *window[MANY(1)], *other[MANY(1)];
    stored *out[MANY(1)];
    for (int64_t i = 0, y = r->top + done / width, z = r->left + done % width; i < many; i++) {
        window[i] = at(&o->x, memory, y, z), other[i] = at(&o->other, memory, y, z);
        out[i] = memory + o->out + (y * o->out_w + z) * o->out_c;
        if (++z == r->right) z = r->left, y++;
    }
    for (int64_t g = 0, first = 0; g < GROUPS(o); first += g++ < full ? group : group - 1)
        g < full ? tile(group, many, o, r, first, window, other, out)
                 : tile(group - 1, many, o, r, first, window, other, out);
}

static inline __attribute__((always_inline)) void convolve(const int group, const operation *o, stored *memory) {
    for (const region *r = o->region; r < o->region + o->regions; r++) {
        const int64_t pixels = (r->bottom - r->top) * (r->right - r->left);
        int64_t done = 0;
        for (; done + MANY(group) <= pixels; done += MANY(group)) block(group, MANY(group), o, r, memory, done);
        for (; done < pixels; done++) block(group, 1, o, r, memory, done);
    }
}

#define CASE(group) case group: return convolve(group, o, memory);
static void conv(const operation *o, stored *memory) {
    switch ((o->out_c + GROUPS(o) - 1) / GROUPS(o)) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
}

static void combine(const operation *o, stored *memory) {
    const stored zero = {0};
    stored *out = memory + o->out;
    for (int64_t i = 0; i < o->out_h * o->out_w; i++, out += o->out_c) {
        const stored *x = at(&o->x, memory, i / o->out_w, i % o->out_w);
        const stored *other = at(&o->other, memory, i / o->out_w, i % o->out_w);
        for (int64_t k = 0; k < o->out_c; k++) {
            vec sum[PARTS], more[PARTS];
            widen(o->x.index[k] < 0 ? zero : x[o->x.index[k]], sum);
            widen(o->other.begin < 0 || o->other.index[k] < 0 ? zero : other[o->other.index[k]], more);
            for (int p = 0; p < PARTS; p++) sum[p] = sum[p] * o->scale[k] + more[p] + o->bias[k];
            out[k] = finish(sum, o->relu);
        }
    }
}

static void pool(const operation *o, stored *memory) {
    const map *m = &o->x;
    for (int64_t i = 0; i < o->out_h * o->out_w * o->out_c; i++) {
        const int64_t k = i % o->out_c, z = i / o->out_c % o->out_w, y = i / o->out_c / o->out_w;
        const int64_t top = y * m->stride_h - o->pad_h, left = z * m->stride_w - o->pad_w;
        vec sum[PARTS], x[PARTS];
        int64_t count = 0;
        for (int p = 0; p < PARTS; p++) sum[p] = (vec){0} - (o->kind == POOL_MAX ? INFINITY : 0);
        for (int64_t r = top < 0 ? 0 : top; r < top + o->kernel_h && r < m->height; r++)
            for (int64_t q = left < 0 ? 0 : left; q < left + o->kernel_w && q < m->width; q++, count++) {
                widen(memory[m->begin + (r * m->width + q) * m->channels + k], x);
                for (int p = 0; p < PARTS; p++) {
                    const bits take = (bits)(x[p] > sum[p]) | (bits)(x[p] != x[p]); /* a NaN stays */
                    const vec larger = (vec)(((bits)x[p] & take) | ((bits)sum[p] & ~take));
                    sum[p] = o->kind == POOL_MAX ? larger : (vec)(sum[p] + x[p]);
                }
            }
        const float share = 1.0f / (o->count_padding ? o->kernel_h * o->kernel_w : count);
        for (int p = 0; o->kind == POOL_MEAN && p < PARTS; p++) sum[p] *= share;
        memory[o->out + i] = finish(sum, o->relu);
    }
}

/* What one thread does: `IMAGES` images after each other through the network; lanes without an image hold zeros. */
static void work(void *argument) {
    job *a = argument;
    const program *p = a->p;
    stored *memory = (stored *)a->memory + __atomic_fetch_add(&a->thread, 1, __ATOMIC_RELAXED) * p->memory;
    for (int64_t n; (n = __atomic_fetch_add(&a->next, IMAGES, __ATOMIC_RELAXED)) < p->images;) {
        const int64_t count = p->images - n < IMAGES ? p->images - n : IMAGES;
        element *x = (element *)(memory + p->x), *y = (element *)(memory + p->y);
        for (int64_t row = 0; row < p->height; row++, x += p->width * p->channels * IMAGES)
            for (int64_t i = 0; i < IMAGES; i++) {
                const element *from = a->x + (n + i) * p->stride_n + row * p->stride_h;
                for (int64_t c = 0; c < p->channels; c++)
                    for (int64_t z = 0; z < p->width; z++)
                        x[(z * p->channels + c) * IMAGES + i] = i < count ? from[z * p->stride_w + c * p->stride_c] : 0;
            }
        for (const operation *o = p->operation; o < p->operation + p->operations; o++)
            o->kind == CONV ? conv(o, memory) : o->kind == COMBINE ? combine(o, memory) : pool(o, memory);
        for (int64_t i = 0; i < count; i++)
            for (int64_t k = 0; k < p->outputs; k++) ((element *)a->y)[(n + i) * p->outputs + k] = y[k * IMAGES + i];
    }
}

/* Images that a thread takes at a time; 0 where it has no products of elements of so many bytes. */
int64_t psp_lanes(int64_t bytes) { return bytes == sizeof(element) ? IMAGES : 0; }

/* x: N images of any strides, y: N × outputs, memory: p->threads × p->memory vectors, aligned. `parallel` is
 * GOMP_parallel, or NULL for one thread. */
void psp_run(const program *p, const element *x, element *y, void *memory, parallel_fn *parallel) {
    job a = {.p = p, .x = x, .y = y, .memory = memory};
    p->threads > 1 && parallel ? parallel(work, &a, p->threads, 0) : work(&a);
}
