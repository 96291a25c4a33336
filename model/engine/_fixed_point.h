/* Evaluation of images of bytes in fixed point, with a proof, image by image, that the float kernel would say the same.

   The first layer, which takes most of the time, multiplies bytes by weights that are rounded to 16 bits: twice as many
   numbers in a register, half as many rows (a row is a pair of pixels), and sums of integers, which are exact. The layers
   above are computed in float with an image in each lane. Their outputs differ a little from those of the float kernel
   (forward_group), which defines the answer. If the largest output leads by more than they can differ, it is the largest
   of the float kernel, too: the image is *certain*. The others (of a trained net less than 1 %) are left to that kernel.

   How much they can differ. u = 2^-24 is the unit of rounding, g(n) = n u / (1 - n u) bounds what n roundings do to a
   product, norms are Euclidean. At any layer, let f be the float kernel's sums h for an image, and s those computed here.

     First layer, weights W with rows W_p, inputs x_p = byte / 255 >= 0, Q = W + E the rounded weights:
       f:  x_p is rounded, each product, and no more than n + 1 additions, for n non-zero pixels:
           |f - (W^T x + b)| <= g(n + 3) (sum_p x_p |W_p| + |b|),        |W_p| elementwise; so is |b|
       s:  the sum of integers is exact; it is made a float, multiplied by a rounded scale, and b is added:
           |s - (W^T x + b)| <= |E^T x| + g(4) (sum_p x_p (|W_p| + |E_p|) + |b|)
       With the triangle inequality for vectors of non-negative numbers,
           ||f - s|| <= sum_p x_p (g(n + 7) ||W_p|| + (1 + g(4)) ||E_p||) + g(n + 7) ||b||                           (1)
     Further layers, rows W_k, inputs a and a' (ReLU of the sums below: it does not increase a distance, so that
     ||a - a'|| <= d, the bound below). Both kernels round each product and no more than n + 1 additions, for n inputs:
           ||f - s|| <= ||W|| d + g(n + 2) (sum_k (a_k + a'_k) ||W_k|| + 2 ||b||),        ||W||: the largest singular value
       and by Cauchy-Schwarz sum_k |a_k - a'_k| ||W_k|| <= d ||W||_F, so that
           ||f - s|| <= (||W|| + g(n + 2) ||W||_F) d + 2 g(n + 2) (sum_k a'_k ||W_k|| + ||b||)                       (2)
     The difference of two outputs differs by no more than sqrt(2) ||f - s|| of the last layer.

   (1) and (2) are linear in what is at hand: x, a' and d. So *the bound is computed by the net itself*: each layer has one
   more unit, whose weights are the factors in (1) or (2), rounded up, and whose input from below is all of a' and d. It
   costs next to nothing, as there is room for it in the padding. SLACK covers the rounding of these units themselves and
   of what they are made from; TINY covers underflow. Nets that could overflow, or are not finite, are not prepared. */

#pragma once
#include <math.h>
#include "_rows.h"

typedef int32_t ivec __attribute__((vector_size(sizeof(vec)), may_alias));

/* pair_products(a, b): for each 32 bits of a and b, two numbers of 16 bits, the sum of their products */
#if defined(__AVX512BW__)
#include <immintrin.h>
#define pair_products(a, b) ((ivec) _mm512_madd_epi16((__m512i) (a), (__m512i) (b)))
#elif defined(__AVX2__)
#include <immintrin.h>
#define pair_products(a, b) ((ivec) _mm256_madd_epi16((__m256i) (a), (__m256i) (b)))
#elif defined(__SSE2__)
#include <immintrin.h>
#define pair_products(a, b) ((ivec) _mm_madd_epi16((__m128i) (a), (__m128i) (b)))
#else       /* slower than the float kernel */
#define pair_products(a, b) (((a) << 16 >> 16) * ((b) << 16 >> 16) + ((a) >> 16) * ((b) >> 16))
#endif
#if defined(__SSE2__)
enum { FIXED_POINT_PAYS = 1 };
#else
enum { FIXED_POINT_PAYS = 0 };
#endif

enum {
    LANES = sizeof(vec) / sizeof(float),
    IMAGES = 2 * LANES,         /* that pass the upper layers together, in two registers */
    TOGETHER = 256,             /* images that pass the first layer together */
    PAIRS = 116,                /* rows of a block: what images read of them stays in the L1 cache while they pass */
#if defined(__AVX512F__)
    TILE_VECS = 7,              /* registers of sums in the first layer */
    UNITS = 12                  /* of an upper layer, whose sums are in registers */
#else
    TILE_VECS = 13,
    UNITS = 6
#endif
};
#define SLACK (1 + 0x1p-8)      /* more than g(LARGEST + 5), and as much again */
#define TINY 0x1p-56f           /* more than underflow can lose: LARGEST times 2^-126, its root, or HUGE_SUM times that */
#define HUGE_SUM 0x1p40         /* larger sums are left to the float kernel */
enum { LARGEST = 1 << 13 };     /* pixels or units that a layer may have */

typedef struct {                /* images as lists of their pairs of pixels that are not both 0 */
    ptrdiff_t n_pixels;
    ptrdiff_t n_rows;           /* pairs that are not 0 in all images; a row is one of them */
    const int32_t *first_pixel; /* (n_rows,) of the pair, whose other pixel is the next one */
    ptrdiff_t n_blocks;         /* of PAIRS rows */
    const int32_t *begin;       /* where the list of image i of group g begins, block b of it: [(g n_blocks + b) TOGETHER + i] */
    const uint16_t *row;        /* in its block */
    const int32_t *bytes;       /* the two bytes as numbers of 16 bits */
    ptrdiff_t most_pixels;      /* non-zero ones of an image, at most */
    ptrdiff_t most_light;       /* sum of an image's bytes, at most */
} PairImages;

typedef struct {                /* a layer that is ready; unit number n_out bounds the error, and then there is padding */
    ptrdiff_t n_in, n_out;
    float *weights;             /* upper: ((n_out + 1) / UNITS, 1 + n_in + 1, UNITS): the bias, the units below, their error */
} Upper;

typedef struct {
    ptrdiff_t n_out, vecs, width, n_tiles;      /* a tile is a stretch of `width` units, vecs registers; all have n_out + 1 */
    int32_t *weights;           /* (n_tiles, n_rows, width): two numbers of 16 bits */
    float *scale, *bias;        /* (n_tiles width) */
} First;

static inline ptrdiff_t rounded_up(ptrdiff_t n, ptrdiff_t step) { return (n + step - 1) / step * step; }

static inline double g(double n) { return n * 0x1p-24 / (1 - n * 0x1p-24); }


/* ---- Preparation */

/* No less than the largest singular value of rows (n_in, n_out), all finite: ||(W W^T)^4||_F^(1/8), or that of W^T W.
   O(n^2 (n + m)), n <= m being the numbers of rows and columns. room: 2 n^2 doubles. */
static double largest_singular(const float *rows, ptrdiff_t n_in, ptrdiff_t n_out, ptrdiff_t width, double *room) {
    ptrdiff_t n = n_in < n_out ? n_in : n_out, m = n_in + n_out - n, along = n_in < n_out ? width : 1, across = width + 1 - along;
    double *a = room, *b = room + n * n, largest = 0, sum = 0;
    for (ptrdiff_t i = 0; i < n_in; i++)
        for (ptrdiff_t j = 0; j < n_out; j++)
            largest = fmax(largest, fabs(rows[i * width + j]));
    if (largest == 0)
        return 0;
    memset(a, 0, n * n * sizeof(double));
    for (ptrdiff_t k = 0; k < m; k++)
        for (ptrdiff_t i = 0; i < n; i++) {
            double factor = rows[i * along + k * across] / largest;
            for (ptrdiff_t j = 0; j < n; j++)
                a[i * n + j] += factor * (rows[j * along + k * across] / largest);
        }
    for (int twice = 0; twice < 2; twice++) {
        memset(b, 0, n * n * sizeof(double));
        for (ptrdiff_t i = 0; i < n; i++)
            for (ptrdiff_t k = 0; k < n; k++)
                for (ptrdiff_t j = 0; j < n; j++)
                    b[i * n + j] += a[i * n + k] * a[k * n + j];
        double *other = a;
        a = b, b = other;
    }
    for (ptrdiff_t i = 0; i < n * n; i++)
        sum += a[i] * a[i];
    return (1 + 0x1p-20) * largest * pow(sum, 1. / 16);
}

/* Where a first layer of n_out units has its tiles. */
static inline First shape_of_first(ptrdiff_t n_out) {
    ptrdiff_t vecs = rounded_up(n_out + 1, LANES) / LANES, n_tiles = rounded_up(vecs, TILE_VECS) / TILE_VECS;
    vecs = rounded_up(vecs, n_tiles) / n_tiles;
    return (First) {n_out, vecs, vecs * LANES, n_tiles, NULL, NULL, NULL};
}

/* Rounds the weights rows (n_pixels + 1, width), the last of which is the bias, and finds the error's bound (1).
   `most` is raised to the largest sum that an image can have; it is not finite if a weight is not. room: 4 width + n_pixels
   + 1 floats.  O(n_rows n_out) */
static void prepare_first(const PairImages *x, const float *rows, ptrdiff_t width, const First *to, float *room, double *most) {
    ptrdiff_t n_out = to->n_out, n_all = to->n_tiles * to->width;
    float *largest = room, *spoilt = room + width, *inverse = room + 2 * width, *E = room + 3 * width, *bound = room + 4 * width;
    const float *bias = rows + x->n_pixels * width;
    int q = (int) (INT32_MAX / (x->most_light > 65538 ? x->most_light : 65538));    /* so that no sum overflows; <= 32767 */
    double weight = 0, bias_norm = 0, largest_bias = 0, not_finite = 0, of_rounding = g(x->most_pixels + 12);   /* 5 more: for E's own */
    memset(room, 0, (4 * width + x->n_pixels + 1) * sizeof(float));
    for (ptrdiff_t r = 0; r < 2 * x->n_rows; r++) {
        ptrdiff_t p = x->first_pixel[r / 2] + r % 2;
        for (ptrdiff_t j = 0; p < x->n_pixels && j < n_out; j++) {
            float size = fabsf(rows[p * width + j]);
            largest[j] = size > largest[j] ? size : largest[j];
            spoilt[j] += 0 * size;          /* NaN, if that is not finite */
        }
    }
    for (ptrdiff_t j = 0; j < n_out; j++) {
        weight = fmax(weight, largest[j]);
        bias_norm += (double) bias[j] * bias[j];
        largest_bias = fmax(largest_bias, fabsf(bias[j]));
        not_finite += spoilt[j] + 0 * bias[j];
        int usable = largest[j] > 0x1p-60f && largest[j] < 0x1p60f;
        to->scale[j] = usable ? largest[j] / q : 0;
        inverse[j] = usable ? q / largest[j] : 0;
        to->bias[j] = bias[j];
    }
    *most = x->most_light / 255. * weight + largest_bias + not_finite;
    if (!(*most < HUGE_SUM))
        return;
    memset(to->weights, 0, n_all * x->n_rows * sizeof(int32_t));
    for (ptrdiff_t r = 0; r < 2 * x->n_rows; r++) {
        ptrdiff_t p = x->first_pixel[r / 2] + r % 2;
        const float *row = rows + p * width;
        if (p == x->n_pixels)
            continue;
        for (ptrdiff_t j0 = 0; j0 < n_out; j0 += to->width) {
            int32_t *into = to->weights + j0 * x->n_rows + r / 2 * to->width;
            ptrdiff_t n = n_out - j0 < to->width ? n_out - j0 : to->width;
            for (ptrdiff_t j = 0; j < n; j++) {
                float value = row[j0 + j] * inverse[j0 + j];
                int32_t rounded = (int32_t) (value + (value < 0 ? -.5f : .5f));
                E[j0 + j] = rounded * to->scale[j0 + j] - row[j0 + j];
                into[j] |= r % 2 ? (int32_t) ((uint32_t) rounded << 16) : rounded & 0xffff;
            }
        }
        bound[p] = (float) (SLACK * (of_rounding * sqrt(dot(row, row, width)) + (1 + g(4)) * sqrt(dot(E, E, width)))) + TINY;
        bound[x->n_pixels] = fmaxf(bound[x->n_pixels], bound[p]);
        not_finite += 0 * bound[p];     /* the padding may be anything */
    }
    *most += not_finite;
    if (!(*most < HUGE_SUM))
        return;
    for (ptrdiff_t j = 0; j < n_out; j++)
        to->scale[j] /= 255;
    ptrdiff_t j = n_out / to->width * to->width * x->n_rows + n_out % to->width;   /* the bound's unit, in the row of a pair */
    float step = bound[x->n_pixels] / q * (float) SLACK;
    for (ptrdiff_t r = 0; r < x->n_rows; r++) {
        ptrdiff_t p = x->first_pixel[r];
        int32_t low = (int32_t) ceilf(bound[p] / step), high = p + 1 < x->n_pixels ? (int32_t) ceilf(bound[p + 1] / step) : 0;
        to->weights[j + r * to->width] = low | high << 16;
    }
    to->scale[n_out] = step / 255 * (float) SLACK;
    to->bias[n_out] = (float) (SLACK * of_rounding * sqrt(bias_norm)) + TINY;
}

/* The same for a layer above, of weights rows (n_in + 1, width), and (2). norm >= ||W||. */
static void prepare_upper(const float *rows, ptrdiff_t width, double norm, const Upper *to, double *most) {
    ptrdiff_t n_in = to->n_in, n_out = to->n_out;
    double frobenius = 0, weight = 0, bias = 0, of_rounding = 2 * g(n_in + 2);
    memset(to->weights, 0, rounded_up(n_out + 1, UNITS) * (n_in + 2) * sizeof(float));
    for (ptrdiff_t i = 0; i <= n_in; i++) {
        double square = 0;
        ptrdiff_t at = i < n_in ? i + 1 : 0;                                            /* the bias comes first */
        for (ptrdiff_t j = 0; j < n_out; j++) {
            float w = rows[i * width + j];
            to->weights[(j / UNITS * (n_in + 2) + at) * UNITS + j % UNITS] = w;
            square += (double) w * w;
        }
        *(i < n_in ? &weight : &bias) += sqrt(square);
        frobenius += i < n_in ? square : 0;
        to->weights[(n_out / UNITS * (n_in + 2) + at) * UNITS + n_out % UNITS] =
            (float) (SLACK * of_rounding * sqrt(square)) + (i < n_in ? 0 : TINY);
    }
    to->weights[(n_out / UNITS * (n_in + 2) + n_in + 1) * UNITS + n_out % UNITS] =
        (float) (SLACK * (norm + of_rounding * sqrt(frobenius)));
    *most = *most * weight + bias;
}


/* ---- The first layer */

INLINE void add_pairs(const int vecs, const PairImages *x, const int32_t *rows, const int32_t *begin, int first, ivec *sums) {
    ivec sum[TILE_VECS];
    EACH(c, vecs)
        sum[c] = first ? (ivec) {0} : sums[c];
    for (ptrdiff_t k = begin[0]; k < begin[1]; k++) {
        const ivec *row = (const ivec *) (rows + x->row[k] * (ptrdiff_t) (vecs * LANES));
        ivec two = (ivec) {0} + x->bytes[k];
        ROW(row);
        EACH(c, vecs)
            sum[c] = sum[c] + pair_products(two, row[c]);
    }
    EACH(c, vecs)
        sums[c] = sum[c];
}

INLINE void add_all_pairs(const int vecs, const PairImages *x, ptrdiff_t group, ptrdiff_t first, ptrdiff_t stop,
                          const int32_t *weights, int32_t *sums) {
    for (ptrdiff_t b = 0; b < x->n_blocks; b++)
        for (ptrdiff_t i = first; i < stop; i++)
            add_pairs(vecs, x, weights + b * PAIRS * vecs * LANES, x->begin + (group * x->n_blocks + b) * TOGETHER + i, b == 0,
                      (ivec *) (sums + i * vecs * LANES));
}

/* sums (n_tiles, TOGETHER, width) of images first..stop - 1 of a group. */
static void first_layer(const PairImages *x, const First *layer, ptrdiff_t group, ptrdiff_t first, ptrdiff_t stop,
                        int32_t *sums) {
    for (ptrdiff_t t = 0; t < layer->n_tiles; t++) {
        const int32_t *weights = layer->weights + t * x->n_rows * layer->width;
        int32_t *to = sums + t * TOGETHER * layer->width;
#define VECS_ARE(n) case n: if (n <= TILE_VECS) add_all_pairs(n, x, group, first, stop, weights, to); break;
        switch (layer->vecs) {
            VECS_ARE(1) VECS_ARE(2) VECS_ARE(3) VECS_ARE(4) VECS_ARE(5) VECS_ARE(6) VECS_ARE(7)
            VECS_ARE(8) VECS_ARE(9) VECS_ARE(10) VECS_ARE(11) VECS_ARE(12) VECS_ARE(13)
        }
    }
}


/* ---- The layers above; h (units, IMAGES) */

static inline vec relu(vec h) { return (vec) ((ivec) h & (h > 0)); }     /* of numbers that are finite */

/* The sums of IMAGES images as floats, by unit; and ReLU of them, unless they are the outputs. */
static void to_lanes(const First *layer, int is_last, const int32_t *sums, ptrdiff_t image, float *h) {
    for (ptrdiff_t t = 0; t < layer->n_tiles; t++)
        transpose((const float *) (sums + (t * TOGETHER + image) * layer->width), IMAGES, layer->width, layer->width,
                  h + t * layer->width * IMAGES, IMAGES);
    for (ptrdiff_t j = 0; j <= layer->n_out; j++)
        for (int v = 0; v < 2; v++) {
            vec *at = (vec *) (h + j * IMAGES) + v;
            vec sum = __builtin_convertvector(*(ivec *) at, vec) * layer->scale[j] + layer->bias[j];
            *at = is_last ? sum : relu(sum);
        }
}

/* a *w. In AVX-512 a broadcast that is part of the multiplication is free (Zen 4); on its own it takes as long as that. */
INLINE vec times(vec a, const float *w) {
#if defined(__AVX512F__)
    vec product;
    __asm__("vmulps %2%{1to16%}, %1, %0" : "=v"(product) : "v"(a), "m"(*w));
    return product;
#else
    return *w * a;
#endif
}

static void upper_layer(const Upper *layer, int is_last, const float *below, float *h) {
    for (ptrdiff_t j = 0; j <= layer->n_out; j += UNITS) {
        const float *w = layer->weights + j * (layer->n_in + 2);
        vec sum[UNITS][2];
        EACH(i, UNITS)
            sum[i][0] = sum[i][1] = (vec) {0} + w[i];
        for (ptrdiff_t k = 0; k <= layer->n_in; k++) {
            vec a = ((const vec *) below)[2 * k], b = ((const vec *) below)[2 * k + 1];
            w += UNITS;
            EACH(i, UNITS) {
                sum[i][0] = sum[i][0] + times(a, w + i);
                sum[i][1] = sum[i][1] + times(b, w + i);
            }
        }
        EACH(i, UNITS) {
            ((vec *) h)[2 * (j + i)] = sum[i][0];
            ((vec *) h)[2 * (j + i) + 1] = sum[i][1];
        }
    }
    for (ptrdiff_t v = 0; v < 2 * (layer->n_out + 1) && !is_last; v++)
        ((vec *) h)[v] = relu(((vec *) h)[v]);
}

/* For each image its largest output, or -1 if that is not certain. */
static void certain_best(const float *h, ptrdiff_t n_out, int32_t *best) {
    for (int v = 0; v < 2; v++) {
        const vec *z = (const vec *) h + v;
        vec first = z[0], second = (vec) {0} - INFINITY;
        ivec at = {0};
        for (ptrdiff_t j = 1; j < n_out; j++) {
            ivec larger = z[2 * j] > first, next = z[2 * j] > second;
            second = (vec) ((larger & (ivec) first) | (~larger & ((next & (ivec) z[2 * j]) | (~next & (ivec) second))));
            first = (vec) ((larger & (ivec) z[2 * j]) | (~larger & (ivec) first));
            at = (larger & (int32_t) j) | (~larger & at);
        }
        ivec certain = first - second > z[2 * n_out] * (float) (SLACK * 1.41421357);
        ((ivec *) best)[v] = (certain & at) | ~certain;
    }
}


/* ---- All of it */

/* How many of images start..stop - 1 have their label's output as the largest, among those that are certain. The others'
   numbers go to `uncertain`, *n_uncertain of them. room: sums (n_tiles, TOGETHER, width), and two of
   (most units + UNITS or width, IMAGES) floats. */
static ptrdiff_t certain_hits(const PairImages *x, const First *first, const Upper *upper, ptrdiff_t n_upper,
                              const int64_t *labels, ptrdiff_t start, ptrdiff_t stop, int32_t *sums, float *h, float *other,
                              int32_t *uncertain, ptrdiff_t *n_uncertain) {
    ptrdiff_t hits = 0;
    *n_uncertain = 0;
    while (start < stop) {
        ptrdiff_t group = start / TOGETHER, begin = start % TOGETHER;
        ptrdiff_t end = stop - group * TOGETHER < TOGETHER ? stop - group * TOGETHER : TOGETHER;
        first_layer(x, first, group, begin, end, sums);
        for (ptrdiff_t image = begin / IMAGES * IMAGES; image < end; image += IMAGES) {
            int32_t best[IMAGES] __attribute__((aligned(64)));
            const float *outputs = h;
            to_lanes(first, n_upper == 0, sums, image, h);
            for (ptrdiff_t l = 0; l < n_upper; l++) {
                float *to = l % 2 ? h : other;
                upper_layer(&upper[l], l == n_upper - 1, outputs, to);
                outputs = to;
            }
            certain_best(outputs, n_upper ? upper[n_upper - 1].n_out : first->n_out, best);
            for (ptrdiff_t i = begin > image ? begin - image : 0; i < IMAGES && image + i < end; i++) {
                int64_t n = group * TOGETHER + image + i;
                if (best[i] < 0)
                    uncertain[(*n_uncertain)++] = (int32_t) n;
                else
                    hits += best[i] == labels[n];
            }
        }
        start = group * TOGETHER + end;
    }
    return hits;
}
