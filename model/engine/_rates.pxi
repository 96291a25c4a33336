# A learning rate for each parameter, and the gradients that teach rates and weights.


cdef class Rates:
    """Learning rates alpha of a net, one for each weight, laid out as the weights; one that is negative counts as 0.

    A path of steps goes from theta_0 down its gradients g_1, ..., g_j, and looks at the loss of other examples on its way.
    With G_k the gradient of the k-th look, weighted, where the path has gone down g_1, ..., g_j(k), and constant g:

        u = sum_k G_k,  v = -[alpha > 0] sum_k G_k (g_1 + ... + g_j(k)),  elementwise

    are the gradients with respect to theta_0 and to alpha. As v = [alpha > 0] (sum_j g_j u_before_step_j - path u), a look
    adds to u alone, and a step touches only its own rows.

    loss    after a step or look, the weighted loss that it was for
    """
    cdef MLP net
    cdef Layout layout
    cdef Memory memory
    cdef float *alpha
    cdef float *u
    cdef float *v                   # until finish(): sum_j g_j u_before_step_j
    cdef float *path                # g_1 + ... + g_j; after finish(): 0
    cdef uint8_t *walked            # (n_rows,) whether v or path has anything in a row
    cdef uint8_t *seen              # (n_rows,) whether u has
    cdef readonly double loss

    def __init__(self, MLP net, float value):
        cdef Layout layout = net.layout
        self.net, self.layout = net, layout
        self.memory = Memory(4 * layout.n_weights * sizeof(float) + 2 * layout.n_rows)
        self.alpha = <float *> self.memory.at
        self.u, self.v = self.alpha + layout.n_weights, self.alpha + 2 * layout.n_weights
        self.path = self.v + layout.n_weights
        self.walked = <uint8_t *> (self.path + layout.n_weights)
        self.seen = self.walked + layout.n_rows
        for l in range(layout.n_layers):
            layout.view(l, self.alpha)[:] = value

    def values(self):
        """alpha, flat in torch's order."""
        return self.layout.to_flat(self.alpha)

    def set_values(self, const float[::1] flat):
        """Take over what values() returned."""
        self.layout.from_flat(flat, self.alpha)

    def begin(self):
        """A path starts at the weights of now; u and v are 0."""
        cdef Py_ssize_t r, start, size
        with nogil:
            for r in range(self.layout.n_rows):
                start = self.layout.row_start[r]
                size = (self.layout.row_start[r + 1] - start) * sizeof(float)
                if self.seen[r]:
                    memset(self.u + start, 0, size)
                if self.walked[r]:
                    memset(self.v + start, 0, size)
                    memset(self.path + start, 0, size)
                self.seen[r] = self.walked[r] = False

    def step(self, Examples examples, slots):
        """theta -= [alpha]+ the gradient of the mean CE of these examples, a further step of the path."""
        cdef Batch batch = self.net.batch
        cdef Frames frames = self.net.frames
        cdef Py_ssize_t b, l, n = self.load(examples, slots, 1)
        cdef Layer *layer
        cdef Sparse *x
        with nogil:
            for b in range(n):
                for l in range(self.layout.n_levels):
                    layer, x = self.layout.level(l, batch.head[b]), &batch.x[l][b]
                    if frames.depth:
                        frames.touch_some(layer, x.index, x.n)
                    mark(self.walked + layer.first, x)
                    follow_rates(self.net.w + layer.start, self.alpha + layer.start, self.path + layer.start,
                                 self.u + layer.start, self.v + layer.start, layer.width, x.index, x.value, x.n,
                                 batch.outputs_at(l, b))

    def look(self, Examples examples, slots, float weight):
        """A look at weight times the mean CE of these examples, from where the path has come to."""
        cdef Batch batch = self.net.batch
        cdef Py_ssize_t b = 0, e, m, l, n = self.load(examples, slots, weight)
        with nogil:
            while b < n:
                m = batch.group(b, n)
                for l in range(self.layout.n_levels):
                    batch.accumulate(l, b, m, batch.outputs_at(l, b), False, self.u, None)
                    for e in range(b, b + m):
                        mark(self.seen + self.layout.level(l, batch.head[e]).first, &batch.x[l][e])
                b += m

    cdef Py_ssize_t load(self, Examples examples, slots, float weight) except -1:
        """Forward and backward pass of these examples, none: ValueError; their number."""
        cdef Batch batch = self.net.batch
        cdef Py_ssize_t b = 0, m, n = len(slots)
        if n == 0:
            raise ValueError("the mean loss of no examples has no gradient")
        batch.load(examples, slots, [weight / n] * n, 1)
        with nogil:
            if n >= FEW:
                batch.turn(self.net.w)
            while b < n:
                m = batch.group(b, n)
                batch.differentiate(self.net.w, b, m)
                b += m
        self.loss = batch.loss
        return n

    cdef void finish(self) noexcept nogil:
        """v becomes what it is; the path goes no further."""
        cdef Py_ssize_t r, start, n
        for r in range(self.layout.n_rows):
            if self.walked[r]:
                start = self.layout.row_start[r]
                n = self.layout.row_start[r + 1] - start
                turn_to_rates(self.v + start, self.path + start, self.u + start, self.alpha + start, n)

    def gradients(self):
        """(u, v), flat in torch's order."""
        self.finish()
        return self.layout.to_flat(self.u), self.layout.to_flat(self.v)

    cdef double shortened(self, const float *gradient, const uint8_t *rows, double most) noexcept nogil:
        """What a gradient, 0 but in these rows, is multiplied by so that its norm is at most `most`."""
        cdef Py_ssize_t r, start
        cdef double squares = 0, factor
        for r in range(self.layout.n_rows):
            if rows[r]:
                start = self.layout.row_start[r]
                squares += dot(gradient + start, gradient + start, self.layout.row_start[r + 1] - start)
        factor = most / (sqrt(squares) + 1e-6)
        return 1 if factor > 1 else factor

    def learn(self, float rate, double most):
        """alpha -= rate v, where v is scaled to a norm of at most `most`."""
        cdef Py_ssize_t r, start
        cdef float factor
        with nogil:
            self.finish()
            factor = <float> (-rate * self.shortened(self.v, self.walked, most))
            for r in range(self.layout.n_rows):
                if self.walked[r]:
                    start = self.layout.row_start[r]
                    add_row(self.alpha + start, factor, self.v + start, self.layout.row_start[r + 1] - start)

    def descend(self, double most, rate=None):
        """theta -= rate u, or [alpha]+ u where there is none; u is scaled to a norm of at most `most`."""
        cdef bint own = rate is None
        cdef double common = 1 if own else rate
        cdef float factor
        cdef Py_ssize_t r, start, n
        cdef float *w = self.net.w
        with nogil:
            factor = <float> (-common * self.shortened(self.u, self.seen, most))
            for r in range(self.layout.n_rows):
                if self.seen[r]:
                    start = self.layout.row_start[r]
                    n = self.layout.row_start[r + 1] - start
                    if self.net.frames.depth:
                        self.net.frames.touch(r)
                    if own:
                        add_at_rates(w + start, factor, self.alpha + start, self.u + start, n)
                    else:
                        add_row(w + start, factor, self.u + start, n)


cdef inline void mark(uint8_t *rows, const Sparse *x) noexcept nogil:
    """rows[i] = True for the entries i of x."""
    cdef Py_ssize_t k
    for k in range(x.n):
        rows[x.index[k]] = True
