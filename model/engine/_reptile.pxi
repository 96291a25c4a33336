# Reptile: theta0 of every block that is open, in frames that save a row when it is touched for the first time.


cdef class Frame:
    """What a `begin` remembers: the rows touched since then, as they were."""
    cdef Memory memory
    cdef float *rows            # laid out as the net's weights
    cdef int32_t *touched       # (n,) numbers of the rows in it
    cdef uint8_t *saved         # (n_rows,) whether a row is in it
    cdef Py_ssize_t n

    def __cinit__(self, Layout layout):
        self.memory = Memory(layout.n_weights * sizeof(float) + layout.n_rows * (sizeof(int32_t) + 1))
        self.rows = <float *> self.memory.at
        self.touched = <int32_t *> (self.rows + layout.n_weights)
        self.saved = <uint8_t *> (self.touched + layout.n_rows)

    cdef inline void save(self, Py_ssize_t r, const float *row, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        """Keep row number r, which lies at row[start:end]."""
        self.saved[r] = True
        self.touched[self.n] = <int32_t> r
        self.n += 1
        memcpy(self.rows + start, row + start, (end - start) * sizeof(float))


cdef class Frames:
    """The frames that are open on a net's weights w. Whoever changes a row of w touches it first.

    depth   how many are open; touch() and touch_some() are only called where there are any
    """
    cdef Layout layout
    cdef float *w
    cdef Py_ssize_t depth
    cdef list frames            # those that were ever open: their memory is used again
    cdef Frame innermost

    cdef inline void touch(self, Py_ssize_t r) noexcept nogil:
        """To be called before row number r changes."""
        if not self.innermost.saved[r]:
            self.innermost.save(r, self.w, self.layout.row_start[r], self.layout.row_start[r + 1])

    cdef inline void touch_some(self, Layer *layer, const int32_t *index, Py_ssize_t n) noexcept nogil:
        """touch() these rows of a layer."""
        cdef Py_ssize_t k
        for k in range(n):
            self.touch(layer.first + index[k])

    cdef void touch_all(self) noexcept nogil:
        cdef Py_ssize_t r
        if self.depth:
            for r in range(self.layout.n_rows):
                self.touch(r)

    cdef int begin(self) except -1:
        """Remember theta0 = theta.  O(1)"""
        if self.depth == len(self.frames):
            self.frames.append(Frame(self.layout))
        self.innermost = self.frames[self.depth]
        self.depth += 1
        return 0

    cdef int end(self, float step) except -1:
        """theta <- theta0 + (theta - theta0) step, for theta0 of the last begin; theta0 for step 0.  O(rows touched since)"""
        if self.depth == 0:
            raise RuntimeError("end_reptile without begin_reptile")
        cdef Frame inner = self.innermost, outer = None
        cdef Py_ssize_t k, r, start, end
        self.depth -= 1
        if self.depth > 0:
            outer = self.frames[self.depth - 1]
        cdef bint nested = outer is not None
        with nogil:
            for k in range(inner.n):
                r = inner.touched[k]
                start, end = self.layout.row_start[r], self.layout.row_start[r + 1]
                inner.saved[r] = False
                if nested and not outer.saved[r]:
                    outer.save(r, inner.rows, start, end)
                if step == 0:
                    memcpy(self.w + start, inner.rows + start, (end - start) * sizeof(float))
                elif step != 1:
                    interpolate(self.w + start, inner.rows + start, step, end - start)
            inner.n = 0
        self.innermost = outer
        return 0
