/* Column-sparse convolution on the CPU: out[n,y,x,k] = bias[k] + Σ_j w[j,k] · in[n, y·s − p + r_j·d, x·s − p + q_j·d, c_j].
 *
 * Every kept column j of the lowered matrix is one input channel c_j at one kernel position (r_j, q_j). In a
 * channels-last map its value for an output pixel lies at a fixed distance from that pixel, so a table of J distances
 * replaces the im2col matrix: nothing is ever lowered.
 *
 * The inner tile holds PIXELS × (GROUP · LANES) sums in vector registers. For each column it loads GROUP vectors of
 * weights once and, for each pixel, broadcasts one input value and multiplies. Padding is a copy of the few input rows
 * that a band of output rows reads, small enough for the first-level cache. Threads take bands from a shared counter,
 * run by the OpenMP runtime that PyTorch already has (its entry point is handed in), so that there is no second pool.
 *
 * Only vector extensions of GCC and Clang, so one source serves AVX-512, AVX2 and NEON.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, GROUP = 2, PIXELS = 8 };
#elif defined(__AVX__)
enum { LANES = 8, GROUP = 2, PIXELS = 6 };
#else
enum { LANES = 4, GROUP = 4, PIXELS = 6 };
#endif
enum { BAND_BYTES = 32 * 1024, OK = 0, NO_MEMORY = 1, BAD_INDEX = 2 };

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef void parallel_fn(void (*)(void *), void *, unsigned, unsigned);

typedef struct {
    int64_t n, c, h, w, k, j;                           /* images, input channels, height, width, outputs, columns */
    int64_t kernel_w, taps, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w; /* taps: kernel height × kernel width */
    int64_t out_h, out_w, relu, threads;
} shape;

typedef struct {
    const shape *s;
    const float *x, *weight, *bias; /* weight: J rows of `row` floats; bias: `row` floats */
    float *out;
    const int64_t *column, *pixel; /* distances in floats: of a column from its pixel, of a pixel from its band */
    int64_t row, band_rows, bands, in_rows, pitch, copies, next;
    int failed;
} job;

/* Sums of PIXELS pixels × `group` vectors of outputs; `group` is a constant wherever this is inlined. */
static inline __attribute__((always_inline)) void tile(const int group, const job *a, const float *const *at,
                                                       int64_t first, float *out, int64_t pixels) {
    const int64_t row = a->row, columns = a->s->j, k = a->s->k;
    const int64_t *column = a->column;
    const float *weight = a->weight + first;
    const float *p[PIXELS];
    vec sum[PIXELS][GROUP];
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++) {
        p[i] = at[i];
#pragma GCC unroll 4
        for (int g = 0; g < group; g++) sum[i][g] = *(const vec *)(a->bias + first + g * LANES);
    }
    for (int64_t j = 0; j < columns; j++, weight += row) {
        const int64_t distance = column[j];
        vec w[GROUP];
#pragma GCC unroll 4
        for (int g = 0; g < group; g++) w[g] = *(const vec *)(weight + g * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < PIXELS; i++) {
            const float value = p[i][distance];
#pragma GCC unroll 4
            for (int g = 0; g < group; g++) sum[i][g] += value * w[g];
        }
    }
    if (a->s->relu)
#pragma GCC unroll 16
        for (int i = 0; i < PIXELS; i++)
#pragma GCC unroll 4
            for (int g = 0; g < group; g++) /* a NaN is not below 0 and stays */
                sum[i][g] = (vec)((mask)sum[i][g] & ~(mask)(sum[i][g] < 0));
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

/* The input rows of a band, where `column` and `pixel` count from. The zeros beside them are there from the start. */
static void copy_rows(const job *a, const float *image, int64_t top, int64_t rows, float *to) {
    const shape *s = a->s;
    const int64_t inner = s->w * s->c;
    for (int64_t y = top; y < top + rows; y++, to += a->pitch)
        if (y < 0 || y >= s->h)
            memset(to, 0, 4 * a->pitch);
        else
            memcpy(to + s->pad_w * s->c, image + y * inner, 4 * inner);
}

static void band(const job *a, int64_t unit, float *scratch) {
    const shape *s = a->s;
    const int64_t image = unit / a->bands, y = unit % a->bands * a->band_rows;
    const int64_t rows = s->out_h - y < a->band_rows ? s->out_h - y : a->band_rows;
    const int64_t pixels = rows * s->out_w;
    const float *from = a->x + image * s->h * s->w * s->c;
    float *out = a->out + (image * s->out_h + y) * s->out_w * s->k;
    if (a->copies) {
        const int64_t reach = a->in_rows - (a->band_rows - rows) * s->stride_h;
        copy_rows(a, from, y * s->stride_h - s->pad_h, reach, scratch);
        from = scratch;
    } else {
        from += y * s->stride_h * a->pitch;
    }
    for (int64_t first = 0; first < s->k; first += GROUP * LANES) {
        for (int64_t done = 0; done < pixels; done += PIXELS) {
            const int64_t left = pixels - done < PIXELS ? pixels - done : PIXELS;
            const float *at[PIXELS];
            for (int64_t i = 0; i < PIXELS; i++) at[i] = from + a->pixel[done + (i < left ? i : left - 1)];
            if (s->k - first > (GROUP - 1) * LANES)
                tile(GROUP, a, at, first, out + done * s->k, left);
            else if (s->k - first > LANES && GROUP > 2)
                tile(2, a, at, first, out + done * s->k, left);
            else
                tile(1, a, at, first, out + done * s->k, left);
        }
    }
}

static void work(void *argument) {
    job *a = argument;
    float *scratch = a->copies ? calloc(a->in_rows * a->pitch, 4) : NULL;
    if (a->copies && !scratch) {
        a->failed = 1;
        return;
    }
    const int64_t units = a->s->n * a->bands;
    for (int64_t unit; (unit = __atomic_fetch_add(&a->next, 1, __ATOMIC_RELAXED)) < units;) band(a, unit, scratch);
    free(scratch);
}

/* x: N×H×W×C, weight: J×K, bias: K or NULL, channels and taps: J, out: N×out_h×out_w×K, all dense. */
int psp_column_conv(const shape *s, const float *x, const float *weight, const float *bias, const int64_t *channels,
                    const int64_t *taps, float *out, parallel_fn *parallel) {
    job a = {.s = s, .x = x, .out = out};
    const int64_t width = s->w + 2 * s->pad_w;
    const int64_t reach = (s->taps / s->kernel_w - 1) * s->dil_h + 1;
    a.copies = s->pad_h > 0 || s->pad_w > 0;
    a.pitch = width * s->c;
    a.band_rows = s->out_h;
    if (a.copies) {
        const int64_t fitting = (BAND_BYTES / 4 / (a.pitch ? a.pitch : 1) - reach) / s->stride_h + 1;
        a.band_rows = fitting < 1 ? 1 : fitting < s->out_h ? fitting : s->out_h;
    }
    while (a.band_rows > 1 && s->n * ((s->out_h + a.band_rows - 1) / a.band_rows) < s->threads) a.band_rows = (a.band_rows + 1) / 2;
    a.bands = (s->out_h + a.band_rows - 1) / a.band_rows;
    a.in_rows = (a.band_rows - 1) * s->stride_h + reach;
    a.row = (s->k + LANES - 1) / LANES * LANES;

    const int64_t pixels = a.band_rows * s->out_w, packed = a.row == s->k ? 0 : s->j * a.row;
    int64_t *tables = malloc(8 * (s->j + pixels) + 4 * (a.row + packed));
    if (!tables) return NO_MEMORY;
    int64_t *column = tables, *pixel = tables + s->j;
    float *padded_bias = (float *)(pixel + pixels), *padded = padded_bias + a.row;
    int status = OK;
    for (int64_t j = 0; j < s->j; j++) {
        if (channels[j] < 0 || channels[j] >= s->c || taps[j] < 0 || taps[j] >= s->taps) status = BAD_INDEX;
        const int64_t r = taps[j] / s->kernel_w, q = taps[j] % s->kernel_w;
        column[j] = r * s->dil_h * a.pitch + q * s->dil_w * s->c + channels[j];
    }
    for (int64_t y = 0, i = 0; y < a.band_rows; y++)
        for (int64_t z = 0; z < s->out_w; z++) pixel[i++] = y * s->stride_h * a.pitch + z * s->stride_w * s->c;
    memset(padded_bias, 0, 4 * a.row);
    if (bias) memcpy(padded_bias, bias, 4 * s->k);
    for (int64_t j = 0; packed && j < s->j; j++) {
        memcpy(padded + j * a.row, weight + j * s->k, 4 * s->k);
        memset(padded + j * a.row + s->k, 0, 4 * (a.row - s->k));
    }
    a.column = column, a.pixel = pixel, a.bias = padded_bias, a.weight = packed ? padded : weight;
    if (status == OK) {
        if (s->threads > 1 && parallel) parallel(work, &a, s->threads, 0);
        else work(&a);
        if (a.failed) status = NO_MEMORY;
    }
    free(tables);
    return status;
}
