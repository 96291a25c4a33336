# Where the weights of a net lie, and weights that lie so.


cdef struct Layer:
    Py_ssize_t n_in, n_out
    Py_ssize_t width            # floats in a row: n_out rounded up to whole lines
    Py_ssize_t start            # where its rows (n_in + 1, width) start among the net's weights; the last row is the bias
    Py_ssize_t first            # number of its first row among all of the net's


cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    """n rounded up to whole lines; not to a multiple of 8 of them, which would share a few of the cache's sets."""
    cdef Py_ssize_t lines = (n + LINE - 1) // LINE
    return (lines + (lines % 8 == 0)) * LINE


cdef class Layout:
    """The layers of a net (heads first), and where their rows lie in memory that is laid out as its weights.

    The padding of a row is 0 and stays so, though all is computed over whole rows: memory starts as zeros, what comes from
    outside goes to the first n_out numbers, and what is added to a row is a finite multiple of another row or of a delta
    (a sum of rows, whose padding cross_entropy() and backward() write as zeros). Where numbers are no longer finite, the
    padding may become NaN: nobody reads it, and set_weights starts afresh.
    """
    cdef readonly Py_ssize_t n_inputs, n_outputs, n_heads, n_parameters
    cdef Py_ssize_t n_levels        # layers that an example passes
    cdef Py_ssize_t n_layers        # layers in all: heads, then the others
    cdef Py_ssize_t n_weights       # floats, padding included
    cdef Py_ssize_t n_rows
    cdef Layer *layer
    cdef Py_ssize_t *row_start      # (n_rows + 1,) where each row starts
    cdef Memory memory
    cdef Py_ssize_t first_class     # the class of output 0
    cdef Py_ssize_t n_ranges        # tasks that have outputs of their own; 0: all outputs are all tasks'
    cdef Py_ssize_t *ranges         # (n_ranges, 2) the first of them, and the end
    cdef Memory range_memory

    def __init__(self, list shapes, Py_ssize_t n_heads):
        """shapes: [(outputs, inputs)] of all layers."""
        cdef Py_ssize_t width, n_out, n_in, l, i, start = 0, first = 0
        self.n_heads, self.n_layers, self.n_levels = n_heads, len(shapes), 1 + len(shapes) - n_heads
        self.n_inputs, self.n_outputs = shapes[0][1], shapes[-1][0]
        self.n_rows = sum([n_in + 1 for n_out, n_in in shapes])
        self.memory = Memory(self.n_layers * sizeof(Layer) + (self.n_rows + 1) * sizeof(Py_ssize_t))
        self.layer = <Layer *> self.memory.at
        self.row_start = <Py_ssize_t *> (self.layer + self.n_layers)
        for l, (n_out, n_in) in enumerate(shapes):
            width = padded(n_out)
            self.layer[l] = Layer(n_in, n_out, width, start, first)
            for i in range(n_in + 1):
                self.row_start[first + i] = start + i * width
            start, first = start + (n_in + 1) * width, first + n_in + 1
            self.n_parameters += (n_in + 1) * n_out
        self.row_start[self.n_rows] = self.n_weights = start

    cdef int assign(self, class_ranges, Py_ssize_t first_class) except -1:
        """Say which classes the outputs are, and, unless class_ranges is None, which (start, stop) are each task's."""
        cdef Py_ssize_t t, start, stop
        self.first_class = first_class
        if class_ranges is not None:
            self.range_memory = Memory(2 * max(1, len(class_ranges)) * sizeof(Py_ssize_t))
            self.ranges, self.n_ranges = <Py_ssize_t *> self.range_memory.at, len(class_ranges)
            for t, (start, stop) in enumerate(class_ranges):
                self.ranges[2 * t], self.ranges[2 * t + 1] = start - first_class, stop - first_class
                if not first_class <= start < stop <= first_class + self.n_outputs:
                    raise ValueError(f"classes {start} to {stop} of a net with {self.n_outputs} outputs from {first_class} on")
        return 0

    cdef int outputs_of(self, int64_t t, Py_ssize_t *start, Py_ssize_t *stop) except -1:
        """The outputs that compete in task t: from start to stop; IndexError where there is no such task."""
        start[0], stop[0] = 0, self.n_outputs
        if self.n_ranges:
            if not 0 <= t < self.n_ranges:
                raise IndexError(f"task {t} of a net with classes of {self.n_ranges} tasks")
            start[0], stop[0] = self.ranges[2 * t], self.ranges[2 * t + 1]
        return 0

    cdef inline Layer *level(self, Py_ssize_t l, Py_ssize_t head) noexcept nogil:
        """The l-th layer that an example of this head passes."""
        return &self.layer[head if l == 0 else self.n_heads + l - 1]

    cdef list shapes(self):
        return [(self.layer[l].n_out, self.layer[l].n_in) for l in range(self.n_layers)]

    cdef Py_ssize_t most_singular_values(self):
        """Those of the layer, except for the first, that has most of them."""
        return max([0] + [min(n_in, n_out) for n_out, n_in in self.shapes()[self.n_heads:]])

    cdef int check_same(self, Layout other) except -1:
        """ValueError unless the other one is the same."""
        if other.n_heads != self.n_heads or other.shapes() != self.shapes():
            raise ValueError("the nets differ in shape")
        return 0

    cdef new_vector(self):
        """Room for numbers that are laid out as the weights, in whole cache lines: float32 (n_weights,)."""
        memory = np.empty(self.n_weights + LINE, np.float32)
        cdef Py_ssize_t start = (-memory.ctypes.data // 4) % LINE
        return memory[start:start + self.n_weights]

    cdef float *vector(self, const float[::1] vector) except NULL:
        """The numbers of a vector; ValueError if it is none of this layout's."""
        if vector.shape[0] != self.n_weights:
            raise ValueError(f"a vector of {vector.shape[0]} numbers for a net of {self.n_weights}")
        return <float *> &vector[0]

    cdef view(self, Py_ssize_t l, float *laid_out):
        """The rows (n_in + 1, n_out) of layer l, the last of which is the bias, in memory that is laid out so."""
        cdef Layer *layer = &self.layer[l]
        cdef float[:, ::1] rows = <float[:layer.n_in + 1, :layer.width]> (laid_out + layer.start)
        return np.asarray(rows)[:, :layer.n_out]

    cdef to_flat(self, const float *laid_out):
        """Parameters in torch's order (heads, then layers; each W (out, in), then b) from memory that is laid out so."""
        flat = np.empty(self.n_parameters, np.float32)
        cdef float[::1] f = flat
        cdef float *to = &f[0]
        cdef const float *rows
        cdef Py_ssize_t l, i, j, i0, j0
        cdef Layer *layer
        with nogil:
            for l in range(self.n_layers):
                layer = &self.layer[l]
                rows = laid_out + layer.start
                for j0 in range(0, layer.n_out, 16):        # squares of 16 x 16, so that what is read stays in the cache
                    for i0 in range(0, layer.n_in, 16):
                        for j in range(j0, min(j0 + 16, layer.n_out)):
                            for i in range(i0, min(i0 + 16, layer.n_in)):
                                to[j * layer.n_in + i] = rows[i * layer.width + j]
                to += layer.n_in * layer.n_out
                memcpy(to, rows + layer.n_in * layer.width, layer.n_out * sizeof(float))
                to += layer.n_out
        return flat

    cdef int check_flat(self, Py_ssize_t n) except -1:
        """ValueError unless n numbers are one for each parameter."""
        if n != self.n_parameters:
            raise ValueError(f"{n} numbers for {self.n_parameters} parameters")
        return 0

    cdef int from_flat(self, const float[::1] flat, float *laid_out) except -1:
        """The inverse of to_flat."""
        self.check_flat(flat.shape[0])
        cdef const float *source = &flat[0]
        cdef float *rows
        cdef Py_ssize_t l, i, j, i0, j0
        cdef Layer *layer
        with nogil:
            memset(laid_out, 0, self.n_weights * sizeof(float))
            for l in range(self.n_layers):
                layer = &self.layer[l]
                rows = laid_out + layer.start
                for j0 in range(0, layer.n_out, 16):
                    for i0 in range(0, layer.n_in, 16):
                        for i in range(i0, min(i0 + 16, layer.n_in)):
                            for j in range(j0, min(j0 + 16, layer.n_out)):
                                rows[i * layer.width + j] = source[j * layer.n_in + i]
                source += layer.n_in * layer.n_out
                memcpy(rows + layer.n_in * layer.width, source, layer.n_out * sizeof(float))
                source += layer.n_out
        return 0


cdef class Weights:
    """The weights of a net: as a snapshot, to be evaluated while the net learns on; or those of an MLP."""
    cdef Layout layout
    cdef Memory memory
    cdef float *w                   # (layout.n_weights,)
    cdef object norms               # of a snapshot, once they were asked for

    cdef int lay_out(self, Layout layout) except -1:
        """Make room for them; they are 0."""
        self.layout, self.memory = layout, Memory(layout.n_weights * sizeof(float))
        self.w = <float *> self.memory.at
        return 0

    def weights(self):
        """Copies (heads, layers) of the weights: lists of (W (out, in), b (out,)), as in torch."""
        layers = []
        for l in range(self.layout.n_layers):
            rows = self.layout.view(l, self.w)
            layers.append((rows[:-1].T.copy(), rows[-1].copy()))
        return layers[:self.layout.n_heads], layers[self.layout.n_heads:]

    def snapshot(self):
        """A copy of the weights that does not change."""
        cdef Weights copy = Weights()
        copy.lay_out(self.layout)
        memcpy(copy.w, self.w, self.layout.n_weights * sizeof(float))
        return copy

    cdef largest_singular_values(self):
        """Upper bounds (n_levels - 1,) of the largest singular value of each layer but the first; found once a snapshot."""
        cdef Py_ssize_t l, n
        cdef Layer *layer
        cdef Memory room
        cdef double[::1] norms
        if self.norms is None:
            norms = np.zeros(self.layout.n_levels - 1)
            for l in range(self.layout.n_levels - 1):
                layer = self.layout.level(l + 1, 0)
                n = min(layer.n_in, layer.n_out)
                room = Memory(2 * n * n * sizeof(double))
                with nogil:
                    norms[l] = largest_singular(self.w + layer.start, layer.n_in, layer.n_out, layer.width,
                                                <double *> room.at)
            if type(self) is not Weights:           # an MLP, which learns on
                return norms
            self.norms = norms
        return self.norms
