# Evaluation: the test images of all tasks, prepared once.


cdef class TestImages:
    """Images in sparse form, prepared once and evaluated often, whatever map of their pixels a task sees.

    images (N, P): uint8, which stand for value / 255, or float32. Memory: 8 bytes for each non-zero pixel (`n_bytes`).
    """
    cdef readonly Py_ssize_t n_images, n_pixels, n_bytes
    cdef Memory memory
    cdef Sparse *x

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

    def correct(self, Weights net, int64_t t, pixel_map, const int64_t[::1] labels, Py_ssize_t start, Py_ssize_t stop):
        """How many of the images start..stop - 1 the net's largest output classifies right, as inputs of task t.

        pixel_map (D,) int32: input j is pixel pixel_map[j], or 0 where that is -1; None: the pixels are the inputs.
        Instead of the images, the first layer's weights are mapped: an image has sum_j rows[j] image[map[j]] =
        sum_p image[p] (sum of rows[j] over the j with map[j] = p). Ties go to the first output; NaN is the largest, as
        in torch. Several threads may call this at once, on nets that nobody changes meanwhile.
        """
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
        cdef Memory first_memory = Memory((self.n_pixels + 1) * layer.width * sizeof(float))
        cdef float *first = <float *> first_memory.at
        cdef Py_ssize_t width = max([layout.layer[l].width for l in range(layout.n_layers)])
        cdef Py_ssize_t l, b, e, n, j, hits = 0
        cdef Memory out_memory = Memory(GROUP * width * sizeof(float))
        cdef float *h = <float *> out_memory.at
        cdef Memory list_memory = Memory(GROUP * (width + 1) * (sizeof(int32_t) + sizeof(float)))
        cdef int32_t *index = <int32_t *> list_memory.at
        cdef float *value = <float *> (index + GROUP * (width + 1))
        cdef Sparse x[GROUP]
        for e in range(GROUP):
            x[e] = Sparse(0, index + e * (width + 1), value + e * (width + 1))
        with nogil:
            if pixel_map is None:
                first = net.w + layer.start
            else:
                for j in range(layer.n_in):
                    if map[j] >= 0:
                        add_row(first + map[j] * layer.width, 1, net.w + layer.start + j * layer.width, layer.width)
                add_row(first + self.n_pixels * layer.width, 1, net.w + layer.start + layer.n_in * layer.width,
                        layer.width)
            b = start
            while b < stop:
                n = min(<Py_ssize_t> GROUP, stop - b)
                layer = layout.level(0, t if layout.n_heads > 1 else 0)
                forward_group(first, self.n_pixels + 1, layer.width, self.x + b, n, h)
                for l in range(1, layout.n_levels):
                    for e in range(n):
                        active_units(h + e * layer.width, layer.n_out, &x[e])
                        if l == 1 and b + n + e < stop:
                            prefetch(&self.x[b + n + e])
                    layer = layout.level(l, 0)
                    forward_group(net.w + layer.start, layer.n_in + 1, layer.width, x, n, h)
                for e in range(n):
                    hits += labels[b + e] == argmax(h + e * layer.width, layer.n_out)
                b += n
        return hits


cdef inline Py_ssize_t argmax(const float *z, Py_ssize_t n) noexcept nogil:
    """Index of the first largest of z; NaN is larger than any number."""
    cdef Py_ssize_t j, best = 0
    for j in range(1, n):
        if z[j] > z[best] or (z[j] != z[j] and z[best] == z[best]):
            best = j
    return best
