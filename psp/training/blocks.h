// Blocks of 64 values next to each other, for norm_relu.cpp: read as float, written rounded, and which of them are > 0.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kBlock = 64;
constexpr int64_t kBits = 32;

struct bfloat16 {
    uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void store(const float* values, float* to) { std::memcpy(to, values, kBlock * sizeof(float)); }

// A bit of each of a block's values: whether the gradient goes through their ReLU, that of NaN, too.
template <typename T>
inline void note_passing(const T* z, uint32_t* passing) {
    for (int64_t word = 0; word < kBlock / kBits; ++word) {
        uint32_t noted = 0;
        for (int64_t j = 0; j < kBits; ++j) noted |= uint32_t(!(load(z[word * kBits + j]) <= 0)) << j;
        passing[word] = noted;
    }
}

template <typename T>
inline void gradient_passed(const T* dz, const uint32_t* passing, float* gradient) {
    for (int64_t word = 0; word < kBlock / kBits; ++word)
        for (int64_t j = 0; j < kBits; ++j)
            gradient[word * kBits + j] = passing[word] >> j & 1 ? load(dz[word * kBits + j]) : 0.0f;
}

// To the nearest, ties to even; the NaN of arithmetic stays NaN. Numbers below 2⁻¹²⁶ become 0 where the processor has an
// instruction for this.
#ifdef __AVX512BF16__
inline void store(const float* values, bfloat16* to) {
    for (int64_t j = 0; j < kBlock; j += 32) {
        const __m512 low = _mm512_loadu_ps(values + j), high = _mm512_loadu_ps(values + j + 16);
        _mm512_storeu_si512(to + j, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

// Read as signed integers, numbers > 0 and NaN without a sign are > 0; read without signs, NaN with one is above −∞.
inline void note_passing(const bfloat16* z, uint32_t* passing) {
    const __m512i zero = _mm512_setzero_si512(), infinity = _mm512_set1_epi16((short)0xff80);
    for (int64_t word = 0; word < kBlock / kBits; ++word) {
        const __m512i bits = _mm512_loadu_si512(z + word * kBits);
        passing[word] = _mm512_cmpgt_epi16_mask(bits, zero) | _mm512_cmpgt_epu16_mask(bits, infinity);
    }
}

inline void gradient_passed(const bfloat16* dz, const uint32_t* passing, float* gradient) {
    for (int64_t j = 0; j < kBlock; j += 16) {
        const __m256i bits = _mm256_loadu_si256((const __m256i*)(dz + j));
        const __m512i wide = _mm512_maskz_cvtepu16_epi32(__mmask16(passing[j / kBits] >> j % kBits), bits);
        _mm512_storeu_ps(gradient + j, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
    }
}
#else
inline void store(const float* values, bfloat16* to) {
    for (int64_t j = 0; j < kBlock; ++j) {
        uint32_t bits;
        std::memcpy(&bits, values + j, sizeof bits);
        to[j].bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}
#endif

}  // namespace
