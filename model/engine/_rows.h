/* The arithmetic of the kernels: row operations, on which everything rests. Compiles without Python.

   A row operation does something with the rows that a list names, and a vector of their length:

       add_rows     vector += sum_k value[k] rows[index[k]]                               forward pass, for one example
       add_users    the same for the rows whose bit is set in a word                      update, for a group of examples
       add_to_rows  rows[index[k]] += value[k] vector                                     update, for one example
       dot_rows     out[index[k]] += rows[index[k]] . vector, and, if asked, add_to_rows  backward pass (and update)

   Each costs O(n width) for n rows. `width` is a multiple of LINE; rows lie `stride` floats apart. The vector stays in the
   CPU's registers while the rows pass by, so that a row costs one reading (and one writing). Where it is too long for that
   it is cut in tiles of at most TILE lines. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    LINE = 16,                  /* floats in a cache line */
    MOST = 32,                  /* registers in the largest tile */
    NO_END = 0x7FFFFFFF
};

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
enum { VECS = LINE * sizeof(float) / sizeof(vec) };     /* registers in a line */

/* KEEP(v): v stays in a register, instead of being read once more for each use */
#if defined(__x86_64__)
#define KEEP(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__)
#define KEEP(v) __asm__("" : "+w"(v))
#else
#define KEEP(v)
#endif

#define INLINE static inline __attribute__((always_inline))

/* Does the statement for j = 0, TILE, 2 TILE, ... lines, in floats, below `width`. In it, LINES is how many lines there are
   from j on, at most TILE, as a constant: the compiler makes a copy of the statement for each, and unrolls its loops. */
#define IN_TILES(width, ...) \
    for (ptrdiff_t j = 0; j < (width); j += TILE * LINE) \
        switch (((width) - j) / LINE < TILE ? ((width) - j) / LINE : TILE) { \
            ONE_TILE(8, __VA_ARGS__) \
            ONE_TILE(7, __VA_ARGS__) \
            ONE_TILE(6, __VA_ARGS__) \
            ONE_TILE(5, __VA_ARGS__) \
            ONE_TILE(4, __VA_ARGS__) \
            ONE_TILE(3, __VA_ARGS__) \
            ONE_TILE(2, __VA_ARGS__) \
            ONE_TILE(1, __VA_ARGS__) \
        }
#define ONE_TILE(lines, ...) case lines: { enum { LINES = lines }; __VA_ARGS__; break; }


INLINE float sum_of(vec v) {            /* of its numbers */
    typedef float quad __attribute__((vector_size(16), may_alias));
    const quad *q = (const quad *) &v;
    quad sum = q[0];
    for (unsigned i = 1; i < sizeof(vec) / sizeof(quad); i++)
        sum += q[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}


INLINE ptrdiff_t add_rows_tile(const int lines, const float *rows, ptrdiff_t stride, const int32_t *index,
                               const float *value, ptrdiff_t n, int32_t end, float *vector) {
    vec total[MOST];
    ptrdiff_t k = 0;
    for (int c = 0; c < lines * VECS; c++)
        total[c] = ((const vec *) vector)[c];
    for (; k < n && index[k] < end; k++) {
        const vec *row = (const vec *) (rows + index[k] * stride);
        for (int c = 0; c < lines * VECS; c++)
            total[c] = total[c] + value[k] * row[c];
    }
    for (int c = 0; c < lines * VECS; c++)
        ((vec *) vector)[c] = total[c];
    return k;
}

/* vector[:width] += sum_k value[k] rows[index[k], :width] over k < n as long as index[k] < end; returns how many k. */
static inline ptrdiff_t add_rows(const float *rows, ptrdiff_t stride, ptrdiff_t width, const int32_t *index,
                                 const float *value, ptrdiff_t n, int32_t end, float *vector) {
    ptrdiff_t k = 0;
    IN_TILES(width, k = add_rows_tile(LINES, rows + j, stride, index, value, n, end, vector + j))
    return k;
}


INLINE void add_users_tile(const int lines, const float *rows, ptrdiff_t stride, uint64_t users, const float *value,
                           float *vector) {
    vec total[MOST];
    for (int c = 0; c < lines * VECS; c++)
        total[c] = ((const vec *) vector)[c];
    for (; users; users &= users - 1) {
        int b = __builtin_ctzll(users);
        const vec *row = (const vec *) (rows + b * stride);
        for (int c = 0; c < lines * VECS; c++)
            total[c] = total[c] + value[b] * row[c];
    }
    for (int c = 0; c < lines * VECS; c++)
        ((vec *) vector)[c] = total[c];
}

/* vector[:width] += sum_b value[b] rows[b, :width] over the b whose bit is set in users. */
static inline void add_users(const float *rows, ptrdiff_t stride, ptrdiff_t width, uint64_t users, const float *value,
                             float *vector) {
    IN_TILES(width, add_users_tile(LINES, rows + j, stride, users, value, vector + j))
}


INLINE void add_to_rows_tile(const int lines, float *rows, ptrdiff_t stride, const int32_t *index, const float *value,
                             ptrdiff_t n, const float *vector) {
    vec held[MOST];
    for (int c = 0; c < lines * VECS; c++)
        held[c] = ((const vec *) vector)[c];
    for (ptrdiff_t k = 0; k < n; k++) {
        vec *row = (vec *) (rows + index[k] * stride);
        for (int c = 0; c < lines * VECS; c++)
            row[c] = row[c] + value[k] * held[c];
    }
}

/* rows[index[k], :width] += value[k] vector[:width] for k < n. */
static inline void add_to_rows(float *rows, ptrdiff_t stride, ptrdiff_t width, const int32_t *index, const float *value,
                               ptrdiff_t n, const float *vector) {
    IN_TILES(width, add_to_rows_tile(LINES, rows + j, stride, index, value, n, vector + j))
}


INLINE void dot_rows_tile(const int lines, const int update, float *rows, ptrdiff_t stride, const int32_t *index,
                          const float *value, ptrdiff_t n, const float *vector, float *out) {
    vec held[MOST];
    for (int c = 0; c < lines * VECS; c++)
        held[c] = ((const vec *) vector)[c];
    for (ptrdiff_t k = 0; k < n; k++) {
        vec *row = (vec *) (rows + index[k] * stride);
        vec products = row[0] * held[0];
        if (update)
            row[0] = row[0] + value[k] * held[0];
        for (int c = 1; c < lines * VECS; c++) {
            products = products + row[c] * held[c];
            if (update)
                row[c] = row[c] + value[k] * held[c];
        }
        out[index[k]] += sum_of(products);
    }
}

/* out[index[k]] += rows[index[k], :width] . vector[:width] for k < n; then, with update (a constant), as add_to_rows. */
INLINE void dot_rows(const int update, float *rows, ptrdiff_t stride, ptrdiff_t width, const int32_t *index,
                     const float *value, ptrdiff_t n, const float *vector, float *out) {
    IN_TILES(width, dot_rows_tile(LINES, update, rows + j, stride, index, value, n, vector + j, out))
}


/* For Gram matrices: products[2 i + j] = a[i][:n] . b[j][:n] for i < 4, j < 2; n is a multiple of LINE.  O(n)
   What is read from the cache serves two products or four; each product has a register of its own. */
static inline void four_by_two(const float *const *a, const float *const *b, ptrdiff_t n, float *products) {
    vec total[8], of_b[2];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++)
            total[2 * i + j] = *(const vec *) a[i] * *(const vec *) b[j];
    for (ptrdiff_t v = 1; v < n / LINE * VECS; v++) {
        for (int j = 0; j < 2; j++)
            of_b[j] = ((const vec *) b[j])[v];
        for (int i = 0; i < 4; i++) {
            vec of_a = ((const vec *) a[i])[v];
            KEEP(of_a);
            for (int j = 0; j < 2; j++)
                total[2 * i + j] = total[2 * i + j] + of_a * of_b[j];
        }
    }
    for (int i = 0; i < 8; i++)
        products[i] = sum_of(total[i]);
}


/* ---- The same for one or two whole stretches of memory */

static inline void add_row(float *y, float a, const float *x, ptrdiff_t n) {                    /* y += a x */
    for (ptrdiff_t j = 0; j < n; j++)
        y[j] += a * x[j];
}

static inline void interpolate(float *y, const float *y0, float step, ptrdiff_t n) {            /* y = y0 + (y - y0) step */
    for (ptrdiff_t j = 0; j < n; j++)
        y[j] = y0[j] + (y[j] - y0[j]) * step;
}

/* w -= rate (stiffness w - pull); returns the sum of w (stiffness w - 2 pull) before that. */
static inline float spring(float *w, const float *stiffness, const float *pull, float rate, ptrdiff_t n) {
    float sum = 0;
    for (ptrdiff_t j = 0; j < n; j++) {
        float old = w[j], force = stiffness[j] * old - pull[j];
        sum += old * (force - pull[j]);
        w[j] = old - rate * force;
    }
    return sum;
}
