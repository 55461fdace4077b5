// relu(batch_norm(x) + residual) and its gradient in as few passes over memory as there can be: two each way.
//
//   forward:  mean, var of every channel over the n rows;  z = max(0, (x − mean)·a + β + residual)
//             with a = γ·r, r = 1/√(var + ε)
//   backward: g = dz where z > 0;  dβ = Σ g,  dγ = r·Σ g·(x − mean),  dx = a·(g − dβ/n − r·(x − mean)·dγ/n)
//
// An image tensor in channels-last memory is a matrix of n = N·H·W rows and c channels. It is worked on in blocks of 64
// values next to each other, a length that the compiler knows and keeps in registers; after `period` values, the
// least common multiple of c and 64, blocks meet the same channels again. Values are float or bfloat16, all that is
// computed is float, and totals are double. Sums run over a fixed number of parts of the matrix and are added in
// their order, so that the result does not depend on the number of threads. Of z the backward pass needs to know only
// where it is > 0 (or NaN): one bit of each value, 32 to a word. Where a channel's mean is many times its
// spread, x·a + (β − mean·a) would lose the digits that x − mean keeps.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "blocks.h"

namespace {

constexpr int64_t kParts = 32;
constexpr int64_t kSamples = 64;

inline float relu(float value) { return value < 0 ? 0.0f : value; }  // NaN stays NaN

// The values of c channels, repeated over one period.
std::vector<float> repeated(const float* values, int64_t c, int64_t period) {
    std::vector<float> result(period);
    for (int64_t i = 0; i < period; ++i) result[i] = values[i % c];
    return result;
}

// About the mean of every channel: that of some rows, evenly spaced over all of them.
template <typename T>
std::vector<float> rough_mean(const T* x, int64_t n, int64_t c) {
    const int64_t rows = std::min(n, kSamples);
    std::vector<double> sum(c, 0.0);
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t k = 0; k < c; ++k) sum[k] += load(x[(n * row / rows) * c + k]);
    std::vector<float> mean(c);
    for (int64_t k = 0; k < c; ++k) mean[k] = float(sum[k] / rows);
    return mean;
}

// Two sums for every channel: block(at, channel, first, second) adds those of the 64 values from `at` on; `channel` is
// where they lie in the period.
template <typename Block>
void channel_sums(int64_t size, int64_t c, int64_t period, double* first, double* second, Block block) {
    const int64_t periods = size / period;
    std::vector<float> sums(2 * kParts * period, 0.0f);
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < kParts; ++part)
        for (int64_t channel = 0; channel < period; channel += kBlock) {
            float one[kBlock] = {}, two[kBlock] = {};
            for (int64_t i = periods * part / kParts; i < periods * (part + 1) / kParts; ++i)
                block(i * period + channel, channel, one, two);
            std::copy(one, one + kBlock, &sums[2 * part * period + channel]);
            std::copy(two, two + kBlock, &sums[(2 * part + 1) * period + channel]);
        }
    std::vector<double> total(2 * period, 0.0);
    for (int64_t part = 0; part < kParts; ++part)
        for (int64_t i = 0; i < 2 * period; ++i) total[i] += sums[2 * part * period + i];
    for (int64_t k = 0; k < c; ++k) {
        first[k] = second[k] = 0.0;
        for (int64_t i = k; i < period; i += c) {
            first[k] += total[i];
            second[k] += total[period + i];
        }
    }
}

// Calls block(at, channel) for all blocks.
template <typename Block>
void for_blocks(int64_t size, int64_t period, Block block) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < size / period; ++i)
        for (int64_t channel = 0; channel < period; channel += kBlock) block(i * period + channel, channel);
}

template <typename T>
void forward(const T* x, const T* residual, T* z, int64_t n, int64_t c, const float* gamma, const float* beta,
             float* running_mean, float* running_var, float momentum, float epsilon, float* mean, float* scale,
             uint32_t* passing) {
    const int64_t size = n * c, period = std::lcm(c, kBlock);
    // Sums of x − shift: with a shift near the mean, Σ(x − shift)² − n·(mean − shift)² loses no digits.
    const std::vector<float> shift = repeated(rough_mean(x, n, c).data(), c, period);
    std::vector<double> sum(c), square(c);
    channel_sums(size, c, period, sum.data(), square.data(), [&](int64_t at, int64_t channel, float* one, float* two) {
        const T* in = x + at;
        const float* center = &shift[channel];
        for (int64_t j = 0; j < kBlock; ++j) {
            const float difference = load(in[j]) - center[j];
            one[j] += difference;
            two[j] += difference * difference;
        }
    });
    std::vector<float> a(c), s(c);
    for (int64_t k = 0; k < c; ++k) {
        const double offset = sum[k] / n, center = shift[k] + offset;
        const double var = std::max(square[k] / n - offset * offset, 0.0);
        mean[k] = float(center);
        scale[k] = float(1.0 / std::sqrt(var + epsilon));
        a[k] = gamma[k] * scale[k];
        s[k] = float(beta[k] + (mean[k] - center) * a[k]);  // the mean as float is a little beside the mean
        running_mean[k] += momentum * (mean[k] - running_mean[k]);
        running_var[k] += momentum * (float(var * n / std::max<int64_t>(n - 1, 1)) - running_var[k]);
    }
    const std::vector<float> centers = repeated(mean, c, period), slopes = repeated(a.data(), c, period),
                             offsets = repeated(s.data(), c, period);
    for_blocks(size, period, [&](int64_t at, int64_t channel) {
        const T *__restrict in = x + at, *__restrict added = residual + at;
        T* __restrict out = z + at;
        const float *center = &centers[channel], *slope = &slopes[channel], *offset = &offsets[channel];
        const auto normalized = [&](int64_t j) { return (load(in[j]) - center[j]) * slope[j] + offset[j]; };
        float values[kBlock];
        if (residual)
            for (int64_t j = 0; j < kBlock; ++j) values[j] = relu(normalized(j) + load(added[j]));
        else
            for (int64_t j = 0; j < kBlock; ++j) values[j] = relu(normalized(j));
        store(values, out);
        note_passing(out, passing + at / kBits);
    });
}

template <typename T>
void backward(const T* dz, const uint32_t* passing, const T* x, T* dx, T* dresidual, int64_t n, int64_t c,
              const float* gamma, const float* mean, const float* scale, float* dgamma, float* dbeta) {
    const int64_t size = n * c, period = std::lcm(c, kBlock);
    const std::vector<float> centers = repeated(mean, c, period);
    std::vector<double> sum(c), product(c);
    channel_sums(size, c, period, sum.data(), product.data(), [&](int64_t at, int64_t channel, float* one, float* two) {
        const T* in = x + at;
        const float* center = &centers[channel];
        float g[kBlock];
        gradient_passed(dz + at, passing + at / kBits, g);
        for (int64_t j = 0; j < kBlock; ++j) {
            one[j] += g[j];
            two[j] += g[j] * (load(in[j]) - center[j]);
        }
    });
    std::vector<float> a(c), b(c), s(c);  // dx = g·a + (x − mean)·b + s
    for (int64_t k = 0; k < c; ++k) {
        dbeta[k] = float(sum[k]);
        dgamma[k] = float(product[k] * scale[k]);
        a[k] = gamma[k] * scale[k];
        b[k] = float(-double(a[k]) * scale[k] * scale[k] * product[k] / n);
        s[k] = float(-double(a[k]) * sum[k] / n);
    }
    const std::vector<float> slopes = repeated(a.data(), c, period), inputs = repeated(b.data(), c, period),
                             offsets = repeated(s.data(), c, period);
    for_blocks(size, period, [&](int64_t at, int64_t channel) {
        const T* __restrict in = x + at;
        T *__restrict to = dx + at, *__restrict through = dresidual + at;
        const float *center = &centers[channel], *slope = &slopes[channel];
        const float *input = &inputs[channel], *offset = &offsets[channel];
        float g[kBlock], values[kBlock];
        gradient_passed(dz + at, passing + at / kBits, g);
        for (int64_t j = 0; j < kBlock; ++j)
            values[j] = g[j] * slope[j] + (load(in[j]) - center[j]) * input[j] + offset[j];
        store(values, to);
        if (dresidual) store(g, through);
    });
}

}  // namespace

#define EXPORT(T)                                                                                                      \
    extern "C" void forward_##T(const T* x, const T* residual, T* z, int64_t n, int64_t c, const float* gamma,        \
                                const float* beta, float* running_mean, float* running_var, float momentum,           \
                                float epsilon, float* mean, float* scale, uint32_t* passing) {                        \
        forward(x, residual, z, n, c, gamma, beta, running_mean, running_var, momentum, epsilon, mean, scale,         \
                passing);                                                                                              \
    }                                                                                                                  \
    extern "C" void backward_##T(const T* dz, const uint32_t* passing, const T* x, T* dx, T* dresidual, int64_t n,    \
                                 int64_t c, const float* gamma, const float* mean, const float* scale, float* dgamma, \
                                 float* dbeta) {                                                                       \
        backward(dz, passing, x, dx, dresidual, n, c, gamma, mean, scale, dgamma, dbeta);                              \
    }

EXPORT(float)
EXPORT(bfloat16)
