/* For pixels.c: what computes a pixel from the same pixel. */
INLINE void combine_by(const int64_t kind, const int64_t activation, const operation *o, unit *memory, int64_t begin,
                       int64_t end) {
    for (int64_t k = 0; k < o->channels; k += PARTS) {
        const int both = k + PARTS <= o->channels;
        source x[PARTS], other[PARTS];
        float scale[PARTS] = {0}, bias[PARTS] = {0};
        for (int p = 0; p < (both ? PARTS : 1); p++) {
            x[p] = find(&o->x, memory, k + p), other[p] = find(&o->other, memory, k + p);
            if (kind != MULTIPLY) scale[p] = o->scale[k + p], bias[p] = o->bias[k + p];
        }
        for (int64_t v = begin; v < end; v++) {
            vec sum[PARTS] = {{0}};
            for (int p = 0; p < (both ? PARTS : 1); p++) {
                const vec first = lanes_of(x + p, v), second = lanes_of(other + p, v);
                sum[p] = activated(kind == MULTIPLY ? first * second : first * scale[p] + second + bias[p], activation);
            }
            keep(o, memory, sum, k, v);
        }
    }
}

static void combine(const operation *o, unit *memory, int64_t begin, int64_t end) {
    if (o->kind == MULTIPLY) combine_by(MULTIPLY, o->activation, o, memory, begin, end);
    else if (o->activation == RELU) combine_by(COMBINE, RELU, o, memory, begin, end);
    else combine_by(COMBINE, o->activation, o, memory, begin, end);
}

static void norm(const operation *o, unit *memory, int64_t begin, int64_t end) {
    const float share = 1.0f / o->channels, epsilon = o->scale[o->channels];
    for (int64_t v = begin; v < end; v++) {
        vec mean = {0}, square = {0};
        for (int64_t k = 0; k < o->channels; k++) mean += taken(&o->x, memory, k, v) * share;
        for (int64_t k = 0; k < o->channels; k++) {
            const vec x = taken(&o->x, memory, k, v) - mean;
            square += x * x;
        }
        square = inverse_root(square * share + epsilon);
        for (int64_t k = 0; k < o->channels; k += PARTS) {
            vec sum[PARTS] = {{0}};
            for (int p = 0; p < PARTS && k + p < o->channels; p++)
                sum[p] = (taken(&o->x, memory, k + p, v) - mean) * square * o->scale[k + p] + o->bias[k + p];
            keep(o, memory, sum, k, v);
        }
    }
}
