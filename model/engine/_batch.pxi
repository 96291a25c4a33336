# The kernels: what is computed for one example, and for a group of them.


cdef enum:
    GROUP = 64                  # examples that pass over the rows together: the bits of a uint64_t
    FEW = 4                     # fewer than that go one by one
    CACHED = 49152              # bytes of rows that a group passes over at a time


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


cdef class Batch:
    """The examples at work. It reads weights w, and knows neither whose they are nor what becomes of the gradient.

    At level l, example b has the inputs x[l][b] and the outputs delta[l][b, :], which the gradient of its loss with respect
    to them, times its scale, replaces.

    loss   the sum of weight * loss over the examples differentiated since `load`
    """
    cdef Layout layout
    cdef double loss
    cdef Py_ssize_t room            # examples that there is memory for
    cdef Sparse **x
    cdef float **delta
    cdef float *weight              # of each example's loss
    cdef float *scale               # what its gradients are multiplied by: -lr * weight, say
    cdef int64_t *y
    cdef int64_t *head
    cdef Transpose transpose
    cdef list memory

    def __cinit__(self, Layout layout):
        self.layout = layout
        self.transpose = Transpose(max([n_in + 1 for n_out, n_in in layout.shapes()]))

    cdef int reserve(self, Py_ssize_t n) except -1:
        """Make room for n examples."""
        if n <= self.room:
            return 0
        cdef Layout layout = self.layout
        cdef Py_ssize_t l, b, width
        cdef Sparse *inputs
        cdef int32_t *index
        self.room = 0
        memory = [Memory(layout.n_levels * (sizeof(Sparse *) + sizeof(float *))),
                  Memory(n * (2 * sizeof(int64_t) + 2 * sizeof(float)))]
        self.x = <Sparse **> (<Memory> memory[0]).at
        self.delta = <float **> (self.x + layout.n_levels)
        self.y = <int64_t *> (<Memory> memory[1]).at
        self.head = self.y + n
        self.weight = <float *> (self.head + n)
        self.scale = self.weight + n
        for l in range(layout.n_levels):
            width = layout.level(l, 0).width
            memory.append(Memory(n * width * sizeof(float)))
            self.delta[l] = <float *> (<Memory> memory[-1]).at
            memory.append(Memory(n * sizeof(Sparse)))
            self.x[l] = inputs = <Sparse *> (<Memory> memory[-1]).at
            if l:
                width = layout.level(l, 0).n_in + 1
                memory.append(Memory(n * width * (sizeof(int32_t) + sizeof(float))))
                index = <int32_t *> (<Memory> memory[-1]).at
                for b in range(n):
                    inputs[b].index = index + b * width
                    inputs[b].value = <float *> (index + n * width) + b * width
        self.memory, self.room = memory, n
        return 0

    cdef int load(self, Examples examples, slots, weights, float rate) except -1:
        """Put the examples in these slots to work; weights None means 1. Returns their number.

        The gradients will be those of the weighted losses, times rate.
        """
        cdef Layout layout = self.layout
        cdef Py_ssize_t b, n = len(slots)
        cdef Slot *s
        if examples.n_inputs != layout.n_inputs:
            raise ValueError(f"examples of {examples.n_inputs} inputs for a net of {layout.n_inputs}")
        if weights is not None and len(weights) != n:
            raise ValueError(f"{len(weights)} weights for {n} examples")
        self.reserve(n)
        for b in range(n):
            s = examples.filled(slots[b])
            prefetch(&s.x)
            if not 0 <= s.y < layout.n_outputs:
                raise IndexError(f"label {s.y} of a net with {layout.n_outputs} outputs")
            if layout.n_heads > 1 and not 0 <= s.t < layout.n_heads:
                raise IndexError(f"task {s.t} of a net with {layout.n_heads} first layers")
            self.x[0][b], self.y[b] = s.x, s.y
            self.head[b] = s.t if layout.n_heads > 1 else 0
            self.weight[b] = 1 if weights is None else weights[b]
            self.scale[b] = rate * self.weight[b]
        self.loss = 0
        return n

    cdef inline Py_ssize_t group(self, Py_ssize_t b, Py_ssize_t end) noexcept nogil:
        """Number of examples from b on, at most GROUP, that have the same head."""
        cdef Py_ssize_t n = 1
        while n < GROUP and b + n < end and self.head[b + n] == self.head[b]:
            n += 1
        return n

    # n examples from b on, one group

    cdef void outputs(self, const float *w, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """Forward pass: x[l] of every level, and the net's outputs in delta[last]."""
        cdef Py_ssize_t l, e
        cdef Layer *layer
        for l in range(self.layout.n_levels):
            layer = self.layout.level(l, self.head[b])
            if l:
                for e in range(b, b + n):
                    active_units(self.delta[l - 1] + e * self.layout.level(l - 1, 0).width, layer.n_in, &self.x[l][e])
            forward_group(w + layer.start, layer.n_in + 1, layer.width, self.x[l] + b, n, self.delta[l] + b * layer.width)

    cdef void differentiate(self, const float *w, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """Forward and backward pass: delta[l] of every level becomes scale * the gradient of CE; adds up the loss."""
        cdef Py_ssize_t l, e
        cdef Layer *layer
        cdef Layer *below
        self.outputs(w, b, n)
        for e in range(b, b + n):
            self.differentiate_outputs(e)
        for l in range(self.layout.n_levels - 1, 0, -1):
            layer, below = self.layout.level(l, 0), self.layout.level(l - 1, 0)
            for e in range(b, b + n):
                backward(False, <float *> w + layer.start, layer.width, &self.x[l][e], self.delta[l] + e * layer.width,
                         self.delta[l - 1] + e * below.width, below.width)

    cdef inline void differentiate_outputs(self, Py_ssize_t b) noexcept nogil:
        """The loss of example b, and its gradient in the place of the net's outputs."""
        cdef Py_ssize_t last = self.layout.n_levels - 1
        cdef Layer *layer = self.layout.level(last, self.head[b])
        self.loss += self.weight[b] * cross_entropy(self.delta[last] + b * layer.width, layer.n_out, layer.width,
                                                    self.y[b], self.scale[b])

    cdef void accumulate(self, Py_ssize_t l, Py_ssize_t b, Py_ssize_t n, float *target, Frames frames) noexcept nogil:
        """target += sum over the examples of x[l] outer delta[l], level l's (scaled) gradient.

        target is laid out as the weights; if it is the weights, frames are those to be told, else None.
        """
        cdef Layer *layer = self.layout.level(l, self.head[b])
        cdef float *rows = target + layer.start
        cdef float *delta = self.delta[l] + b * layer.width
        cdef Sparse *x = self.x[l] + b
        cdef Py_ssize_t i, e
        if n < FEW:
            for e in range(n):
                add_outer(layer, rows, &x[e], delta + e * layer.width, frames)
        else:
            self.transpose.fill(x, n)
            for i in range(layer.n_in + 1):
                if self.transpose.users[i]:
                    if frames is not None and frames.depth:
                        frames.touch(layer.first + i)
                    add_users(delta, layer.width, layer.width, self.transpose.users[i],
                              self.transpose.value + i * GROUP, rows + i * layer.width)
                    self.transpose.users[i] = 0

    cdef double mean_gradient(self, const float *w, Examples examples, slots, float *target) except? -1:
        """target += the gradient of the examples' mean CE, which is returned; none: ValueError."""
        cdef Py_ssize_t b = 0, m, l, n = len(slots)
        if n == 0:
            raise ValueError("the mean loss of no examples has no gradient")
        self.load(examples, slots, None, <float> 1 / n)
        with nogil:
            while b < n:
                m = self.group(b, n)
                self.differentiate(w, b, m)
                for l in range(self.layout.n_levels):
                    self.accumulate(l, b, m, target, None)
                b += m
        return self.loss / n


cdef inline void add_outer(Layer *layer, float *rows, const Sparse *x, const float *delta, Frames frames) noexcept nogil:
    """rows[i] += x[i] delta; a few rows at a time, so that those that frames save are still in the cache.  O(S H)"""
    cdef Py_ssize_t k, n
    for k in range(0, x.n, 16):
        n = min(<Py_ssize_t> 16, x.n - k)
        if frames is not None and frames.depth:
            frames.touch_some(layer, x.index + k, n)
        add_to_rows(rows, layer.width, layer.width, x.index + k, x.value + k, n, delta)
