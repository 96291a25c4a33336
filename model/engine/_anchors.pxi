# Anchors: quadratic penalties that hold the weights where they were. (EWC)


cdef class Anchors:
    """sum over tasks of strength * sum F (theta - theta*)^2, of any number of tasks in two sums that cost as much as one.

    Its gradient is 2 (A theta - B) with the stiffness A = sum of strength F and the pull B = sum of strength F theta*.
    """
    cdef Layout layout
    cdef Memory memory
    cdef float *stiffness       # laid out as the weights
    cdef float *pull
    cdef uint8_t *anchored      # (n_rows,) whether any weight of a row is
    cdef double constant        # sum of strength F theta*^2

    def __cinit__(self, Layout layout):
        self.layout = layout
        self.memory = Memory(2 * layout.n_weights * sizeof(float) + layout.n_rows)
        self.stiffness = <float *> self.memory.at
        self.pull = self.stiffness + layout.n_weights
        self.anchored = <uint8_t *> (self.pull + layout.n_weights)

    cdef void add(self, const float *importance, float strength, const float *w) noexcept nogil:
        """One more task, of importance F, with theta* = w."""
        cdef Py_ssize_t i
        for i in range(self.layout.n_weights):
            self.stiffness[i] += strength * importance[i]
            self.pull[i] += strength * importance[i] * w[i]
            self.constant += strength * importance[i] * w[i] * w[i]
        self.find_anchored()

    cdef void find_anchored(self) noexcept nogil:
        cdef Py_ssize_t r, i
        for r in range(self.layout.n_rows):
            self.anchored[r] = False
            for i in range(self.layout.row_start[r], self.layout.row_start[r + 1]):
                if self.stiffness[i] != 0:
                    self.anchored[r] = True

    cdef double follow(self, float lr, float *w, Frames frames) noexcept nogil:
        """w -= lr * the gradient of the penalty, whose value before that is returned.  O(rows of any importance)"""
        cdef Py_ssize_t r, start
        cdef double penalty = self.constant
        for r in range(self.layout.n_rows):
            if self.anchored[r]:
                if frames.depth:
                    frames.touch(r)
                start = self.layout.row_start[r]
                penalty += spring(w + start, self.stiffness + start, self.pull + start, 2 * lr,
                                  self.layout.row_start[r + 1] - start)
        return penalty
