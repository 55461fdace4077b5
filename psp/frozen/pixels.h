/* What the parts of pixels.c share: the program, made by psp.frozen.pixels, and how a vector of outputs is finished. */
#include "vectors.h"

enum { BLOCK = 3 };
#define UNROLLED _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

/* A map as an operation reads it, in units: pixel (0, 0) of its first plane, and the distances between planes, rows. */
typedef struct {
    int64_t begin, plane, pitch, height, width, stride_h, stride_w;
    int64_t rows;         /* of pixels that are in one vector of outputs, at most; 0: vectors have to be gathered */
    const int32_t *index; /* of every output channel its channel here, or −1 */
    const int32_t *place; /* of every output position its distance here; NULL where they are the same */
    const int32_t *row;   /* of every vector and each of its rows: the distance of its first lane, were all of that row, */
                          /* and the lanes that are */
} map;

typedef struct {
    int64_t kind, activation, own, out, plane, channels, height, width, pitch, vectors;
    int64_t kernel_h, kernel_w, pad_h, pad_w, count_padding;
    int64_t steps, tiled; /* of CONV: columns (or pairs of them), and whether by tiles; */
    int64_t high, deep;   /* then outputs and steps of a tile, */
    int64_t direct;       /* and bytes from a step to the next in the map, or 0: they are packed first */
    const int32_t *mask;  /* of every output position all bits, or none where there is no pixel */
    const int32_t *offset;
    const int32_t *order; /* of every pair of columns that are joined, each with an offset, what `halves` takes; or NULL */
    const int32_t *table;
    const float *weight, *tile, *start, *bias, *scale; /* start: the bias as tiles */
    map x, other; /* `other` has no index where there is none */
} operation;

INLINE int64_t whole_units(int64_t channels) { return (channels + PARTS - 1) / PARTS * PARTS; }

/* Vector v of what is, for outputs, a plane `from` on of a map. */
INLINE vec pixels(const map *m, const unit *from, int64_t v) {
    if (!m->place) return load(from + v * LANES);
    if (!m->rows) return gather(from, m->place + v * LANES);
    const int32_t *row = m->row + 2 * v * m->rows;
    vec x = in_steps(from + row[0], m->stride_w);
    for (int64_t i = 1; i < m->rows; i++) x = blend(row[2 * i + 1], x, in_steps(from + row[2 * i], m->stride_w));
    return x;
}

INLINE vec at(const map *m, const unit *memory, int64_t offset, int64_t v) {
    return pixels(m, memory + m->begin + offset, v);
}

/* Where a channel of an operation is in a map that it reads: nowhere if `plane` is NULL, which counts as zeros. */
typedef struct {
    const map *map;
    const unit *plane;
    int part;
} source;

INLINE source find(const map *m, const unit *memory, int64_t k) {
    const int32_t index = m->index ? m->index[k] : -1;
    const unit *plane = index < 0 ? 0 : memory + m->begin + index / PARTS * m->plane;
    return (source){m, plane, index % PARTS};
}

INLINE vec lanes_of(const source *s, int64_t v) {
    return s->plane ? channel(pixels(s->map, s->plane, v), s->part) : (vec){0};
}

INLINE vec taken(const map *m, const unit *memory, int64_t k, int64_t v) {
    const source s = find(m, memory, k);
    return lanes_of(&s, v);
}

/* Write channels k to k + PARTS − 1 of vector v of an operation's result. */
INLINE void keep(const operation *o, unit *memory, const vec *parts, int64_t k, int64_t v) {
    const vec kept = (vec)((bits)join(parts) & (bits)load(o->mask + v * LANES));
    store(memory + o->out + k / PARTS * o->plane + v * LANES, kept);
}

/* A convolution's sums of these channels, with what is to be added to them and through its activation. */
INLINE void finish(const operation *o, unit *memory, const vec *sum, int64_t k, int64_t v) {
    vec parts[PARTS];
    for (int p = 0; p < PARTS; p++) {
        parts[p] = sum[p];
        if (o->other.index && k + p < o->channels) parts[p] += taken(&o->other, memory, k + p, v);
        if (o->activation) parts[p] = rectified(parts[p], o->activation);
    }
    keep(o, memory, parts, k, v);
}

/* The windows of vectors v to v + many − 1, side by side: of each column, or pair that is joined, all of its vectors. */
INLINE void pack(const operation *o, const unit *memory, unit *window, int64_t v, const int many) {
    const int32_t *offset = o->offset;
    if (o->order)
        for (int64_t j = 0; j < o->steps; j++, offset += 2, window += many * LANES)
            UNROLLED for (int i = 0; i < many; i++) {
                const vec first = at(&o->x, memory, offset[0], v + i), second = at(&o->x, memory, offset[1], v + i);
                store(window + i * LANES, halves(first, second, o->order[j]));
            }
    else
        for (int64_t j = 0; j < o->steps; j++, offset++, window += many * LANES)
            UNROLLED for (int i = 0; i < many; i++) store(window + i * LANES, at(&o->x, memory, *offset, v + i));
}
