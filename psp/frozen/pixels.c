/* A whole network on the CPU, one image at a time: the lanes of a vector register are neighbouring pixels.
 *
 * A map is an array of planes, one for each channel (BFLOAT16: each pair of channels), a plane an array of rows with
 * zeros between them and around them, so that a convolution needs no border: position p of its result is row
 * p / pitch, and a column of its window is a vector as it lies in memory, whatever the length of a row. What is computed
 * between rows is replaced by zeros.
 * Threads take images; those that are left over they may share, vectors of pixels each, and wait for each other after
 * every operation. The operations are those of lanes.c.
 */
#include "pixels.h"
#include "pixels_pointwise.h"
#include "pixels_sampling.h"
#include "tiles.h"
#include <sched.h>

typedef struct {
    int64_t images, alone; /* alone: how many are computed by one thread each, before the others are by all */
    int64_t operations, memory, threads, tiles; /* memory: units a thread; tiles: whether a layer uses them */
    int64_t x, plane, pitch, channels, height, width, stride_n, stride_c, stride_h, stride_w; /* the input's map */
    int64_t y, y_plane, y_pitch, y_channels, y_height, y_width, window; /* window: where a thread's memory for it is */
    const operation *operation;
} program;

typedef struct {
    const program *p;
    const element *x;
    element *y;
    unit *memory;
    int (*team)(void);
    int64_t next, thread, arrived, turn;
} job;

/* Whether the columns are copied before they are multiplied. */
INLINE int is_packed(const operation *o) { return o->x.place || o->order; }

/* `many` vectors of pixels × `group` outputs from `first` on, both constants wherever this is inlined. */
INLINE void block(const int group, const int many, const operation *o, unit *memory, const unit *window, int64_t first,
                  int64_t v) {
    const int straight = !is_packed(o);
    const unit *from = straight ? memory + o->x.begin + v * LANES : window;
    const float *weight = o->weight + first * o->steps;
    vec sum[BLOCK][GROUP];
    UNROLLED for (int i = 0; i < many; i++)
        UNROLLED for (int k = 0; k < group; k++) sum[i][k] = (vec){0} + o->bias[first + k];
    for (int64_t j = 0; j < o->steps; j++, weight += group) {
        vec x[BLOCK];
        UNROLLED for (int i = 0; i < many; i++)
            x[i] = load(straight ? from + o->offset[j] + i * LANES : from + (j * many + i) * LANES);
        UNROLLED for (int k = 0; k < group; k++)
            UNROLLED for (int i = 0; i < many; i++) sum[i][k] = add_product(sum[i][k], x[i], weight[k]);
    }
    UNROLLED for (int i = 0; i < many; i++)
        UNROLLED for (int k = 0; k < group; k += PARTS) finish(o, memory, &sum[i][k], first + k, v + i);
}

/* Groups are of GROUP outputs, the last of what is left, in whole units. */
#define CASE(group) case group: block(group, many, o, memory, window, first, v); break;
INLINE void blocks(const int many, const operation *o, unit *memory, unit *window, int64_t v) {
    if (is_packed(o)) pack(o, memory, window, v, many);
    int64_t first = 0;
    for (; first + GROUP <= o->channels; first += GROUP) block(GROUP, many, o, memory, window, first, v);
    switch (whole_units(o->channels - first)) {
        CASE(2) CASE(4) CASE(6) CASE(8)
#if !defined(BFLOAT16)
        CASE(1) CASE(3) CASE(5) CASE(7)
#endif
    }
}

/* Every output has columns of its own: `many` vectors of pixels × one unit of outputs. */
INLINE void own_columns(const int many, const operation *o, unit *memory, int64_t k, int64_t v) {
    vec sum[BLOCK][PARTS];
    for (int p = 0; p < PARTS; p++) {
        const int64_t first = (k + p) * o->steps;
        UNROLLED for (int i = 0; i < many; i++) sum[i][p] = (vec){0} + o->bias[k + p];
        for (int64_t j = first; j < first + o->steps; j++)
            UNROLLED for (int i = 0; i < many; i++)
                sum[i][p] = add_product(sum[i][p], at(&o->x, memory, o->offset[j], v + i), o->weight[j]);
    }
    UNROLLED for (int i = 0; i < many; i++) finish(o, memory, sum[i], k, v + i);
}

static void conv_own(const operation *o, unit *memory, int64_t begin, int64_t end) {
    for (int64_t k = 0; k < o->channels; k += PARTS) {
        int64_t v = begin;
        for (; v + BLOCK <= end; v += BLOCK) own_columns(BLOCK, o, memory, k, v);
        for (; v < end; v++) own_columns(1, o, memory, k, v);
    }
}

static void conv(const operation *o, unit *memory, unit *window, int64_t begin, int64_t end) {
    if (o->tiled) return conv_tiles(o, memory, window, begin, end);
    if (o->own) return conv_own(o, memory, begin, end);
    int64_t v = begin;
    for (; v + BLOCK <= end; v += BLOCK) blocks(BLOCK, o, memory, window, v);
    _Static_assert(BLOCK == 3, "what is left are one or two vectors");
    if (end - v == 2) blocks(2, o, memory, window, v);
    if (end - v == 1) blocks(1, o, memory, window, v);
}

/* Part `member` of `team` of one operation. Tiles come in twos. */
static void run(const operation *o, unit *memory, unit *window, int64_t member, int64_t team) {
    const int64_t whole = o->kind == CONV && o->tiled ? 2 : 1, planes = whole_units(o->channels) / PARTS;
    const int64_t sampled = o->kind != CONV && o->kind != COMBINE && o->kind != MULTIPLY && o->kind != NORM;
    const int64_t count = sampled ? planes : (o->vectors + whole - 1) / whole;
    const int64_t begin = count * member / team * whole, end = count * (member + 1) / team * whole;
    if (sampled) sample(o, memory, begin, end);
    else if (o->kind == CONV) conv(o, memory, window, begin, end);
    else if (o->kind == NORM) norm(o, memory, begin, end);
    else combine(o, memory, begin, end);
}

static void read_image(const program *p, const element *x, unit *memory) {
    for (int64_t c = 0; c < whole_units(p->channels); c++)
        for (int64_t row = 0; row < p->height; row++) {
            const element *from = x + c * p->stride_c + row * p->stride_h;
            element *to = (element *)(memory + p->x + c / PARTS * p->plane + row * p->pitch) + c % PARTS;
            for (int64_t z = 0; z < p->width; z++) to[z * PARTS] = c < p->channels ? from[z * p->stride_w] : 0;
        }
}

static void write_outputs(const program *p, const unit *memory, element *y) {
    for (int64_t row = 0; row < p->y_height; row++)
        for (int64_t z = 0; z < p->y_width; z++)
            for (int64_t c = 0; c < p->y_channels; c++) {
                const unit *from = memory + p->y + c / PARTS * p->y_plane + row * p->y_pitch + z;
                *y++ = ((const element *)from)[c % PARTS];
            }
}

static void image(const program *p, job *a, int64_t n, unit *memory, unit *window) {
    read_image(p, a->x + n * p->stride_n, memory);
    for (const operation *o = p->operation; o < p->operation + p->operations; o++) run(o, memory, window, 0, 1);
    write_outputs(p, memory, a->y + n * p->y_height * p->y_width * p->y_channels);
}

/* Wait for the others: for so short a time that it is not worth sleeping, unless there are fewer cores than threads. */
static void barrier(job *a, int64_t team) {
    const int64_t turn = __atomic_load_n(&a->turn, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&a->arrived, 1, __ATOMIC_ACQ_REL) == team) {
        __atomic_store_n(&a->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&a->turn, turn + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&a->turn, __ATOMIC_ACQUIRE) == turn; spins++)
        if (spins > 2000) sched_yield();
}

static void work(void *argument) {
    job *a = argument;
    const program *p = a->p;
    const int64_t member = __atomic_fetch_add(&a->thread, 1, __ATOMIC_RELAXED), team = a->team ? a->team() : 1;
    unit *own = a->memory + member * p->memory, *window = own + p->window;
    for (int64_t n; (n = __atomic_fetch_add(&a->next, 1, __ATOMIC_RELAXED)) < p->alone;) image(p, a, n, own, window);
    if (p->alone < p->images) barrier(a, team); /* the first thread's memory is free */
    for (int64_t n = p->alone; n < p->images; n++) {
        if (!member) read_image(p, a->x + n * p->stride_n, a->memory);
        barrier(a, team);
        for (const operation *o = p->operation; o < p->operation + p->operations; o++, barrier(a, team))
            run(o, a->memory, window, member, team);
        if (!member) write_outputs(p, a->memory, a->y + n * p->y_height * p->y_width * p->y_channels);
    }
    if (p->tiles) end_tiles();
}

/* Elements of so many bytes that are multiplied here: 0 if none, else how many lanes. */
int64_t psp_lanes(int64_t bytes) { return bytes == sizeof(element) ? LANES : 0; }
int64_t psp_tiles(void) { return has_tiles(); }
int64_t psp_steps(void) { return has_steps(); }

/* One operation, `times` times on this thread, to measure it. */
void psp_operation(const operation *o, unit *memory, unit *window, int64_t times) {
    while (times--) run(o, memory, window, 0, 1);
    if (o->tiled) end_tiles();
}

/* x: N images of any strides, y: N × outputs, memory: p->threads × p->memory units, zeros at first, aligned.
 * `parallel` is GOMP_parallel and `team` omp_get_num_threads, or both NULL for one thread. */
void psp_run(const program *p, const element *x, element *y, unit *memory, parallel_fn *parallel, int (*team)(void)) {
    job a = {.p = p, .x = x, .y = y, .memory = memory, .team = p->threads > 1 && parallel ? team : 0};
    a.team ? parallel(work, &a, p->threads, 0) : work(&a);
}
