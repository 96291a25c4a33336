# cython: language_level=3, boundscheck=False, cdivision=True, initializedcheck=False
"""Compiled kernels for ReLU multi-layer perceptrons: SGD steps, gradients, Reptile, evaluation. All in float32.

    Legend   B examples of a batch, D inputs, H hidden units, O outputs, P pixels of an image, N images, K tasks,
             S = number of non-zero inputs of an example, plus one

What makes them fast is what they leave out, and what they read once for many:

  * Weights are stored *input-major*: row i holds the weights from input i to every unit, padded to whole cache lines, so
    an input that is 0 (81 % of an MNIST image) or a unit that ReLU switched off is a row that nobody reads or writes.
  * The bias is one more row, whose input is always 1. So a layer is h[j] = sum_i x[i] rows[i, j] and nothing else, and a
    vector is the list of its non-zero entries, of which that 1 is the last (`Sparse`).
  * Everything is one of the row operations of _rows.h.
  * Examples come in groups of up to GROUP, which pass over the rows together.

The kernels run without the GIL. Non-finite values propagate, as in PyTorch: ReLU lets NaN pass, and `MLP.loss` shows it.

    _rows.h          the arithmetic                    _batch.pxi       forward and backward pass of the examples at work
    _examples.pxi    memory, sparse vectors, slots     _gradients.pxi   the gradients of many tasks, as they are
    _layout.pxi      where the weights lie             _factors.pxi     the same, as factors
    _reptile.pxi     theta0 of the open blocks         _images.pxi      evaluation
    _anchors.pxi     quadratic penalties               _rates.pxi       a learning rate for each weight

A gradient that is given out is a *vector*: float32 (n_weights,), laid out as the weights, padding included, so that nothing
is moved when it comes back. Elementwise operations leave it one. `MLP.flat` brings it into torch's order.
"""
from libc.math cimport sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from concurrent.futures import wait

import numpy as np

cdef extern from *:
    const char *IDENTITY            # the hash of what this was built of, from setup.py

identity = IDENTITY.decode()

cdef extern from "_rows.h" nogil:
    enum: LINE, NO_END, GROUP, BUCKET, FEW, WIDE
    ctypedef struct Sparse:
        Py_ssize_t n
        int32_t *index
        float *value
    ctypedef struct Entry:
        pass
    ctypedef struct ByRow:
        Entry *entry
        int32_t *count
        bint packed

    Py_ssize_t add_rows(const float *rows, Py_ssize_t stride, Py_ssize_t width, const int32_t *index, const float *value,
                        Py_ssize_t n, int32_t end, float *vector)
    void add_to_rows(float *rows, Py_ssize_t stride, Py_ssize_t width, const int32_t *index, const float *value,
                     Py_ssize_t n, const float *vector)
    void dot_rows(bint update, float *rows, Py_ssize_t stride, Py_ssize_t width, const int32_t *index,
                  const float *value, Py_ssize_t n, const float *vector, float *out)
    float dot(const float *a, const float *b, Py_ssize_t n)
    void four_by_two(const float *const *a, const float *const *b, Py_ssize_t n, float *products)

    void forward(const float *rows, Py_ssize_t width, const Sparse *x, float *h)
    void forward_group(const float *rows, Py_ssize_t n_rows, Py_ssize_t width, const Sparse *x, Py_ssize_t n, float *h)
    void pass_over(const float *rows, Py_ssize_t n_rows, Py_ssize_t stride, Py_ssize_t width, const Sparse *x,
                   Py_ssize_t n, float *h)
    void active_units(const float *h, Py_ssize_t n, Sparse *x)
    void take_active(const Sparse *x, const float *sums, Sparse *d)
    void keep_active(const Sparse *x, const float *sums, float *h, Py_ssize_t width, Sparse *d)
    void transpose(const float *rows, Py_ssize_t n_in, Py_ssize_t n_out, Py_ssize_t width, float *out,
                   Py_ssize_t width_out)
    void sort_by_row(const Sparse *x, Py_ssize_t n, Py_ssize_t n_rows, Py_ssize_t width, ByRow *to)
    void pack_rows(const ByRow *x, Py_ssize_t n_rows, ByRow *to)
    void add_sorted(bint fresh, const ByRow *x, Py_ssize_t n_rows, Py_ssize_t width, const float *delta, float *target)
    void dot_sorted(float *rows, Py_ssize_t n_in, Py_ssize_t width, const ByRow *x, const float *delta, float *out,
                    Py_ssize_t width_out)
    double cross_entropy(float *z, Py_ssize_t n, Py_ssize_t width, int64_t y, float scale)
    double squared_error(float *z, Py_ssize_t n, Py_ssize_t width, const float *target, float scale)

    void add_row(float *y, float a, const float *x, Py_ssize_t n)
    void add_product(float *y, const float *a, const float *b, Py_ssize_t n)
    void scale(float *y, float a, const float *x, Py_ssize_t n)
    void interpolate(float *y, const float *y0, float step, Py_ssize_t n)
    float spring(float *w, const float *stiffness, const float *pull, float rate, Py_ssize_t n)
    void follow_rates(float *w, const float *rate, float *path, const float *u, float *v, Py_ssize_t width,
                      const int32_t *index, const float *value, Py_ssize_t n, const float *delta)
    void turn_to_rates(float *v, float *path, const float *u, const float *rate, Py_ssize_t n)
    void add_at_rates(float *y, float a, const float *rate, const float *x, Py_ssize_t n)

    float exp_of(float x)
    float log_of(float x)

include "_examples.pxi"
include "_layout.pxi"
include "_reptile.pxi"
include "_anchors.pxi"
include "_batch.pxi"

cdef class Factors


def exp(const float[::1] x):
    """e^x as the kernels compute it."""
    return np.array([exp_of(value) for value in x], np.float32)


def log(const float[::1] x):
    """log x, x >= 1, as the kernels compute it."""
    return np.array([log_of(value) for value in x], np.float32)


cdef class MLP(Weights):
    """ReLU multi-layer perceptron with softmax cross-entropy (CE), trained by plain SGD(lr).

    heads   first layers, each (W (H, D), b (H,)) as in torch: one, or one per task, chosen by the example's t
    layers  the further layers, [(W, b), ...]; may be empty (a linear net)
    class_ranges    (start, stop) of each task's classes: in its loss and its evaluation, those outputs are alone; None: all
    first_class     the class of the first output
    After a step, `loss` is the weighted sum of the losses it was for: NaN or infinite if any of them was.
    """
    cdef readonly float lr
    cdef readonly double loss
    cdef Batch batch
    cdef Frames frames
    cdef Anchors held               # None: there are no anchors
    cdef Memory gradient_memory
    cdef list sorted_inputs         # SortedInputs of the lists of examples whose TaskGradients were asked for last
    cdef Factors factors
    cdef list helpers               # Batches of other threads

    def __init__(self, heads, layers, float lr, class_ranges=None, Py_ssize_t first_class=0):
        shapes = [np.shape(W) for W, b in (*heads, *layers)]
        if not heads or any(shape != shapes[0] for shape in shapes[:len(heads)]):
            raise ValueError("a net needs at least one first layer, and all of them of one shape")
        for before, after in zip(shapes[len(heads) - 1:], shapes[len(heads):], strict=False):
            if after[1] != before[0]:
                raise ValueError(f"a layer of {after[1]} inputs follows one of {before[0]} outputs")
        self.lr = lr
        self.lay_out(Layout(shapes, len(heads)))
        self.layout.assign(class_ranges, first_class)
        self.batch, self.helpers, self.sorted_inputs = Batch(self.layout), [], []
        self.frames = Frames()
        self.frames.layout, self.frames.w, self.frames.frames = self.layout, self.w, []
        self.set_weights(heads, layers)

    n_inputs = property(lambda self: (<MLP> self).layout.n_inputs)
    n_outputs = property(lambda self: (<MLP> self).layout.n_outputs)
    n_heads = property(lambda self: (<MLP> self).layout.n_heads)
    n_parameters = property(lambda self: (<MLP> self).layout.n_parameters)

    # -- Weights in

    def set_weights(self, heads, layers):
        """Take over these weights; the shapes are those at construction (ValueError)."""
        cdef Layout layout = self.layout
        if len(heads) != layout.n_heads or len(heads) + len(layers) != layout.n_layers:
            raise ValueError(f"{len(heads)} + {len(layers)} layers for {layout.n_heads} + {layout.n_levels - 1}")
        for l, (W, b) in enumerate((*heads, *layers)):
            wanted = (layout.layer[l].n_out, layout.layer[l].n_in), (layout.layer[l].n_out,)
            if (np.shape(W), np.shape(b)) != wanted:
                raise ValueError(f"layer {l}: weights {np.shape(W)} and biases {np.shape(b)} for {wanted[0]} and {wanted[1]}")
        self.frames.touch_all()
        memset(self.w, 0, layout.n_weights * sizeof(float))
        for l, (W, b) in enumerate((*heads, *layers)):
            rows = layout.view(l, self.w)
            rows[:-1], rows[-1] = np.asarray(W).T, np.asarray(b)

    def copy_from(self, Weights other):
        """Take over the weights of a net of the same shape (ValueError)."""
        self.layout.check_same(other.layout)
        self.frames.touch_all()
        memcpy(self.w, other.w, self.layout.n_weights * sizeof(float))

    def average(self, Weights other, float keep):
        """theta <- keep theta + (1 - keep) theta of a net of the same shape (ValueError)."""
        self.layout.check_same(other.layout)
        with nogil:
            self.frames.touch_all()
            interpolate(self.w, other.w, keep, self.layout.n_weights)

    def rates(self, float value):
        """Rates: a learning rate for each weight, all of them `value`."""
        return Rates(self, value)

    def vector(self, const float[::1] flat):
        """The vector of these numbers in torch's order (heads, then layers; each W (out, in), then b)."""
        vector = self.layout.new_vector()
        self.layout.from_flat(flat, self.layout.vector(vector))
        return vector

    def flat(self, const float[::1] vector):
        """A vector in torch's order: float32 (n_parameters,)."""
        return self.layout.to_flat(self.layout.vector(vector))

    # -- Reptile

    def begin_reptile(self):
        """Remember theta0 = theta until the matching end_reptile. May be nested.  O(1): rows are saved when touched"""
        self.frames.begin()

    def end_reptile(self, float step):
        """theta <- theta0 + (theta - theta0) step, for theta0 of the last begin_reptile.  O(rows touched since)"""
        self.frames.end(step)

    # -- Anchors

    def anchor(self, const float[::1] importance, float strength):
        """From now on, every loss also has strength * sum F (theta - theta*)^2, theta* being the weights of now.

        importance = F, a vector.
        """
        cdef const float *F = self.layout.vector(importance)
        if self.held is None:
            self.held = Anchors(self.layout)
        with nogil:
            self.held.add(F, strength, self.w)

    def anchors(self):
        """None, or (A, B, sum of strength F theta*^2), which set_anchors takes; A and B flat in torch's order."""
        if self.held is None:
            return None
        return self.layout.to_flat(self.held.stiffness), self.layout.to_flat(self.held.pull), self.held.constant

    def set_anchors(self, anchors):
        """Restore what anchors() returned."""
        cdef Anchors held = None
        if anchors is not None:
            held = Anchors(self.layout)
            self.layout.from_flat(anchors[0], held.stiffness)
            self.layout.from_flat(anchors[1], held.pull)
            held.constant = anchors[2]
            held.find_anchored()
        self.held = held

    # -- Steps

    def sgd_batch(self, Examples examples, slots, weights=None):
        """One SGD step on sum_b weights[b] CE_b (and the anchors)."""
        cdef Py_ssize_t n = self.batch.load(examples, slots, weights, -self.lr)
        with nogil:
            self.step(0, n)
        self.loss = self.batch.loss

    def sgd_sum(self, Examples examples, terms):
        """One SGD step on a sum of terms (slots, weight, squared, classes, keeps_logits) (and the anchors).

        A term is weight times a mean over its slots, none of them empty: of the CE among classes (None: all; ValueError
        unless its labels are), or, where squared, of (output - stored logit)^2, of which the mean is over the outputs too,
        those of each example's task. With keeps_logits the outputs become the examples' logits, after the step.
        """
        masks, kept = [], []
        cdef Py_ssize_t n = self.batch.load_terms(examples, terms, -self.lr, masks, kept)
        with nogil:
            self.step(0, n)
        self.loss = self.batch.loss
        for slots, outputs in kept:
            examples.store_logits(slots, outputs)

    cdef void step(self, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        """One SGD step on examples start..end - 1 of the batch."""
        cdef Py_ssize_t b = start, n = self.batch.group(start, end), l
        if FEW <= n == end - start and self.held is None:
            self.batch.step(self.w, start, n, self.frames)
            return
        if end - start >= FEW:
            self.batch.turn(self.w)
        while b < end:
            n = self.batch.group(b, end)
            self.batch.differentiate(self.w, b, n)
            b += n
        if self.held is not None:
            self.batch.loss += self.held.follow(self.lr, self.w, self.frames)
        b = start
        while b < end:
            n = self.batch.group(b, end)
            for l in range(self.layout.n_levels):
                self.batch.accumulate(l, b, n, self.batch.outputs_at(l, b), False, self.w,
                                      self.frames)
            b += n

    def sgd_each(self, Examples examples, slots, weights=None):
        """One SGD step on weights[b] CE_b (and the anchors) for each example in turn."""
        cdef Py_ssize_t b, n = self.batch.load(examples, slots, weights, -self.lr)
        with nogil:
            for b in range(n):
                if self.held is None:
                    self.step_alone(b)
                else:
                    self.step(b, b + 1)
        self.loss = self.batch.loss

    cdef void step_alone(self, Py_ssize_t b) noexcept nogil:
        """step() for example b without anchors, each layer's rows being updated as the backward pass reads them."""
        cdef Py_ssize_t l, head = self.batch.head[b]
        cdef Layer *layer = self.layout.level(0, head)
        cdef Layer *below
        forward(self.w + layer.start, layer.width, &self.batch.x[0][b], self.batch.delta[0] + b * layer.width)
        for l in range(1, self.layout.n_levels):
            below, layer = layer, self.layout.level(l, head)
            active_units(self.batch.delta[l - 1] + b * below.width, layer.n_in, &self.batch.x[l][b])
            forward(self.w + layer.start, layer.width, &self.batch.x[l][b], self.batch.delta[l] + b * layer.width)
        self.batch.differentiate_outputs(b)
        for l in range(self.layout.n_levels - 1, 0, -1):
            layer, below = self.layout.level(l, head), self.layout.level(l - 1, head)
            if self.frames.depth:
                self.frames.touch_some(layer, self.batch.x[l][b].index, self.batch.x[l][b].n)
            backward(True, self.w + layer.start, layer.width, &self.batch.x[l][b], self.batch.delta[l] + b * layer.width,
                     self.batch.delta[l - 1] + b * below.width, below.width)
        layer = self.layout.level(0, head)
        add_outer(layer, self.w + layer.start, &self.batch.x[0][b], self.batch.delta[0] + b * layer.width, self.frames)

    def descend(self, const float[::1] gradient):
        """theta -= lr * gradient, a vector."""
        cdef const float *g = self.layout.vector(gradient)
        with nogil:
            self.frames.touch_all()
            add_row(self.w, -self.lr, g, self.layout.n_weights)

    # -- Gradients

    def gradient(self, Examples examples, slots):
        """Gradient of the mean CE of these examples, a vector."""
        gradient = self.layout.new_vector()
        self.loss = self.batch.mean_gradient(self.w, examples, slots, self.layout.vector(gradient))
        return gradient

    def task_gradients(self, Examples examples, list_of_slots, pool=None, Py_ssize_t threads=1, factored=None):
        """The gradients of the mean CE on each of these lists of slots (none empty: ValueError).

        TaskGradients, which holds them; with a pool (concurrent.futures), so many threads compute them, the caller's
        among them, and the results are the same. Or FactoredGradients, which makes none of them; which of the two,
        their costs decide, unless `factored` does. Both share memory that the net keeps: the next call overwrites what
        an earlier one returned.
        """
        if factored is None:
            factored = worth_factoring(self.layout, len(list_of_slots), sum([len(slots) for slots in list_of_slots]))
        if factored:
            return FactoredGradients(self, examples, list_of_slots)
        return TaskGradients(self, examples, list_of_slots, pool, threads)

    cdef Batch helper(self, Py_ssize_t number):
        """A Batch for another thread."""
        if number == len(self.helpers):
            self.helpers.append(Batch(self.layout))
        return self.helpers[number]

    # -- Outputs

    def predict(self, const float[:, ::1] x, int64_t t):
        """Outputs (logits) of inputs x (B, D) of task t: float32 (B, O)."""
        cdef Examples examples = Examples(max(1, x.shape[0]), x.shape[1])
        cdef Py_ssize_t start, stop
        self.layout.outputs_of(t, &start, &stop)
        examples.put_many(0, x, t, [self.layout.first_class + start] * x.shape[0])      # any label
        return self.outputs(examples, range(x.shape[0]))

    def losses(self, Examples examples, slots):
        """CE of each of these examples: float32 (B,)."""
        cdef Py_ssize_t b, n = self.forward_all(examples, slots)
        losses = np.empty(n, np.float32)
        cdef float[::1] found = losses
        for b in range(n):
            self.batch.loss = 0
            self.batch.differentiate_outputs(b)
            found[b] = <float> self.batch.loss
        return losses

    cdef Py_ssize_t forward_all(self, Examples examples, slots) except -1:
        """Forward pass of these examples; their number."""
        cdef Py_ssize_t b = 0, m, n = self.batch.load(examples, slots, None, 1)
        with nogil:
            while b < n:
                m = self.batch.group(b, n)
                self.batch.outputs(self.w, b, m)
                b += m
        return n

    def outputs(self, Examples examples, slots):
        """Outputs (logits) for these examples: float32 (B, O)."""
        cdef Batch batch = self.batch
        cdef Py_ssize_t b, last = self.layout.n_levels - 1, n = self.forward_all(examples, slots)
        z = np.empty((n, self.layout.n_outputs), np.float32)
        cdef float[:, ::1] rows = z
        for b in range(n):
            memcpy(&rows[b, 0], batch.delta[last] + b * self.layout.level(last, 0).width,
                   self.layout.n_outputs * sizeof(float))
        return z


include "_gradients.pxi"
include "_factors.pxi"
include "_images.pxi"
include "_rates.pxi"
