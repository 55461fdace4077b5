/* A convolution by the matrix unit of AMX, for pixels.c: products of tiles, up to 16 outputs × up to 16 units × 16 pixels.
 *
 * With channels in pairs a row of a tile is a pair's plane at 16 neighbouring pixels, as it lies in memory. Where whole
 * taps are taken, whose planes are at equal distances, a tile is loaded from the map itself; otherwise the columns that
 * are left are copied, or joined in pairs.
 */
#if defined(__clang__)
#define KNOWS_TILES (__clang_major__ >= 11)
#else
#define KNOWS_TILES (__GNUC__ >= 11)
#endif
#if defined(__AVX512BF16__) && defined(BFLOAT16) && defined(__x86_64__) && defined(__linux__) && KNOWS_TILES
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ROWS = 16, PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA of Linux */

/* Compiled whatever this processor has, and called where `has_tiles` says so. */
#define TILES __attribute__((target("amx-tile,amx-bf16")))

/* What was written is in memory: GCC 12 does not know that loading a tile, or its shape, reads memory. */
#define WRITTEN __asm__ volatile("" ::: "memory")

/* Whether there are tiles, which a process has to ask for. */
static int has_tiles(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    return (d >> 22 & 1) && (d >> 24 & 1) && !syscall(SYS_arch_prctl, PERMISSION, TILE_DATA);
}

/* Tiles 0 to 3 are of sums of `high` outputs, 4 and 5 of their weights for `deep` units, 6 and 7 of these at pixels. */
TILES static void begin_tiles(int64_t high, int64_t deep) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.bytes[i] = 4 * (i == 4 || i == 5 ? deep : LANES);
        shape.rows[i] = i > 5 ? deep : high;
    }
    WRITTEN;
    _tile_loadconfig(&shape);
}
TILES static void end_tiles(void) { _tile_release(); }

/* What is multiplied at once: two tiles of sums, of vectors v and v + 1 of pixels and the outputs from `first` on;
 * and two more, either of the outputs that are `down` from there, or of the vectors that are `right` of there. */
typedef struct { int64_t v, first, down, right; } part;

INLINE int is_double(const part *a) { return a->down || a->right; }

/* The products of a part; whether it goes down or right are constants. */
TILES INLINE void multiply(const operation *o, const unit *memory, const unit *window, const part *a, const int down,
                           const int right) {
    const int64_t deep = o->deep, direct = o->direct, stride = direct ? direct : 4 * LANES;
    const int64_t apart = direct ? LANES : o->steps * LANES; /* from a vector to the next */
    const float *tile = o->tile + a->first * o->steps, *start = o->start + a->first * LANES;
    _tile_loadd(0, start, 4 * LANES);
    _tile_loadd(1, start, 4 * LANES);
    if (down || right) {
        _tile_loadd(2, start + a->down * LANES, 4 * LANES);
        _tile_loadd(3, start + a->down * LANES, 4 * LANES);
    }
    for (int64_t j = 0; j < o->steps; j += deep, tile += o->high * deep) {
        const unit *x = direct ? memory + o->x.begin + o->offset[j] + a->v * LANES : window + j * LANES;
        _tile_loadd(4, tile, 4 * deep);
        _tile_loadd(6, x, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, x + apart, stride);
        _tile_dpbf16ps(1, 4, 7);
        if (down) {
            _tile_loadd(5, tile + o->high * o->steps, 4 * deep);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        if (right) {
            _tile_loadd(6, x + 2 * apart, stride);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(7, x + 3 * apart, stride);
            _tile_dpbf16ps(3, 4, 7);
        }
    }
}

TILES static void multiply_part(const operation *o, const unit *memory, const unit *window, const part *a) {
    if (a->down) multiply(o, memory, window, a, 1, 0);
    else if (a->right) multiply(o, memory, window, a, 0, 1);
    else multiply(o, memory, window, a, 0, 0);
}

TILES static void store_sums(const part *a, vec *sums) {
    _tile_stored(0, sums, 4 * LANES);
    _tile_stored(1, sums + ROWS, 4 * LANES);
    if (!is_double(a)) return;
    _tile_stored(2, sums + 2 * ROWS, 4 * LANES);
    _tile_stored(3, sums + 3 * ROWS, 4 * LANES);
}

/* What is added to sums: nothing, any channels of another map, or channel k of it to output k. */
enum { ADD_NOTHING, ADD_CHANNELS, ADD_SAME }; /* the last for whole pairs: the spare half of one is zero */

static int what_is_added(const operation *o) {
    int same = !o->other.place && o->channels % PARTS == 0;
    for (int64_t k = 0; o->other.index && k < o->channels; k++) same &= o->other.index[k] == k;
    return !o->other.index ? ADD_NOTHING : same ? ADD_SAME : ADD_CHANNELS;
}

/* Outputs from `first` on of one tile of sums; what is done to them are constants where they are usual. */
INLINE void put_tile(const operation *o, unit *memory, const vec *sums, int64_t first, int64_t v, const int added,
                     const int64_t activation) {
    const int64_t plane = o->plane, left = o->channels - first, count = left < o->high ? left : o->high;
    const int64_t other_plane = o->other.plane;
    const unit *other = memory + o->other.begin + first / PARTS * other_plane + v * LANES;
    const bits mask = (bits)load(o->mask + v * LANES);
    unit *out = memory + o->out + first / PARTS * plane + v * LANES;
    for (int64_t k = 0; k < count; k += PARTS, out += plane, other += other_plane) {
        vec sum[PARTS] = {sums[k], sums[k + 1]};
        UNROLLED for (int p = 0; p < PARTS; p++) {
            if (added == ADD_SAME) sum[p] += channel(load(other), p);
            if (added == ADD_CHANNELS && k + p < count) sum[p] += taken(&o->other, memory, first + k + p, v);
            sum[p] = rectified(sum[p], activation);
        }
        store(out, (vec)((bits)join(sum) & mask));
    }
}

INLINE void put_tiles(const operation *o, unit *memory, const vec *sums, const part *a, const int added,
                      const int64_t activation) {
    for (int t = 0; t < (is_double(a) ? 4 : 2); t++) {
        const int64_t first = a->first + t / 2 * a->down, v = a->v + t % 2 + t / 2 * a->right;
        put_tile(o, memory, sums + t * ROWS, first, v, added, activation);
    }
}

static void put_part(const operation *o, unit *memory, const vec *sums, const part *a, int added) {
    const int relu = o->activation == RELU;
    if (relu && added == ADD_NOTHING) put_tiles(o, memory, sums, a, ADD_NOTHING, RELU);
    else if (relu && added == ADD_SAME) put_tiles(o, memory, sums, a, ADD_SAME, RELU);
    else put_tiles(o, memory, sums, a, added, o->activation);
}

/* Copy, or join in pairs, what no tile can be loaded from. */
INLINE void pack_by(const int straight, const int joins, const operation *o, const unit *memory, unit *window, int64_t v,
                    int64_t wide) {
    const map x = o->x;
    const unit *from = memory + x.begin;
    const int64_t steps = o->steps;
    const int32_t *const offset = o->offset, *const order = o->order;
#define AT(i) (straight ? load(from + offset[i] + v * LANES) : pixels(&x, from + offset[i], v))
    for (const int64_t end = v + wide; v < end; v++)
        for (int64_t j = 0; j < steps; j++, window += LANES)
            store(window, joins ? halves(AT(2 * j), AT(2 * j + 1), order[j]) : AT(j));
#undef AT
}

static void pack_tiles(const operation *o, const unit *memory, unit *window, int64_t v, int64_t wide) {
    if (o->direct) return;
    if (!o->x.place && o->order) pack_by(1, 1, o, memory, window, v, wide);
    else if (!o->x.place) pack_by(1, 0, o, memory, window, v, wide);
    else pack_by(0, o->order != 0, o, memory, window, v, wide);
}

/* Vectors of a part: four where there is but one tile of outputs. */
INLINE int64_t width(const operation *o, int64_t left) { return o->channels <= o->high && left >= 4 ? 4 : left < 2 ? 0 : 2; }

/* Vectors `begin` to `end` of the result, an even number.
 *
 * The vector units pack the next window and put the last sums while the matrix unit multiplies. */
TILES static void conv_tiles(const operation *o, unit *memory, unit *window, int64_t begin, int64_t end) {
    vec sums[4 * ROWS];
    part before = {0};
    const int added = what_is_added(o);
    unit *next = window + 4 * o->steps * LANES;
    int64_t wide = width(o, end - begin);
    begin_tiles(o->high, o->deep);
    pack_tiles(o, memory, window, begin, wide);
    for (int64_t v = begin, ahead; v < end; v += wide, wide = ahead) {
        ahead = width(o, end - v - wide);
        for (int64_t first = 0; first < o->channels; first += o->high + before.down) { /* `before` is this part by then */
            WRITTEN;
            const part now = {v, first, first + o->high < o->channels ? o->high : 0, wide - 2};
            multiply_part(o, memory, window, &now);
            if (!first) pack_tiles(o, memory, next, v + wide, ahead);
            if (v > begin || first) put_part(o, memory, sums, &before, added);
            store_sums(&now, sums);
            before = now;
        }
        unit *used = window;
        window = next, next = used;
    }
    if (begin < end) put_part(o, memory, sums, &before, added);
}
#else
static int has_tiles(void) { return 0; }
static void end_tiles(void) {}
static void conv_tiles(const operation *o, unit *memory, unit *window, int64_t begin, int64_t end) {
    (void)o, (void)memory, (void)window, (void)begin, (void)end;
}
#endif
