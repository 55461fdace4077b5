/* For pixels.c: what computes a pixel from the same pixel. */
static void combine(const operation *o, unit *memory, int64_t begin, int64_t end) {
    for (int64_t k = 0; k < o->channels; k += PARTS)
        for (int64_t v = begin; v < end; v++) {
            vec sum[PARTS] = {{0}};
            for (int p = 0; p < PARTS && k + p < o->channels; p++) {
                const vec x = taken(&o->x, memory, k + p, v), other = taken(&o->other, memory, k + p, v);
                sum[p] = o->kind == MULTIPLY ? x * other : x * o->scale[k + p] + other + o->bias[k + p];
                sum[p] = activated(sum[p], o->activation);
            }
            keep(o, memory, sum, k, v);
        }
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
