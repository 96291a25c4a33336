# cython: language_level=3, boundscheck=False, cdivision=True, initializedcheck=False
"""Compiled kernels for ReLU multi-layer perceptrons: SGD steps, gradients, Reptile, evaluation. All in float32.

    Legend   B examples of a batch, D inputs, H hidden units, O outputs, P pixels of an image, N images, K tasks,
             S = number of non-zero inputs of an example, plus one

What makes them fast is what they leave out, and what they read once for many:

  * Weights are stored *input-major*: row i holds the weights from input i to every unit, padded to whole cache lines, so
    an input that is 0 (81 % of an MNIST image) or a unit that ReLU switched off is a row that nobody reads or writes.
  * The bias is one more row, whose input is always 1. So a layer is h[j] = sum_i x[i] rows[i, j] and nothing else, and a
    vector is the list of its non-zero entries, of which that 1 is the last (`Sparse`).
  * Everything is one of the row operations of _rows.pxi.
  * Examples come in groups of up to GROUP, which pass over the rows together.

The kernels run without the GIL. Non-finite values propagate, as in PyTorch: ReLU lets NaN pass, and `MLP.loss` shows it.
"""
from libc.math cimport expf, logf
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from concurrent.futures import wait

import numpy as np

include "_rows.pxi"
include "_examples.pxi"

cdef enum:
    GROUP = 64                  # examples that pass over the rows together: the bits of a uint64_t
    FEW = 4                     # fewer than that go one by one
    CACHED = 49152              # bytes of rows that a group passes over at a time
    WORTH_A_THREAD = 64         # examples whose gradients take longer than it takes to wake another thread
    STRETCH = 1024              # numbers of a gradient that are summed in float before they are in double


# ---- Layers

cdef struct Layer:
    Py_ssize_t n_in, n_out
    Py_ssize_t width            # floats in a row: n_out rounded up to whole lines; the padding is 0
    Py_ssize_t start            # where its rows (n_in + 1, width) start among the net's weights; the last row is the bias
    Py_ssize_t first            # number of its first row among all of the net's


cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    """n rounded up to whole lines."""
    return (n + LINE - 1) // LINE * LINE


cdef inline void forward(const float *rows, Py_ssize_t width, const Sparse *x, float *h) noexcept nogil:
    """h[j] = sum_i x[i] rows[i, j].  O(S H)"""
    memset(h, 0, width * sizeof(float))
    add_rows(rows, width, width, x.index, x.value, x.n, NO_END, h)


cdef void forward_group(const float *rows, Py_ssize_t n_rows, Py_ssize_t width, const Sparse *x, Py_ssize_t n,
                        float *h) noexcept nogil:
    """forward() for n <= GROUP examples, h (n, width): all of them pass over a cacheful of rows, then over the next."""
    cdef Py_ssize_t done[GROUP]         # entries of each example
    cdef Py_ssize_t b, end = 0, rows_cached = n_rows
    if n >= FEW:
        rows_cached = max(1, CACHED // (width * <Py_ssize_t> sizeof(float)))
    memset(h, 0, n * width * sizeof(float))
    memset(done, 0, sizeof(done))
    while end < n_rows:
        end += rows_cached
        for b in range(n):
            done[b] += add_rows(rows, width, width, x[b].index + done[b], x[b].value + done[b], x[b].n - done[b],
                                <int32_t> end, h + b * width)


cdef inline void active_units(const float *h, Py_ssize_t n, Sparse *x) noexcept nogil:
    """ReLU: x = the list of those of n units that are not <= 0 (so NaN passes), and the 1 for the next bias.  O(H)"""
    cdef Py_ssize_t j, k = 0
    for j in range(n):
        x.index[k], x.value[k] = <int32_t> j, h[j]
        k += not h[j] <= 0
    x.index[k], x.value[k] = <int32_t> n, 1
    x.n = k + 1


cdef inline double cross_entropy(float *z, Py_ssize_t n, Py_ssize_t width, int64_t y, float scale) noexcept nogil:
    """Returns -log softmax(z)[y]; puts scale * its gradient, softmax(z) - onehot(y), in z's place.  O(O)"""
    cdef Py_ssize_t j
    cdef float largest = z[0], sum = 0, loss
    for j in range(1, n):
        if not z[j] <= largest:
            largest = z[j]
    loss = largest - z[y]
    for j in range(n):
        z[j] = expf(z[j] - largest)
        sum += z[j]
    for j in range(n):
        z[j] *= scale / sum
    z[y] -= scale
    memset(z + n, 0, (width - n) * sizeof(float))
    return loss + logf(sum)


cdef inline void backward(const bint update, float *rows, Py_ssize_t width, const Sparse *x, const float *delta,
                          float *below, Py_ssize_t width_below) noexcept nogil:
    """below[i] = rows[i] . delta for the active units i, 0 for the others; with update, rows[i] += x[i] delta.

    O(active units * H). Each row is read once for both.
    """
    memset(below, 0, width_below * sizeof(float))
    dot_rows(update, rows, width, width, x.index, x.value, x.n - 1, delta, below)
    if update:
        add_to_rows(rows, width, width, x.index + x.n - 1, x.value + x.n - 1, 1, delta)


cdef class Transpose:
    """The inputs of a group of examples by row: value[i, b] = x_b[i]; bit b of users[i] says that x_b has an entry i."""
    cdef Memory memory
    cdef float *value               # (n_rows, GROUP)
    cdef uint64_t *users            # (n_rows,)

    def __cinit__(self, Py_ssize_t n_rows):
        self.memory = Memory(n_rows * (sizeof(uint64_t) + GROUP * sizeof(float)))
        self.value = <float *> self.memory.at
        self.users = <uint64_t *> (self.value + n_rows * GROUP)

    cdef void fill(self, const Sparse *x, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t b, k
        cdef int32_t i
        for b in range(n):
            for k in range(x[b].n):
                i = x[b].index[k]
                self.value[i * GROUP + b] = x[b].value[k]
                self.users[i] |= <uint64_t> 1 << b


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
    cdef float *scratch             # room for as many
    cdef Py_ssize_t *row_start      # (n_rows + 1,) where each row starts
    cdef Transpose transpose
    # The batch at work. At level l, example b has the inputs x[l][b] and the outputs delta[l][b, :], which its gradient
    # with respect to them (times its scale) replaces.
    cdef Py_ssize_t room
    cdef Sparse **x
    cdef float **delta
    cdef float *weight              # of each example's loss
    cdef float *scale               # what its gradients are multiplied by: -lr * weight, say
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
    cdef Memory net_memory, anchor_memory, gradient_memory
    cdef list batch_memory, helpers

    def __init__(self, heads, layers, float lr):
        shapes = [np.shape(W) for W, b in (*heads, *layers)]
        if not heads or any(shape != shapes[0] for shape in shapes[:len(heads)]):
            raise ValueError("a net needs at least one first layer, and all of them of one shape")
        for before, after in zip(shapes[len(heads) - 1:], shapes[len(heads):], strict=False):
            if after[1] != before[0]:
                raise ValueError(f"a layer of {after[1]} inputs follows one of {before[0]} outputs")
        self.lr = lr
        self.lay_out(shapes, len(heads))
        self.set_weights(heads, layers)

    cdef int lay_out(self, list shapes, Py_ssize_t n_heads) except -1:
        """Give every layer its place. One piece of memory holds weights, scratch, row_start and layers."""
        cdef Py_ssize_t width, n_out, n_in, l, i, start = 0, first = 0, most = 0
        self.n_heads, self.n_layers, self.n_levels = n_heads, len(shapes), 1 + len(shapes) - n_heads
        self.n_inputs, self.n_outputs = shapes[0][1], shapes[-1][0]
        self.frames, self.helpers = [], []
        for n_out, n_in in shapes:
            self.n_weights += (n_in + 1) * padded(n_out)
            self.n_rows += n_in + 1
            self.n_parameters += (n_in + 1) * n_out
        self.net_memory = Memory(2 * self.n_weights * sizeof(float) + (self.n_rows + 1) * sizeof(Py_ssize_t)
                                 + self.n_layers * sizeof(Layer))
        self.w = <float *> self.net_memory.at
        self.scratch = self.w + self.n_weights
        self.row_start = <Py_ssize_t *> (self.scratch + self.n_weights)
        self.layer = <Layer *> (self.row_start + self.n_rows + 1)
        for l, (n_out, n_in) in enumerate(shapes):
            width = padded(n_out)
            self.layer[l] = Layer(n_in, n_out, width, start, first)
            for i in range(n_in + 1):
                self.row_start[first + i] = start + i * width
            start, first, most = start + (n_in + 1) * width, first + n_in + 1, max(most, n_in + 1)
        self.row_start[self.n_rows] = start
        self.transpose = Transpose(most)
        return 0

    cdef inline Layer *level(self, Py_ssize_t l, Py_ssize_t head) noexcept nogil:
        return &self.layer[head if l == 0 else self.n_heads + l - 1]

    # -- Weights in and out

    cdef view(self, Py_ssize_t l, float *laid_out):
        """The rows (n_in + 1, n_out) of layer l, the last of which is the bias, in memory laid out as the weights."""
        cdef Layer *layer = &self.layer[l]
        cdef float[:, ::1] rows = <float[:layer.n_in + 1, :layer.width]> (laid_out + layer.start)
        return np.asarray(rows)[:, :layer.n_out]

    cdef to_flat(self, const float *laid_out):
        """Parameters in torch's order (heads, then layers; each W (out, in), then b) from memory laid out as the weights."""
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

    cdef float *from_flat(self, const float[::1] flat) except NULL:
        """The inverse of to_flat; the result is overwritten by the next one."""
        self.check_flat(flat.shape[0])
        cdef const float *source = &flat[0]
        cdef float *rows
        cdef Py_ssize_t l, i, j, i0, j0
        cdef Layer *layer
        with nogil:
            memset(self.scratch, 0, self.n_weights * sizeof(float))
            for l in range(self.n_layers):
                layer = &self.layer[l]
                rows = self.scratch + layer.start
                for j0 in range(0, layer.n_out, 16):
                    for i0 in range(0, layer.n_in, 16):
                        for i in range(i0, min(i0 + 16, layer.n_in)):
                            for j in range(j0, min(j0 + 16, layer.n_out)):
                                rows[i * layer.width + j] = source[j * layer.n_in + i]
                source += layer.n_in * layer.n_out
                memcpy(rows + layer.n_in * layer.width, source, layer.n_out * sizeof(float))
                source += layer.n_out
        return self.scratch

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
        for l, (W, b) in enumerate((*heads, *layers)):
            wanted = (self.layer[l].n_out, self.layer[l].n_in), (self.layer[l].n_out,)
            if (np.shape(W), np.shape(b)) != wanted:
                raise ValueError(f"layer {l}: weights {np.shape(W)} and biases {np.shape(b)} for {wanted[0]} and {wanted[1]}")
        self.touch_all()
        memset(self.w, 0, self.n_weights * sizeof(float))
        for l, (W, b) in enumerate((*heads, *layers)):
            rows = self.view(l, self.w)
            rows[:-1], rows[-1] = np.asarray(W).T, np.asarray(b)

    def copy_from(self, MLP other):
        """Take over the weights of a net of the same shape (ValueError)."""
        if other.n_heads != self.n_heads or other.shapes() != self.shapes():
            raise ValueError("the nets differ in shape")
        self.touch_all()
        memcpy(self.w, other.w, self.n_weights * sizeof(float))

    def snapshot(self):
        """An independent copy of the net's weights, to be evaluated while the net learns on."""
        cdef MLP other = self.alike()
        memcpy(other.w, self.w, self.n_weights * sizeof(float))
        return other

    cdef MLP alike(self):
        """A net of the same shape and learning rate, all of whose weights are 0."""
        cdef MLP other = MLP.__new__(MLP)
        other.lr = self.lr
        other.lay_out(self.shapes(), self.n_heads)
        return other

    cdef list shapes(self):
        """[(outputs, inputs)] of all layers."""
        return [(self.layer[l].n_out, self.layer[l].n_in) for l in range(self.n_layers)]

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

    cdef inline void touch_some(self, Layer *layer, const int32_t *index, Py_ssize_t n) noexcept nogil:
        """touch() these rows of a layer."""
        cdef Py_ssize_t k
        for k in range(n):
            self.touch(layer.first + index[k])

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
                  Memory(n * (2 * sizeof(int64_t) + 2 * sizeof(float)))]
        self.x = <Sparse **> (<Memory> memory[0]).at
        self.delta = <float **> (self.x + self.n_levels)
        self.y = <int64_t *> (<Memory> memory[1]).at
        self.head = self.y + n
        self.weight = <float *> (self.head + n)
        self.scale = self.weight + n
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

    cdef int load(self, Examples examples, slots, weights, float rate) except -1:
        """Make the examples in these slots the batch at work; weights None means 1. Returns their number.

        The gradients will be those of the weighted losses, times rate.
        """
        cdef Py_ssize_t b, n = len(slots)
        cdef Slot *s
        if examples.n_inputs != self.n_inputs:
            raise ValueError(f"examples of {examples.n_inputs} inputs for a net of {self.n_inputs}")
        if weights is not None and len(weights) != n:
            raise ValueError(f"{len(weights)} weights for {n} examples")
        self.reserve(n)
        for b in range(n):
            s = examples.filled(slots[b])
            prefetch(&s.x)
            if not 0 <= s.y < self.n_outputs:
                raise IndexError(f"label {s.y} of a net with {self.n_outputs} outputs")
            if self.n_heads > 1 and not 0 <= s.t < self.n_heads:
                raise IndexError(f"task {s.t} of a net with {self.n_heads} first layers")
            self.x[0][b], self.y[b] = s.x, s.y
            self.head[b] = s.t if self.n_heads > 1 else 0
            self.weight[b] = 1 if weights is None else weights[b]
            self.scale[b] = rate * self.weight[b]
        self.loss = 0
        return n

    cdef inline Py_ssize_t group(self, Py_ssize_t b, Py_ssize_t end, Py_ssize_t most) noexcept nogil:
        """Number of examples from b on, at most `most`, that have the same head."""
        cdef Py_ssize_t n = 1
        while n < most and b + n < end and self.head[b + n] == self.head[b]:
            n += 1
        return n

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
        """Forward and backward pass: delta[l] of every level becomes scale * the gradient of CE; adds up the loss."""
        cdef Py_ssize_t l, e
        cdef Layer *layer = self.level(self.n_levels - 1, self.head[b])
        cdef Layer *below
        self.outputs(b, n)
        for e in range(b, b + n):
            self.loss += self.weight[e] * cross_entropy(self.delta[self.n_levels - 1] + e * layer.width, layer.n_out,
                                                        layer.width, self.y[e], self.scale[e])
        for l in range(self.n_levels - 1, 0, -1):
            layer, below = self.level(l, 0), self.level(l - 1, 0)
            for e in range(b, b + n):
                backward(False, self.w + layer.start, layer.width, &self.x[l][e], self.delta[l] + e * layer.width,
                         self.delta[l - 1] + e * below.width, below.width)

    cdef void accumulate(self, Py_ssize_t l, Py_ssize_t b, Py_ssize_t n, float *target) noexcept nogil:
        """target += sum over the examples of x[l] outer delta[l], level l's (scaled) gradient; target: as the weights."""
        cdef Layer *layer = self.level(l, self.head[b])
        cdef float *rows = target + layer.start
        cdef float *delta = self.delta[l] + b * layer.width
        cdef Sparse *x = self.x[l] + b
        cdef Py_ssize_t i, e
        if n < FEW:
            for e in range(n):
                if target == self.w:
                    self.update(layer, &x[e], delta + e * layer.width)
                else:
                    add_to_rows(rows, layer.width, layer.width, x[e].index, x[e].value, x[e].n, delta + e * layer.width)
        else:
            self.transpose.fill(x, n)
            for i in range(layer.n_in + 1):
                if self.transpose.users[i]:
                    if self.depth and target == self.w:
                        self.touch(layer.first + i)
                    add_users(delta, layer.width, layer.width, self.transpose.users[i],
                              self.transpose.value + i * GROUP, rows + i * layer.width)
                    self.transpose.users[i] = 0

    # -- Steps

    def sgd_batch(self, Examples examples, slots, weights=None):
        """One SGD step on sum_b weights[b] CE_b (and the anchors)."""
        cdef Py_ssize_t n = self.load(examples, slots, weights, -self.lr)
        with nogil:
            self.step(0, n)

    cdef void step(self, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        cdef Py_ssize_t b = start, n, l
        while b < end:
            n = self.group(b, end, GROUP)
            self.differentiate(b, n)
            b += n
        if self.anchored != NULL:
            self.follow_anchors()
        b = start
        while b < end:
            n = self.group(b, end, GROUP)
            for l in range(self.n_levels):
                self.accumulate(l, b, n, self.w)
            b += n

    def sgd_each(self, Examples examples, slots, weights=None):
        """One SGD step on weights[b] CE_b (and the anchors) for each example in turn."""
        cdef Py_ssize_t b = 0, end = self.load(examples, slots, weights, -self.lr)
        with nogil:
            while b < end:
                if self.anchored == NULL:
                    self.step_alone(b)
                else:
                    self.step(b, b + 1)
                b += 1

    cdef void step_alone(self, Py_ssize_t b) noexcept nogil:
        """step() for example b, each layer's rows being updated as the backward pass reads them."""
        cdef Layer *layer = self.level(0, self.head[b])
        cdef float *delta = self.delta[0] + b * layer.width
        forward(self.w + layer.start, layer.width, &self.x[0][b], delta)
        self.step_above(b)
        self.update(layer, &self.x[0][b], delta)

    cdef inline void update(self, Layer *layer, const Sparse *x, const float *delta) noexcept nogil:
        """rows[i] += x[i] delta; a few rows at a time, so that those saved for Reptile are still in the cache.  O(S H)"""
        cdef Py_ssize_t k, n
        for k in range(0, x.n, 16):
            n = min(<Py_ssize_t> 16, x.n - k)
            if self.depth:
                self.touch_some(layer, x.index + k, n)
            add_to_rows(self.w + layer.start, layer.width, layer.width, x.index + k, x.value + k, n, delta)

    cdef void step_above(self, Py_ssize_t b) noexcept nogil:
        """One SGD step of all layers but the first, whose outputs delta[0][b] are replaced by their scaled gradient."""
        cdef Py_ssize_t l
        cdef Layer *layer = self.level(0, self.head[b])
        cdef Layer *below
        for l in range(1, self.n_levels):
            below, layer = layer, self.level(l, 0)
            active_units(self.delta[l - 1] + b * below.width, layer.n_in, &self.x[l][b])
            forward(self.w + layer.start, layer.width, &self.x[l][b], self.delta[l] + b * layer.width)
        self.loss += self.weight[b] * cross_entropy(self.delta[self.n_levels - 1] + b * layer.width, layer.n_out,
                                                    layer.width, self.y[b], self.scale[b])
        for l in range(self.n_levels - 1, 0, -1):
            layer, below = self.level(l, 0), self.level(l - 1, 0)
            if self.depth:
                self.touch_some(layer, self.x[l][b].index, self.x[l][b].n)
            backward(True, self.w + layer.start, layer.width, &self.x[l][b], self.delta[l] + b * layer.width,
                     self.delta[l - 1] + b * below.width, below.width)

    def descend(self, const float[::1] flat_gradient):
        """theta -= lr * gradient, a flat one in torch's order."""
        cdef float *gradient = self.from_flat(flat_gradient)
        with nogil:
            self.touch_all()
            add_row(self.w, -self.lr, gradient, self.n_weights)

    # -- Gradients

    def gradient(self, Examples examples, slots):
        """Gradient of the mean CE of these examples, flat in torch's order: float32 (n_parameters,)."""
        memset(self.scratch, 0, self.n_weights * sizeof(float))
        self.batch_gradient(examples, slots, self.scratch)
        return self.to_flat(self.scratch)

    cdef batch_gradient(self, Examples examples, slots, float *target):
        """target += the gradient of the examples' mean CE; `loss` becomes that mean."""
        cdef Py_ssize_t b = 0, m, l, n = len(slots)
        if n == 0:
            raise ValueError("the mean loss of no examples has no gradient")
        self.load(examples, slots, None, <float> 1 / n)
        with nogil:
            while b < n:
                m = self.group(b, n, GROUP)
                self.differentiate(b, m)
                for l in range(self.n_levels):
                    self.accumulate(l, b, m, target)
                b += m
        self.loss /= n

    def task_gradients(self, Examples examples, list_of_slots, pool=None, Py_ssize_t threads=1):
        """TaskGradients of the mean CE on each of these lists of slots (none empty: ValueError).

        With a pool (concurrent.futures), so many threads compute them, the caller's among them; the results are the same.
        They share memory that the net keeps: the next call overwrites what an earlier one returned.
        """
        return TaskGradients(self, examples, list_of_slots, pool, threads)

    cdef MLP helper(self, Py_ssize_t number):
        """A net with these weights, not a copy of them, that has a batch at work of its own: for another thread."""
        if number < len(self.helpers):
            return self.helpers[number]
        cdef MLP other = self.alike()
        other.w = self.w
        self.helpers.append(other)
        return other

    # -- Anchors

    def anchor(self, const float[::1] importance, float strength):
        """From now on, every loss also has strength * sum F (theta - theta*)^2, theta* being the weights of now.

        importance = F, flat in torch's order. Any number of anchors costs as much as one: their sum has the gradient
        2 (A theta - B) with A = sum of strength F, B = sum of strength F theta*.
        """
        cdef float *F = self.from_flat(importance)
        cdef Py_ssize_t i
        self.make_anchors()
        with nogil:
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
        if anchors is None:
            self.anchored = NULL
            return
        self.check_flat(len(anchors[0]))
        self.check_flat(len(anchors[1]))
        self.make_anchors()
        memcpy(self.stiffness, self.from_flat(anchors[0]), self.n_weights * sizeof(float))
        memcpy(self.pull, self.from_flat(anchors[1]), self.n_weights * sizeof(float))
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
        cdef Py_ssize_t b = 0, m, n = self.load(examples, range(x.shape[0]), None, 1)
        cdef Layer *last = self.level(self.n_levels - 1, 0)
        with nogil:
            while b < n:
                m = self.group(b, n, GROUP)
                self.outputs(b, m)
                b += m
        z = np.empty((n, self.n_outputs), np.float32)
        cdef float[:, ::1] rows = z
        for b in range(n):
            memcpy(&rows[b, 0], self.delta[self.n_levels - 1] + b * last.width, self.n_outputs * sizeof(float))
        return z


cdef class TaskGradients:
    """Gradients g_k of the mean CE on K lists of examples: G (K, n_parameters). Its products are sums in double.

    loss    the sum of the mean CEs
    """
    cdef MLP net
    cdef Memory memory, number_memory
    cdef float *G                   # (K, n_weights), laid out as the weights
    cdef int32_t *number            # 0..K - 1
    cdef readonly Py_ssize_t n_tasks
    cdef readonly double loss

    def __init__(self, MLP net, Examples examples, list_of_slots, pool, Py_ssize_t threads):
        cdef Py_ssize_t k, n_bytes
        self.net, self.n_tasks = net, len(list_of_slots)
        n_bytes = self.n_tasks * net.n_weights * sizeof(float)
        if net.gradient_memory is None or net.gradient_memory.n_bytes < n_bytes:
            net.gradient_memory = Memory(n_bytes)
        self.memory = net.gradient_memory
        self.G = <float *> self.memory.at
        self.number_memory = Memory(self.n_tasks * sizeof(int32_t))
        self.number = <int32_t *> self.number_memory.at
        for k in range(self.n_tasks):
            self.number[k] = <int32_t> k
        losses = [0.0] * self.n_tasks
        threads = min(threads, self.n_tasks, sum([len(slots) for slots in list_of_slots]) // WORTH_A_THREAD)
        if pool is None or threads < 2:
            self.fill(net, examples, list_of_slots, losses, 0, 1)
        else:
            others = [pool.submit(self.fill, net.helper(first - 1), examples, list_of_slots, losses, first, threads)
                      for first in range(1, threads)]
            try:
                self.fill(net, examples, list_of_slots, losses, 0, threads)
            finally:
                wait(others)
            for other in others:
                other.result()
        self.loss = sum(losses)

    def fill(self, MLP net, Examples examples, list_of_slots, losses, Py_ssize_t first, Py_ssize_t step):
        """Compute the gradients and losses number first, first + step, ..."""
        cdef Py_ssize_t k
        cdef float *g
        for k in range(first, self.n_tasks, step):
            g = self.G + k * self.net.n_weights
            memset(g, 0, self.net.n_weights * sizeof(float))
            net.batch_gradient(examples, list_of_slots[k], g)
            losses[k] = net.loss

    cdef inline float *at(self, Py_ssize_t k, Py_ssize_t start) noexcept nogil:
        """g_k from its number `start` on; the last task's where there is no task k."""
        return self.G + min(k, self.n_tasks - 1) * self.net.n_weights + start

    cdef void products(self, Py_ssize_t k, Py_ssize_t start, const float *b, const float *c, float *sums) noexcept nogil:
        """sums[2 i], sums[2 i + 1] = g_(k+i) . b, g_(k+i) . c for i < 4: the part of a stretch from `start`.  O(STRETCH)"""
        cdef const float *rows[4]
        cdef const float *others[2]
        cdef Py_ssize_t i
        for i in range(4):
            rows[i] = self.at(k + i, start)
        others[0], others[1] = b, c
        four_by_two(rows, others, min(<Py_ssize_t> STRETCH, self.net.n_weights - start), sums)

    def dot(self, const float[::1] flat_g):
        """G g, that is g_k . g for every k: float64 (K,).  O(K n_parameters)"""
        cdef float *g = self.net.from_flat(flat_g)
        products = np.zeros(self.n_tasks)
        cdef double[::1] p = products
        cdef Py_ssize_t start = 0, k, i
        cdef float sums[8]
        with nogil:
            while start < self.net.n_weights:
                for k in range(0, self.n_tasks, 4):
                    self.products(k, start, g + start, g + start, sums)
                    for i in range(min(<Py_ssize_t> 4, self.n_tasks - k)):
                        p[k + i] += sums[2 * i]
                start += STRETCH
        return products

    def gram(self):
        """G G^T: float64 (K, K).  O(K^2 n_parameters)"""
        gram = np.zeros((self.n_tasks, self.n_tasks))
        cdef double[:, ::1] p = gram
        cdef Py_ssize_t start = 0, k, l, i, j
        cdef float sums[8]
        with nogil:
            while start < self.net.n_weights:       # stretch by stretch, so that those of all gradients stay in the cache
                for k in range(0, self.n_tasks, 4):
                    for l in range(0, min(k + 4, self.n_tasks), 2):
                        self.products(k, start, self.at(l, start), self.at(l + 1, start), sums)
                        for i in range(min(<Py_ssize_t> 4, self.n_tasks - k)):
                            for j in range(min(<Py_ssize_t> 2, self.n_tasks - l)):
                                p[k + i, l + j] += sums[2 * i + j]
                start += STRETCH
            for k in range(self.n_tasks):
                for l in range(k):
                    p[l, k] = p[k, l]
        return gram

    def combine(self, v, const float[::1] flat_g):
        """G^T v + g, flat in torch's order: float32 (n_parameters,)."""
        cdef float *g = self.net.from_flat(flat_g)
        cdef const float[::1] factors = np.ascontiguousarray(v, np.float32)
        cdef Py_ssize_t size = self.net.n_weights
        if factors.shape[0] != self.n_tasks:
            raise ValueError(f"{factors.shape[0]} factors for {self.n_tasks} gradients")
        if self.n_tasks:
            with nogil:
                add_rows(self.G, size, size, self.number, &factors[0], self.n_tasks, NO_END, g)
        return self.net.to_flat(g)


include "_images.pxi"
