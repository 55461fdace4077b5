/* Column-sparse convolution on the CPU:
 *
 *     out[n, y, z, k] = bias[k] + Σ_j weight[j, k] · x[n, y·stride − pad + r_j·dil, z·stride − pad + q_j·dil, c_j]
 *
 * A kept column j is one input channel c_j at one kernel position (r_j, q_j), for all output channels k. In a
 * channels-last map its value for an output pixel lies at a fixed distance from where that pixel's window begins. So a
 * table of J distances stands for the im2col matrix, which is never made.
 *
 * `tile` keeps PIXELS × (GROUP · LANES) sums in vector registers. For every column it loads GROUP vectors of weights
 * once, and for every pixel broadcasts one value of x. A band of output rows reads a copy of its input rows with zeros
 * around them, small enough for the first-level cache; without padding it reads x itself. Threads take bands from a
 * shared counter. They belong to the OpenMP runtime that PyTorch has started already, whose entry point is handed in.
 *
 * Written in the vector extensions of GCC and Clang: one source for AVX-512, AVX2 and NEON.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, GROUP = 2, PIXELS = 8 }; /* 16 of 32 registers are sums; 8 pixels need 8 addresses */
#elif defined(__AVX__)
enum { LANES = 8, GROUP = 2, PIXELS = 6 }; /* 12 of 16 registers */
#else
enum { LANES = 4, GROUP = 4, PIXELS = 6 }; /* 24 of NEON's 32 registers; SSE2, with 16 of them, is right and slow */
#endif
enum { BAND_BYTES = 32 * 1024, FEW_BANDS = 8, OK = 0, OUT_OF_MEMORY = 1, BAD_INDEX = 2 };

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef void parallel_fn(void (*work)(void *), void *argument, unsigned threads, unsigned flags);

typedef struct {
    int64_t n, c, h, w, k, j; /* images, input channels, height, width, output channels, columns */
    int64_t kernel_w, taps;   /* width of the kernel, number of its positions */
    int64_t stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, out_h, out_w, relu, threads;
} shape;

typedef struct {
    const shape *s;
    const float *x, *weight, *bias; /* weight: J rows of `row` floats; bias: one such row */
    float *out;
    const int64_t *column, *pixel; /* distances in floats: of a column from its window, of a window from its band */
    int64_t row, pitch, copies;    /* pitch: floats from one input row to the next, padding included */
    int64_t bands, band_rows, in_rows; /* bands of an image, output rows of a band, input rows that these read */
    int64_t next;                      /* the first band of all images that no thread has taken yet */
} job;

/* PIXELS pixels × `group` vectors of outputs from `first` on, of which `pixels` and those below K are stored. `group`
 * is a constant wherever this is inlined, so that all loops over it and over pixels unroll and `sum` is registers. */
static inline __attribute__((always_inline)) void tile(const int group, const job *a, const float *const *at,
                                                       int64_t first, float *out, int64_t pixels) {
    const int64_t row = a->row, columns = a->s->j, k = a->s->k, *column = a->column;
    const float *weight = a->weight + first, *window[PIXELS];
    vec sum[PIXELS][GROUP];
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++) {
        window[i] = at[i];
#pragma GCC unroll 4
        for (int g = 0; g < group; g++) sum[i][g] = *(const vec *)(a->bias + first + g * LANES);
    }
    for (int64_t j = 0; j < columns; j++, weight += row) {
        vec w[GROUP];
#pragma GCC unroll 4
        for (int g = 0; g < group; g++) w[g] = *(const vec *)(weight + g * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < PIXELS; i++) {
            const float value = window[i][column[j]];
#pragma GCC unroll 4
            for (int g = 0; g < group; g++) sum[i][g] += value * w[g];
        }
    }
    if (a->s->relu)
#pragma GCC unroll 16
        for (int i = 0; i < PIXELS; i++)
#pragma GCC unroll 4
            for (int g = 0; g < group; g++) /* a NaN is not below 0 and stays */
                sum[i][g] = (vec)((bits)sum[i][g] & ~(bits)(sum[i][g] < 0));
    if (pixels == PIXELS && first + group * LANES <= k) {
#pragma GCC unroll 16
        for (int i = 0; i < PIXELS; i++)
#pragma GCC unroll 4
            for (int g = 0; g < group; g++) *(vec *)(out + i * k + first + g * LANES) = sum[i][g];
        return;
    }
    float whole[PIXELS][GROUP * LANES];
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++)
#pragma GCC unroll 4
        for (int g = 0; g < group; g++) *(vec *)(whole[i] + g * LANES) = sum[i][g];
    const int64_t outputs = k - first < group * LANES ? k - first : group * LANES;
    for (int64_t i = 0; i < pixels; i++) memcpy(out + i * k + first, whole[i], 4 * outputs);
}

/* Copy a band's input rows, from `top` on, to where `column` and `pixel` count from; zeros beside them are there. */
static void copy_rows(const job *a, const float *image, int64_t top, float *to) {
    const shape *s = a->s;
    const int64_t inner = s->w * s->c;
    for (int64_t y = top; y < top + a->in_rows; y++, to += a->pitch)
        if (y < 0 || y >= s->h)
            memset(to, 0, 4 * a->pitch);
        else
            memcpy(to + s->pad_w * s->c, image + y * inner, 4 * inner);
}

static void compute_band(const job *a, int64_t number, float *scratch) {
    const shape *s = a->s;
    const int64_t image = number / a->bands, top = number % a->bands * a->band_rows;
    const int64_t rows = s->out_h - top < a->band_rows ? s->out_h - top : a->band_rows;
    const int64_t pixels = rows * s->out_w;
    const float *from = a->x + image * s->h * s->w * s->c;
    float *out = a->out + (image * s->out_h + top) * s->out_w * s->k;
    if (a->copies) {
        copy_rows(a, from, top * s->stride_h - s->pad_h, scratch);
        from = scratch;
    } else {
        from += top * s->stride_h * a->pitch;
    }
    for (int64_t first = 0; first < s->k; first += GROUP * LANES) {
        const int64_t vectors = (s->k - first + LANES - 1) / LANES;
        for (int64_t done = 0; done < pixels; done += PIXELS) {
            const int64_t left = pixels - done < PIXELS ? pixels - done : PIXELS;
            const float *at[PIXELS]; /* where there are fewer pixels, the last one several times */
            for (int64_t i = 0; i < PIXELS; i++) at[i] = from + a->pixel[done + (i < left ? i : left - 1)];
            if (vectors >= GROUP)
                tile(GROUP, a, at, first, out + done * s->k, left);
            else if (GROUP > 3 && vectors == 3)
                tile(3, a, at, first, out + done * s->k, left);
            else if (GROUP > 2 && vectors == 2)
                tile(2, a, at, first, out + done * s->k, left);
            else
                tile(1, a, at, first, out + done * s->k, left);
        }
    }
}

/* What one thread does. One that gets no memory leaves its bands to the others. */
static void work(void *argument) {
    job *a = argument;
    float *scratch = a->copies ? calloc(a->in_rows * a->pitch, 4) : NULL;
    if (a->copies && !scratch) return;
    const int64_t all = a->s->n * a->bands;
    for (int64_t i; (i = __atomic_fetch_add(&a->next, 1, __ATOMIC_RELAXED)) < all;) compute_band(a, i, scratch);
    free(scratch);
}

/* Bands that fit the cache, of equal size, and as many for one thread as for another where there are only few. */
static void divide(job *a) {
    const shape *s = a->s;
    const int64_t reach = (s->taps / s->kernel_w - 1) * s->dil_h + 1; /* input rows that one output row reads */
    const int64_t fitting = a->copies ? (BAND_BYTES / 4 / a->pitch - reach) / s->stride_h + 1 : s->out_h;
    a->bands = fitting < 1 ? s->out_h : (s->out_h + fitting - 1) / fitting;
    while (s->n * a->bands % s->threads && s->n * a->bands < FEW_BANDS * s->threads && a->bands < s->out_h) a->bands++;
    a->band_rows = (s->out_h + a->bands - 1) / a->bands;
    a->bands = (s->out_h + a->band_rows - 1) / a->band_rows;
    a->in_rows = (a->band_rows - 1) * s->stride_h + reach;
}

/* x: N×H×W×C, weight: J×K, bias: K or NULL, channels and taps: J, out: N×out_h×out_w×K; all dense. `parallel` is
 * GOMP_parallel, or NULL for one thread. */
int psp_column_conv(const shape *s, const float *x, const float *weight, const float *bias, const int64_t *channels,
                    const int64_t *taps, float *out, parallel_fn *parallel) {
    for (int64_t j = 0; j < s->j; j++)
        if (channels[j] < 0 || channels[j] >= s->c || taps[j] < 0 || taps[j] >= s->taps) return BAD_INDEX;
    job a = {.s = s, .x = x, .out = out};
    a.copies = s->j > 0 && (s->pad_h > 0 || s->pad_w > 0);
    a.pitch = (s->w + 2 * s->pad_w) * s->c;
    a.row = (s->k + LANES - 1) / LANES * LANES;
    divide(&a);

    const int64_t pixels = a.band_rows * s->out_w, padded = a.row == s->k ? 0 : s->j * a.row;
    int64_t *column = malloc(8 * (s->j + pixels) + 4 * (a.row + padded)), *pixel = column + s->j;
    if (!column) return OUT_OF_MEMORY;
    for (int64_t j = 0; j < s->j; j++) {
        const int64_t r = taps[j] / s->kernel_w, q = taps[j] % s->kernel_w;
        column[j] = r * s->dil_h * a.pitch + q * s->dil_w * s->c + channels[j];
    }
    for (int64_t y = 0, i = 0; y < a.band_rows; y++)
        for (int64_t z = 0; z < s->out_w; z++) pixel[i++] = y * s->stride_h * a.pitch + z * s->stride_w * s->c;
    /* Whole vectors are read: bias and weights are copied to where zeros can follow them. */
    float *own_bias = (float *)(pixel + pixels), *own_weight = own_bias + a.row;
    memset(own_bias, 0, 4 * (a.row + padded));
    if (bias) memcpy(own_bias, bias, 4 * s->k);
    for (int64_t j = 0; padded && j < s->j; j++) memcpy(own_weight + j * a.row, weight + j * s->k, 4 * s->k);
    a.column = column, a.pixel = pixel, a.bias = own_bias, a.weight = padded ? own_weight : weight;

    if (s->threads > 1 && parallel)
        parallel(work, &a, s->threads, 0);
    else
        work(&a);
    free(column);
    return a.next < s->n * a.bands ? OUT_OF_MEMORY : OK;
}
