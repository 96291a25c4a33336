/* Prints a hash of the bits of what each function of _rows.h computes, and of a net that all of them train. */

#include <stdio.h>
#include <stdlib.h>
#include "_rows.h"

enum { N_IN = 150, HIDDEN = 112, N_HIDDEN = 99, OUT = 16, N_OUT = 10, N = 21, MANY = 4096 };

static uint64_t state = 1;

static float uniform(void) {                    /* in [-1, 1), the same everywhere: 24 bits of a linear congruence */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float) (int32_t) (state >> 40) * 0x1p-23f - 1;
}

static void fill(float *x, ptrdiff_t n, float size) {
    for (ptrdiff_t i = 0; i < n; i++)
        x[i] = uniform() * size;
}

static void print(const char *name, const void *x, size_t n_bytes) {
    uint64_t hash = 14695981039346656037u;      /* FNV-1a */
    for (size_t i = 0; i < n_bytes; i++)
        hash = (hash ^ ((const unsigned char *) x)[i]) * 1099511628211u;
    printf("%s %016llx\n", name, (unsigned long long) hash);
}
#define PRINT(x) print(#x, x, sizeof(x))

#define ROOM __attribute__((aligned(64)))
static float W1[(N_IN + 1) * HIDDEN] ROOM, W2[(N_HIDDEN + 1) * OUT] ROOM, turned[N_OUT * HIDDEN] ROOM;
static float h1[N * HIDDEN] ROOM, h2[N * OUT] ROOM, delta[N * HIDDEN] ROOM;
static float inputs[N][N_IN + 1], active[N][HIDDEN + 1], above[N][HIDDEN];
static int32_t of_inputs[N][N_IN + 1], of_active[N][HIDDEN + 1], of_above[N][OUT];
static Entry entries[(N_IN + 1) * BUCKET], kept_entries[N * (N_IN + 1)];
static int32_t counts[N_IN + 1], kept_counts[N_IN + 1];
static float a[MANY] ROOM, b[MANY] ROOM, c[MANY] ROOM, d[MANY] ROOM, products[8], sums[4];

/* A step on n examples together, or one by one; returns the mean loss. */
static double step(const Sparse *x, const int64_t *y, ptrdiff_t n, float rate) {
    Sparse z[N], e[N];
    ByRow sorted = {entries, counts, 0}, kept = {kept_entries, kept_counts, 0};
    double loss = 0;
    forward_group(W1, N_IN + 1, HIDDEN, x, n, h1);
    for (ptrdiff_t i = 0; i < n; i++) {
        z[i] = (Sparse) {0, of_active[i], active[i]};
        active_units(h1 + i * HIDDEN, N_HIDDEN, &z[i]);
    }
    forward_group(W2, N_HIDDEN + 1, OUT, z, n, h2);
    transpose(W2, N_HIDDEN, N_OUT, OUT, turned, HIDDEN);
    for (ptrdiff_t i = 0; i < n; i++) {
        loss += cross_entropy(h2 + i * OUT, N_OUT, OUT, y[i], 1.f / n) / n;
        for (int j = 0; j < N_OUT; j++) {
            of_above[i][j] = j;
            above[i][j] = h2[i * OUT + j];
        }
        e[i] = (Sparse) {N_OUT, of_above[i], above[i]};
        forward(turned, HIDDEN, &e[i], delta + i * HIDDEN);
        if (n == 1) {                           /* as for one example: the sums of rows, while they are updated */
            memset(delta, 0, HIDDEN * sizeof(float));
            for (ptrdiff_t k = 0; k < z[i].n; k++)
                active[i][k] *= -rate;
            dot_rows(1, W2, OUT, OUT, z[i].index, z[i].value, z[i].n, h2, delta);
        }
        keep_active(&z[i], delta + i * HIDDEN, h1 + i * HIDDEN, HIDDEN, &(Sparse) {0, of_above[i], above[i]});
    }
    for (ptrdiff_t i = 0; i < n * HIDDEN; i++)
        h1[i] *= -rate;
    for (ptrdiff_t i = 0; i < n * OUT; i++)
        h2[i] *= -rate;
    if (n == 1) {
        add_to_rows(W1, HIDDEN, HIDDEN, x[0].index, x[0].value, x[0].n, h1);
        return loss;
    }
    sort_by_row(x, n, N_IN + 1, HIDDEN, &sorted);
    pack_rows(&sorted, N_IN + 1, &kept);
    add_sorted(0, &kept, N_IN + 1, HIDDEN, h1, W1);
    sort_by_row(z, n, N_HIDDEN + 1, OUT, &sorted);
    add_sorted(0, &sorted, N_HIDDEN + 1, OUT, h2, W2);
    return loss;
}

static void train(void) {
    Sparse x[N];
    int64_t y[N];
    double losses[60];
    for (int i = 0; i <= N_IN; i++)             /* padding stays 0 */
        fill(W1 + i * HIDDEN, N_HIDDEN, .1f);
    for (int i = 0; i <= N_HIDDEN; i++)
        fill(W2 + i * OUT, N_OUT, .1f);
    for (int t = 0; t < 60; t++) {
        for (int i = 0; i < N; i++) {
            x[i] = (Sparse) {0, of_inputs[i], inputs[i]};
            y[i] = (i + t) % N_OUT;
            for (int p = 0; p <= N_IN; p++) {
                float value = p == N_IN ? 1 : (p % N_OUT == y[i]) + .5f * uniform();
                if (value > .2f) {
                    of_inputs[i][x[i].n] = p;
                    inputs[i][x[i].n++] = value;
                }
            }
        }
        losses[t] = step(x, y, t % 3 ? N : t % 2 ? 3 : 1, .4f);
    }
    PRINT(W1);
    PRINT(W2);
    PRINT(losses);
    printf("learned %d\n", losses[58] < .5 * losses[1] && losses[1] < 3);
}

static void functions(void) {
    for (int i = 0; i < MANY; i++) {
        a[i] = exp_of(uniform() * 110);
        b[i] = log_of(1 + a[i]);
        c[i] = log_of(1.f + (i + 1) * .37f);
    }
    PRINT(a);
    PRINT(b);
    PRINT(c);
    a[0] = exp_of(0.f / (b[0] - b[0])), a[1] = exp_of(1e30f), a[2] = exp_of(-1e30f), a[3] = log_of(1e38f * 1e38f);
    printf("special %d %d %d %d\n", a[0] != a[0], a[1] > 3e38f, a[2] == 0, a[3] != a[3] || a[3] > 3e38f);
}

static void stretches(void) {
    fill(a, MANY, 1), fill(b, MANY, 1), fill(c, MANY, 1), fill(d, MANY, 1);
    const float *rows[4] = {a, b, c, d};
    four_by_two(rows, rows + 1, MANY, products);
    PRINT(products);
    sums[0] = dot(a, b, MANY), sums[1] = dot(a, a, LINE), sums[2] = spring(a, b, c, .01f, MANY);
    sums[3] = (float) squared_error(d, N_OUT, OUT, c, .3f);
    PRINT(sums);
    add_row(a, .3f, b, MANY), add_product(b, c, a, MANY), scale(c, 1.7f, a, MANY), interpolate(d, a, .1f, MANY);
    turn_to_rates(a, b, c, d, MANY);
    add_at_rates(b, .2f, d, c, MANY);
    int32_t list[3] = {5, 0, 31};
    follow_rates(a, d, b, c, a + MANY / 2, 64, list, products, 3, c);
    PRINT(a);
    PRINT(b);
    PRINT(c);
    PRINT(d);
}

/* A group's way down through a layer of WIDE rows, each of which some examples use and some do not. */
static void wide(void) {
    enum { WIDTH = 9 * LINE, BELOW = 2 * LINE, ROWS = 20, TOGETHER = 7 };
    Sparse x[TOGETHER];
    ByRow sorted = {entries, counts, 0};
    fill(a, MANY, 1), fill(b, MANY, 1), fill(c, MANY, 1);
    for (int e = 0; e < TOGETHER; e++) {
        x[e] = (Sparse) {0, of_active[e], active[e]};
        for (int i = 0; i <= ROWS; i++)
            if (i == ROWS || (i * 5 + e) % 3) {
                of_active[e][x[e].n] = i;
                active[e][x[e].n++] = i == ROWS ? 1 : uniform();
            }
    }
    sort_by_row(x, TOGETHER, ROWS + 1, 1, &sorted);
    dot_sorted(a, ROWS, WIDTH, &sorted, b, c, BELOW);
    PRINT(a);
    PRINT(c);
}

int main(void) {
    train();
    wide();
    functions();
    stretches();
    return 0;
}
