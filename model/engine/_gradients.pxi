# Gradients of many tasks, and what GEM asks of them: as they are.


cdef enum:
    WORTH_A_THREAD = 64         # examples whose gradients take longer than it takes to wake another thread
    STRETCH = 1024              # numbers of a gradient that are summed in float before they are in double


cdef class TaskGradients:
    """Gradients g_k of the mean CE on K lists of examples: G (K, n_weights). Its products are sums in double.

    loss    the sum of the mean CEs
    """
    cdef MLP net
    cdef Layout layout
    cdef Memory memory, number_memory
    cdef float *G                   # (K, n_weights), laid out as the weights
    cdef int32_t *number            # 0..K - 1
    cdef readonly Py_ssize_t n_tasks
    cdef readonly double loss

    def __init__(self, MLP net, Examples examples, list_of_slots, pool, Py_ssize_t threads):
        cdef Py_ssize_t k, n_bytes
        self.net, self.layout, self.n_tasks = net, net.layout, len(list_of_slots)
        n_bytes = self.n_tasks * self.layout.n_weights * sizeof(float)
        if net.gradient_memory is None or net.gradient_memory.n_bytes < n_bytes:
            net.gradient_memory = Memory(n_bytes)
        self.memory = net.gradient_memory
        self.G = <float *> self.memory.at
        self.number_memory = Memory(self.n_tasks * sizeof(int32_t))
        self.number = <int32_t *> self.number_memory.at
        for k in range(self.n_tasks):
            self.number[k] = <int32_t> k
        while len(net.sorted_inputs) < self.n_tasks:
            net.sorted_inputs.append(SortedInputs())
        losses = [0.0] * self.n_tasks
        threads = min(threads, self.n_tasks, sum([len(slots) for slots in list_of_slots]) // WORTH_A_THREAD)
        if pool is None or threads < 2:
            self.fill(net.batch, examples, list_of_slots, losses, 0, 1)
        else:
            others = [pool.submit(self.fill, net.helper(first - 1), examples, list_of_slots, losses, first, threads)
                      for first in range(1, threads)]
            try:
                self.fill(net.batch, examples, list_of_slots, losses, 0, threads)
            finally:
                wait(others)
            for other in others:
                other.result()
        self.loss = sum(losses)

    def fill(self, Batch batch, Examples examples, list_of_slots, losses, Py_ssize_t first, Py_ssize_t step):
        """Compute the gradients and losses number first, first + step, ..."""
        cdef Py_ssize_t k
        cdef float *g
        for k in range(first, self.n_tasks, step):
            g = self.G + k * self.layout.n_weights
            keeps = self.layout.n_heads == 1 and len(list_of_slots[k]) >= FEW
            losses[k] = batch.mean_gradient(self.net.w, examples, list_of_slots[k], g,
                                            self.net.sorted_inputs[k] if keeps else None)

    cdef inline float *at(self, Py_ssize_t k, Py_ssize_t start) noexcept nogil:
        """g_k from its number `start` on; the last task's where there is no task k."""
        return self.G + min(k, self.n_tasks - 1) * self.layout.n_weights + start

    cdef void products(self, Py_ssize_t k, Py_ssize_t start, const float *b, const float *c, float *sums) noexcept nogil:
        """sums[2 i], sums[2 i + 1] = g_(k+i) . b, g_(k+i) . c for i < 4: the part of a stretch from `start`.  O(STRETCH)"""
        cdef const float *rows[4]
        cdef const float *others[2]
        cdef Py_ssize_t i
        for i in range(4):
            rows[i] = self.at(k + i, start)
        others[0], others[1] = b, c
        four_by_two(rows, others, min(<Py_ssize_t> STRETCH, self.layout.n_weights - start), sums)

    def dot(self, const float[::1] vector):
        """G g, that is g_k . g for every k, of a vector g: float64 (K,).  O(K n_weights)"""
        cdef const float *g = self.layout.vector(vector)
        cdef Memory aligned
        products = np.zeros(self.n_tasks)
        cdef double[::1] p = products
        cdef Py_ssize_t start, k, n
        if <size_t> g % 64:             # NumPy made it
            aligned = Memory(self.layout.n_weights * sizeof(float))
            g = <const float *> memcpy(aligned.at, g, self.layout.n_weights * sizeof(float))
        with nogil:
            for start from 0 <= start < self.layout.n_weights by STRETCH:
                n = min(<Py_ssize_t> STRETCH, self.layout.n_weights - start)
                for k in range(self.n_tasks):
                    p[k] += dot(self.at(k, start), g + start, n)
        return products

    def gram(self):
        """G G^T: float64 (K, K).  O(K^2 n_weights)"""
        gram = np.zeros((self.n_tasks, self.n_tasks))
        cdef double[:, ::1] p = gram
        cdef Py_ssize_t start = 0, k, l, i, j
        cdef float sums[8]
        with nogil:
            while start < self.layout.n_weights:       # stretch by stretch, so that those of all gradients stay in the cache
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

    def combine(self, v, const float[::1] vector):
        """G^T v + g of a vector g, a vector."""
        cdef const float *g = self.layout.vector(vector)
        cdef const float[::1] factors = checked_factors(v, self.n_tasks)
        combined = self.layout.new_vector()
        cdef float *sum = self.layout.vector(combined)
        cdef Py_ssize_t start, size = self.layout.n_weights
        with nogil:
            memcpy(sum, g, size * sizeof(float))
            if self.n_tasks:
                for start from 0 <= start < size by STRETCH:
                    add_rows(self.G + start, size, min(<Py_ssize_t> STRETCH, size - start), self.number, &factors[0],
                             self.n_tasks, NO_END, sum + start)
        return combined


cdef checked_factors(v, Py_ssize_t n_tasks):
    """v as float32; ValueError unless it is one number for each task."""
    factors = np.ascontiguousarray(v, np.float32)
    if factors.shape != (n_tasks,):
        raise ValueError(f"factors of shape {factors.shape} for {n_tasks} gradients")
    return factors
