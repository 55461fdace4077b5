/* For lanes.c: what computes a pixel from others of its channel. */
static void pool(const operation *o, stored *memory) {
    const map *m = &o->x;
    for (int64_t i = 0; i < o->out_h * o->out_w * o->out_c; i++) {
        const int64_t k = i % o->out_c, z = i / o->out_c % o->out_w, y = i / o->out_c / o->out_w;
        const int64_t top = y * m->stride_h - o->pad_h, left = z * m->stride_w - o->pad_w;
        vec sum[PARTS], x[PARTS];
        int64_t count = 0;
        for (int p = 0; p < PARTS; p++) sum[p] = (vec){0} - (o->kind == POOL_MAX ? INFINITY : 0);
        for (int64_t r = top < 0 ? 0 : top; r < top + o->kernel_h && r < m->height; r++)
            for (int64_t q = left < 0 ? 0 : left; q < left + o->kernel_w && q < m->width; q++, count++) {
                widen(memory[m->begin + (r * m->width + q) * m->channels + k], x);
                for (int p = 0; p < PARTS; p++) {
                    const bits take = (bits)(x[p] > sum[p]) | (bits)(x[p] != x[p]); /* a NaN stays */
                    sum[p] = o->kind == POOL_MAX ? either(take, x[p], sum[p]) : (vec)(sum[p] + x[p]);
                }
            }
        const float share = 1.0f / (o->count_padding ? o->kernel_h * o->kernel_w : count);
        for (int p = 0; o->kind == POOL_MEAN && p < PARTS; p++) sum[p] *= share;
        memory[o->out + i] = finish(sum, o->activation);
    }
}

/* Between two rows and two columns, each with a share of the second: `table` has the rows, then the columns. */
static void resize(const operation *o, stored *memory) {
    for (int64_t i = 0; i < o->out_h * o->out_w * o->out_c; i++) {
        const int64_t k = i % o->out_c, z = i / o->out_c % o->out_w, y = i / o->out_c / o->out_w;
        const int32_t *row = o->table + 2 * y, *column = o->table + 2 * (o->out_h + z);
        vec sum[PARTS] = {{0}}, x[PARTS];
        for (int corner = 0; corner < 4; corner++) {
            const float down = o->scale[y], right = o->scale[o->out_h + z];
            const float share = (corner & 2 ? down : 1 - down) * (corner & 1 ? right : 1 - right);
            if (share == 0) continue;
            widen(at(&o->x, memory, row[corner >> 1], column[corner & 1])[k], x);
            for (int p = 0; p < PARTS; p++) sum[p] += share * x[p];
        }
        memory[o->out + i] = narrow(sum);
    }
}

/* As torch.nn.PixelShuffle of kernel_h × kernel_w pixels, of which the first pad_h rows and pad_w columns are left out. */
static void shuffle(const operation *o, stored *memory) {
    for (int64_t i = 0; i < o->out_h * o->out_w * o->out_c; i++) {
        const int64_t z = i / o->out_c % o->out_w + o->pad_w, y = i / o->out_c / o->out_w + o->pad_h;
        const int64_t part = y % o->kernel_h * o->kernel_w + z % o->kernel_w;
        const stored *from = at(&o->x, memory, y / o->kernel_h, z / o->kernel_w);
        memory[o->out + i] = from[i % o->out_c * o->kernel_h * o->kernel_w + part];
    }
}
