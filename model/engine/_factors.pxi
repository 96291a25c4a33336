# Gradients of many tasks, and what GEM asks of them: as factors.
#
# A gradient is a sum over examples and layers of x outer delta, and (x outer delta) . (x' outer delta') = (x . x')(delta .
# delta'). So a Gram matrix needs the products of all examples' x and of all their deltas, and no gradient. Where a task has
# few examples, that is less: for 5 of them on 100 units, 500 numbers each instead of 100,000 for their sum.


cdef bint worth_factoring(Layout layout, Py_ssize_t n_tasks, Py_ssize_t n_examples):
    """Whether the products of all pairs of examples cost less than those of all pairs of gradients."""
    cdef Py_ssize_t l, numbers = 0
    for l in range(layout.n_levels):
        numbers += layout.level(l, 0).width + (layout.level(l - 1, 0).width if l else 0)
    return layout.n_heads == 1 and n_examples * n_examples * numbers < n_tasks * n_tasks * layout.n_weights


cdef class Factors:
    """What a net keeps for its FactoredGradients: their examples at work, and the products of the examples' inputs."""
    cdef Batch batch
    cdef Examples examples          # whose slots, in which versions, `inputs` is of
    cdef list versions
    cdef Memory inputs_memory, memory
    cdef float *inputs              # (n, padded n): x_a . x_b + 1 for b >= a, in a group

    def __cinit__(self, Layout layout):
        self.batch = Batch(layout)

    cdef float *room(self, Py_ssize_t n) except NULL:
        """Memory for n floats, whatever is in it."""
        if self.memory is None or self.memory.n_bytes < n * <Py_ssize_t> sizeof(float):
            self.memory = Memory(n * sizeof(float))
        return <float *> self.memory.at


cdef class FactoredGradients:
    """What TaskGradients are, for a net with one head, in factors: no gradient is ever made.

    loss    the sum of the mean CEs
    """
    cdef Layout layout
    cdef Factors factors
    cdef Batch batch
    cdef list versions
    cdef Examples examples
    cdef Memory memory
    cdef int32_t *task                  # (n,) of each example
    cdef Py_ssize_t n, stride           # examples; that padded
    cdef readonly Py_ssize_t n_tasks
    cdef readonly double loss

    def __init__(self, MLP net, Examples examples, list_of_slots):
        cdef Py_ssize_t k, m, b = 0
        if not all(list_of_slots):
            raise ValueError("the mean loss of no examples has no gradient")
        if net.layout.n_heads > 1:
            raise ValueError("a net with several first layers has no factored gradients")
        if net.factors is None:
            net.factors = Factors(net.layout)
        self.layout, self.factors, self.batch, self.examples = net.layout, net.factors, net.factors.batch, examples
        slots = [slot for one in list_of_slots for slot in one]
        self.n_tasks, self.n, self.stride = len(list_of_slots), len(slots), padded(len(slots))
        self.batch.load(examples, slots, [1.0 / len(one) for one in list_of_slots for _ in one], 1)
        self.versions = [examples.slots[slot].version for slot in slots]
        self.memory = Memory(max(1, self.n) * sizeof(int32_t))
        self.task = <int32_t *> self.memory.at
        for k in range(self.n_tasks):
            for _ in list_of_slots[k]:
                self.task[b] = <int32_t> k
                b += 1
        b = 0
        with nogil:
            if self.n >= FEW:
                self.batch.turn(net.w)
            while b < self.n:
                m = self.batch.group(b, self.n)
                self.batch.differentiate(net.w, b, m)
                b += m
        self.loss = self.batch.loss

    def dot(self, const float[::1] vector):
        """G g of a vector g: g's rows are a net's, and each example's outputs of its layers meet its deltas.

        float64 (K,).  O(n S H)
        """
        cdef const float *g = self.layout.vector(vector)
        products = np.zeros(self.n_tasks)
        cdef double[::1] p = products
        cdef Memory aligned
        cdef Py_ssize_t l, b, e, m
        cdef Layer *layer
        cdef float *h = self.factors.room(GROUP * max([self.layout.layer[l].width for l in range(self.layout.n_layers)]))
        if <size_t> g % 64:             # NumPy made it
            aligned = Memory(self.layout.n_weights * sizeof(float))
            g = <const float *> memcpy(aligned.at, g, self.layout.n_weights * sizeof(float))
        with nogil:
            for b from 0 <= b < self.n by GROUP:
                m = min(<Py_ssize_t> GROUP, self.n - b)
                for l in range(self.layout.n_levels):
                    layer = self.layout.level(l, 0)
                    forward_group(g + layer.start, layer.n_in + 1, layer.width, self.batch.x[l] + b, m, h)
                    for e in range(m):
                        p[self.task[b + e]] += dot(h + e * layer.width, self.batch.outputs_at(l, b + e), layer.width)
        return products

    def gram(self):
        """G G^T: float64 (K, K).  O(n^2 H)"""
        gram = np.zeros((self.n_tasks, self.n_tasks))
        if self.n == 0:
            return gram
        cdef double[:, ::1] p = gram
        cdef Py_ssize_t l, b, m, width, most = 1
        for l in range(self.layout.n_levels):
            most = max(most, self.layout.level(l, 0).n_out, self.layout.level(l, 0).n_in + 1 if l else 0)
        # Products of examples b, b + 1, ... of a group with those from b on are blocks (m, width) at b * stride.
        cdef float *sums = self.factors.room(self.n * self.stride + 2 * (most + GROUP) * self.stride)
        cdef float *inputs = sums + self.n * self.stride        # (most, stride): x[l] of all examples, transposed
        cdef float *deltas = inputs + most * self.stride                # the same for delta[l]
        cdef float *of_inputs = deltas + most * self.stride             # (m, width)
        cdef float *of_deltas = of_inputs + GROUP * self.stride
        self.multiply_inputs()
        with nogil:
            memset(sums, 0, self.n * self.stride * sizeof(float))
            for l in range(self.layout.n_levels):
                self.turn_inputs(l, inputs)
                transpose(self.batch.delta[l], self.n, self.layout.level(l, 0).n_out, self.layout.level(l, 0).width,
                          deltas, self.stride)
                for b from 0 <= b < self.n by GROUP:
                    m, width = min(<Py_ssize_t> GROUP, self.n - b), self.stride - b
                    if l:
                        pass_over(inputs + b, self.layout.level(l, 0).n_in + 1, self.stride, width, self.batch.x[l] + b, m,
                                  of_inputs)
                    pass_over(deltas + b, self.layout.level(l, 0).n_out, self.stride, width, self.batch.deltas_of(l, b, m), m,
                              of_deltas)
                    add_product(sums + b * self.stride, of_inputs if l else self.factors.inputs + b * self.stride, of_deltas,
                                m * width)
            self.sum_by_task(sums, p)
        return gram

    cdef void turn_inputs(self, Py_ssize_t l, float *turned) noexcept nogil:
        """turned[i, b] = x[l][b][i] for all examples; of the first level nothing, whose products are known."""
        cdef Py_ssize_t b, k
        cdef Sparse *x
        if l:
            memset(turned, 0, (self.layout.level(l, 0).n_in + 1) * self.stride * sizeof(float))
            for b in range(self.n):
                x = &self.batch.x[l][b]
                for k in range(x.n):
                    turned[x.index[k] * self.stride + b] = x.value[k]

    cdef void sum_by_task(self, const float *sums, double[:, ::1] gram) noexcept nogil:
        """gram[k, l] = the sum over the examples of tasks k and l."""
        cdef Py_ssize_t a, b, c, width
        cdef int32_t of_a, of_c
        cdef const float *row
        cdef double sum
        for a in range(self.n):
            b = a // GROUP * GROUP
            width = self.stride - b
            row = sums + b * self.stride + (a - b) * width
            of_a = self.task[a]
            gram[of_a, of_a] += row[a - b]
            c = a + 1
            while c < self.n:
                of_c, sum = self.task[c], 0
                while c < self.n and self.task[c] == of_c:
                    sum += row[c - b]
                    c += 1
                gram[of_a, of_c] += 2 * sum if of_a == of_c else sum
        for a in range(self.n_tasks):
            for c in range(a):
                gram[a, c] = gram[c, a]

    cdef int multiply_inputs(self) except -1:
        """Make factors.inputs the products of the examples' inputs; past examples stay, so mostly they are that already."""
        cdef Factors factors = self.factors
        cdef Memory memory
        cdef float *turned
        cdef Py_ssize_t b, k, m, n_rows = self.layout.n_inputs + 1
        cdef Sparse *x
        if factors.examples is self.examples and factors.versions == self.versions:
            return 0
        factors.inputs_memory = Memory(self.n * self.stride * sizeof(float))
        factors.inputs = <float *> factors.inputs_memory.at
        factors.examples, factors.versions = self.examples, self.versions
        memory = Memory(n_rows * self.stride * sizeof(float))
        turned = <float *> memory.at
        with nogil:
            for b in range(self.n):
                x = &self.batch.x[0][b]
                for k in range(x.n):
                    turned[x.index[k] * self.stride + b] = x.value[k]
            for b from 0 <= b < self.n by GROUP:
                m = min(<Py_ssize_t> GROUP, self.n - b)
                pass_over(turned + b, n_rows, self.stride, self.stride - b, self.batch.x[0] + b, m,
                          factors.inputs + b * self.stride)
        return 0

    def combine(self, v, const float[::1] vector):
        """G^T v + g of a vector g, a vector.  O(n S H)"""
        cdef const float *g = self.layout.vector(vector)
        cdef const float[::1] factors = checked_factors(v, self.n_tasks)
        combined = self.layout.new_vector()
        cdef float *sum = self.layout.vector(combined)
        cdef Py_ssize_t l, b, e, m, width
        cdef float *scaled = self.factors.room(GROUP * max([self.layout.layer[l].width for l in range(self.layout.n_layers)]))
        with nogil:
            memcpy(sum, g, self.layout.n_weights * sizeof(float))
            for b from 0 <= b < self.n by GROUP:
                m = min(<Py_ssize_t> GROUP, self.n - b)
                for l in range(self.layout.n_levels):
                    width = self.layout.level(l, 0).width
                    for e in range(m):
                        scale(scaled + e * width, factors[self.task[b + e]], self.batch.outputs_at(l, b + e), width)
                    self.batch.accumulate(l, b, m, scaled, False, sum, None)
        return combined
