# cython: language_level=3, boundscheck=False, cdivision=True, initializedcheck=False
"""Compiled kernels for ReLU multi-layer perceptrons: one SGD step, gradients, Reptile, evaluation. All in float32.

    Legend   B examples of a batch, D inputs, H hidden units, O outputs, P pixels of an image, N images, K tasks,
             S = number of non-zero inputs of an example, plus one

What makes them fast is what they leave out:

  * Weights are stored *input-major*: row i holds the weights from input i to every unit, padded to 16 floats, so an
    input that is 0 (81 % of an MNIST image) or a hidden unit that ReLU switched off is a row that nobody reads or writes.
  * The bias is one more row, whose input is always 1. So a layer is h[j] = sum_i x[i] * rows[i, j], nothing else, and a
    vector is the list of its non-zero entries, the last of which is that 1 (`Sparse`).
  * Everything is then one of three row operations, four rows at a time: y += a x (forward, and update), a . y (backward).
  * Examples are taken in groups of at most GROUP, and a layer's rows in blocks that fit the first-level cache.

Every kernel runs without the GIL. Non-finite values propagate, as in PyTorch: ReLU lets NaN pass, and `MLP.loss` shows it.
"""
from libc.math cimport expf, logf
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

import numpy as np

cdef extern from *:
    """
    /* What a register holds: `vec`. A tile of TILE lines (of 16 floats) is as many accumulators as the registers take. */
    #if defined(__AVX512F__)
    typedef float vec __attribute__((vector_size(64), may_alias));
    enum { TILE = 8 };
    #elif defined(__AVX2__)
    typedef float vec __attribute__((vector_size(32), may_alias));
    enum { TILE = 7 };
    #elif defined(__aarch64__)
    typedef float vec __attribute__((vector_size(16), may_alias));
    enum { TILE = 7 };
    #else
    typedef float vec __attribute__((vector_size(16), may_alias));
    enum { TILE = 3 };
    #endif
    enum { VECS = 64 / sizeof(vec) };     /* in a line */
    """
    ctypedef float vec              # to Cython a number like any other: the C compiler knows better
    const int TILE, VECS
    int first_bit "__builtin_ctz"(uint32_t) nogil

cdef enum:
    LINE = 16               # floats in a cache line: rows are padded to it
    GROUP = 32              # examples that share one pass over the rows: as many as a uint32_t has bits
    NO_END = 0x7FFFFFFF
    BLOCK = 16384           # bytes of rows that a group passes over at a time


cdef struct Sparse:         # a vector by its non-zero entries in order, the last of which is the bias' input, 1
    Py_ssize_t n
    int32_t *index
    float *value


# ---- Row operations. Each is written for a tile of `lines` lines of the rows; called with a constant, it is compiled for it

cdef inline Py_ssize_t add_rows_tile(const int lines, const float *rows, Py_ssize_t width, const int32_t *index,
                                     const float *value, Py_ssize_t n, int32_t end, float *sum) noexcept nogil:
    cdef vec total[32]
    cdef const vec *row
    cdef Py_ssize_t k = 0
    cdef int c
    for c in range(lines * VECS):
        total[c] = (<vec *> sum)[c]
    while k < n and index[k] < end:
        row = <const vec *> (rows + index[k] * width)
        for c in range(lines * VECS):
            total[c] = total[c] + value[k] * row[c]
        k += 1
    for c in range(lines * VECS):
        (<vec *> sum)[c] = total[c]
    return k


cdef inline Py_ssize_t add_rows(const float *rows, Py_ssize_t width, const int32_t *index, const float *value,
                                Py_ssize_t n, int32_t end, float *sum) noexcept nogil:
    """sum[j] += sum_k value[k] rows[index[k], j] over the entries k < n with index[k] < end; returns their number.

    O(entries width). The sums stay in registers, so that an entry costs one reading of its row.
    """
    cdef Py_ssize_t lines, j = 0, k = 0
    while j < width:
        lines = (width - j) // LINE
        if lines >= TILE:
            k = add_rows_tile(TILE, rows + j, width, index, value, n, end, sum + j)
        elif lines == 7:
            k = add_rows_tile(7, rows + j, width, index, value, n, end, sum + j)
        elif lines == 6:
            k = add_rows_tile(6, rows + j, width, index, value, n, end, sum + j)
        elif lines == 5:
            k = add_rows_tile(5, rows + j, width, index, value, n, end, sum + j)
        elif lines == 4:
            k = add_rows_tile(4, rows + j, width, index, value, n, end, sum + j)
        elif lines == 3:
            k = add_rows_tile(3, rows + j, width, index, value, n, end, sum + j)
        elif lines == 2:
            k = add_rows_tile(2, rows + j, width, index, value, n, end, sum + j)
        else:
            k = add_rows_tile(1, rows + j, width, index, value, n, end, sum + j)
        j += TILE * LINE
    return k


cdef inline void outer_tile(const int lines, float *rows, Py_ssize_t width, Sparse x, float a, const float *delta) noexcept nogil:
    cdef vec d[32]
    cdef vec *row
    cdef int c
    cdef float v
    cdef Py_ssize_t k
    for c in range(lines * VECS):
        d[c] = (<vec *> delta)[c]
    for k in range(x.n):
        row = <vec *> (rows + x.index[k] * width)
        v = a * x.value[k]
        for c in range(lines * VECS):
            row[c] = row[c] + v * d[c]

cdef inline void outer(float *rows, Py_ssize_t width, Sparse x, float a, const float *delta) noexcept nogil:
    cdef Py_ssize_t k
    if width == 112:
        outer_tile(7, rows, width, x, a, delta)
    else:
        for k in range(x.n):
            add_row(rows + x.index[k] * width, a * x.value[k], delta, width)

cdef inline void add_row(float *y, float a, const float *x, Py_ssize_t n) noexcept nogil:
    """y += a x"""
    cdef Py_ssize_t j
    for j in range(n):
        y[j] += a * x[j]


cdef inline float dot(const float *x, const float *y, Py_ssize_t n) noexcept nogil:
    """x . y"""
    cdef Py_ssize_t j
    cdef float sum = 0
    for j in range(n):
        sum += x[j] * y[j]
    return sum


cdef inline float dot_and_add(float *x, const float *y, float a, Py_ssize_t n) noexcept nogil:
    """Return x . y, and x += a y: a weight row is read once for the backward pass and its update."""
    cdef Py_ssize_t j
    cdef float sum = 0, old
    n &= -LINE
    for j in range(n):
        old = x[j]
        sum += old * y[j]
        x[j] = old + a * y[j]
    return sum


# ---- Memory and examples

cdef class Memory:
    """`n_bytes` of zeros, aligned to a cache line; pages that nobody writes take no room."""
    cdef void *whole
    cdef char *at

    def __cinit__(self, size_t n_bytes):
        self.whole = calloc(n_bytes + 64, 1)
        if self.whole == NULL:
            raise MemoryError(f"no room for {n_bytes} bytes")
        self.at = <char *> ((<size_t> self.whole + 63) & ~<size_t> 63)

    def __dealloc__(self):
        free(self.whole)


cdef struct Slot:
    Sparse x
    Py_ssize_t room         # entries that x has memory for; 0: never filled
    int64_t t, y


cdef class Examples:
    """`capacity` slots of examples (x, t, y): inputs, task and label. Memory: 8 bytes for each non-zero input."""
    cdef readonly Py_ssize_t capacity, n_inputs
    cdef Slot *slots

    def __cinit__(self, Py_ssize_t capacity, Py_ssize_t n_inputs):
        if capacity < 1 or n_inputs < 1:
            raise ValueError(f"{capacity} slots of {n_inputs} inputs: there must be at least one of each")
        self.capacity, self.n_inputs = capacity, n_inputs
        self.slots = <Slot *> calloc(capacity, sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef Py_ssize_t slot
        if self.slots != NULL:
            for slot in range(self.capacity):
                free(self.slots[slot].x.index)
            free(self.slots)

    cdef Slot *at(self, Py_ssize_t slot) except NULL:
        if not 0 <= slot < self.capacity:
            raise IndexError(f"slot {slot} of {self.capacity}")
        return &self.slots[slot]

    cdef Slot *filled(self, Py_ssize_t slot) except NULL:
        cdef Slot *found = self.at(slot)
        if found.room == 0:
            raise IndexError(f"slot {slot} holds no example")
        return found

    cdef int reserve(self, Slot *slot, Py_ssize_t n) except -1:
        """Make room for n entries: in steps of 64, so that slots that are replaced for ever don't grow for ever."""
        cdef Py_ssize_t room = (n + 63) // 64 * 64
        cdef void *memory
        if room > slot.room:
            memory = realloc(slot.x.index, room * (sizeof(int32_t) + sizeof(float)))
            if memory == NULL:
                raise MemoryError
            slot.x.index = <int32_t *> memory
            slot.x.value = <float *> (slot.x.index + room)
            slot.room = room
        return 0

    cpdef put(self, Py_ssize_t slot, const float[::1] x, int64_t t, int64_t y):
        """Fill a slot with the example of inputs x (D,), task t and label y."""
        cdef Slot *s = self.at(slot)
        cdef Py_ssize_t i, n = 0
        if x.shape[0] != self.n_inputs:
            raise ValueError(f"an example of {x.shape[0]} inputs where {self.n_inputs} are held")
        for i in range(self.n_inputs):
            n += x[i] != 0
        self.reserve(s, n + 1)
        n = 0
        for i in range(self.n_inputs):
            if x[i] != 0:
                s.x.index[n], s.x.value[n] = <int32_t> i, x[i]
                n += 1
        s.x.index[n], s.x.value[n] = <int32_t> self.n_inputs, 1
        s.x.n, s.t, s.y = n + 1, t, y

    def put_many(self, Py_ssize_t first_slot, const float[:, ::1] x, int64_t t, ys):
        """Fill the slots from first_slot on with the rows of x (B, D), all of task t, and the labels ys (B)."""
        cdef Py_ssize_t b
        for b in range(x.shape[0]):
            self.put(first_slot + b, x[b], t, ys[b])

    def copy(self, Py_ssize_t source, Py_ssize_t target):
        """Fill slot `target` with the example in slot `source`."""
        cdef Slot *s = self.filled(source)
        cdef Slot *into = self.at(target)
        if s == into:
            return
        self.reserve(into, s.x.n)
        memcpy(into.x.index, s.x.index, s.x.n * sizeof(int32_t))
        memcpy(into.x.value, s.x.value, s.x.n * sizeof(float))
        into.x.n, into.t, into.y = s.x.n, s.t, s.y

    def get(self, slots):
        """The examples in these slots: inputs (B, D) float32, tasks (B,) int64, labels (B,) int64."""
        x, t, y = np.zeros((len(slots), self.n_inputs), np.float32), np.empty(len(slots), int), np.empty(len(slots), int)
        cdef float[:, ::1] rows = x
        cdef Py_ssize_t b, k
        cdef Slot *s
        for b, slot in enumerate(slots):
            s = self.filled(slot)
            for k in range(s.x.n - 1):
                rows[b, s.x.index[k]] = s.x.value[k]
            t[b], y[b] = s.t, s.y
        return x, t, y


# ---- Layers: kernels over rows

cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    """n rounded up to whole lines."""
    return (n + LINE - 1) // LINE * LINE


cdef struct Layer:
    Py_ssize_t n_in, n_out
    Py_ssize_t width        # floats in a row: padded(n_out)
    Py_ssize_t start        # where its rows (n_in + 1, width) start among the net's weights; the last row is the bias
    Py_ssize_t first        # number of its first row among all of the net's


cdef inline void forward(const float *rows, Py_ssize_t width, Sparse x, float *h) noexcept nogil:
    """h[j] = sum_i x[i] rows[i, j] for one example.  O(S width)"""
    memset(h, 0, width * sizeof(float))
    add_rows(rows, width, x.index, x.value, x.n, NO_END, h)


cdef void forward_group(const float *rows, Py_ssize_t n_rows, Py_ssize_t width, const Sparse *x, Py_ssize_t n,
                        float *h) noexcept nogil:
    """h[b, j] = sum_i x_b[i] rows[i, j] for n <= GROUP examples, a cacheful of rows at a time.  O(n S width)"""
    cdef Py_ssize_t next[GROUP]
    cdef Py_ssize_t b, end = 0
    cdef Py_ssize_t step = max(1, BLOCK // (width * <Py_ssize_t> sizeof(float)))
    memset(h, 0, n * width * sizeof(float))
    memset(next, 0, sizeof(next))
    while end < n_rows:
        end += step
        for b in range(n):
            next[b] += add_rows(rows, width, x[b].index + next[b], x[b].value + next[b], x[b].n - next[b],
                                <int32_t> end, h + b * width)


cdef inline void active_units(const float *h, Py_ssize_t n_out, Sparse *x) noexcept nogil:
    """ReLU: x = the list of the h[j] that are not <= 0 (so NaN passes), and the 1 that multiplies the next bias.  O(H)"""
    cdef Py_ssize_t j, n = 0
    for j in range(n_out):
        x.index[n], x.value[n] = <int32_t> j, h[j]
        n += not h[j] <= 0
    x.index[n], x.value[n] = <int32_t> n_out, 1
    x.n = n + 1


cdef inline double cross_entropy(float *z, Py_ssize_t n_out, Py_ssize_t width, int64_t y, float weight) noexcept nogil:
    """Return -log softmax(z)[y]; put weight * its gradient, softmax(z) - onehot(y), in z's place (padding: 0).  O(O)"""
    cdef Py_ssize_t j
    cdef float largest = z[0], sum = 0, loss
    for j in range(1, n_out):
        if not z[j] <= largest:
            largest = z[j]
    loss = largest - z[y]
    for j in range(n_out):
        z[j] = expf(z[j] - largest)
        sum += z[j]
    for j in range(n_out):
        z[j] *= weight / sum
    z[y] -= weight
    for j in range(n_out, width):
        z[j] = 0
    return loss + logf(sum)


cdef inline void backward(const float *rows, Py_ssize_t width, Sparse x, const float *delta, float *below,
                          Py_ssize_t width_below) noexcept nogil:
    """below[i] = rows[i] . delta for the active units i, 0 for the others.  O(active width)"""
    cdef Py_ssize_t k
    memset(below, 0, width_below * sizeof(float))
    for k in range(x.n - 1):
        below[x.index[k]] = dot(rows + x.index[k] * width, delta, width)


cdef inline void backward_and_step(float *rows, Py_ssize_t width, Sparse x, const float *delta, float rate, float *below,
                                   Py_ssize_t width_below) noexcept nogil:
    """backward(), and rows[i] -= rate x[i] delta, in one pass over the rows.  O(active width)"""
    cdef Py_ssize_t k
    cdef float *w
    memset(below, 0, width_below * sizeof(float))
    for k in range(x.n - 1):
        w = rows + x.index[k] * width
        below[x.index[k]] = dot_and_add(w, delta, -rate * x.value[k], width)
    add_row(rows + x.index[x.n - 1] * width, -rate, delta, width)


cdef class Tile:
    """The inputs of a group of examples by row: value[i, b] = x_b[i]; bit b of used[i] says whether that is an entry."""
    cdef Memory memory
    cdef float *value       # (n_rows, GROUP)
    cdef uint32_t *used     # (n_rows,)
    cdef Py_ssize_t n_rows

    def __cinit__(self, Py_ssize_t n_rows):
        self.n_rows = n_rows
        self.memory = Memory(n_rows * (GROUP + 1) * sizeof(float))
        self.value = <float *> self.memory.at
        self.used = <uint32_t *> (self.value + n_rows * GROUP)

    cdef void fill(self, const Sparse *x, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t b, k
        cdef int32_t i
        for b in range(n):
            for k in range(x[b].n):
                i = x[b].index[k]
                self.value[i * GROUP + b] = x[b].value[k]
                self.used[i] |= <uint32_t> 1 << b

    cdef void clear(self, Py_ssize_t i) noexcept nogil:
        self.used[i] = 0
        memset(self.value + i * GROUP, 0, GROUP * sizeof(float))

    cdef void add_products(self, float *rows, Py_ssize_t i, float a, const float *delta, Py_ssize_t width) noexcept nogil:
        """rows[i, j] += a sum_b x_b[i] delta[b, j]; the row is read and written once.  O(number of examples that use i)"""
        cdef int32_t index[GROUP]
        cdef float value[GROUP]
        cdef float *x = self.value + i * GROUP
        cdef uint32_t left = self.used[i]
        cdef int b
        cdef Py_ssize_t n = 0
        while left:
            b = first_bit(left)
            left &= left - 1
            index[n], value[n] = b, a * x[b]
            n += 1
        add_rows(delta, width, index, value, n, NO_END, rows + i * width)


# ---- The network

cdef class Frame:
    """What a `begin_reptile` remembers: the rows touched since then, as they were."""
    cdef Memory memory
    cdef float *rows            # laid out as the net's weights
    cdef int32_t *touched       # (n,) numbers of the rows in it
    cdef uint8_t *saved         # (n_rows,) whether a row is in it
    cdef Py_ssize_t n

    def __cinit__(self, Py_ssize_t n_weights, Py_ssize_t n_rows):
        self.memory = Memory(n_weights * sizeof(float) + n_rows * (sizeof(int32_t) + 1))
        self.rows = <float *> self.memory.at
        self.touched = <int32_t *> (self.rows + n_weights)
        self.saved = <uint8_t *> (self.touched + n_rows)

    cdef inline void save(self, Py_ssize_t r, const float *row, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        """Keep row number r, which lies at row[start:end]."""
        self.saved[r] = True
        self.touched[self.n] = <int32_t> r
        self.n += 1
        memcpy(self.rows + start, row + start, (end - start) * sizeof(float))


cdef class MLP:
    """ReLU multi-layer perceptron with softmax cross-entropy (CE), trained by plain SGD(lr).

    heads   first layers, each (W (H, D), b (H,)) as in torch: one, or one per task, chosen by the example's t
    layers  the further layers, [(W, b), ...]; may be empty (a linear net)
    After a step, `loss` is the weighted sum of the losses it was for: NaN or infinite if any of them was.
    """
    cdef readonly Py_ssize_t n_inputs, n_outputs, n_heads, n_parameters
    cdef readonly float lr
    cdef readonly double loss
    cdef Py_ssize_t n_levels        # layers that an example passes
    cdef Py_ssize_t n_layers        # layers in all: heads, then the others
    cdef Py_ssize_t n_weights       # floats, padding included
    cdef Py_ssize_t n_rows
    cdef Layer *layer
    cdef float *w
    cdef Py_ssize_t *row_start      # (n_rows + 1,) where each row starts
    cdef Tile tile
    # The batch at work. At level l, example b has the inputs x[l][b] and the outputs delta[l][b, :], which its gradient
    # with respect to them replaces.
    cdef Py_ssize_t room
    cdef Sparse **x
    cdef float **delta
    cdef float *weight
    cdef int64_t *y
    cdef int64_t *head
    # Reptile: the innermost frame
    cdef list frames
    cdef Py_ssize_t depth
    cdef Frame frame
    # Anchors: sum of s F and of s F theta* over the anchored tasks, laid out as the weights; rows that have any
    cdef float *stiffness
    cdef float *pull
    cdef uint8_t *anchored
    cdef double anchor_constant     # sum of s F theta*^2
    cdef Memory net_memory, anchor_memory
    cdef list batch_memory

    def __init__(self, heads, layers, float lr):
        shapes = [np.shape(W) for W, b in (*heads, *layers)]
        if not heads or any(shape != shapes[0] for shape in shapes[:len(heads)]):
            raise ValueError("a net needs at least one first layer, and all of them of one shape")
        for before, after in zip(shapes[len(heads) - 1:], shapes[len(heads):], strict=False):
            if after[1] != before[0]:
                raise ValueError(f"a layer of {after[1]} inputs follows one of {before[0]} outputs")
        self.lr = lr
        self.n_heads, self.n_layers, self.n_levels = len(heads), len(shapes), 1 + len(layers)
        self.n_inputs, self.n_outputs = shapes[0][1], shapes[-1][0]
        self.frames, self.batch_memory = [], []
        self.lay_out(shapes)
        self.set_weights(heads, layers)

    cdef int lay_out(self, list shapes) except -1:
        """Give every layer its place. One piece of memory holds the weights, then row_start, then the layers."""
        cdef Py_ssize_t width, n_out, n_in, l, i, start = 0, first = 0, most = 0
        for n_out, n_in in shapes:
            self.n_weights += (n_in + 1) * padded(n_out)
            self.n_rows += n_in + 1
            self.n_parameters += (n_in + 1) * n_out
        self.net_memory = Memory(self.n_weights * sizeof(float) + (self.n_rows + 1) * sizeof(Py_ssize_t)
                                 + self.n_layers * sizeof(Layer))
        self.w = <float *> self.net_memory.at
        self.row_start = <Py_ssize_t *> (self.w + self.n_weights)
        self.layer = <Layer *> (self.row_start + self.n_rows + 1)
        for l, (n_out, n_in) in enumerate(shapes):
            width = padded(n_out)
            self.layer[l] = Layer(n_in, n_out, width, start, first)
            for i in range(n_in + 1):
                self.row_start[first + i] = start + i * width
            start, first, most = start + (n_in + 1) * width, first + n_in + 1, max(most, n_in + 1)
        self.row_start[self.n_rows] = start
        self.tile = Tile(most)
        return 0

    cdef inline Layer *level(self, Py_ssize_t l, Py_ssize_t head) noexcept nogil:
        return &self.layer[head if l == 0 else self.n_heads + l - 1]

    # -- Weights in and out

    cdef view(self, Py_ssize_t l, float *laid_out):
        """The rows (n_in + 1, n_out) of layer l, the last of which is the bias, in memory laid out as the weights."""
        cdef Layer *layer = &self.layer[l]
        cdef float[:, ::1] rows = <float[:layer.n_in + 1, :layer.width]> (laid_out + layer.start)
        return np.asarray(rows)[:, :layer.n_out]

    cdef to_flat(self, float *laid_out):
        """Parameters in torch's order (heads, then layers; each W (out, in), then b) from memory laid out as the weights."""
        flat = np.empty(self.n_parameters, np.float32)
        cdef float[::1] f = flat
        cdef float *into = &f[0]
        cdef Py_ssize_t l, i, j
        cdef Layer *layer
        cdef float *rows
        for l in range(self.n_layers):
            layer = &self.layer[l]
            rows = laid_out + layer.start
            for j in range(layer.n_out):
                for i in range(layer.n_in):
                    into[j * layer.n_in + i] = rows[i * layer.width + j]
            into += layer.n_in * layer.n_out
            memcpy(into, rows + layer.n_in * layer.width, layer.n_out * sizeof(float))
            into += layer.n_out
        return flat

    cdef Memory from_flat(self, const float[::1] flat):
        """The inverse of to_flat: new memory laid out as the weights, padding 0."""
        if flat.shape[0] != self.n_parameters:
            raise ValueError(f"{flat.shape[0]} numbers for {self.n_parameters} parameters")
        cdef Memory memory = Memory(self.n_weights * sizeof(float))
        cdef const float *source = &flat[0]
        cdef Py_ssize_t l, i, j
        cdef Layer *layer
        cdef float *rows
        for l in range(self.n_layers):
            layer = &self.layer[l]
            rows = <float *> memory.at + layer.start
            for j in range(layer.n_out):
                for i in range(layer.n_in):
                    rows[i * layer.width + j] = source[j * layer.n_in + i]
            source += layer.n_in * layer.n_out
            memcpy(rows + layer.n_in * layer.width, source, layer.n_out * sizeof(float))
            source += layer.n_out
        return memory

    def weights(self):
        """Copies (heads, layers) of the weights, as at construction: lists of (W (out, in), b (out,))."""
        layers = []
        for l in range(self.n_layers):
            rows = self.view(l, self.w)
            layers.append((rows[:-1].T.copy(), rows[-1].copy()))
        return layers[:self.n_heads], layers[self.n_heads:]

    def set_weights(self, heads, layers):
        """Take over these weights; the shapes are those at construction (ValueError)."""
        if len(heads) != self.n_heads or len(heads) + len(layers) != self.n_layers:
            raise ValueError(f"{len(heads)} + {len(layers)} layers for {self.n_heads} + {self.n_levels - 1}")
        self.touch_all()
        memset(self.w, 0, self.n_weights * sizeof(float))
        for l, (W, b) in enumerate((*heads, *layers)):
            rows = self.view(l, self.w)
            rows[:-1], rows[-1] = np.asarray(W).T, np.asarray(b)

    def copy_from(self, MLP other):
        """Take over the weights of a net of the same shape (ValueError)."""
        if [other.layer[l] for l in range(other.n_layers)] != [self.layer[l] for l in range(self.n_layers)]:
            raise ValueError("the nets differ in shape")
        self.touch_all()
        memcpy(self.w, other.w, self.n_weights * sizeof(float))

    def snapshot(self):
        """An independent copy of the net's weights, to be evaluated while the net learns on."""
        return MLP(*self.weights(), self.lr)

    def all_finite(self):
        """Whether every weight is finite."""
        cdef Py_ssize_t i
        cdef float sum = 0
        for i in range(self.n_weights):
            sum += self.w[i] * 0            # NaN if the weight isn't finite
        return sum == 0

    # -- Reptile

    def begin_reptile(self):
        """Remember theta0 = theta until the matching end_reptile. May be nested.  O(1): rows are saved when touched"""
        if self.depth == len(self.frames):
            self.frames.append(Frame(self.n_weights, self.n_rows))
        self.frame = self.frames[self.depth]
        self.depth += 1

    def end_reptile(self, float step):
        """theta <- theta0 + (theta - theta0) step, for theta0 of the last begin_reptile.  O(rows touched since)"""
        if self.depth == 0:
            raise RuntimeError("end_reptile without begin_reptile")
        cdef Frame inner = self.frame, outer = None
        cdef Py_ssize_t k, r, start, end, j
        self.depth -= 1
        if self.depth > 0:
            outer = self.frames[self.depth - 1]
        cdef bint nested = outer is not None
        with nogil:
            for k in range(inner.n):
                r = inner.touched[k]
                start, end = self.row_start[r], self.row_start[r + 1]
                inner.saved[r] = False
                if nested and not outer.saved[r]:
                    outer.save(r, inner.rows, start, end)
                if step != 1:
                    interpolate(self.w + start, inner.rows + start, step, end - start)
            inner.n = 0
        self.frame = outer

    cdef inline void touch(self, Py_ssize_t r) noexcept nogil:
        """To be called before row number r changes inside a Reptile frame."""
        if not self.frame.saved[r]:
            self.frame.save(r, self.w, self.row_start[r], self.row_start[r + 1])

    cdef void touch_all(self) noexcept nogil:
        cdef Py_ssize_t r
        if self.depth:
            for r in range(self.n_rows):
                self.touch(r)

    # -- The batch at work

    cdef int reserve(self, Py_ssize_t n) except -1:
        """Make room for n examples."""
        if n <= self.room:
            return 0
        cdef Py_ssize_t l, b, width
        cdef Sparse *inputs
        cdef int32_t *index
        self.room = 0
        memory = [Memory(self.n_levels * (sizeof(Sparse *) + sizeof(float *))),
                  Memory(n * (sizeof(int64_t) + sizeof(int64_t) + sizeof(float)))]
        self.x = <Sparse **> (<Memory> memory[0]).at
        self.delta = <float **> (self.x + self.n_levels)
        self.y = <int64_t *> (<Memory> memory[1]).at
        self.head = self.y + n
        self.weight = <float *> (self.head + n)
        for l in range(self.n_levels):
            width = self.level(l, 0).width
            memory.append(Memory(n * width * sizeof(float)))
            self.delta[l] = <float *> (<Memory> memory[-1]).at
            memory.append(Memory(n * sizeof(Sparse)))
            self.x[l] = inputs = <Sparse *> (<Memory> memory[-1]).at
            if l:
                width = self.level(l, 0).n_in + 1
                memory.append(Memory(n * width * (sizeof(int32_t) + sizeof(float))))
                index = <int32_t *> (<Memory> memory[-1]).at
                for b in range(n):
                    inputs[b].index = index + b * width
                    inputs[b].value = <float *> (index + n * width) + b * width
        self.batch_memory, self.room = memory, n
        return 0

    cdef int load(self, Examples examples, slots, weights) except -1:
        """Make the examples in these slots the batch at work; weights None means 1. Returns their number."""
        cdef Py_ssize_t b = 0, n = len(slots)
        cdef Slot *s
        if examples.n_inputs != self.n_inputs:
            raise ValueError(f"examples of {examples.n_inputs} inputs for a net of {self.n_inputs}")
        if weights is not None and len(weights) != n:
            raise ValueError(f"{len(weights)} weights for {n} examples")
        self.reserve(n)
        for b in range(n):
            s = examples.filled(slots[b])
            if not 0 <= s.y < self.n_outputs:
                raise IndexError(f"label {s.y} of a net with {self.n_outputs} outputs")
            if self.n_heads > 1 and not 0 <= s.t < self.n_heads:
                raise IndexError(f"task {s.t} of a net with {self.n_heads} first layers")
            self.x[0][b], self.y[b] = s.x, s.y
            self.head[b] = s.t if self.n_heads > 1 else 0
            self.weight[b] = 1 if weights is None else weights[b]
        self.loss = 0
        return n

    cdef inline Py_ssize_t group(self, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """Number of examples from b on, at most GROUP, that have the same head."""
        cdef Py_ssize_t end = b + 1
        while end < n and end - b < GROUP and self.head[end] == self.head[b]:
            end += 1
        return end - b

    # -- Kernels of a group: n examples from b on

    cdef void outputs(self, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """Forward pass: x[l] of every level, and the net's outputs in delta[last]."""
        cdef Py_ssize_t l, e
        cdef Layer *layer
        for l in range(self.n_levels):
            layer = self.level(l, self.head[b])
            if l:
                for e in range(b, b + n):
                    active_units(self.delta[l - 1] + e * self.level(l - 1, 0).width, layer.n_in, &self.x[l][e])
            forward_group(self.w + layer.start, layer.n_in + 1, layer.width, self.x[l] + b, n,
                          self.delta[l] + b * layer.width)

    cdef void differentiate(self, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """Forward and backward pass: delta[l] of every level becomes weight * the gradient of CE; add up the loss."""
        cdef Py_ssize_t l, e
        cdef Layer *layer = self.level(self.n_levels - 1, self.head[b])
        self.outputs(b, n)
        for e in range(b, b + n):
            self.loss += self.weight[e] * cross_entropy(self.delta[self.n_levels - 1] + e * layer.width, layer.n_out,
                                                        layer.width, self.y[e], self.weight[e])
        for l in range(self.n_levels - 1, 0, -1):
            layer = self.level(l, 0)
            for e in range(b, b + n):
                backward(self.w + layer.start, layer.width, self.x[l][e], self.delta[l] + e * layer.width,
                         self.delta[l - 1] + e * self.level(l - 1, 0).width, self.level(l - 1, 0).width)

    cdef void accumulate(self, Py_ssize_t l, Py_ssize_t b, Py_ssize_t n, float a, float *target) noexcept nogil:
        """target += a * the gradient of level l's weights, sum over e of x[l][e] outer delta[l][e]."""
        cdef Layer *layer = self.level(l, self.head[b])
        cdef Py_ssize_t i
        cdef bint touch = self.depth > 0 and target == self.w
        self.tile.fill(self.x[l] + b, n)
        for i in range(layer.n_in + 1):
            if self.tile.used[i]:
                if touch:
                    self.touch(layer.first + i)
                self.tile.add_products(target + layer.start, i, a, self.delta[l] + b * layer.width, layer.width)
                self.tile.clear(i)

    cdef void batch_gradient(self, Py_ssize_t n, float a, float *target) noexcept nogil:
        """target += a * the gradient of the weighted losses of the n examples at work."""
        cdef Py_ssize_t b = 0, m, l
        while b < n:
            m = self.group(b, n)
            self.differentiate(b, m)
            for l in range(self.n_levels):
                self.accumulate(l, b, m, a, target)
            b += m

    # -- Steps

    def sgd_batch(self, Examples examples, slots, weights=None):
        """One SGD step on sum_b weights[b] CE_b (and the anchors)."""
        cdef Py_ssize_t n = self.load(examples, slots, weights)
        with nogil:
            self.step(0, n)

    cdef void step(self, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        cdef Py_ssize_t b = start, m, l
        while b < end:
            m = self.group(b, end)
            self.differentiate(b, m)
            b += m
        if self.anchored != NULL:
            self.follow_anchors()
        b = start
        while b < end:
            m = self.group(b, end)
            for l in range(self.n_levels):
                self.accumulate(l, b, m, -self.lr, self.w)
            b += m

    def sgd_each(self, Examples examples, slots, weights=None):
        """One SGD step on weights[b] CE_b (and the anchors) for each example in turn.

        The first layer takes a group of examples together, and yet one after the other. Its step for example m is
        rows -= lr x_m outer delta_m, so what example b > m finds there is
            h_b = x_b . rows - lr sum_{m < b} (x_b . x_m) delta_m          with `rows` as they were before the group:
        a few products of inputs, while the rows are read once and written once for the whole group.
        """
        cdef Py_ssize_t b = 0, m, n = self.load(examples, slots, weights)
        with nogil:
            while b < n:
                if self.anchored != NULL:
                    m = 1
                    self.step(b, b + 1)
                else:
                    m = self.group(b, n)
                    self.steps(b, m)
                b += m

    cdef void steps(self, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """sgd_each for a group.  O(n (S H + S n + n H + active units * width of the further layers))"""
        cdef Layer *layer = self.level(0, self.head[b])
        cdef Py_ssize_t e, k
        cdef float *delta
        for e in range(b, b + n):
            delta = self.delta[0] + e * layer.width
            forward(self.w + layer.start, layer.width, self.x[0][e], delta)
            self.step_above(e)
            if self.depth:
                for k in range(self.x[0][e].n):
                    self.touch(layer.first + self.x[0][e].index[k])
            outer(self.w + layer.start, layer.width, self.x[0][e], -self.lr, delta)

    cdef void step_above(self, Py_ssize_t b) noexcept nogil:
        """One SGD step of all layers but the first, whose outputs delta[0][b] are replaced by their gradient."""
        cdef Py_ssize_t l, k
        cdef Layer *layer = self.level(0, self.head[b])
        cdef Layer *below
        for l in range(1, self.n_levels):
            below, layer = layer, self.level(l, 0)
            active_units(self.delta[l - 1] + b * below.width, layer.n_in, &self.x[l][b])
            forward(self.w + layer.start, layer.width, self.x[l][b], self.delta[l] + b * layer.width)
        self.loss += self.weight[b] * cross_entropy(self.delta[self.n_levels - 1] + b * layer.width, layer.n_out,
                                                    layer.width, self.y[b], self.weight[b])
        for l in range(self.n_levels - 1, 0, -1):
            layer, below = self.level(l, 0), self.level(l - 1, 0)
            if self.depth:
                for k in range(self.x[l][b].n):
                    self.touch(layer.first + self.x[l][b].index[k])
            backward_and_step(self.w + layer.start, layer.width, self.x[l][b], self.delta[l] + b * layer.width,
                              self.lr, self.delta[l - 1] + b * below.width, below.width)

    def descend(self, const float[::1] flat_gradient):
        """theta -= lr * gradient, a flat one in torch's order."""
        cdef Memory memory = self.from_flat(flat_gradient)
        cdef float *g = <float *> memory.at
        with nogil:
            self.touch_all()
            add_row(self.w, -self.lr, g, self.n_weights)

    # -- Gradients

    def gradient(self, Examples examples, slots):
        """Gradient of the mean CE of these examples, flat in torch's order: float32 (n_parameters,)."""
        cdef Memory memory = Memory(self.n_weights * sizeof(float))
        cdef Py_ssize_t n = self.load(examples, slots, None)
        with nogil:
            self.batch_gradient(n, <float> 1 / n, <float *> memory.at)
        self.loss /= n
        return self.to_flat(<float *> memory.at)

    def task_gradients(self, Examples examples, list_of_slots):
        """TaskGradients of the mean CE on each of these lists of slots; raises ValueError if one is empty."""
        return TaskGradients(self, examples, list_of_slots)

    # -- Anchors

    def anchor(self, const float[::1] importance, float strength):
        """From now on, every loss also has strength * sum F (theta - theta*)^2, theta* being the weights of now.

        importance = F, flat in torch's order. Any number of anchors costs as much as one: their sum has the gradient
        2 (A theta - B) with A = sum of strength F, B = sum of strength F theta*.
        """
        cdef Memory memory = self.from_flat(importance)
        cdef float *F = <float *> memory.at
        cdef Py_ssize_t i
        self.make_anchors()
        for i in range(self.n_weights):
            self.stiffness[i] += strength * F[i]
            self.pull[i] += strength * F[i] * self.w[i]
            self.anchor_constant += strength * F[i] * self.w[i] * self.w[i]
        self.find_anchored()

    def anchors(self):
        """None, or (A, B, sum of strength F theta*^2), which set_anchors takes; A and B flat in torch's order."""
        if self.anchored == NULL:
            return None
        return self.to_flat(self.stiffness), self.to_flat(self.pull), self.anchor_constant

    def set_anchors(self, anchors):
        """Restore what anchors() returned."""
        cdef Memory A, B
        if anchors is None:
            self.anchored = NULL
            return
        A, B = self.from_flat(anchors[0]), self.from_flat(anchors[1])
        self.make_anchors()
        memcpy(self.stiffness, A.at, self.n_weights * sizeof(float))
        memcpy(self.pull, B.at, self.n_weights * sizeof(float))
        self.anchor_constant = anchors[2]
        self.find_anchored()

    cdef make_anchors(self):
        if self.anchored == NULL:
            self.anchor_memory = Memory(2 * self.n_weights * sizeof(float) + self.n_rows)
            self.stiffness = <float *> self.anchor_memory.at
            self.pull = self.stiffness + self.n_weights
            self.anchored = <uint8_t *> (self.pull + self.n_weights)
            self.anchor_constant = 0

    cdef void find_anchored(self) noexcept nogil:
        cdef Py_ssize_t r, i
        for r in range(self.n_rows):
            self.anchored[r] = False
            for i in range(self.row_start[r], self.row_start[r + 1]):
                if self.stiffness[i] != 0:
                    self.anchored[r] = True

    cdef void follow_anchors(self) noexcept nogil:
        """theta -= lr * the gradient of the anchors' loss, which is added to `loss`.  O(rows of any importance)"""
        cdef Py_ssize_t r, start
        self.loss += self.anchor_constant
        for r in range(self.n_rows):
            if self.anchored[r]:
                if self.depth:
                    self.touch(r)
                start = self.row_start[r]
                self.loss += spring(self.w + start, self.stiffness + start, self.pull + start, 2 * self.lr,
                                    self.row_start[r + 1] - start)

    # -- Outputs

    def predict(self, const float[:, ::1] x, int64_t t):
        """Outputs (logits) of inputs x (B, D) of task t: float32 (B, O)."""
        cdef Examples examples = Examples(max(1, x.shape[0]), x.shape[1])
        examples.put_many(0, x, t, [0] * x.shape[0])
        cdef Py_ssize_t b = 0, m, n = self.load(examples, range(x.shape[0]), None)
        cdef Layer *last = self.level(self.n_levels - 1, 0)
        with nogil:
            while b < n:
                m = self.group(b, n)
                self.outputs(b, m)
                b += m
        z = np.empty((n, self.n_outputs), np.float32)
        cdef float[:, ::1] rows = z
        for b in range(n):
            memcpy(&rows[b, 0], self.delta[self.n_levels - 1] + b * last.width, self.n_outputs * sizeof(float))
        return z


cdef inline void interpolate(float *y, const float *y0, float step, Py_ssize_t n) noexcept nogil:
    """y = y0 + (y - y0) step"""
    cdef Py_ssize_t j
    n &= -LINE
    for j in range(n):
        y[j] = y0[j] + (y[j] - y0[j]) * step


cdef inline float spring(float *w, const float *stiffness, const float *pull, float rate, Py_ssize_t n) noexcept nogil:
    """w -= rate (stiffness w - pull); return the sum of w (stiffness w - 2 pull) before that."""
    cdef Py_ssize_t j
    cdef float sum = 0, old, force
    n &= -LINE
    for j in range(n):
        old = w[j]
        force = stiffness[j] * old - pull[j]
        sum += old * (force - pull[j])
        w[j] = old - rate * force
    return sum


cdef class TaskGradients:
    """Gradients g_k of the mean CE on K lists of examples: G (K, n_parameters)."""
    cdef MLP net
    cdef Memory memory
    cdef float *G               # (K, n_weights), laid out as the weights
    cdef readonly Py_ssize_t n_tasks

    def __init__(self, MLP net, Examples examples, list_of_slots):
        cdef Py_ssize_t k = 0, n
        self.net, self.n_tasks = net, len(list_of_slots)
        self.memory = Memory(self.n_tasks * net.n_weights * sizeof(float))
        self.G = <float *> self.memory.at
        for slots in list_of_slots:
            n = net.load(examples, slots, None)
            if n == 0:
                raise ValueError("a task without examples has no gradient")
            with nogil:
                net.batch_gradient(n, <float> 1 / n, self.G + k * net.n_weights)
            k += 1

    def dot(self, const float[::1] flat_g):
        """g_k . g for every k: float64 (K,)."""
        cdef Memory memory = self.net.from_flat(flat_g)
        cdef float *g = <float *> memory.at
        cdef Py_ssize_t k
        products = np.empty(self.n_tasks)
        cdef double[::1] p = products
        with nogil:
            for k in range(self.n_tasks):
                p[k] = long_dot(self.G + k * self.net.n_weights, g, self.net.n_weights)
        return products

    def gram(self):
        """G G^T: float64 (K, K)."""
        gram = np.empty((self.n_tasks, self.n_tasks))
        cdef double[:, ::1] p = gram
        cdef Py_ssize_t i, k, n = self.net.n_weights
        with nogil:
            for i in range(self.n_tasks):
                for k in range(i + 1):
                    p[i, k] = p[k, i] = long_dot(self.G + i * n, self.G + k * n, n)
        return gram

    def combine(self, v, const float[::1] flat_g):
        """G^T v + g, flat in torch's order: float32 (n_parameters,)."""
        cdef Memory memory = self.net.from_flat(flat_g)
        cdef float *g = <float *> memory.at
        cdef Py_ssize_t k
        cdef float a
        for k in range(self.n_tasks):
            a = v[k]
            if a:
                add_row(g, a, self.G + k * self.net.n_weights, self.net.n_weights)
        return self.net.to_flat(g)


cdef double long_dot(const float *x, const float *y, Py_ssize_t n) noexcept nogil:
    """x . y, summed in double over stretches that are summed in float."""
    cdef Py_ssize_t i
    cdef double sum = 0
    for i in range(0, n, 1024):
        sum += dot(x + i, y + i, min(1024, n - i))
    return sum


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
        value = <float *> (index + entries)
        cdef float[::1] image
        for n in range(self.n_images):
            image = images[n].astype(np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)
            self.x[n] = Sparse(0, index, value)
            k = 0
            for p in range(self.n_pixels):
                if image[p] != 0:
                    index[k], value[k] = <int32_t> p, image[p]
                    k += 1
            index[k], value[k] = <int32_t> self.n_pixels, 1
            self.x[n].n = k + 1
            index, value = index + k + 1, value + k + 1

    def correct(self, MLP net, int64_t t, pixel_map, const int64_t[::1] labels, Py_ssize_t start, Py_ssize_t stop):
        """How many of the images start..stop - 1 the net's largest output classifies right, as inputs of task t.

        pixel_map (D,) int32: input j is pixel pixel_map[j], or 0 where that is -1; None: the pixels are the inputs.
        Instead of the images, the first layer's weights are mapped: an image has sum_j rows[j] image[map[j]] =
        sum_p image[p] (sum of rows[j] over the j with map[j] = p). Ties go to the first output; NaN is the largest, as
        in torch. Several threads may call this at once, on nets that nobody changes meanwhile.
        """
        if not 0 <= start <= stop <= self.n_images or labels.shape[0] != self.n_images:
            raise IndexError(f"images {start} to {stop} with {labels.shape[0]} labels, of {self.n_images}")
        if net.n_heads > 1 and not 0 <= t < net.n_heads:
            raise IndexError(f"task {t} of a net with {net.n_heads} first layers")
        cdef Layer *layer = net.level(0, t if net.n_heads > 1 else 0)
        cdef const int32_t[::1] map
        cdef Py_ssize_t n_mapped = self.n_pixels
        if pixel_map is not None:
            map = pixel_map
            n_mapped = map.shape[0]
            if n_mapped and not -1 <= np.min(pixel_map) <= np.max(pixel_map) < self.n_pixels:
                raise IndexError(f"a map to pixels {np.min(pixel_map)} to {np.max(pixel_map)} of {self.n_pixels}")
        if n_mapped != net.n_inputs:
            raise ValueError(f"{n_mapped} inputs for a net of {net.n_inputs}")
        cdef Memory first_memory = Memory((self.n_pixels + 1) * layer.width * sizeof(float))
        cdef float *first = <float *> first_memory.at
        cdef Py_ssize_t width = max([net.layer[l].width for l in range(net.n_layers)])
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
                layer = net.level(0, t if net.n_heads > 1 else 0)
                forward_group(first, self.n_pixels + 1, layer.width, self.x + b, n, h)
                for l in range(1, net.n_levels):
                    for e in range(n):
                        active_units(h + e * layer.width, layer.n_out, &x[e])
                    layer = net.level(l, 0)
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
