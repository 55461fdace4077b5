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
 * The program, made by `psp.frozen.planner`, is a list of operations, CONV, COMBINE, MULTIPLY and POOL followed by an
 * activation where that is wanted (CONV and POOL by ReLU or ReLU6 only):
 *     CONV       out[k] = bias[k] + Σ_j weight[k, j] · x[window j] + other[index[k]]
 *     COMBINE    out[k] = bias[k] + scale[k] · x[index[k]] + other[index[k]]      (a zero for an index of −1)
 *     MULTIPLY   out[k] = x[index[k]] · other[index[k]]
 *     NORM       out[k] = bias[k] + scale[k] · (x[k] − mean) / √(variance + scale[channels]), over a pixel's channels
 *     POOL_MAX, POOL_MEAN of a window, RESIZE by neighbours, SHUFFLE of channels into pixels
 * Written in the vector extensions of GCC and Clang.
 */
#include "lanes.h"
#include "lanes_pointwise.h"
#include "lanes_sampling.h"

/* Pixels to a block of so many outputs: their sums, their values of a column and one weight fill the registers. */
#define FITTING(group) ((REGISTERS - 1) / PARTS / ((group) + 1))
#define MANY(group) (FITTING(group) < 8 ? FITTING(group) : 8)
#define GROUPS(o) ((o)->own ? (o)->out_c : ((o)->out_c + GROUP - 1) / GROUP)
#define UNROLLED _Pragma("GCC unroll 8")
/* Compilers like to fetch a value from memory anew for every product, for which there is no time. */
#if defined(__x86_64__) || defined(__i386__)
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#elif defined(__aarch64__)
#define IN_REGISTER(x) __asm__("" : "+w"(x))
#else
#define IN_REGISTER(x) (void)(x)
#endif

/* `many` pixels × `group` outputs from `first` on, both constants wherever this is inlined: all of it is registers. */
static inline __attribute__((always_inline)) void tile(const int group, const int many, const operation *o,
                                                       const region *r, int64_t first, const stored **window,
                                                       const stored **other, stored **out) {
    const float *weight = r->weight + first * r->steps, *bias = o->bias + first;
    const int32_t *offset = r->offset + (o->own ? first * r->steps * STEP : 0);
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
            out[i][first + k] = finish(sum[i][k], o->activation);
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

static void run(const operation *o, stored *memory) {
    switch (o->kind) {
        case CONV: return conv(o, memory);
        case COMBINE: case MULTIPLY: return combine(o, memory);
        case NORM: return norm(o, memory);
        case RESIZE: return resize(o, memory);
        case SHUFFLE: return shuffle(o, memory);
        default: return pool(o, memory);
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
            run(o, memory);
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
