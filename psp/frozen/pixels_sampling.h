/* For pixels.c: what computes a pixel from others of its channel, one at a time. */
static void write_element(const operation *o, unit *memory, int64_t k, int64_t position, float value) {
    unit *to = memory + o->out + k / PARTS * o->plane + position;
    const vec rounded = rectified((vec){value}, o->activation), sum[2] = {rounded, rounded}, joined = join(sum);
    memcpy((element *)to + k % PARTS, &joined, sizeof(element));
}

static float element_at(const map *m, const unit *memory, int64_t k, int64_t y, int64_t z) {
    return channel((vec){memory[m->begin + k / PARTS * m->plane + y * m->pitch + z]}, k % PARTS)[0];
}

static float pooled(const operation *o, const unit *memory, int64_t k, int64_t y, int64_t z) {
    const map *m = &o->x;
    const int64_t top = y * m->stride_h - o->pad_h, left = z * m->stride_w - o->pad_w;
    float sum = o->kind == POOL_MAX ? -INFINITY : 0;
    int64_t count = 0;
    for (int64_t r = top < 0 ? 0 : top; r < top + o->kernel_h && r < m->height; r++)
        for (int64_t q = left < 0 ? 0 : left; q < left + o->kernel_w && q < m->width; q++, count++) {
            const float x = element_at(m, memory, k, r, q);
            if (o->kind == POOL_MEAN) sum += x;
            else if (x > sum || x != x) sum = x; /* a NaN stays */
        }
    return o->kind == POOL_MAX ? sum : sum / (o->count_padding ? o->kernel_h * o->kernel_w : count);
}

/* Between two rows and two columns, each with a share of the second: `table` has the rows, then the columns. */
static float resized(const operation *o, const unit *memory, int64_t k, int64_t y, int64_t z) {
    const int32_t *row = o->table + 2 * y, *column = o->table + 2 * (o->height + z);
    const float down = o->scale[y], right = o->scale[o->height + z];
    float sum = 0;
    for (int corner = 0; corner < 4; corner++) {
        const float share = (corner & 2 ? down : 1 - down) * (corner & 1 ? right : 1 - right);
        if (share != 0) sum += share * element_at(&o->x, memory, k, row[corner >> 1], column[corner & 1]);
    }
    return sum;
}

/* As torch.nn.PixelShuffle of kernel_h × kernel_w pixels, of which the first pad_h rows and pad_w columns are left out. */
static float shuffled(const operation *o, const unit *memory, int64_t k, int64_t y, int64_t z) {
    const int64_t part = (y + o->pad_h) % o->kernel_h * o->kernel_w + (z + o->pad_w) % o->kernel_w;
    const int64_t from = k * o->kernel_h * o->kernel_w + part;
    return element_at(&o->x, memory, from, (y + o->pad_h) / o->kernel_h, (z + o->pad_w) / o->kernel_w);
}

/* Whether an operation is the mean of whole maps, which is that of all vectors, since there are zeros between the rows. */
static int is_mean_of_all(const operation *o) {
    const int all = o->kernel_h == o->x.height && o->kernel_w == o->x.width && !o->pad_h && !o->pad_w;
    return o->kind == POOL_MEAN && all && o->height == 1 && o->width == 1;
}

static float mean_of_all(const operation *o, const unit *memory, int64_t k) {
    const unit *plane = memory + o->x.begin + k / PARTS * o->x.plane;
    vec sums = {0};
    float sum = 0;
    for (int64_t i = 0; i < o->x.height * o->x.pitch; i += LANES) sums += channel(load(plane + i), k % PARTS);
    for (int i = 0; i < LANES; i++) sum += sums[i];
    return sum / (o->x.height * o->x.width);
}

/* Planes `begin` to `end` of the result. */
static void sample(const operation *o, unit *memory, int64_t begin, int64_t end) {
    const int all = is_mean_of_all(o);
    for (int64_t k = begin * PARTS; k < end * PARTS; k++)
        for (int64_t y = 0; y < o->height; y++)
            for (int64_t z = 0; z < o->width; z++) {
                const float value = k >= o->channels     ? 0
                                    : all                ? mean_of_all(o, memory, k)
                                    : o->kind == RESIZE  ? resized(o, memory, k, y, z)
                                    : o->kind == SHUFFLE ? shuffled(o, memory, k, y, z)
                                                         : pooled(o, memory, k, y, z);
                write_element(o, memory, k, y * o->pitch + z, value);
            }
}
