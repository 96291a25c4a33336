# Evaluation: the test images of all tasks, prepared once.

cdef extern from "_fixed_point.h" nogil:
    enum: FIXED_POINT_PAYS, TOGETHER, PAIRS, IMAGES, UNITS, LARGEST
    double HUGE_SUM
    ctypedef struct PairImages:
        Py_ssize_t n_pixels, n_rows, n_blocks, most_pixels, most_light
        const int32_t *first_pixel
        const int32_t *begin
        const uint16_t *row
        const int32_t *bytes
    ctypedef struct First:
        Py_ssize_t n_out, vecs, width, n_tiles
        int32_t *weights
        float *scale
        float *bias
    ctypedef struct Upper:
        Py_ssize_t n_in, n_out
        float *weights
    First shape_of_first(Py_ssize_t n_out)
    Py_ssize_t rounded_up(Py_ssize_t n, Py_ssize_t step)
    void prepare_first(const PairImages *x, const float *rows, Py_ssize_t width, const First *to, float *room, double *most)
    void prepare_upper(const float *rows, Py_ssize_t width, double norm, const Upper *to, double *most)
    double largest_singular(const float *rows, Py_ssize_t n_in, Py_ssize_t n_out, Py_ssize_t width, double *room)
    Py_ssize_t certain_hits(const PairImages *x, const First *first, const Upper *upper, Py_ssize_t n_upper,
                            const int64_t *labels, Py_ssize_t start, Py_ssize_t stop, int32_t *sums, float *h, float *other,
                            int32_t *uncertain, Py_ssize_t *n_uncertain)

cdef enum:
    WORTH_PREPARING = 512       # images; it takes as long as the float kernel takes for a few dozen
    WORTH_A_NORM = 20           # images for each unit: the norm of n x n weights costs as much as 3 n of them or more


cdef class TestImages:
    """Images in sparse form, prepared once and evaluated often, whatever map of their pixels a task sees.

    images (N, P): uint8, which stand for value / 255, or float32. Memory (`n_bytes`): 8 bytes for each non-zero pixel, and
    for images of bytes 6 for each pair of pixels that are not both 0.
    """
    cdef readonly Py_ssize_t n_images, n_pixels, n_bytes
    cdef Memory memory
    cdef Sparse *x
    cdef PairImages pairs           # as _fixed_point.h takes them; n_blocks 0: there are none
    cdef list kept                  # what they point to

    def __init__(self, images):
        images = np.asarray(images)
        if images.dtype not in (np.uint8, np.float32) or images.ndim != 2:
            raise ValueError(f"images of shape {images.shape} and type {images.dtype}: (N, P) of uint8 or float32 are needed")
        cdef Py_ssize_t n, k, p, entries
        cdef int32_t *index
        cdef float *value
        self.n_images, self.n_pixels = images.shape
        entries = np.count_nonzero(images) + self.n_images
        self.n_bytes = self.n_images * sizeof(Sparse) + entries * (sizeof(int32_t) + sizeof(float))
        self.memory = Memory(self.n_bytes)
        self.x = <Sparse *> self.memory.at
        index = <int32_t *> (self.x + self.n_images)
        cdef float[::1] image
        for n in range(self.n_images):
            image = images[n].astype(np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)
            k = np.count_nonzero(images[n]) + 1
            value = <float *> (index + k)
            self.x[n] = Sparse(k, index, value)
            k = 0
            for p in range(self.n_pixels):
                if image[p] != 0:
                    index[k], value[k] = <int32_t> p, image[p]
                    k += 1
            index[k], value[k] = <int32_t> self.n_pixels, 1
            index = <int32_t *> (value + k + 1)
        if (FIXED_POINT_PAYS and images.dtype == np.uint8 and self.n_images >= WORTH_PREPARING
                and 0 < self.n_pixels <= LARGEST and entries < NO_END):
            self.find_pairs(images)

    cdef int find_pairs(self, images) except -1:
        """`pairs` of images (N, P) of bytes."""
        cdef Py_ssize_t first, block
        padded_images = np.zeros((len(images), self.n_pixels + self.n_pixels % 2), np.uint8)
        padded_images[:, :self.n_pixels] = images
        used = np.flatnonzero(padded_images.any(0).reshape(-1, 2).any(1))
        rows, values, counts = [], [], []
        for first in range(0, len(images), TOGETHER):
            group = padded_images[first:first + TOGETHER]
            pairs = (group[:, ::2] | group[:, 1::2].astype(np.int32) << 16)[:, used]
            for block in range(0, len(used), PAIRS):
                part = pairs[:, block:block + PAIRS]
                image, row = part.nonzero()
                rows.append(row.astype(np.uint16))
                values.append(part[image, row])
                counts.append(np.bincount(image, minlength=TOGETHER))
        if not counts:              # they are all black
            return 0
        cdef const int32_t[::1] first_pixel = (2 * used).astype(np.int32)
        cdef const int32_t[::1] begin = np.concatenate([[0], *counts]).cumsum().astype(np.int32)
        cdef const uint16_t[::1] row_numbers = np.concatenate(rows)
        cdef const int32_t[::1] values_of = np.concatenate(values)
        self.kept = [first_pixel, begin, row_numbers, values_of]
        self.pairs = PairImages(
            n_pixels=self.n_pixels, n_rows=len(used), first_pixel=&first_pixel[0], n_blocks=(len(used) + PAIRS - 1) // PAIRS,
            begin=&begin[0], row=&row_numbers[0], bytes=&values_of[0],
            most_pixels=np.count_nonzero(images, axis=1).max(), most_light=images.sum(axis=1, dtype=int).max())
        self.n_bytes += sum([memory.nbytes for memory in self.kept])
        return 0

    def correct(self, Weights net, int64_t t, pixel_map, const int64_t[::1] labels, Py_ssize_t start, Py_ssize_t stop,
                fixed_point=None):
        """How many of the images start..stop - 1 the net's largest output classifies right, as inputs of task t.

        pixel_map (D,) int32: input j is pixel pixel_map[j], or 0 where that is -1; None: the pixels are the inputs.
        Instead of the images, the first layer's weights are mapped: an image has sum_j rows[j] image[map[j]] =
        sum_p image[p] (sum of rows[j] over the j with map[j] = p). Where tasks have outputs of their own, those of t
        compete alone. Ties go to the first output; NaN is the largest, as in torch. Several threads may call this at
        once, on nets that nobody changes meanwhile.

        Computed in fixed point where that is certain to give the same number as in float, and pays (fixed_point None);
        even if it doesn't pay (True); or in float (False).
        """
        return self.count(net, t, pixel_map, labels, start, stop, fixed_point)[0]

    def count(self, Weights net, int64_t t, pixel_map, const int64_t[::1] labels, Py_ssize_t start, Py_ssize_t stop,
              fixed_point=None):
        """(what `correct` returns, how many of the images the float kernel computed)."""
        if not 0 <= start <= stop <= self.n_images or labels.shape[0] != self.n_images:
            raise IndexError(f"images {start} to {stop} with {labels.shape[0]} labels, of {self.n_images}")
        cdef Layout layout = net.layout
        if layout.n_heads > 1 and not 0 <= t < layout.n_heads:
            raise IndexError(f"task {t} of a net with {layout.n_heads} first layers")
        cdef Layer *layer = layout.level(0, t if layout.n_heads > 1 else 0)
        cdef const int32_t[::1] map
        cdef Py_ssize_t n_mapped = self.n_pixels
        if pixel_map is not None:
            map = pixel_map
            n_mapped = map.shape[0]
            if n_mapped and not -1 <= np.min(pixel_map) <= np.max(pixel_map) < self.n_pixels:
                raise IndexError(f"a map to pixels {np.min(pixel_map)} to {np.max(pixel_map)} of {self.n_pixels}")
        if n_mapped != layout.n_inputs:
            raise ValueError(f"{n_mapped} inputs for a net of {layout.n_inputs}")
        cdef Memory memory = Memory((self.n_pixels + 1) * layer.width * sizeof(float))
        cdef float *first = <float *> memory.at
        cdef Py_ssize_t j
        with nogil:
            if pixel_map is None:
                first = net.w + layer.start
            else:
                for j in range(layer.n_in):
                    if map[j] >= 0:
                        add_row(first + map[j] * layer.width, 1, net.w + layer.start + j * layer.width, layer.width)
                add_row(first + self.n_pixels * layer.width, 1, net.w + layer.start + layer.n_in * layer.width,
                        layer.width)
        cdef Py_ssize_t first_output, end_output
        layout.outputs_of(t, &first_output, &end_output)
        cdef Memory numbers = Memory((stop - start) * sizeof(int32_t))
        cdef int32_t *left = <int32_t *> numbers.at
        cdef Py_ssize_t hits = -1, n_left = stop - start
        if layout.n_ranges or layout.first_class:       # fixed point knows nothing of them
            fixed_point = False
        if fixed_point is None:
            fixed_point = stop - start >= max(WORTH_PREPARING, WORTH_A_NORM * layout.most_singular_values())
        if fixed_point and self.pairs.n_blocks:
            hits = self.hits_in_fixed_point(net, first, labels, start, stop, left, &n_left)
        if hits < 0:
            hits, n_left = 0, stop - start
            for j in range(n_left):
                left[j] = <int32_t> (start + j)
        return hits + self.hits_in_float(net, first, labels, left, n_left, first_output, end_output), n_left

    cdef Py_ssize_t hits_in_fixed_point(self, Weights net, const float *first, const int64_t[::1] labels, Py_ssize_t start,
                                        Py_ssize_t stop, int32_t *left, Py_ssize_t *n_left) except? -2:
        """Hits among the images that are certain; the numbers of the others go to left[:n_left]. -1: this net cannot do it."""
        cdef Layout layout = net.layout
        cdef Layer *layer = layout.level(0, 0)
        cdef Py_ssize_t l, size, most_units, n_upper = layout.n_levels - 1, hits
        if max([layout.layer[l].n_out for l in range(layout.n_layers)]) > LARGEST:
            return -1
        cdef double[::1] norms = net.largest_singular_values()
        cdef double most = 0
        cdef First bottom = shape_of_first(layer.n_out)
        size = bottom.n_tiles * bottom.width
        most_units = size
        cdef Memory first_memory = Memory(size * (2 * sizeof(float) + self.pairs.n_rows * sizeof(int32_t)))
        cdef Memory sums = Memory(size * TOGETHER * sizeof(int32_t))
        cdef Memory room = Memory((4 * layer.width + self.n_pixels + 1) * sizeof(float))
        cdef Memory upper_memory = Memory(max(1, n_upper) * sizeof(Upper))
        cdef Upper *upper = <Upper *> upper_memory.at
        cdef list kept = []
        bottom.weights = <int32_t *> first_memory.at
        bottom.scale = <float *> (bottom.weights + size * self.pairs.n_rows)
        bottom.bias = bottom.scale + size
        for l in range(n_upper):
            layer = layout.level(l + 1, 0)
            size = rounded_up(layer.n_out + 1, UNITS)
            most_units = max(most_units, size)
            kept.append(Memory(size * (layer.n_in + 2) * sizeof(float)))
            upper[l] = Upper(layer.n_in, layer.n_out, <float *> (<Memory> kept[l]).at)
        cdef Memory outputs = Memory(2 * most_units * IMAGES * sizeof(float))
        with nogil:
            prepare_first(&self.pairs, first, layout.level(0, 0).width, &bottom, <float *> room.at, &most)
            l = 0
            while most < HUGE_SUM and l < n_upper:      # each layer's sums: those above may bring small ones again
                layer = layout.level(l + 1, 0)
                prepare_upper(net.w + layer.start, layer.width, norms[l], &upper[l], &most)
                l += 1
            if most < HUGE_SUM:
                hits = certain_hits(&self.pairs, &bottom, upper, n_upper, &labels[0], start, stop, <int32_t *> sums.at,
                                    <float *> outputs.at, <float *> outputs.at + most_units * IMAGES, left, n_left)
            else:
                hits = -1
        return hits

    cdef Py_ssize_t hits_in_float(self, Weights net, const float *first, const int64_t[::1] labels, const int32_t *numbers,
                                  Py_ssize_t n_numbers, Py_ssize_t start, Py_ssize_t end) except? -2:
        """Hits among the images of these numbers, the outputs from start to end competing: this kernel defines them."""
        cdef Layout layout = net.layout
        cdef Layer *layer
        cdef Py_ssize_t width = max([layout.layer[l].width for l in range(layout.n_layers)])
        cdef Py_ssize_t l, b = 0, e, n, best, hits = 0
        cdef Memory out_memory = Memory(GROUP * width * sizeof(float))
        cdef float *h = <float *> out_memory.at
        cdef Memory list_memory = Memory(GROUP * (width + 1) * (sizeof(int32_t) + sizeof(float)))
        cdef int32_t *index = <int32_t *> list_memory.at
        cdef float *value = <float *> (index + GROUP * (width + 1))
        cdef Sparse x[GROUP]
        cdef Sparse images[GROUP]
        for e in range(GROUP):
            x[e] = Sparse(0, index + e * (width + 1), value + e * (width + 1))
        with nogil:
            while b < n_numbers:
                n = min(<Py_ssize_t> GROUP, n_numbers - b)
                for e in range(n):
                    images[e] = self.x[numbers[b + e]]
                layer = layout.level(0, 0)          # all heads have the same shape
                forward_group(first, self.n_pixels + 1, layer.width, images, n, h)
                for l in range(1, layout.n_levels):
                    for e in range(n):
                        active_units(h + e * layer.width, layer.n_out, &x[e])
                        if l == 1 and b + n + e < n_numbers:
                            prefetch(&self.x[numbers[b + n + e]])
                    layer = layout.level(l, 0)
                    forward_group(net.w + layer.start, layer.n_in + 1, layer.width, x, n, h)
                for e in range(n):
                    best = layout.first_class + start + argmax(h + e * layer.width + start, end - start)
                    hits += labels[numbers[b + e]] == best
                b += n
        return hits


cdef inline Py_ssize_t argmax(const float *z, Py_ssize_t n) noexcept nogil:
    """Index of the first largest of z; NaN is larger than any number."""
    cdef Py_ssize_t j, best = 0
    for j in range(1, n):
        if z[j] > z[best] or (z[j] != z[j] and z[best] == z[best]):
            best = j
    return best
