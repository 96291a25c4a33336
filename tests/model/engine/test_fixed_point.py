"""Evaluation in fixed point: the float kernel's answer for every image, and a bound that holds.

f are the float kernel's outputs, s those of fixed point; N images, P pixels, H hidden units, C outputs.
"""

import platform

import numpy as np
import pytest

from model.engine import _compiled

VARIANTS = list(_compiled.runnable())
N = 600  # fixed point begins at 512 images
FIXED_POINT = platform.machine().lower() in ("x86_64", "amd64")  # elsewhere all is computed in float
U = 2.0**-24


@pytest.fixture(params=VARIANTS)
def kernels(request):
    """The compiled module of a variant."""
    return _compiled.load(request.param)


def strokes(rng, n=N, n_pixels=100):
    """Images of bytes (n, n_pixels), a fifth of them set in a few stretches, with a pair of pixels that never is."""
    images = np.zeros((n, n_pixels), np.uint8)
    for image in images:
        for start in rng.integers(0, n_pixels, max(1, n_pixels // 20)):
            image[start : start + 4] = rng.integers(1, 256, len(image[start : start + 4]))
    images[3], images[4] = 0, 255
    if n_pixels > 4:
        images[:, n_pixels // 4 * 2 :][:, :2] = 0
    return images


def random_net(rng, sizes):
    """[(W (H, D), b (H,)), ...] as a fresh network has them."""
    return [
        tuple(rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(n_in**0.5) for shape in ((n_out, n_in), n_out))
        for n_in, n_out in zip(sizes, sizes[1:], strict=False)
    ]


def mlp(kernels, layers, lr=0.1):
    return kernels.MLP(layers[:1], layers[1:], lr)


def as_inputs(images):
    return images.astype(np.float32) / np.float32(255)


def check(kernels, net, images, pixel_map=None):
    """That every image has the float kernel's answer; returns how many were left to that kernel."""
    compiled = kernels.TestImages(images)
    x = as_inputs(images) if images.dtype == np.uint8 else images
    if pixel_map is None:
        answers = net.predict(x, 0).argmax(1)
    else:  # rows of a map are added up before the images see them, in an order that predict() doesn't have
        one_by_one = [
            [compiled.correct(net, 0, pixel_map, np.full(len(x), c), i, i + 1) for c in range(net.n_outputs)]
            for i in range(len(x))
        ]
        answers = np.argmax(one_by_one, axis=1)
        assert (np.sum(one_by_one, axis=1) == 1).all()
    found, left = compiled.count(net, 0, pixel_map, answers, 0, len(x), True)
    assert compiled.count(net, 0, pixel_map, answers, 0, len(x), False) == (len(x), len(x))
    assert found == len(x), f"{len(x) - found} of {len(x)} images were answered otherwise"
    return left


# hits


SIZES = [(100, 10), (100, 37, 3), (101, 100, 100, 10), (99, 130, 5, 17, 2), (30, 250, 10), (1, 4, 2), (2, 1, 1)]


@pytest.mark.parametrize("sizes", SIZES)
def test_hits_are_the_float_kernels_while_a_net_learns_and_diverges(kernels, sizes):
    rng = np.random.default_rng(sum(sizes))
    images = strokes(rng, n_pixels=sizes[0])
    pixel_map = rng.integers(-1, sizes[0], sizes[0]).astype(np.int32)  # repeats some, drops some
    net = mlp(kernels, random_net(rng, sizes), 0.05)
    examples = kernels.Examples(N, sizes[0])
    labels = mlp(kernels, random_net(rng, sizes)).predict(as_inputs(images), 0).argmax(1)
    examples.put_many(0, as_inputs(images), 0, labels.tolist())
    left = []
    for rate in (0, 1, 1, 1, -3000, -3000):  # a net is trained, then driven away
        net.sgd_each(examples, list(range(N)), [rate] * N)
        left += [check(kernels, net, images), check(kernels, net, images, pixel_map)]
    if FIXED_POINT:
        assert min(left) < N / 4, "next to nothing was computed in fixed point, so nothing was tested"


@pytest.mark.parametrize("sizes", [(100, 10), (100, 100, 100, 10)])
@pytest.mark.parametrize("apart", [0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
def test_outputs_that_nearly_tie(kernels, sizes, apart):
    """All outputs are one, but for a little that fixed point need not see."""
    rng = np.random.default_rng(7)
    images = strokes(rng)
    layers = random_net(rng, sizes)
    for values in layers[-1]:
        values[:] = values[:1] * (1 + apart * rng.uniform(-1, 1, values.shape))
    left = check(kernels, mlp(kernels, layers), images)
    if apart <= 1e-6:
        assert left >= N * 0.95
    s = in_fixed_point(images, layers)[0].argmax(1)
    f = mlp(kernels, layers).predict(as_inputs(images), 0).argmax(1)
    if apart in (1e-7, 1e-6):
        assert (s != f).sum() > N / 50, "fixed point alone would do as well, so nothing was tested"


@pytest.mark.parametrize("n_pixels", [600, 1000, 8192])
def test_sums_as_large_as_they_can_be(kernels, n_pixels):
    """Weights of one size, pixels of 255: a sum of fixed point reaches the limit of its 32 bits, of either sign."""
    rng = np.random.default_rng(n_pixels)
    images = np.where(rng.random((N, n_pixels)) < np.linspace(0, 1, N)[:, None], 255, 0).astype(np.uint8)
    images[-5:] = 255
    layers = random_net(rng, (n_pixels, 20, 4))
    layers[0][0][:10], layers[0][0][10:] = 1, -1
    left = check(kernels, mlp(kernels, layers), images)
    if FIXED_POINT:
        assert left < N / 4


def with_value(layers, where, value):
    level, part, index = where
    layers[level][part][index] = value
    return layers


PLACES = [(0, 0, (3, 7)), (0, 1, 2), (1, 0, (2, 5)), (2, 0, (1, 9)), (2, 1, 0)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -1e30])
@pytest.mark.parametrize("where", PLACES)
def test_what_is_not_finite_or_could_overflow_is_left_to_the_float_kernel(kernels, where, value):
    rng = np.random.default_rng(3)
    layers = with_value(random_net(rng, (100, 30, 30, 5)), where, value)
    assert check(kernels, mlp(kernels, layers), strokes(rng)) == N


@pytest.mark.parametrize("size", [0, 1e-40, 1e-20])
def test_small_weights_above_do_not_hide_sums_that_overflow(kernels, size):
    rng = np.random.default_rng(4)
    layers = random_net(rng, (100, 30, 5))
    layers[0][0][:] *= np.float32(1e20)
    layers[1][0][:] *= np.float32(size)
    assert check(kernels, mlp(kernels, layers), strokes(rng)) == N


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-25, 1e-12])
def test_weights_that_are_tiny(kernels, size):
    rng = np.random.default_rng(5)
    for level in range(3):
        layers = random_net(rng, (100, 30, 30, 5))
        layers[level][0][:] *= np.float32(size)
        check(kernels, mlp(kernels, layers), strokes(rng))


def test_images_that_cannot_are_left_to_the_float_kernel(kernels):
    rng = np.random.default_rng(6)
    images, net = strokes(rng), mlp(kernels, random_net(rng, (100, 30, 5)))
    assert check(kernels, net, as_inputs(images)) == N  # numbers instead of bytes
    assert check(kernels, net, 0 * images) == N  # no pixel in any of them
    assert check(kernels, net, images[:500]) == 500
    wide = strokes(rng, n_pixels=8194)
    assert check(kernels, mlp(kernels, random_net(rng, (8194, 3, 2))), wide) == N


def test_where_fixed_point_pays(kernels):
    """Many images for a net that is not too wide, as what is prepared serves all images of a task, or all tasks."""
    rng = np.random.default_rng(9)
    images, labels = strokes(rng, 2500, 60), np.zeros(2500, int)
    compiled = kernels.TestImages(images)
    for sizes, start, stop, pays in [
        ((60, 100, 100, 5), 0, 2500, True),
        ((60, 100, 100, 5), 0, 1000, False),
        ((60, 130, 130, 5), 0, 2500, False),
        ((60, 300, 5), 0, 600, True),
        ((60, 300, 5), 0, 500, False),
        ((60, 5), 0, 600, True),
    ]:
        left = compiled.count(mlp(kernels, random_net(rng, sizes)), 0, None, labels, start, stop)[1]
        assert (left < stop - start) == (pays and FIXED_POINT)


def test_parts_add_up(kernels):
    rng = np.random.default_rng(8)
    images, net = strokes(rng, 2000), mlp(kernels, random_net(rng, (100, 30, 5)))
    labels, compiled = rng.integers(5, size=2000), kernels.TestImages(images)
    for start, stop in [(0, 600), (1, 30), (5, 5), (255, 1999), (256, 1024), (1300, 2000), (31, 1301)]:
        whole = compiled.correct(net, 0, None, labels, start, stop, True)
        assert whole == compiled.correct(net, 0, None, labels, start, stop, False)


# the bound


def g(n):
    return n * U / (1 - n * U)


def in_fixed_point(images, layers):
    """(s (N, C), bound of ||f - s|| (N,)) in float64, as the proof in _fixed_point.h has them."""
    x = images / 255
    q = np.iinfo(np.int32).max // max(images.sum(1, dtype=int).max(), 65538)
    n = np.count_nonzero(images, axis=1).max()
    (W, b), *above = [(W.T.astype(np.float64), b.astype(np.float64)) for W, b in layers]
    scale = np.abs(W[images.any(0)]).max(0) / q
    Q = np.round(W / scale) * scale
    s = x @ Q + b
    norms = g(n + 7) * np.linalg.norm(W, axis=1) + (1 + g(4)) * np.linalg.norm(Q - W, axis=1)
    bound = x @ norms + g(n + 7) * np.linalg.norm(b)
    for W, b in above:
        a, r = np.maximum(s, 0), g(len(W) + 2)
        gram = np.linalg.matrix_power(W.T @ W if W.shape[0] > W.shape[1] else W @ W.T, 4)
        largest = np.linalg.norm(gram) ** (1 / 8)
        assert largest >= np.linalg.norm(W, 2) * (1 - 1e-12)
        bound = (largest + r * np.linalg.norm(W)) * bound
        bound += 2 * r * (a @ np.linalg.norm(W, axis=1) + np.linalg.norm(b))
        s = a @ W + b
    return s, bound


BOUND_SIZES = [(100, 2), (100, 30, 2), (101, 100, 100, 2), (784, 100, 100, 2), (50, 40, 30, 20, 2)]


@pytest.mark.parametrize("sizes", BOUND_SIZES)
def test_the_bound_holds(kernels, sizes):
    """In float64, on nets of all sizes of weights; the bound of the kernels is that one, and not much larger."""
    rng = np.random.default_rng(sum(sizes))
    for size in (0.01, 1, 20):
        images = strokes(rng, n_pixels=sizes[0])
        layers = [(np.float32(size) * W, b) for W, b in random_net(rng, sizes)]
        s, bound = in_fixed_point(images, layers)
        f = mlp(kernels, layers).predict(as_inputs(images), 0)
        assert (np.linalg.norm(f - s, axis=1) <= bound).all()
        if not FIXED_POINT:
            continue
        # Two outputs of the same weights are apart by their biases alone: those images are certain whose bound is less.
        W, b = layers[-1]
        W[1], b[0] = W[0], 0
        compiled = kernels.TestImages(images)
        for lead in np.quantile(in_fixed_point(images, [*layers[:-1], (W, b * 0)])[1], [0, 0.1, 0.5, 0.9, 1]):
            b[1] = 2 * lead
            bound = 2**0.5 * in_fixed_point(images, layers)[1]
            s = in_fixed_point(images, layers)[0]
            leads = s[:, 1] - s[:, 0]
            _, left = compiled.count(mlp(kernels, layers), 0, None, np.zeros(N, int), 0, N, True)
            rounding = 4 * U * np.abs(s).max() + 1e-12
            assert (leads <= bound - rounding).sum() <= left <= (leads <= 1.05 * bound + rounding).sum()
