// 3×3 convolutions of bfloat16 images, and their gradients, by the matrix unit of AMX: stride 1, zeros around.
//
// An image in channels-last memory, with its zeros around it and its rows one after the other, is a list of pixels: what
// a row of the kernel sees from pixel u on is 3·c values next to each other, and the three rows lie `pitch` = w + 2
// pixels apart. So y[u, k] = Σ_r Σ_j x[(u + r·pitch)·c + j] · weight[r, j, k] is a product of matrices that are read
// where they lie, by tiles of 16 pixels × 32 values × 16 outputs. The two pixels too many at the end of each row are left
// out.
//
// The gradient of the weight, Σ_u g[u, k] · x[u + r·pitch + s, c], sums over pixels, which a tile takes in pairs: x is
// kept with pixels in pairs from every even and from every odd pixel on, g transposed, and 0 where there is no output.
//
// Sums are float. Those over images run over a fixed number of parts, added in their order, so that the result does not
// depend on the number of threads. What the next image needs is fetched while one is computed.
#include <algorithm>
#include <vector>

#include "tiles.h"

namespace {

__m256i rounded(__m512 values) { return (__m256i)_mm512_cvtneps_pbh(values); }

__m512 widened(__m256i values) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16)); }

// 16 pixels from u on × 16 outputs from `first` on, of the image y; to what they are as bfloat16, another image `added`.
void put(const float* sums, const shape& s, int64_t u, int64_t first, const bits* added, bits* y) {
    int64_t row = u / s.pitch(), column = u % s.pitch();
    for (int64_t i = 0; i < kTile && row < s.h; ++i) {
        if (column < s.w) {
            const int64_t at = (row * s.w + column) * s.k + first;
            __m256i value = rounded(_mm512_loadu_ps(sums + i * kTile));
            if (added) {
                const __m256i other = _mm256_loadu_si256((const __m256i*)(added + at));
                value = rounded(_mm512_add_ps(widened(value), widened(other)));
            }
            _mm256_storeu_si256((__m256i*)(y + at), value);
        }
        if (++column == s.pitch()) column = 0, ++row;
    }
}

void clear() {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
}

void store(float* sums) {
    _tile_stored(0, sums, 64); _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64); _tile_stored(3, sums + 768, 64);
}

// To each sum the product of one of four left factors, `next` apart, with the right one. The numbers LEFT and RIGHT of
// the tiles for these have to be literals.
#define ADD_FOUR(LEFT, RIGHT, left, next, stride, right, right_stride)                  \
    do {                                                                                \
        _tile_loadd(RIGHT, right, right_stride);                                        \
        _tile_loadd(LEFT, (left), stride); _tile_dpbf16ps(0, LEFT, RIGHT);              \
        _tile_loadd(LEFT, (left) + (next), stride); _tile_dpbf16ps(1, LEFT, RIGHT);     \
        _tile_loadd(LEFT, (left) + 2 * (next), stride); _tile_dpbf16ps(2, LEFT, RIGHT); \
        _tile_loadd(LEFT, (left) + 3 * (next), stride); _tile_dpbf16ps(3, LEFT, RIGHT); \
    } while (false)

// 32 pixels × 32 outputs, of an even number of 16 channels.
void square(const bits* x, const bits* weight, const shape& s, int64_t u, int64_t first, float* sums) {
    const int64_t length = 3 * s.c, stride = 2 * s.c;
    clear();
    for (int64_t r = 0; r < 3; ++r)
        for (int64_t j = 0; j < length; j += kPairs) {
            const bits* left = x + (u + r * s.pitch()) * s.c + j;
            const bits* right = weight + ((r * length + j) * s.k + 2 * first);
            _tile_loadd(4, left, stride);
            _tile_loadd(5, left + kTile * s.c, stride);
            _tile_loadd(6, right, 4 * s.k);
            _tile_loadd(7, right + 2 * kTile, 4 * s.k);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    store(sums);
}

// 64 pixels × 16 outputs; of an odd number of 16 channels, the last 16 values of each row of the kernel alone.
void tall(const bits* x, const bits* weight, const shape& s, int64_t u, int64_t first, float* sums) {
    const int64_t length = 3 * s.c, stride = 2 * s.c, next = kTile * s.c;
    clear();
    for (int64_t r = 0; r < 3; ++r) {
        const bits* left = x + (u + r * s.pitch()) * s.c;
        const bits* right = weight + (r * length * s.k + 2 * first);
        int64_t j = 0;
        for (; j + kPairs <= length; j += kPairs)
            ADD_FOUR(4, 6, left + j, next, stride, right + j * s.k, 4 * s.k);
        if (j < length) ADD_FOUR(5, 7, left + j, next, stride, right + j * s.k, 4 * s.k);
    }
    store(sums);
}

// The image y of one padded image x, and what is `added`, if anything; meanwhile the next one's pixels, at `ahead`, come
// near.
void convolve(const bits* x, const bits* weight, const shape& s, const bits* added, bits* y, const bits* ahead) {
    alignas(64) float sums[4 * kTile * kTile];
    const bool squares = s.c % kPairs == 0 && s.k % kPairs == 0;
    const int64_t high = squares ? 2 : 4, wide = squares ? 2 : 1;
    for (int64_t u = 0; u < s.pixels(); u += high * kTile) {
        const int64_t begin = u * s.c, end = std::min(u + high * kTile, s.h * s.w) * s.c;
        for (int64_t i = begin; i < end; i += 32) _mm_prefetch(ahead + i, _MM_HINT_T1);
        for (int64_t first = 0; first < s.k; first += wide * kTile) {
            (squares ? square : tall)(x, weight, s, u, first, sums);
            for (int64_t i = 0; i < 4; ++i)
                put(sums + i * kTile * kTile, s, u + i / wide * kTile, first + i % wide * kTile, added, y);
        }
    }
}

// What the gradients read of an image: x in pairs, from even and from odd pixels on, and g with zeros and transposed.
struct operands {
    line_aligned padded, gradient, even, odd, rows;

    explicit operands(const shape& s)
        : padded(s.padded() * s.c), gradient(s.padded() * s.k), even(s.padded() * s.c), odd(s.padded() * s.c),
          rows(s.whole() * s.k) {}

    void read(const bits* x, const bits* g, const shape& s, const bits* ahead) {
        pad(x, s, s.c, padded.at(0));
        pad(g, s, s.k, gradient.at(0));
        const int64_t count = s.padded() / 2 - 1;
        pairs(padded.at(0), s.c, count, even.at(0), ahead);
        pairs(padded.at(s.c), s.c, count, odd.at(0), ahead);
        transposed(gradient.at((s.pitch() + 1) * s.k), s.k, s.whole(), rows.at(0));  // from the first pixel on
    }
};

// dw[r, s, k, c] of some images, by 16 outputs × 16 channels × the three taps of a row; added to what is there, if any.
void add_gradient(const std::vector<operands>& images, int64_t count, const shape& s, bool any, float* dw) {
    const int64_t tap = s.k * s.c, stride = 4 * s.c;
    for (int64_t r = 0; r < 3; ++r)
        for (int64_t k = 0; k < s.k; k += kTile)
            for (int64_t c = 0; c < s.c; c += kTile) {
                float *one = dw + 3 * r * tap + k * s.c + c, *two = one + tap, *three = two + tap;
                if (any) {
                    _tile_loadd(0, one, stride); _tile_loadd(1, two, stride); _tile_loadd(2, three, stride);
                } else {
                    _tile_zero(0); _tile_zero(1); _tile_zero(2);
                }
                for (int64_t image = 0; image < count; ++image)
                    for (int64_t u = 0; u < s.whole(); u += kPairs) {
                        const int64_t at = (u + r * s.pitch()) * s.c + 2 * c;
                        _tile_loadd(4, images[image].rows.at(k * s.whole() + u), 2 * s.whole());
                        _tile_loadd(3, images[image].even.at(at), stride);
                        _tile_loadd(6, images[image].odd.at(at), stride);
                        _tile_dpbf16ps(0, 4, 3);
                        _tile_dpbf16ps(1, 4, 6);
                        _tile_loadd(3, images[image].even.at(at + 2 * s.c), stride);
                        _tile_dpbf16ps(2, 4, 3);
                    }
                _tile_stored(0, one, stride); _tile_stored(1, two, stride); _tile_stored(2, three, stride);
            }
}

}  // namespace

// y of n images x; weight is [3][3·c / 2][k][2], c and k multiples of 16, w even.
extern "C" void forward(const bits* x, const bits* weight, bits* y, int64_t n, int64_t h, int64_t w, int64_t c,
                        int64_t k) {
    const shape s{h, w, c, k};
#pragma omp parallel
    {
        const line_aligned padded(s.padded() * c);
        begin(c % kPairs != 0);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; ++i) {
            pad(x + i * h * w * c, s, c, padded.at(0));
            convolve(padded.at(0), weight, s, nullptr, y + i * h * w * k, x + std::min(i + 1, n - 1) * h * w * c);
        }
        _tile_release();
    }
}

// dx, unless it is null, by the weight turned around, [3][3·k / 2][c][2], with `added`, unless that is null; and dw,
// [kParts][3][3][k][c], of which the parts are still to be added, of at least kParts images.
extern "C" void backward(const bits* x, const bits* g, const bits* turned, const bits* added, bits* dx, float* dw,
                         int64_t n, int64_t h, int64_t w, int64_t c, int64_t k) {
    const shape s{h, w, c, k}, back{h, w, k, c};
    const int64_t together = std::max<int64_t>(1, kSteps * kPairs / s.whole());
#pragma omp parallel
    {
        std::vector<operands> images;
        for (int64_t j = 0; j < together; ++j) images.emplace_back(s);
        begin(k % kPairs != 0);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < kParts; ++part) {
            const int64_t start = n * part / kParts, end = n * (part + 1) / kParts;
            for (int64_t i = start; i < end; i += together) {
                const int64_t count = std::min(together, end - i);
                for (int64_t j = 0; j < count; ++j) {
                    const int64_t pixels = (i + j) * h * w, next = std::min(i + j + 1, n - 1) * h * w;
                    images[j].read(x + pixels * c, g + pixels * k, s, x + next * c);
                    const bits* other = added ? added + pixels * c : nullptr;
                    if (dx) convolve(images[j].gradient.at(0), turned, back, other, dx + pixels * c, g + next * k);
                }
                add_gradient(images, count, s, i > start, dw + part * 9 * k * c);
            }
        }
        _tile_release();
    }
}
