// How tiles.cpp lays images out for tiles: with zeros around them, in pairs of pixels, and transposed.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace {

constexpr int64_t kTile = 16;   // pixels, outputs and pairs of values of a tile
constexpr int64_t kPairs = 32;  // values of a pixel, or pixels, that one product of tiles sums over
constexpr int64_t kParts = 8;
constexpr int64_t kSteps = 8;  // products that make up for reading and writing their tile of sums

using bits = uint16_t;

struct shape {
    int64_t h, w, c, k;
    int64_t pitch() const { return w + 2; }
    int64_t pixels() const { return h * pitch(); }  // of an output, two too many at the end of each row
    int64_t whole() const { return (pixels() + kPairs - 1) / kPairs * kPairs; }
    int64_t padded() const { return whole() + 2 * pitch() + 2 + 4 * kTile; }  // that tiles may read
};

// Tiles 0 to 3 are sums; 4 and 5 the left factors, 6 and 7 the right ones. With `half`, 5 and 7 sum over 16 values.
void begin(bool half) {
    struct alignas(64) {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
    if (half) config.bytes[5] = 32, config.rows[7] = 8;
    _tile_loadconfig(&config);
}

// Zeros from the start of a cache line on: a tile whose rows lie across two lines takes four times as long to read.
struct line_aligned {
    struct freed {
        void operator()(bits* memory) const { std::free(memory); }
    };
    std::unique_ptr<bits, freed> memory;

    explicit line_aligned(int64_t count) {
        const size_t size = (count * sizeof(bits) + 63) / 64 * 64;
        memory.reset(static_cast<bits*>(std::aligned_alloc(64, size)));
        std::memset(memory.get(), 0, size);
    }
    bits* at(int64_t index) const { return memory.get() + index; }
};

// One image, of so many channels, with zeros around it, pixel by pixel.
void pad(const bits* image, const shape& s, int64_t channels, bits* padded) {
    const int64_t row = s.w * channels;
    for (int64_t i = 0; i < s.h; ++i)
        std::memcpy(padded + ((i + 1) * s.pitch() + 1) * channels, image + i * row, sizeof(bits) * row);
}

// Two pixels' 16 values each, taken in turns.
__m512i pair(const bits* first, const bits* second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)first));
    return _mm512_permutexvar_epi16(order, _mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i*)second), 1));
}

// `count` pairs of neighbouring pixels of c channels each, pair by pair; meanwhile what is at `ahead` comes near.
void pairs(const bits* pixels, int64_t c, int64_t count, bits* to, const bits* ahead) {
    for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < c; j += kTile) {
            _mm_prefetch(ahead + 2 * (i * c + j), _MM_HINT_T1);
            _mm512_storeu_si512(to + 2 * (i * c + j), pair(pixels + 2 * i * c + j, pixels + (2 * i + 1) * c + j));
        }
}

void transpose(__m512i* r) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; ++j) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0x88);
            t[i + 4 + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0xdd);
        }
    for (int j = 0; j < 8; ++j) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
        r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
    }
}

// Pixels of k channels as k rows of `length` pixels.
void transposed(const bits* pixels, int64_t k, int64_t length, bits* to) {
    __m512i block[kTile];
    for (int64_t u = 0; u < length; u += kPairs)
        for (int64_t j = 0; j < k; j += kTile) {
            for (int64_t i = 0; i < kTile; ++i)
                block[i] = pair(pixels + (u + 2 * i) * k + j, pixels + (u + 2 * i + 1) * k + j);
            transpose(block);
            for (int64_t i = 0; i < kTile; ++i) _mm512_storeu_si512(to + (j + i) * length + u, block[i]);
        }
}

}  // namespace
