/* Activations, on vectors of float32, by their numbers in psp.frozen.values. A NaN stays one. */
enum { NONE, RELU, RELU6, HARD_SIGMOID, HARD_SWISH, SIGMOID, SILU, GELU, GELU_TANH };

static inline vec either(bits first, vec a, vec b) { return (vec)(((bits)a & first) | ((bits)b & ~first)); }
static inline vec at_least(vec x, float low) { return either((bits)(x < low), (vec){0} + low, x); }
static inline vec at_most(vec x, float high) { return either((bits)(x > high), (vec){0} + high, x); }

static inline vec not_negative(vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x); /* the second, if it is NaN */
#else
    return (vec)((bits)x & ~(bits)(x < 0));
#endif
}

/* The two that a convolution's own outputs go through while they are in registers. */
static inline vec rectified(vec x, int64_t kind) {
    if (kind == RELU || kind == RELU6) x = not_negative(x);
    return kind == RELU6 ? at_most(x, 6) : x;
}

/* e^x to about 1e-7, x = n·ln 2 + r with a whole n: a polynomial in r (Cephes' expf), and n added to the exponent. */
static inline vec exponential(vec x) {
    x = at_most(at_least(x, -87), 88);
    const vec n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounded, by what fits into the digits */
    const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec sum = r * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    return (sum * r * r + r + 1) * (vec)((__builtin_convertvector(n, bits) + 127) << 23);
}
/* 0 where it is too small for e^−x to be a number of float32, so that x·sigmoid(x) is 0, too. */
static inline vec sigmoid(vec x) { return (vec)((bits)(1 / (1 + exponential(-x))) & ~(bits)(x < -88)); }

/* x·Φ(x), with erf by the rational approximation 7.1.26 of Abramowitz and Stegun, to 1.5e-7. */
static inline vec gelu(vec x) {
    const vec z = either((bits)(x < 0), -x, x) * 0.70710678f, t = 1 / (1 + 0.3275911f * z);
    const vec poly = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const vec tail = poly * exponential(-z * z); /* 1 − erf z */
    return 0.5f * x * either((bits)(x < 0), tail, 2 - tail);
}

static inline vec activated(vec x, int64_t kind) {
    switch (kind) {
        case HARD_SIGMOID: return at_most(at_least(x / 6 + 0.5f, 0), 1);
        case HARD_SWISH: return x * at_most(at_least(x / 6 + 0.5f, 0), 1);
        case SIGMOID: return sigmoid(x);
        case SILU: return x * sigmoid(x);
        case GELU: return gelu(x);
        case GELU_TANH: return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
        default: return rectified(x, kind);
    }
}
