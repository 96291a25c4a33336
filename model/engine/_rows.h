/* The arithmetic of the kernels, all of it: row operations, on which everything rests, and a few functions. Compiles
   without Python.

   The same bits on every machine. Numbers side by side may be computed in registers of any width, but the order of every
   sum is written down here: over rows, in the order of the list; within a row, in 16 lanes (a line) that one tree of
   additions brings together (sum_of). Multiplications and additions are rounded apart (-ffp-contract=off), and exp and log
   are our own. So results do not depend on TILE, nor on anything else that is chosen for a CPU.

   A row operation does something with the rows that a list names, and a vector of their length:

       add_rows     vector += sum_k value[k] rows[index[k]]                               forward and backward pass
       add_entries  the same for a list of (offset of the row, value)                     update, for a group of examples
       add_to_rows  rows[index[k]] += value[k] vector                                     update, for one example
       dot_rows     out[index[k]] += rows[index[k]] . vector, and, if asked, add_to_rows  backward pass, for one example
       dot_sorted   the same for a group of examples, row by row                          ... where rows are WIDE

   Each costs O(n width) for n rows. `width` is a multiple of LINE; rows lie `stride` floats apart. The vector stays in the
   CPU's registers while the rows pass by, so that a row costs one reading (and one writing). Where it is too long for that
   it is cut in even tiles of at most TILE lines. */

#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

enum {
    LINE = 16,                  /* floats in a cache line */
    MOST = 32,                  /* registers in the largest tile */
    NO_END = 0x7FFFFFFF,
    DOT = 7 * LINE,             /* floats of a row whose products are summed in lanes, before the lanes are summed */
    GROUP = 64,                 /* examples that pass over the rows together */
    BUCKET = GROUP + 8,         /* room for the entries of a row in a group; not a power of 2, for the cache's sake */
    FEW = 4,                    /* fewer than that go one by one */
    WIDE = 8 * LINE,            /* floats of a row, from more of which on transposing a layer costs a step too much */
    CACHED = 32768              /* bytes of rows that a group passes over at a time */
};

typedef struct {                /* a vector: its non-zero entries in order */
    ptrdiff_t n;
    int32_t *index;
    float *value;
} Sparse;

typedef struct {                /* one use of a row */
    int32_t offset;             /* of the row that is multiplied, in floats */
    float value;
} Entry;

typedef struct {                /* inputs of a group of examples by row: count[i] of them are those of row i */
    Entry *entry;               /* of a row after the other, each of which has room for BUCKET of them, unless `packed` */
    int32_t *count;
    int packed;
} ByRow;

/* vec: what a register holds. TILE: lines whose sums all stay in registers; HALF_TILE: and another such tile */
#if defined(__AVX512F__)
typedef float vec __attribute__((vector_size(64), may_alias));
enum { TILE = 8, HALF_TILE = 8 };
#elif defined(__AVX2__)
typedef float vec __attribute__((vector_size(32), may_alias));
enum { TILE = 7, HALF_TILE = 3 };
#elif defined(__aarch64__)
typedef float vec __attribute__((vector_size(16), may_alias));
enum { TILE = 7, HALF_TILE = 3 };
#else
typedef float vec __attribute__((vector_size(16), may_alias));
enum { TILE = 3, HALF_TILE = 1 };
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

typedef float quad __attribute__((vector_size(16), may_alias));

/* square: SQUARE numbers of a row, of which INTERLEAVE_LOW and _HIGH take the first or the last half, and another row's */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (__typeof__((a) < (b))) {__VA_ARGS__})
#endif
#if defined(__AVX__)
typedef float square __attribute__((vector_size(32), may_alias));
#define INTERLEAVE_LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define INTERLEAVE_HIGH(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
typedef quad square;
#define INTERLEAVE_LOW(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define INTERLEAVE_HIGH(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#endif
enum { SQUARE = sizeof(square) / sizeof(float) };

/* ROW(p): p is a row's address, from which its vectors lie at constant distances. Without it GCC keeps an address for each
   of them, which there are not registers for. */
#define ROW(p) __asm__("" : "+r"(p))

/* A loop that is unrolled before all else, so that an array of vec becomes registers. */
#define EACH(i, n) _Pragma("GCC unroll 32") for (int i = 0; i < (n); i++)

#define INLINE static inline __attribute__((always_inline))

/* Does the statement for each tile of `width` floats, the tiles being as even as they can be and TILE lines at most: one of a
   single line would take as long as one of three. In it, j is where the tile starts, and LINES how many lines it has, as a
   constant: the compiler makes a copy of the statement for each, and unrolls its loops. */
#define IN_TILES(width, ...) IN_TILES_OF(even_tile(width, TILE), width, __VA_ARGS__)
#define IN_TILES_OF(tile, width, ...) \
    for (ptrdiff_t j = 0, most_lines = (tile); j < (width); j += most_lines * LINE) \
        switch (((width) - j) / LINE < most_lines ? ((width) - j) / LINE : most_lines) { \
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


INLINE ptrdiff_t even_tile(ptrdiff_t width, ptrdiff_t most) {                               /* lines of the widest tile */
    ptrdiff_t lines = width / LINE, n_tiles = (lines + most - 1) / most;
    return (lines + n_tiles - 1) / n_tiles;
}

/* The sum of a line: lanes i and i + 8, then i and i + 4, i and i + 2, i and i + 1. */
INLINE float sum_of(vec *line) {
    for (int n = VECS / 2; n; n /= 2)
        for (int c = 0; c < n; c++)
            line[c] = line[c] + line[c + n];
    const quad *q = (const quad *) line;
    quad sum = q[0];
    if (sizeof(vec) == 64)
        sum = (q[0] + q[2]) + (q[1] + q[3]);
    if (sizeof(vec) == 32)
        sum = q[0] + q[1];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}


INLINE ptrdiff_t add_rows_tile(const int lines, const float *rows, ptrdiff_t stride, const int32_t *index,
                               const float *value, ptrdiff_t n, int32_t end, float *vector) {
    vec total[MOST];
    ptrdiff_t k = 0;
    EACH(c, lines * VECS)
        total[c] = ((const vec *) vector)[c];
    for (; k < n && index[k] < end; k++) {
        const vec *row = (const vec *) (rows + index[k] * stride);
        ROW(row);
        EACH(c, lines * VECS)
            total[c] = total[c] + value[k] * row[c];
    }
    EACH(c, lines * VECS)
        ((vec *) vector)[c] = total[c];
    return k;
}

/* The same for rows of one line, all of them: four sums side by side, as an addition takes longer than what is added. */
INLINE void add_lines(const float *rows, const int32_t *index, const float *value, ptrdiff_t n, float *vector) {
    vec total[4][VECS] = {0};
    ptrdiff_t k = 0;
    for (; k + 4 <= n; k += 4)
        EACH(i, 4)
            EACH(c, VECS)
                total[i][c] = total[i][c] + value[k + i] * ((const vec *) (rows + index[k + i] * LINE))[c];
    for (; k < n; k++)
        EACH(c, VECS)
            total[0][c] = total[0][c] + value[k] * ((const vec *) (rows + index[k] * LINE))[c];
    EACH(c, VECS)
        ((vec *) vector)[c] += (total[0][c] + total[1][c]) + (total[2][c] + total[3][c]);
}

/* vector[:width] += sum_k value[k] rows[index[k], :width] over k < n as long as index[k] < end; returns how many k. */
static inline ptrdiff_t add_rows(const float *rows, ptrdiff_t stride, ptrdiff_t width, const int32_t *index,
                                 const float *value, ptrdiff_t n, int32_t end, float *vector) {
    ptrdiff_t k = 0;
    IN_TILES(width, k = add_rows_tile(LINES, rows + j, stride, index, value, n, end, vector + j))
    return k;
}


INLINE void add_entries_tile(const int lines, const int fresh, const float *rows, const Entry *entry, ptrdiff_t n, float *vector) {
    vec total[MOST];
    EACH(c, lines * VECS)
        total[c] = fresh ? (vec) {0} : ((const vec *) vector)[c];
    for (ptrdiff_t k = 0; k < n; k++) {
        const vec *row = (const vec *) (rows + entry[k].offset);
        ROW(row);
        EACH(c, lines * VECS)
            total[c] = total[c] + entry[k].value * row[c];
    }
    EACH(c, lines * VECS)
        ((vec *) vector)[c] = total[c];
}


INLINE void add_to_rows_tile(const int lines, float *rows, ptrdiff_t stride, const int32_t *index, const float *value,
                             ptrdiff_t n, const float *vector) {
    vec held[MOST];
    EACH(c, lines * VECS)
        held[c] = ((const vec *) vector)[c];
    for (ptrdiff_t k = 0; k < n; k++) {
        vec *row = (vec *) (rows + index[k] * stride);
        ROW(row);
        EACH(c, lines * VECS)
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
    vec held[MOST], products[VECS];
    EACH(c, lines * VECS)
        held[c] = ((const vec *) vector)[c];
    for (ptrdiff_t k = 0; k < n; k++) {
        vec *row = (vec *) (rows + index[k] * stride);
        ROW(row);
        EACH(c, lines * VECS) {
            products[c % VECS] = c < VECS ? row[c] * held[c] : products[c % VECS] + row[c] * held[c];
            if (update)
                row[c] = row[c] + value[k] * held[c];
        }
        out[index[k]] += sum_of(products);
    }
}

/* out[index[k]] += rows[index[k], :width] . vector[:width] for k < n; then, with update (a constant), as add_to_rows. */
INLINE void dot_rows(const int update, float *rows, ptrdiff_t stride, ptrdiff_t width, const int32_t *index,
                     const float *value, ptrdiff_t n, const float *vector, float *out) {
    IN_TILES_OF(DOT / LINE, width,
                dot_rows_tile(LINES, update, rows + j, stride, index, value, n, vector + j, out))
}


/* ---- Examples in a group, up to GROUP of them, each of which is a vector of inputs x and a row of outputs or gradients */

/* h[:width] = sum_i x[i] rows[i, :width] */
static inline void forward(const float *rows, ptrdiff_t width, const Sparse *x, float *h) {
    memset(h, 0, width * sizeof(float));
    if (width == LINE)
        add_lines(rows, x->index, x->value, x->n, h);
    else
        add_rows(rows, width, width, x->index, x->value, x->n, NO_END, h);
}

INLINE void pass_over_tile(const int lines, const float *rows, ptrdiff_t n_rows, ptrdiff_t stride, const Sparse *x,
                           ptrdiff_t n, float *h, ptrdiff_t width) {
    ptrdiff_t done[GROUP] = {0};        /* entries of each example */
    ptrdiff_t cached = 3 * x->n < n_rows ? CACHED + CACHED / 2 : CACHED;    /* where most rows are not even read */
    ptrdiff_t row = lines * LINE * sizeof(float), parts = (n_rows * row + cached / 2) / cached;
    int32_t step = (int32_t) (parts > 1 ? (n_rows + parts - 1) / parts : n_rows);
    for (int32_t end = step; end < n_rows + step; end += step)
        for (ptrdiff_t b = 0; b < n; b++)
            done[b] += add_rows_tile(lines, rows, stride, x[b].index + done[b], x[b].value + done[b], x[b].n - done[b], end,
                                     h + b * width);
}

/* h[b, :width] = sum_i x_b[i] rows[i, :width] for n examples: all pass over a cacheful of rows, then over the next. */
static inline void pass_over(const float *rows, ptrdiff_t n_rows, ptrdiff_t stride, ptrdiff_t width, const Sparse *x,
                             ptrdiff_t n, float *h) {
    memset(h, 0, n * width * sizeof(float));
    IN_TILES(width, pass_over_tile(LINES, rows + j, n_rows, stride, x, n, h + j, width))
}

/* forward() for n examples, h (n, width). */
static inline void forward_group(const float *rows, ptrdiff_t n_rows, ptrdiff_t width, const Sparse *x, ptrdiff_t n,
                                 float *h) {
    if (n < FEW || width == LINE)
        for (ptrdiff_t b = 0; b < n; b++)
            forward(rows, width, &x[b], h + b * width);
    else
        pass_over(rows, n_rows, width, width, x, n, h);
}

/* ReLU: x = the list of those of n units that are not <= 0 (so NaN passes), and the 1 for the next bias.  O(n)
   h and the lists of x have room for whole lines. */
static inline void active_units(const float *h, ptrdiff_t n, Sparse *x) {
    ptrdiff_t k = 0;
#if defined(__AVX512F__)
    __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (ptrdiff_t j = 0; j < n; j += LINE) {
        __m512 line = _mm512_loadu_ps(h + j);
        __mmask16 exist = (__mmask16) (n - j < LINE ? (1 << (n - j)) - 1 : -1);
        __mmask16 on = _mm512_mask_cmp_ps_mask(exist, line, _mm512_setzero_ps(), _CMP_NLE_UQ);
        _mm512_storeu_si512(x->index + k, _mm512_maskz_compress_epi32(on, number));
        _mm512_storeu_ps(x->value + k, _mm512_maskz_compress_ps(on, line));
        number = _mm512_add_epi32(number, _mm512_set1_epi32(LINE));
        k += __builtin_popcount(on);
    }
#else
    for (ptrdiff_t j = 0; j < n; j++) {
        x->index[k] = (int32_t) j;
        x->value[k] = h[j];
        k += !(h[j] <= 0);
    }
#endif
    x->index[k] = (int32_t) n;
    x->value[k] = 1;
    x->n = k + 1;
}

/* d = the list of sums[i] for the active units i of x. */
static inline void take_active(const Sparse *x, const float *sums, Sparse *d) {
    d->n = x->n - 1;
    d->index = x->index;
    for (ptrdiff_t k = 0; k < d->n; k++)
        d->value[k] = sums[d->index[k]];
}

/* The gradient below a ReLU: h[:width] becomes sums[:width] for the active units, which are those of x, and 0 for the others;
   d the list of them. d has room for whole lines. */
static inline void keep_active(const Sparse *x, const float *sums, float *h, ptrdiff_t width, Sparse *d) {
#if defined(__AVX512F__)
    ptrdiff_t k = 0;
    d->n = x->n - 1;
    d->index = x->index;
    for (ptrdiff_t j = 0; j < width; j += LINE) {
        __mmask16 on = _mm512_cmp_ps_mask(_mm512_loadu_ps(h + j), _mm512_setzero_ps(), _CMP_NLE_UQ);
        __m512 line = _mm512_maskz_loadu_ps(on, sums + j);
        _mm512_storeu_ps(h + j, line);
        _mm512_storeu_ps(d->value + k, _mm512_maskz_compress_ps(on, line));
        k += __builtin_popcount(on);
    }
#else
    take_active(x, sums, d);
    for (ptrdiff_t j = 0; j < width; j++)
        h[j] = h[j] <= 0 ? 0 : sums[j];
#endif
}

/* Transposes a square of SQUARE rows: each pass interleaves one half of them with the other. */
INLINE void transpose_square(square *row) {
    square next[SQUARE];
    EACH(pass, SQUARE == 8 ? 3 : 2) {
        EACH(k, SQUARE / 2) {
            next[2 * k] = INTERLEAVE_LOW(row[k], row[k + SQUARE / 2]);
            next[2 * k + 1] = INTERLEAVE_HIGH(row[k], row[k + SQUARE / 2]);
        }
        EACH(k, SQUARE)
            row[k] = next[k];
    }
}

/* out[j, i] = rows[i, j] for i < n_in, j < n_out, and 0 for the other i < width_out; rows (>= n_in, width). */
static inline void transpose(const float *rows, ptrdiff_t n_in, ptrdiff_t n_out, ptrdiff_t width, float *out,
                             ptrdiff_t width_out) {
    for (ptrdiff_t j = 0; j < n_out; j += SQUARE)
        for (ptrdiff_t i = 0; i < width_out; i += SQUARE) {
            square row[SQUARE];
            EACH(k, SQUARE)
                row[k] = i + k < n_in ? *(const square *) (rows + (i + k) * width + j) : (square) {0};
            transpose_square(row);
            EACH(k, SQUARE)
                if (j + k < n_out)
                    *(square *) (out + (j + k) * width_out + i) = row[k];
        }
}

/* The inputs of n examples by row, there in the order of the examples, with the offset of the example in memory of rows of
   `width` floats. */
static inline void sort_by_row(const Sparse *x, ptrdiff_t n, ptrdiff_t n_rows, ptrdiff_t width, ByRow *to) {
    Entry *entry = to->entry;
    int32_t *count = to->count;
    to->packed = 0;
    memset(count, 0, n_rows * sizeof(int32_t));
    for (ptrdiff_t b = 0; b < n; b++)
        for (ptrdiff_t k = 0; k < x[b].n; k++) {
            int32_t i = x[b].index[k];
            entry[i * BUCKET + count[i]++] = (Entry) {(int32_t) (b * width), x[b].value[k]};
        }
}

/* The same without room between the rows, to be kept. */
static inline void pack_rows(const ByRow *from, ptrdiff_t n_rows, ByRow *to) {
    Entry *at = to->entry;
    to->packed = 1;
    memcpy(to->count, from->count, n_rows * sizeof(int32_t));
    for (ptrdiff_t i = 0; i < n_rows; at += from->count[i++])
        memcpy(at, from->entry + i * BUCKET, from->count[i] * sizeof(Entry));
}

/* target[i, :width] += sum_b x_b[i] delta[b, :width] for all rows i, with x by row; with fresh, a constant, = instead of +=. */
INLINE void add_sorted(const int fresh, const ByRow *x, ptrdiff_t n_rows, ptrdiff_t width, const float *delta, float *target) {
    const int32_t *count = x->count;
    const int packed = x->packed;
    IN_TILES(width, const Entry *entry = x->entry;
                    for (ptrdiff_t i = 0; i < n_rows; i++) {
                        ptrdiff_t n = count[i];
                        if (fresh || n)
                            add_entries_tile(LINES, fresh, delta + j, entry, n, target + i * width + j);
                        entry += packed ? n : BUCKET;
                    })
}

INLINE void dot_sorted_tile(const int lines, const int first, float *row, ptrdiff_t width, const Entry *entry, ptrdiff_t n,
                            const float *delta, vec *products) {
    vec held[MOST], total[MOST];
    EACH(c, lines * VECS)
        held[c] = total[c] = ((const vec *) row)[c];
    for (ptrdiff_t k = 0; k < n; k++) {
        const vec *d = (const vec *) (delta + entry[k].offset * width);
        vec product[VECS];
        ROW(d);
        EACH(c, VECS)
            product[c] = first ? (vec) {0} : products[k * VECS + c];
        EACH(c, lines * VECS) {
            vec v = d[c];
            KEEP(v);
            product[c % VECS] = product[c % VECS] + held[c] * v;
            total[c] = total[c] + entry[k].value * v;
        }
        EACH(c, VECS)
            products[k * VECS + c] = product[c];
    }
    EACH(c, lines * VECS)
        ((vec *) row)[c] = total[c];
}

/* out[b, i] = rows[i, :width] . delta[b, :width] for the rows i < n_in that each example b uses; then, for all rows,
   rows[i, :width] += sum_b x_b[i] delta[b, :width]. x are the inputs by row of GROUP examples at most, with their numbers
   for offsets; delta (n, width), out (n, width_out). */
static inline void dot_sorted(float *rows, ptrdiff_t n_in, ptrdiff_t width, const ByRow *x, const float *delta, float *out,
                              ptrdiff_t width_out) {
    vec products[GROUP * VECS];
    for (ptrdiff_t i = 0; i <= n_in; i++) {
        const Entry *entry = x->entry + i * BUCKET;
        const ptrdiff_t n = x->count[i];
        float *row = rows + i * width;
        if (n)
            IN_TILES_OF(even_tile(width, HALF_TILE), width,
                        if (j == 0) dot_sorted_tile(LINES, 1, row, width, entry, n, delta, products);
                        else dot_sorted_tile(LINES, 0, row + j, width, entry, n, delta + j, products))
        for (ptrdiff_t k = 0; k < n && i < n_in; k++)
            out[entry[k].offset * width_out + i] = sum_of(products + k * VECS);
    }
}


/* a[:n] . b[:n]; n is a multiple of LINE.  O(n) */
static inline float dot(const float *a, const float *b, ptrdiff_t n) {
    vec total[VECS] = {0};
    for (ptrdiff_t v = 0; v < n / LINE * VECS; v += VECS)
        EACH(c, VECS)
            total[c] = total[c] + ((const vec *) a)[v + c] * ((const vec *) b)[v + c];
    return sum_of(total);
}

/* For Gram matrices: products[2 i + j] = a[i][:n] . b[j][:n] for i < 4, j < 2; n is a multiple of LINE.  O(n)
   What is read from the cache serves two products or four; each product has a register of its own. */
static inline void four_by_two(const float *const *a, const float *const *b, ptrdiff_t n, float *products) {
    vec total[8][VECS] = {0};
    EACH(c, VECS)      /* one after another: there are not registers for all of a line */
        for (ptrdiff_t v = c; v < n / LINE * VECS; v += VECS) {
            vec of_b[2];
            EACH(j, 2)
                of_b[j] = ((const vec *) b[j])[v];
            EACH(i, 4) {
                vec of_a = ((const vec *) a[i])[v];
                KEEP(of_a);
                EACH(j, 2)
                    total[2 * i + j][c] = total[2 * i + j][c] + of_a * of_b[j];
            }
        }
    EACH(i, 8)
        products[i] = sum_of(total[i]);
}


/* ---- The same for one or two whole stretches of memory */

static inline void add_row(float *y, float a, const float *x, ptrdiff_t n) {                    /* y += a x */
    for (ptrdiff_t j = 0; j < n; j++)
        y[j] += a * x[j];
}

static inline void add_product(float *y, const float *a, const float *b, ptrdiff_t n) {         /* y += a b */
    for (ptrdiff_t j = 0; j < n; j++)
        y[j] += a[j] * b[j];
}

static inline void scale(float *y, float a, const float *x, ptrdiff_t n) {                      /* y = a x */
    for (ptrdiff_t j = 0; j < n; j++)
        y[j] = a * x[j];
}

static inline void interpolate(float *y, const float *y0, float step, ptrdiff_t n) {            /* y = y0 + (y - y0) step */
    for (ptrdiff_t j = 0; j < n; j++)
        y[j] = y0[j] + (y[j] - y0[j]) * step;
}

/* w -= rate (stiffness w - pull), for n of them, a multiple of LINE; the sum of w (stiffness w - 2 pull) before that. */
static inline float spring(float *w, const float *stiffness, const float *pull, float rate, ptrdiff_t n) {
    vec sum[VECS] = {0};
    for (ptrdiff_t v = 0; v < n / LINE * VECS; v += VECS)
        EACH(c, VECS) {
            vec p = ((const vec *) pull)[v + c], old = ((vec *) w)[v + c], force = ((const vec *) stiffness)[v + c] * old - p;
            sum[c] = sum[c] + old * (force - p);
            ((vec *) w)[v + c] = old - rate * force;
        }
    return sum_of(sum);
}


/* ---- Rates of their own for all weights; a rate that is negative counts as 0, and NaN passes */

#define RATE(rate) ((rate) <= 0 ? 0 : (rate))

/* For the rows of a list, with the gradient g = value[k] delta[:width]: v += u g, path += g, w -= rate g. */
static inline void follow_rates(float *restrict w, const float *restrict rate, float *restrict path,
                                const float *restrict u, float *restrict v, ptrdiff_t width, const int32_t *index,
                                const float *value, ptrdiff_t n, const float *restrict delta) {
    for (ptrdiff_t k = 0; k < n; k++) {
        ptrdiff_t start = index[k] * width;
        float x = value[k];
        for (ptrdiff_t j = 0; j < width; j++) {
            float g = x * delta[j];
            v[start + j] += u[start + j] * g;
            path[start + j] += g;
            w[start + j] -= RATE(rate[start + j]) * g;
        }
    }
}

/* v = v - path u, or 0 where the rate counts as 0; path = 0; n numbers. */
static inline void turn_to_rates(float *restrict v, float *restrict path, const float *restrict u,
                                 const float *restrict rate, ptrdiff_t n) {
    for (ptrdiff_t j = 0; j < n; j++) {
        v[j] = rate[j] <= 0 ? 0 : v[j] - path[j] * u[j];
        path[j] = 0;
    }
}

static inline void add_at_rates(float *restrict y, float a, const float *restrict rate, const float *restrict x,
                                ptrdiff_t n) {                                              /* y += a rate x */
    for (ptrdiff_t j = 0; j < n; j++)
        y[j] += a * (RATE(rate[j]) * x[j]);
}


/* ---- Functions */

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(x));
    return bits;
}

INLINE float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* e^x, to one unit in the last place; 0 below -104, infinite above 88.72, NaN of NaN. (polynomials: Moshier, Cephes) */
INLINE float exp_of(float x) {
    x = x < -104 ? -104 : x > 89 ? 89 : x;
    float shifted = x * 1.44269504f + 12582912;                         /* the last bit of 1.5 2^23 is worth 1 */
    float n = shifted - 12582912;                                       /* x = n log 2 + r, |r| <= log(2) / 2 */
    float r = (x - n * .693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    uint32_t i = bits_of(shifted) - bits_of(12582912);                  /* n; in two halves, as 2^n may be no float */
    uint32_t half = (i >> 1) | (i & 0x80000000);
    return (1 + (r + r * r * p)) * of_bits((half + 127) << 23) * of_bits((i - half + 127) << 23);
}

/* log x for x >= 1, to one unit in the last place; NaN of NaN. (polynomials: Moshier, Cephes) */
INLINE float log_of(float x) {
    uint32_t i = (bits_of(x) - bits_of(.70710678f)) >> 23;              /* x = 2^i (1 + f), .707 <= 1 + f < 1.414 */
    float f = of_bits(bits_of(x) - (i << 23)) - 1, n = (float) (int32_t) i, p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    float y = f * (f * f) * p - n * 2.12194440e-4f;
    return x <= 3.402823466e38f ? (f + (y - .5f * (f * f))) + n * .693359375f : x;
}

/* Returns -log softmax(z)[y], z being n numbers; puts scale * its gradient, softmax(z) - onehot(y), in their place, and 0
   in that of the padding up to width.  O(n) */
static inline double cross_entropy(float *z, ptrdiff_t n, ptrdiff_t width, int64_t y, float scale) {
    float largest = z[0], sum = 0;
    for (ptrdiff_t j = 1; j < n; j++)
        if (!(z[j] <= largest))
            largest = z[j];
    float loss = largest - z[y];
    for (ptrdiff_t j = 0; j < width; j++)
        z[j] = exp_of(z[j] - largest);
    for (ptrdiff_t j = 0; j < n; j++)
        sum += z[j];
    float factor = scale / sum;
    for (ptrdiff_t j = 0; j < n; j++)
        z[j] *= factor;
    z[y] -= scale;
    memset(z + n, 0, (width - n) * sizeof(float));
    return (double) loss + log_of(sum);
}

/* The mean of (z - target)^2 over z[0..n), and in its place its gradient times scale; padding becomes 0. */
static inline double squared_error(float *z, ptrdiff_t n, ptrdiff_t width, const float *target, float scale) {
    float sum = 0, factor = 2 * scale / n;
    for (ptrdiff_t j = 0; j < n; j++) {
        z[j] -= target[j];
        sum += z[j] * z[j];
        z[j] *= factor;
    }
    memset(z + n, 0, (width - n) * sizeof(float));
    return (double) sum / n;
}
