/* Vectors of neighbouring pixels, for pixels.c: LANES units of four bytes. A unit is one channel of a pixel in float32,
 * and with BFLOAT16 a pair of channels, which is what products of bfloat16 take.
 */
#include "registers.h"
#include <string.h>

typedef float unit __attribute__((may_alias));

#if defined(BFLOAT16) && defined(__AVX512BF16__) && defined(__AVX512BW__)
enum { PARTS = 2 };
typedef uint16_t element;

/* Channel `part` of a vector of pairs, in float32. */
static inline vec channel(vec x, int part) { return (vec)((bits)x << (part ? 0 : 16) & ~0xffff); }
static inline vec join(const vec *parts) {
    const __m512i order = (__m512i)((bits){16 << 16, 17 << 16 | 1, 18 << 16 | 2, 19 << 16 | 3, 20 << 16 | 4, 21 << 16 | 5,
                                           22 << 16 | 6, 23 << 16 | 7, 24 << 16 | 8, 25 << 16 | 9, 26 << 16 | 10,
                                           27 << 16 | 11, 28 << 16 | 12, 29 << 16 | 13, 30 << 16 | 14, 31 << 16 | 15});
    const __m512bh halves = _mm512_cvtne2ps_pbh((__m512)parts[1], (__m512)parts[0]);
    return (vec)_mm512_permutexvar_epi16(order, (__m512i)halves);
}
/* Of two vectors of pairs one: half `order & 1` of each pair of the first with half `order >> 16` of each of the second. */
static inline vec halves(vec first, vec second, int32_t order) {
    const bits even = {32 << 16, 34 << 16 | 2, 36 << 16 | 4, 38 << 16 | 6, 40 << 16 | 8, 42 << 16 | 10, 44 << 16 | 12,
                       46 << 16 | 14, 48 << 16 | 16, 50 << 16 | 18, 52 << 16 | 20, 54 << 16 | 22, 56 << 16 | 24,
                       58 << 16 | 26, 60 << 16 | 28, 62 << 16 | 30};
    return (vec)_mm512_permutex2var_epi16((__m512i)first, (__m512i)(even + order), (__m512i)second);
}
static inline vec add_product(vec sum, vec x, float pair) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)_mm512_set1_ps(pair));
}
#else
enum { PARTS = 1 };
typedef float element;

static inline vec channel(vec x, int part) { return (void)part, x; }
static inline vec join(const vec *parts) { return parts[0]; }
static inline vec halves(vec first, vec second, int32_t order) { return (void)second, (void)order, first; }
static inline vec add_product(vec sum, vec x, float weight) { return sum + x * weight; }
#endif

static inline vec load(const void *from) {
    vec x;
    memcpy(&x, from, sizeof x);
    return x;
}
static inline void store(void *to, vec x) { memcpy(to, &x, sizeof x); }

/* Every unit, or every second one, from `from` on; and of two vectors the second in these lanes, a bit for each. */
#if defined(__AVX512F__)
static inline vec in_steps(const unit *from, int64_t step) {
    const __m512i even = (__m512i)(bits){0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    return step == 1 ? load(from) : (vec)_mm512_permutex2var_ps((__m512)load(from), even, (__m512)load(from + LANES));
}
static inline vec blend(int32_t lanes, vec x, vec y) { return (vec)_mm512_mask_mov_ps((__m512)x, lanes, (__m512)y); }
static inline int has_steps(void) { return 1; }
#else
static inline vec in_steps(const unit *from, int64_t step) { return (void)step, load(from); }
static inline vec blend(int32_t lanes, vec x, vec y) { return (void)lanes, (void)y, x; }
static inline int has_steps(void) { return 0; }
#endif

/* Units at these distances. */
static inline vec gather(const unit *from, const int32_t *place) {
#if defined(__AVX512F__)
    return (vec)_mm512_i32gather_ps(_mm512_loadu_si512(place), (const float *)from, 4);
#else
    vec x;
    for (int i = 0; i < LANES; i++) x[i] = from[place[i]];
    return x;
#endif
}
