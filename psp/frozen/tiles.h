/* A convolution by the matrix unit of AMX, for pixels.c: products of tiles, 16 outputs × 32 columns × 16 pixels.
 *
 * With channels in pairs a row of a tile is a pair's plane at 16 neighbouring pixels, as it lies in memory. Where the
 * columns of a tile are planes at equal distances (all of a tap's channels), the tile is loaded from the map itself;
 * otherwise a column that is left costs one copy of a vector.
 */
#if defined(__AVX512BF16__) && defined(BFLOAT16) && defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ROWS = 16, PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA of Linux */

/* Compiled whatever this processor has, and called where `has_tiles` says so. */
#define TILES __attribute__((target("amx-tile,amx-bf16")))

/* Whether there are tiles, which a process has to ask for. */
static int has_tiles(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    return (d >> 22 & 1) && (d >> 24 & 1) && !syscall(SYS_arch_prctl, PERMISSION, TILE_DATA);
}

TILES static void begin_tiles(void) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 4 * LANES, shape.rows[i] = ROWS;
    _tile_loadconfig(&shape);
}
TILES static void end_tiles(void) { _tile_release(); }

/* Outputs from `first` on of one tile of sums. */
INLINE void put(const operation *o, unit *memory, const vec *sums, int64_t first, int64_t v) {
    for (int64_t k = 0; k < ROWS && first + k < o->channels; k += PARTS) {
        vec sum[PARTS];
        for (int p = 0; p < PARTS; p++) sum[p] = sums[k + p] + o->bias[first + k + p];
        finish(o, memory, sum, first + k, v);
    }
}

/* Two vectors of pixels × `high` tiles of outputs from `first` on. */
TILES INLINE void multiply(const operation *o, unit *memory, const unit *window, int64_t first, int64_t v, const int high) {
    vec sums[ROWS];
    const int64_t chunks = o->steps / ROWS, size = ROWS * LANES;
    const float *tile = o->tile + first / ROWS * chunks * size;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t c = 0; c < chunks; c++, tile += size) {
        const unit *x = memory + o->x.begin + o->offset[c * ROWS] + v * LANES, *second = x + LANES;
        int64_t stride = o->direct[c];
        if (!stride) x = window + c * size, second = x + o->steps * LANES, stride = 4 * LANES;
        _tile_loadd(6, x, stride);
        _tile_loadd(7, second, stride);
        _tile_loadd(4, tile, 4 * LANES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (high > 1) {
            _tile_loadd(5, tile + chunks * size, 4 * LANES);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 4 * LANES);
    put(o, memory, sums, first, v);
    _tile_stored(1, sums, 4 * LANES);
    put(o, memory, sums, first, v + 1);
    if (high == 1) return;
    _tile_stored(2, sums, 4 * LANES);
    put(o, memory, sums, first + ROWS, v);
    _tile_stored(3, sums, 4 * LANES);
    put(o, memory, sums, first + ROWS, v + 1);
}

/* Copy what no tile can be loaded from. */
static void pack_tiles(const operation *o, const unit *memory, unit *window, int64_t v) {
    for (int64_t i = 0; i < 2; i++)
        for (int64_t j = 0; j < o->steps; j++, window += LANES)
            if (!o->direct[j / ROWS]) store(window, at(&o->x, memory, o->offset[j], v + i));
}

/* Vectors `begin` to `end` of the result, an even number. */
TILES static void conv_tiles(const operation *o, unit *memory, unit *window, int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; v += 2) {
        pack_tiles(o, memory, window, v);
        int64_t first = 0;
        for (; first + ROWS < o->channels; first += 2 * ROWS) multiply(o, memory, window, first, v, 2);
        for (; first < o->channels; first += ROWS) multiply(o, memory, window, first, v, 1);
    }
}
#else
static int has_tiles(void) { return 0; }
static void begin_tiles(void) {}
static void end_tiles(void) {}
static void conv_tiles(const operation *o, unit *memory, unit *window, int64_t begin, int64_t end) {
    (void)o, (void)memory, (void)window, (void)begin, (void)end;
}
#endif
