/* For lanes.c: what computes a pixel from the same pixel. */
static void combine(const operation *o, stored *memory) {
    const stored zero = {0};
    stored *out = memory + o->out;
    for (int64_t i = 0; i < o->out_h * o->out_w; i++, out += o->out_c) {
        const stored *x = at(&o->x, memory, i / o->out_w, i % o->out_w);
        const stored *other = at(&o->other, memory, i / o->out_w, i % o->out_w);
        for (int64_t k = 0; k < o->out_c; k++) {
            vec sum[PARTS], more[PARTS];
            widen(o->x.index[k] < 0 ? zero : x[o->x.index[k]], sum);
            widen(o->other.begin < 0 || o->other.index[k] < 0 ? zero : other[o->other.index[k]], more);
            for (int p = 0; p < PARTS; p++) {
                sum[p] = o->kind == MULTIPLY ? sum[p] * more[p] : sum[p] * o->scale[k] + more[p] + o->bias[k];
                sum[p] = activated(sum[p], o->activation);
            }
            out[k] = narrow(sum);
        }
    }
}


static void norm(const operation *o, stored *memory) {
    const float share = 1.0f / o->out_c, epsilon = o->scale[o->out_c];
    stored *out = memory + o->out;
    for (int64_t i = 0; i < o->out_h * o->out_w; i++, out += o->out_c) {
        const stored *from = at(&o->x, memory, i / o->out_w, i % o->out_w);
        vec mean[PARTS] = {{0}}, square[PARTS] = {{0}}, x[PARTS];
        for (int64_t k = 0; k < o->out_c; k++) {
            widen(from[k], x);
            for (int p = 0; p < PARTS; p++) mean[p] += x[p] * share;
        }
        for (int64_t k = 0; k < o->out_c; k++) {
            widen(from[k], x);
            for (int p = 0; p < PARTS; p++) square[p] += (x[p] - mean[p]) * (x[p] - mean[p]);
        }
        for (int p = 0; p < PARTS; p++) square[p] = inverse_root(square[p] * share + epsilon);
        for (int64_t k = 0; k < o->out_c; k++) {
            widen(from[k], x);
            for (int p = 0; p < PARTS; p++) x[p] = (x[p] - mean[p]) * square[p] * o->scale[k] + o->bias[k];
            out[k] = narrow(x);
        }
    }
}
