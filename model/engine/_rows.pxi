# Row operations, on which everything rests: what to do with the rows that a list names, and a vector of their length.
#
#     add_rows     vector += sum_k value[k] rows[index[k]]                               forward pass, for one example
#     add_users    the same for the rows whose bit is set in a word                      update, for a group of examples
#     add_to_rows  rows[index[k]] += value[k] vector                                     update, for one example
#     dot_rows     out[index[k]] += rows[index[k]] . vector, and, if asked, add_to_rows  backward pass (and update)
#
# and four_by_two, for Gram matrices: the products of four long rows with two.
#
# Each costs O(n width) for n rows. `width` is a multiple of LINE; rows lie `stride` floats apart.
#
# The vector stays in the CPU's registers while the rows pass by, so that a row costs one reading (and one writing). Where
# it is too long for that it is cut in tiles of at most TILE lines. A `..._tile` function is only called with a constant
# number of lines: the compiler makes a copy of it for each, unrolled.

cdef extern from *:
    """
    /* vec: what a register holds. TILE: lines whose sums all stay in registers */
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
    enum { VECS = 64 / sizeof(vec) };       /* registers in a line */

    /* KEEP(v): v stays in a register, instead of being read once more for each use */
    #if defined(__x86_64__)
    #define KEEP(v) __asm__("" : "+v"(v))
    #elif defined(__aarch64__)
    #define KEEP(v) __asm__("" : "+w"(v))
    #else
    #define KEEP(v)
    #endif

    static inline float sum_of(vec v) {     /* of its numbers */
        typedef float quad __attribute__((vector_size(16), may_alias));
        const quad *q = (const quad *) &v;
        quad sum = q[0];
        for (unsigned i = 1; i < sizeof(vec) / sizeof(quad); i++)
            sum += q[i];
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    """
    int lowest_bit "__builtin_ctzll"(uint64_t) nogil
    ctypedef float vec          # to Cython a number like any other; the C compiler knows better
    const int TILE, VECS
    float sum_of(vec) nogil
    void KEEP(vec) nogil

cdef enum:
    LINE = 16                   # floats in a cache line
    MOST = 32                   # registers in the largest tile
    NO_END = 0x7FFFFFFF


cdef inline Py_ssize_t add_rows_tile(const int lines, const float *rows, Py_ssize_t stride, const int32_t *index,
                                     const float *value, Py_ssize_t n, int32_t end, float *vector) noexcept nogil:
    cdef vec total[MOST]
    cdef const vec *row
    cdef Py_ssize_t k = 0
    cdef int c
    for c in range(lines * VECS):
        total[c] = (<vec *> vector)[c]
    while k < n and index[k] < end:
        row = <const vec *> (rows + index[k] * stride)
        for c in range(lines * VECS):
            total[c] = total[c] + value[k] * row[c]
        k += 1
    for c in range(lines * VECS):
        (<vec *> vector)[c] = total[c]
    return k


cdef inline Py_ssize_t add_rows(const float *rows, Py_ssize_t stride, Py_ssize_t width, const int32_t *index,
                                const float *value, Py_ssize_t n, int32_t end, float *vector) noexcept nogil:
    """vector[:width] += sum_k value[k] rows[index[k], :width] over k < n as long as index[k] < end; returns how many k."""
    cdef Py_ssize_t lines, j = 0, k = 0
    while j < width:
        lines = min(<Py_ssize_t> TILE, (width - j) // LINE)
        if lines == 8: k = add_rows_tile(8, rows + j, stride, index, value, n, end, vector + j)
        elif lines == 7: k = add_rows_tile(7, rows + j, stride, index, value, n, end, vector + j)
        elif lines == 6: k = add_rows_tile(6, rows + j, stride, index, value, n, end, vector + j)
        elif lines == 5: k = add_rows_tile(5, rows + j, stride, index, value, n, end, vector + j)
        elif lines == 4: k = add_rows_tile(4, rows + j, stride, index, value, n, end, vector + j)
        elif lines == 3: k = add_rows_tile(3, rows + j, stride, index, value, n, end, vector + j)
        elif lines == 2: k = add_rows_tile(2, rows + j, stride, index, value, n, end, vector + j)
        else: k = add_rows_tile(1, rows + j, stride, index, value, n, end, vector + j)
        j += lines * LINE
    return k


cdef inline void add_users_tile(const int lines, const float *rows, Py_ssize_t stride, uint64_t users, const float *value,
                                float *vector) noexcept nogil:
    cdef vec total[MOST]
    cdef const vec *row
    cdef int c, b
    for c in range(lines * VECS):
        total[c] = (<vec *> vector)[c]
    while users:
        b = lowest_bit(users)
        users &= users - 1
        row = <const vec *> (rows + b * stride)
        for c in range(lines * VECS):
            total[c] = total[c] + value[b] * row[c]
    for c in range(lines * VECS):
        (<vec *> vector)[c] = total[c]


cdef inline void add_users(const float *rows, Py_ssize_t stride, Py_ssize_t width, uint64_t users, const float *value,
                           float *vector) noexcept nogil:
    """vector[:width] += sum_b value[b] rows[b, :width] over the b whose bit is set in users."""
    cdef Py_ssize_t lines, j = 0
    while j < width:
        lines = min(<Py_ssize_t> TILE, (width - j) // LINE)
        if lines == 8: add_users_tile(8, rows + j, stride, users, value, vector + j)
        elif lines == 7: add_users_tile(7, rows + j, stride, users, value, vector + j)
        elif lines == 6: add_users_tile(6, rows + j, stride, users, value, vector + j)
        elif lines == 5: add_users_tile(5, rows + j, stride, users, value, vector + j)
        elif lines == 4: add_users_tile(4, rows + j, stride, users, value, vector + j)
        elif lines == 3: add_users_tile(3, rows + j, stride, users, value, vector + j)
        elif lines == 2: add_users_tile(2, rows + j, stride, users, value, vector + j)
        else: add_users_tile(1, rows + j, stride, users, value, vector + j)
        j += lines * LINE


cdef inline void add_to_rows_tile(const int lines, float *rows, Py_ssize_t stride, const int32_t *index,
                                  const float *value, Py_ssize_t n, const float *vector) noexcept nogil:
    cdef vec held[MOST]
    cdef vec *row
    cdef Py_ssize_t k
    cdef int c
    for c in range(lines * VECS):
        held[c] = (<const vec *> vector)[c]
    for k in range(n):
        row = <vec *> (rows + index[k] * stride)
        for c in range(lines * VECS):
            row[c] = row[c] + value[k] * held[c]


cdef inline void add_to_rows(float *rows, Py_ssize_t stride, Py_ssize_t width, const int32_t *index,
                             const float *value, Py_ssize_t n, const float *vector) noexcept nogil:
    """rows[index[k], :width] += value[k] vector[:width] for k < n."""
    cdef Py_ssize_t lines, j = 0
    while j < width:
        lines = min(<Py_ssize_t> TILE, (width - j) // LINE)
        if lines == 8: add_to_rows_tile(8, rows + j, stride, index, value, n, vector + j)
        elif lines == 7: add_to_rows_tile(7, rows + j, stride, index, value, n, vector + j)
        elif lines == 6: add_to_rows_tile(6, rows + j, stride, index, value, n, vector + j)
        elif lines == 5: add_to_rows_tile(5, rows + j, stride, index, value, n, vector + j)
        elif lines == 4: add_to_rows_tile(4, rows + j, stride, index, value, n, vector + j)
        elif lines == 3: add_to_rows_tile(3, rows + j, stride, index, value, n, vector + j)
        elif lines == 2: add_to_rows_tile(2, rows + j, stride, index, value, n, vector + j)
        else: add_to_rows_tile(1, rows + j, stride, index, value, n, vector + j)
        j += lines * LINE


cdef inline void dot_rows_tile(const int lines, const bint update, float *rows, Py_ssize_t stride, const int32_t *index,
                               const float *value, Py_ssize_t n, const float *vector, float *out) noexcept nogil:
    cdef vec held[MOST]
    cdef vec *row
    cdef vec products
    cdef Py_ssize_t k
    cdef int c
    for c in range(lines * VECS):
        held[c] = (<const vec *> vector)[c]
    for k in range(n):
        row = <vec *> (rows + index[k] * stride)
        products = row[0] * held[0]
        if update:
            row[0] = row[0] + value[k] * held[0]
        for c in range(1, lines * VECS):
            products = products + row[c] * held[c]
            if update:
                row[c] = row[c] + value[k] * held[c]
        out[index[k]] += sum_of(products)


cdef inline void dot_rows(const bint update, float *rows, Py_ssize_t stride, Py_ssize_t width, const int32_t *index,
                          const float *value, Py_ssize_t n, const float *vector, float *out) noexcept nogil:
    """out[index[k]] += rows[index[k], :width] . vector[:width] for k < n; then, with update, as add_to_rows."""
    cdef Py_ssize_t lines, j = 0
    while j < width:
        lines = min(<Py_ssize_t> TILE, (width - j) // LINE)
        if lines == 8: dot_rows_tile(8, update, rows + j, stride, index, value, n, vector + j, out)
        elif lines == 7: dot_rows_tile(7, update, rows + j, stride, index, value, n, vector + j, out)
        elif lines == 6: dot_rows_tile(6, update, rows + j, stride, index, value, n, vector + j, out)
        elif lines == 5: dot_rows_tile(5, update, rows + j, stride, index, value, n, vector + j, out)
        elif lines == 4: dot_rows_tile(4, update, rows + j, stride, index, value, n, vector + j, out)
        elif lines == 3: dot_rows_tile(3, update, rows + j, stride, index, value, n, vector + j, out)
        elif lines == 2: dot_rows_tile(2, update, rows + j, stride, index, value, n, vector + j, out)
        else: dot_rows_tile(1, update, rows + j, stride, index, value, n, vector + j, out)
        j += lines * LINE


cdef inline void four_by_two(const float *const *a, const float *const *b, Py_ssize_t n, float *products) noexcept nogil:
    """products[2 i + j] = a[i][:n] . b[j][:n] for i < 4, j < 2; n is a multiple of LINE.  O(n)

    What is read from the cache serves two products or four; each product has a register of its own.
    """
    cdef vec total[8]
    cdef vec of_b[2]
    cdef vec of_a
    cdef Py_ssize_t v
    cdef int i, j
    for i in range(4):
        for j in range(2):
            total[2 * i + j] = (<const vec *> a[i])[0] * (<const vec *> b[j])[0]
    for v in range(1, n // LINE * VECS):
        for j in range(2):
            of_b[j] = (<const vec *> b[j])[v]
        for i in range(4):
            of_a = (<const vec *> a[i])[v]
            KEEP(of_a)
            for j in range(2):
                total[2 * i + j] = total[2 * i + j] + of_a * of_b[j]
    for i in range(8):
        products[i] = sum_of(total[i])


# ---- The same for one or two whole stretches of memory

cdef inline void add_row(float *y, float a, const float *x, Py_ssize_t n) noexcept nogil:
    """y += a x"""
    cdef Py_ssize_t j
    for j in range(n):
        y[j] += a * x[j]


cdef inline void interpolate(float *y, const float *y0, float step, Py_ssize_t n) noexcept nogil:
    """y = y0 + (y - y0) step"""
    cdef Py_ssize_t j
    for j in range(n):
        y[j] = y0[j] + (y[j] - y0[j]) * step


cdef inline float spring(float *w, const float *stiffness, const float *pull, float rate, Py_ssize_t n) noexcept nogil:
    """w -= rate (stiffness w - pull); returns the sum of w (stiffness w - 2 pull) before that."""
    cdef Py_ssize_t j
    cdef float sum = 0, old, force
    for j in range(n):
        old = w[j]
        force = stiffness[j] * old - pull[j]
        sum += old * (force - pull[j])
        w[j] = old - rate * force
    return sum
