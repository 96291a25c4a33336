"""The compiled kernels, in every variant that runs here, against PyTorch autograd and literal loops in float64.

B examples of a batch, D inputs, H hidden units, C outputs, P pixels
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.engine import _compiled, _draws

VARIANTS = list(_compiled.runnable())
WIDTHS = [1, 5, 37, 100, 130]
BATCHES = [1, 2, 3, 4, 5, 26, 63, 64, 65, 70, 128, 131]  # kernels take up to 64 at once, and fewer than 4 one by one
CASES = range(len(BATCHES))
TOLERANCE = 1e-5
STEEP = 32  # a learning rate at which an update is much larger than the rounding of the weights


@pytest.fixture(params=VARIANTS)
def kernels(request):
    """The compiled module of a variant."""
    return _compiled.load(request.param)


def distance(found, wanted):
    """Relative to the norm of what is wanted."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    return np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30)


def same(found, wanted):
    """Whether two (heads, layers) are the same bits."""
    pairs, others = [*found[0], *found[1]], [*wanted[0], *wanted[1]]
    return len(pairs) == len(others) and all(
        np.array_equal(a, b)
        for pair, other in zip(pairs, others, strict=True)
        for a, b in zip(pair, other, strict=True)
    )


def all_finite(net):
    """Whether every weight is."""
    return bool(np.isfinite(flat(net.weights())).all())


def flat(weights):
    """All of (heads, layers) in torch's order, heads first."""
    return np.concatenate([value.ravel() for pair in (*weights[0], *weights[1]) for value in pair])


class Twin:
    """The same net in float64 with autograd, and everything that is done to it literally."""

    def __init__(self, weights, lr):
        self.n_heads, self.lr, self.anchors, self.frames = len(weights[0]), lr, [], []
        self.parameters = [
            torch.tensor(np.asarray(value, np.float64), requires_grad=True)
            for pair in (*weights[0], *weights[1])
            for value in pair
        ]

    def outputs(self, x, t):
        """x (B, D), t (B,) -> (B, C)"""
        pairs = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        t = torch.as_tensor(t) if self.n_heads > 1 else torch.zeros(len(x), dtype=torch.long)
        W, b = (torch.stack(values) for values in zip(*pairs[: self.n_heads], strict=True))
        h = torch.einsum("bd,bhd->bh", torch.as_tensor(np.asarray(x, np.float64)), W[t]) + b[t]
        for W, b in pairs[self.n_heads :]:
            h = F.linear(h.relu(), W, b)
        return h

    def loss(self, x, t, y, weights):
        losses = F.cross_entropy(self.outputs(x, t), torch.as_tensor(y), reduction="none")
        return (losses * torch.as_tensor(np.asarray(weights, np.float64))).sum()

    def penalty(self):
        theta = torch.cat([p.flatten() for p in self.parameters])
        return sum(strength * (Fisher * (theta - star) ** 2).sum() for strength, Fisher, star in self.anchors)

    def gradient(self, loss):
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)  # a head that no example has
        return torch.cat(
            [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for g, p in zip(gradients, self.parameters, strict=True)
            ]
        ).numpy()

    def step(self, *batch):
        """One SGD step; returns the loss before it."""
        loss = self.loss(*batch) + self.penalty()
        self.descend(self.gradient(loss))
        return loss.item()

    def each(self, x, t, y, weights):
        return sum(self.step(x[b : b + 1], t[b : b + 1], y[b : b + 1], weights[b : b + 1]) for b in range(len(y)))

    def descend(self, gradient):
        self.set(self.flat() - self.lr * gradient)

    def anchor(self, importance, strength):
        self.anchors.append((strength, torch.as_tensor(importance.astype(np.float64)), torch.as_tensor(self.flat())))

    def begin_reptile(self):
        self.frames.append(self.flat())

    def end_reptile(self, step):
        start = self.frames.pop()
        self.set(start + (self.flat() - start) * step)

    def flat(self):
        return torch.cat([p.detach().flatten() for p in self.parameters]).numpy().copy()

    def set(self, values):
        at = 0
        for p in self.parameters:
            p.data = torch.from_numpy(values[at : at + p.numel()].reshape(p.shape).copy())
            at += p.numel()


def random_weights(rng, sizes, n_heads=1):
    """(heads, layers) for sizes = [D, H, ..., C]; a single unit is made such that it is on now and then"""

    def pair(n_in, n_out):
        W = rng.uniform(-1, 1, (n_out, n_in)) * np.sqrt(6 / (n_in + n_out))
        b = rng.normal(0, 0.3, n_out)
        if n_out == 1:
            W, b = np.abs(W), np.abs(b)
        return W.astype(np.float32), b.astype(np.float32)

    shapes = list(zip(sizes, sizes[1:], strict=False))
    return [pair(*shapes[0]) for _ in range(n_heads)], [pair(*shape) for shape in shapes[1:]]


class Setting:
    """A net of random shape with random examples, and its twin."""

    def __init__(self, kernels, case, lr=0.1, n_inputs=None):
        self.rng = rng = np.random.default_rng(1000 + case)
        depth, self.n_heads, n_examples = case % 4, [1, 1, 3][case % 3], 40
        hidden = [WIDTHS[(case + 2 * level) % len(WIDTHS)] for level in range(depth)]
        self.D, self.C = n_inputs or [61, 16, 7, 1, 90][case % 5], [10, 17, 2, 5][(case // 2) % 4]
        self.sizes = [self.D, *hidden, self.C]
        self.weights = random_weights(rng, self.sizes, self.n_heads)
        self.x = rng.normal(0.2, 1, (n_examples, self.D)).astype(np.float32)  # dense, of both signs
        if case % 2:
            self.x *= rng.random(self.x.shape) < 0.2
        self.x[[3, 17]] = 0
        self.t = rng.integers(self.n_heads, size=n_examples) if self.n_heads > 1 else np.full(n_examples, 9)
        self.y = rng.integers(self.C, size=n_examples)
        self.lr, self.kernels = lr, kernels
        self.examples = kernels.Examples(n_examples, self.D, self.C)
        self.logits = rng.normal(0, 2, (n_examples, self.C)).astype(np.float32)
        for slot in range(n_examples):
            self.examples.put(slot, self.x[slot], self.t[slot], self.y[slot])
        self.examples.store_logits(range(n_examples), self.logits)
        self.net, self.twin = kernels.MLP(*self.weights, lr), Twin(self.weights, lr)

    def batch(self, n):
        """n slots, some of them more than once, with an all-zero image among them"""
        slots = self.rng.integers(len(self.y), size=n)
        if n > 1:
            slots[n // 2], slots[-1] = 3, slots[0]
        return slots.tolist()

    def of(self, slots, weights=None):
        """What the twin takes for these slots."""
        return self.x[slots], self.t[slots], self.y[slots], np.ones(len(slots)) if weights is None else weights

    def flat(self):
        return flat(self.net.weights())


# gradients and steps


def test_all_variants_of_this_cpu_are_built(monkeypatch):
    assert VARIANTS == _draws.kernels_of_cpu()
    for name in VARIANTS:
        monkeypatch.setenv("MER_KERNELS", name)
        assert _compiled._choose() == name
    monkeypatch.setenv("MER_KERNELS", "sse9")
    with pytest.raises(ImportError, match="sse9"):
        _compiled._choose()
    monkeypatch.delenv("MER_KERNELS")
    assert _compiled._choose() == VARIANTS[0]


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_autograds(kernels, case):
    s = Setting(kernels, case)
    for n in (BATCHES[case], 1, 70):  # twice on the same net: nothing is left over from the batch before
        slots = s.batch(n)
        loss = s.twin.loss(*s.of(slots, np.full(n, 1 / n)))
        found = s.net.flat(s.net.gradient(s.examples, slots))
        assert found.dtype == np.float32
        assert distance(found, s.twin.gradient(loss)) <= TOLERANCE
        assert s.net.loss == pytest.approx(loss.item(), rel=TOLERANCE)
    assert same(s.net.weights(), s.weights)


@pytest.mark.parametrize("case", CASES)
def test_sgd_batch_is_one_step_on_the_weighted_sum(kernels, case):
    for weighted in (False, True):
        s = Setting(kernels, case, lr=STEEP)
        n = BATCHES[case]
        slots, weights = s.batch(n), s.rng.uniform(0.01, 0.1, n)
        weights[n // 3] *= 1 if n < 3 else 0
        before = s.flat().astype(np.float64)
        loss = s.twin.loss(*s.of(slots, weights if weighted else None))
        s.net.sgd_batch(s.examples, slots, weights.tolist() if weighted else None)
        update = (before - s.flat()) / STEEP
        assert distance(update, s.twin.gradient(loss)) <= TOLERANCE
        assert s.net.loss == pytest.approx(loss.item(), rel=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_sgd_each_is_a_step_on_every_example_in_turn(kernels, case):
    for weighted in (False, True):
        s = Setting(kernels, case)
        n = BATCHES[case]
        slots, weights = s.batch(n), s.rng.uniform(0.1, 1.5, n)
        loss = s.twin.each(*s.of(slots, weights if weighted else None))
        s.net.sgd_each(s.examples, slots, weights if weighted else None)
        start = flat(s.weights)
        assert distance(s.flat(), s.twin.flat()) <= TOLERANCE
        assert distance(s.flat() - start, s.twin.flat() - start) <= 10 * TOLERANCE
        assert s.net.loss == pytest.approx(loss, rel=TOLERANCE)


@pytest.mark.parametrize("case", range(4))
def test_every_number_of_examples(kernels, case):
    """1..70 of them in one step, which ends with every possible rest of a group."""
    s = Setting(kernels, case, lr=STEEP)
    for n in range(1, 71):
        s.net.set_weights(*s.weights)
        slots = s.batch(n)
        wanted = s.twin.gradient(s.twin.loss(*s.of(slots, np.full(n, 1 / n))))
        assert distance(s.net.flat(s.net.gradient(s.examples, slots)), wanted) <= TOLERANCE, n
        s.net.sgd_batch(s.examples, slots, [1 / n] * n)
        assert distance((flat(s.weights).astype(np.float64) - s.flat()) / STEEP, wanted) <= TOLERANCE, n


@pytest.mark.skipif(len(VARIANTS) < 2, reason="one variant runs here")
@pytest.mark.parametrize("sizes", [(61, 130, 20), (30, 400, 257, 10), (20, 5, 300, 12, 5)])
def test_wide_layers_have_the_same_bits_in_every_variant(sizes):
    """Steps of groups, in a Reptile block and outside: rows of one register or many, by whichever way they go down."""
    found = []
    for name in VARIANTS:
        kernels, rng = _compiled.load(name), np.random.default_rng(5)
        weights, x = random_weights(rng, sizes), rng.normal(0.2, 1, (70, sizes[0])).astype(np.float32)
        net, examples = kernels.MLP(*weights, 0.1), kernels.Examples(70, sizes[0])
        examples.put_many(0, x, 0, rng.integers(sizes[-1], size=70).tolist())
        for n in (4, 11, 64, 70):
            net.begin_reptile()
            net.sgd_batch(examples, rng.integers(70, size=n).tolist(), [1 / n] * n)
            net.end_reptile(0.3)
            net.sgd_batch(examples, rng.integers(70, size=n).tolist(), [1 / n] * n)
        found.append(net.weights())
    assert all_finite(net) and not same(found[0], weights)
    assert all(same(other, found[0]) for other in found)


def test_an_empty_batch(kernels):
    s = Setting(kernels, 2)
    s.net.sgd_batch(s.examples, [])
    s.net.sgd_each(s.examples, [])
    assert same(s.net.weights(), s.weights) and s.net.loss == 0
    with pytest.raises(ValueError):
        s.net.gradient(s.examples, [])
    with pytest.raises(ValueError):
        s.net.task_gradients(s.examples, [[1], []])


def test_hidden_units_of_exactly_zero_have_no_gradient(kernels):
    """torch's convention for ReLU at 0; an all-zero image and zero biases lead there."""
    rng = np.random.default_rng(1)
    heads, layers = random_weights(rng, [9, 37, 21, 4])
    weights = [[(W, 0 * b) for W, b in heads], [(W, 0 * b) for W, b in layers]]
    net, twin, examples = kernels.MLP(*weights, 0.5), Twin(weights, 0.5), kernels.Examples(1, 9)
    examples.put(0, np.zeros(9, np.float32), 0, 2)
    wanted = twin.gradient(twin.loss(np.zeros((1, 9)), [0], [2], [1]))
    assert distance(net.flat(net.gradient(examples, [0] * 5)), wanted) <= TOLERANCE
    assert np.count_nonzero(wanted) == 4
    net.sgd_each(examples, [0])
    assert distance(flat(weights) - flat(net.weights()), 0.5 * wanted) <= TOLERANCE


def test_large_outputs_do_not_overflow(kernels):
    weights = [(1000 * np.eye(3, 2, dtype=np.float32), np.zeros(3, np.float32))], []
    net, twin, examples = kernels.MLP(*weights, 0.5), Twin(weights, 0.5), kernels.Examples(2, 2)
    x, y = np.array([[1, 0], [1, 0.5]], np.float32), [2, 0]
    examples.put_many(0, x, 0, y)
    loss = twin.loss(x, [0, 0], y, [0.5, 0.5])
    assert distance(net.flat(net.gradient(examples, [0, 1])), twin.gradient(loss)) <= TOLERANCE
    assert net.loss == pytest.approx(500) == loss.item()


@pytest.mark.parametrize("name", ["exp", "log"])
def test_functions_are_right_to_one_unit_in_the_last_place(kernels, name):
    """Over all that they are for, with all the exponents there are."""
    rng = np.random.default_rng(12)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = rng.uniform(-104, 89, 100_000).astype(np.float32)
    x = np.concatenate(
        [bits, near, np.float32([0, -0.0, 1, np.inf, -np.inf, np.nan, 88.72283, 88.7229, -103.97, -104])]
    )
    if name == "log":
        x = np.concatenate([np.abs(x)[np.abs(x) >= 1], rng.uniform(1, 50, 100_000).astype(np.float32), np.float32([1])])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wanted = getattr(np, name)(x.astype(np.float64))
        found, nearest = getattr(kernels, name)(x), wanted.astype(np.float32)
    usual = np.isfinite(nearest)
    np.testing.assert_array_equal(found[~usual], nearest[~usual])
    unit = np.spacing(np.abs(nearest[usual]))
    assert np.all(np.abs(found[usual] - wanted[usual]) <= unit)


def test_vectors(kernels):
    """They are in torch's order after `flat`, and elementwise operations leave them vectors."""
    for case in CASES:
        s = Setting(kernels, case)
        values = s.rng.normal(size=s.net.n_parameters).astype(np.float32)
        vector = s.net.vector(values)
        assert np.array_equal(s.net.flat(vector), values) and np.array_equal(s.net.flat(vector**2), values**2)
        assert (vector**2).sum() == pytest.approx((values**2).sum(), rel=1e-5)
        start = s.flat()
        s.net.descend(vector)
        assert np.array_equal(s.flat(), start - np.float32(s.lr) * values)


# sums of terms


def terms_of(s, n):
    """Terms (slots, weight, squared, classes, keeps_logits) of all kinds, about n examples each."""
    kept = s.batch(n)
    several = s.batch(max(1, n // 2))
    present = np.unique([*s.y[several], *s.rng.integers(s.C, size=2)]).tolist()
    return [
        (kept, 0.7, False, None, True),
        (several, 1.3, False, present, False),
        (s.batch(n), 0.4, True, None, False),
        (s.batch(1), 0.0, True, None, False),
        (s.batch(2), 2.0, False, None, False),
    ]


def literal_term(s, slots, weight, squared, classes, keeps_logits):
    x, t, y, _ = s.of(slots)
    z = s.twin.outputs(x, t)
    if squared:
        return weight * ((z - torch.as_tensor(s.logits[slots].astype(np.float64))) ** 2).mean()
    columns = list(range(s.C)) if classes is None else classes
    return weight * F.cross_entropy(z[:, columns], torch.tensor([columns.index(label) for label in y]))


@pytest.mark.parametrize("case", CASES)
def test_sgd_sum_is_one_step_on_the_sum_of_the_terms(kernels, case):
    for part in (slice(None), slice(0, 1), slice(1, 2), slice(2, 3), slice(2, 4), slice(3, None)):
        s = Setting(kernels, case, lr=STEEP)
        terms = terms_of(s, BATCHES[case])[part]
        before = s.flat().astype(np.float64)
        loss = sum(literal_term(s, *term) for term in terms)
        wanted, kept = s.twin.gradient(loss), terms[0][0] if terms[0][4] else []
        outputs = s.net.outputs(s.examples, kept)
        s.net.sgd_sum(s.examples, terms)
        assert distance((before - s.flat()) / STEEP, wanted) <= TOLERANCE
        assert s.net.loss == pytest.approx(loss.item(), rel=TOLERANCE, abs=1e-9)
        s.logits[kept] = outputs
        assert np.array_equal(s.examples.get_logits(range(len(s.y))), s.logits)  # and no other is changed


def test_sgd_sum_of_one_plain_term_is_sgd_batch(kernels):
    for case in CASES:
        s, other = Setting(kernels, case), Setting(kernels, case)
        slots = s.batch(BATCHES[case])
        s.net.sgd_sum(s.examples, [(slots, 1.0, False, None, False)])
        other.net.sgd_batch(other.examples, slots, [1 / len(slots)] * len(slots))
        assert same(s.net.weights(), other.net.weights()) and s.net.loss == other.net.loss
        s.net.sgd_sum(s.examples, terms_of(s, 5))  # leaves nothing behind
        s.net.set_weights(*other.net.weights())
        s.net.sgd_each(s.examples, slots)
        other.net.sgd_each(other.examples, slots)
        assert same(s.net.weights(), other.net.weights())


@pytest.mark.parametrize("case", CASES)
def test_losses_and_outputs_of_a_batch(kernels, case):
    s = Setting(kernels, case)
    for n in (BATCHES[case], 1):
        slots = s.batch(n)
        x, t, y, _ = s.of(slots)
        wanted = s.twin.outputs(x, t)
        outputs, losses = s.net.outputs(s.examples, slots), s.net.losses(s.examples, slots)
        assert outputs.dtype == losses.dtype == np.float32
        assert distance(outputs, wanted.detach()) <= TOLERANCE
        assert distance(losses, F.cross_entropy(wanted, torch.as_tensor(y), reduction="none").detach()) <= TOLERANCE
    assert same(s.net.weights(), s.weights)
    assert s.net.losses(s.examples, []).shape == (0,) and s.net.outputs(s.examples, []).shape == (0, s.C)


def test_terms_that_make_no_sense_are_refused_and_change_nothing(kernels):
    s = Setting(kernels, 1)
    wrong = 1 - s.y[0] if s.y[0] < 2 else 0
    bare = kernels.Examples(2, s.D)
    bare.put(0, s.x[0], s.t[0], s.y[0])
    for examples, term in [
        (s.examples, ([0], 1.0, False, [int(wrong)], False)),
        (s.examples, ([0], 1.0, False, [], False)),
        (s.examples, ([400], 1.0, True, None, False)),
        (bare, ([0], 1.0, True, None, False)),
        (bare, ([0], 1.0, False, None, True)),
    ]:
        with pytest.raises((ValueError, IndexError)):
            s.net.sgd_sum(examples, [([0], 1.0, False, None, False), term])
    for classes in ([s.C], [-1 - s.C]):
        with pytest.raises(IndexError):
            s.net.sgd_sum(s.examples, [([0], 1.0, False, classes, False)])
    for logits in (np.zeros((2, s.C), np.float32), np.zeros((1, s.C + 1), np.float32)):
        with pytest.raises(ValueError):
            s.examples.store_logits([0], logits)
    with pytest.raises(IndexError):
        bare.get_logits([1])
    assert same(s.net.weights(), s.weights)
    assert np.array_equal(s.examples.get_logits(range(len(s.y))), s.logits)


def test_logits_belong_to_their_example(kernels):
    examples, logits = kernels.Examples(2, 4, 3), np.arange(6, dtype=np.float32).reshape(2, 3)
    examples.put_many(0, np.ones((2, 4), np.float32), 0, [0, 1])
    assert not examples.get_logits([0, 1]).any()
    examples.store_logits([1, 0], logits)
    examples.grow(500)
    assert np.array_equal(examples.get_logits([1, 0, 1]), logits[[0, 1, 0]])
    examples.copy(1, 400)
    examples.put(1, np.ones(4, np.float32), 0, 0)  # another example, of which nothing is known
    assert np.array_equal(examples.get_logits([400, 1]), [logits[0], [0, 0, 0]])


# Reptile


@pytest.mark.parametrize("seed", range(8))
def test_reptile_is_a_copy_and_an_interpolation(kernels, seed):
    """Anything that changes weights, in frames up to three deep."""
    s, chance = Setting(kernels, seed), random.Random(seed)
    source = kernels.MLP(*random_weights(s.rng, s.sizes, s.n_heads), 0.1)
    if seed % 2:  # with anchors, which move rows that no example touches
        importance = (s.rng.random(s.net.n_parameters) * (s.rng.random(s.net.n_parameters) < 0.01)).astype(np.float32)
        s.net.anchor(s.net.vector(importance), 0.5)
        s.twin.anchor(importance, 0.5)
    ended = set()
    for i in range(40):
        depth = len(s.twin.frames)
        kind = chance.choice(["each", "batch", "few", "descend", "take over", "begin", "end", "end"])
        if kind == "begin" and depth < 3:
            s.net.begin_reptile()
            s.twin.begin_reptile()
        elif kind == "end" and depth:
            step = [0, 0.3, 1][(i + seed) % 3]
            ended.add((depth > 1, step))
            s.net.end_reptile(step)
            s.twin.end_reptile(step)
        elif kind == "each":
            slots = s.batch(chance.choice([1, 2, 5]))
            s.net.sgd_each(s.examples, slots)
            s.twin.each(*s.of(slots))
        elif kind in ("batch", "few"):
            slots = s.batch(chance.choice([4, 10, 66]) if kind == "batch" else chance.choice([1, 2, 3]))
            weights = np.full(len(slots), 1 / len(slots))
            s.net.sgd_batch(s.examples, slots, weights)
            s.twin.step(*s.of(slots, weights))
        elif kind == "descend":
            gradient = s.rng.normal(0, 0.05, s.net.n_parameters).astype(np.float32)
            s.net.descend(s.net.vector(gradient))
            s.twin.descend(gradient)
        elif kind == "take over" and i % 3 == 0:
            s.net.copy_from(source)
            s.twin.set(flat(source.weights()).astype(np.float64))
        assert distance(s.flat(), s.twin.flat()) <= TOLERANCE, (i, kind)
    assert ended


@pytest.mark.parametrize("anchored", [False, True])
def test_reptile_of_step_0_and_1_is_exact(kernels, anchored):
    s = Setting(kernels, 11)
    if anchored:
        s.net.anchor(s.net.vector(np.full(s.net.n_parameters, 0.1, np.float32)), 1)
        s.net.descend(s.net.vector(np.ones(s.net.n_parameters, np.float32)))
    start = s.net.weights()
    s.net.begin_reptile()
    s.net.sgd_each(s.examples, s.batch(3))
    s.net.begin_reptile()
    s.net.sgd_batch(s.examples, s.batch(9))
    s.net.set_weights(*random_weights(s.rng, s.sizes, s.n_heads))
    later = s.net.weights()
    s.net.end_reptile(1)
    assert same(s.net.weights(), later)
    s.net.end_reptile(0)
    assert same(s.net.weights(), start) and not same(later, start)
    s.net.begin_reptile()  # the frames are clean again
    s.net.sgd_each(s.examples, s.batch(5))
    s.net.end_reptile(0)
    assert same(s.net.weights(), start)
    with pytest.raises(RuntimeError):
        s.net.end_reptile(0.5)


def test_nested_frames_interpolate_what_only_the_inner_one_touched(kernels):
    s = Setting(kernels, 1)
    start = s.flat().astype(np.float64)
    s.net.begin_reptile()
    s.net.begin_reptile()
    s.net.sgd_each(s.examples, [0, 1, 2])
    inner = s.flat()
    s.net.end_reptile(0.5)
    s.net.end_reptile(0.3)
    assert distance(s.flat() - start, 0.15 * (inner - start)) <= 10 * TOLERANCE


# rates


class Path:
    """A path of steps and looks in float64: the looks' losses as functions of theta_0 and of the rates, by autograd.

    theta = theta_0 - [alpha]+ (the sum of the steps' gradients, constants)
    """

    def __init__(self, s, alpha):
        self.s, self.theta0 = s, torch.tensor(s.twin.flat(), requires_grad=True)
        self.alpha = torch.tensor(alpha.astype(np.float64), requires_grad=True)
        self.walked, self.looked = torch.zeros(len(alpha), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def theta(self):
        return self.theta0 - self.alpha.relu() * self.walked

    def mean_loss(self, slots):
        """At theta, as a function of theta0 and alpha."""
        twin, at = Twin(self.s.weights, self.s.lr), 0
        theta, parts = self.theta(), []
        for p in twin.parameters:
            parts.append(theta[at : at + p.numel()].view_as(p))
            at += p.numel()
        twin.parameters = parts
        return twin.loss(*self.s.of(slots, np.full(len(slots), 1 / len(slots))))

    def step(self, slots):
        (gradient,) = torch.autograd.grad(self.mean_loss(slots), self.theta0)  # that of theta: theta0 is a part of it
        self.walked = self.walked + gradient

    def look(self, slots, weight):
        loss = weight * self.mean_loss(slots)
        self.looked = self.looked + loss
        return loss.item()

    def gradients(self):
        found = torch.autograd.grad(self.looked, (self.theta0, self.alpha), allow_unused=True)
        return [np.zeros(len(self.walked)) if g is None else g.numpy() for g in found]


def shortened(gradient, most):
    return gradient * min(1, most / (np.linalg.norm(gradient) + 1e-6))


@pytest.mark.parametrize("case", CASES)
def test_rates_learn_from_a_path_what_autograd_finds(kernels, case):
    s = Setting(kernels, case)
    rates = s.net.rates(0.25)
    assert np.array_equal(rates.values(), np.full(s.net.n_parameters, 0.25, np.float32))
    alpha = s.rng.normal(0.1, 0.1, s.net.n_parameters).astype(np.float32)  # some of them negative
    alpha[s.rng.random(len(alpha)) < 0.1] = 0
    rates.set_values(alpha)
    assert np.array_equal(rates.values(), alpha)
    for again in range(2):  # of the path before nothing is left
        s.twin.set(s.flat().astype(np.float64))
        start, path, alpha = s.net.weights(), Path(s, rates.values()), rates.values()
        s.net.begin_reptile()
        rates.begin()
        for n in (BATCHES[case], 1, 70)[again:]:
            looked, stepped = s.batch(n), s.batch(1 if n % 2 else min(n, 9))
            loss = path.look(looked, 0.3)
            rates.look(s.examples, looked, 0.3)
            assert rates.loss == pytest.approx(loss, rel=1e-4)
            path.step(stepped)
            rates.step(s.examples, stepped)
            assert distance(s.flat(), path.theta().detach()) <= TOLERANCE
        path.look(looked, 0.5)
        rates.look(s.examples, looked, 0.5)
        s.net.end_reptile(0)
        assert same(s.net.weights(), start)

        (u, v), found = path.gradients(), rates.gradients()
        assert np.any(v) and distance(found[0], u) <= 5 * TOLERANCE and distance(found[1], v) <= 50 * TOLERANCE
        assert not found[1][alpha <= 0].any()
        for ours, again_found in zip(found, rates.gradients(), strict=True):
            assert np.array_equal(ours, again_found)
        most = 0.5 * np.linalg.norm(v) if case % 2 else 1e9
        rates.learn(0.2, most)
        assert distance(rates.values(), alpha - 0.2 * shortened(v, most)) <= TOLERANCE
        assert np.array_equal(rates.values()[alpha <= 0], alpha[alpha <= 0])
        most, rate = (0.7 * np.linalg.norm(u) if case % 3 else 1e9), [None, 0.1][again]
        wanted = flat(start) - (np.maximum(rates.values(), 0) if rate is None else rate) * shortened(u, most)
        rates.descend(most, rate)
        assert distance(s.flat(), wanted) <= TOLERANCE


def test_rates_within_a_reptile_block(kernels):
    """Rows that a path or its end changes come back."""
    s = Setting(kernels, 5)
    rates, start = s.net.rates(0.3), s.net.weights()
    s.net.begin_reptile()
    rates.begin()
    rates.step(s.examples, [1, 2])
    rates.look(s.examples, s.batch(9), 1)
    rates.learn(0.1, 1.0)
    rates.descend(1.0)
    assert not same(s.net.weights(), start)
    s.net.end_reptile(0)
    assert same(s.net.weights(), start)


def test_rates_that_make_no_sense_are_refused(kernels):
    s = Setting(kernels, 2)
    rates = s.net.rates(0.1)
    with pytest.raises(ValueError):
        rates.set_values(np.zeros(s.net.n_parameters + 1, np.float32))
    for call in (lambda slots: rates.step(s.examples, slots), lambda slots: rates.look(s.examples, slots, 1)):
        with pytest.raises(ValueError):
            call([])
        with pytest.raises(IndexError):
            call([400])
    assert same(s.net.weights(), s.weights) and not any(part.any() for part in rates.gradients())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rates_that_are_not_finite_are_noticed(kernels, value):
    s = Setting(kernels, 1)
    rates = s.net.rates(0.1)
    rates.set_values(np.full(s.net.n_parameters, value, np.float32))
    rates.begin()
    rates.step(s.examples, [0, 1, 2])
    rates.look(s.examples, [0, 1, 2, 5], 1)
    assert not np.isfinite(rates.loss) and not all_finite(s.net)


# moving averages


@pytest.mark.parametrize("keep", [0, 0.5, 0.999, 1])
@pytest.mark.parametrize("case", range(4))
def test_average_is_a_weighted_mean_of_two_nets(kernels, case, keep):
    s = Setting(kernels, case)
    other = kernels.MLP(*random_weights(s.rng, s.sizes, s.n_heads), 0.1)
    theta, wanted = s.flat().astype(np.float64), flat(other.weights())
    s.net.begin_reptile()
    s.net.average(other, keep)
    assert distance(s.flat(), keep * theta + (1 - keep) * wanted) <= TOLERANCE
    assert np.array_equal(flat(other.weights()), wanted)
    s.net.end_reptile(0)
    assert same(s.net.weights(), s.weights)
    with pytest.raises(ValueError):
        s.net.average(kernels.MLP(*random_weights(s.rng, [s.D + 1, *s.sizes[1:]], s.n_heads), 0.1), keep)


# anchors


@pytest.mark.parametrize("case", range(6))
def test_anchors_are_a_penalty_for_every_past_task(kernels, case):
    s = Setting(kernels, case)
    other = kernels.MLP(*s.weights, s.lr)
    for task in range(4):
        importance = s.rng.random(s.net.n_parameters).astype(np.float32)
        importance *= s.rng.random(s.net.n_parameters) < [1, 0.05, 0, 0.5][task]
        s.net.anchor(s.net.vector(importance), [2, 0.5, 1, 0.1][task])
        s.twin.anchor(importance, [2, 0.5, 1, 0.1][task])
        for _ in range(3):
            slots = s.batch(7)
            loss = s.twin.each(*s.of(slots))
            s.net.sgd_each(s.examples, slots)
            assert s.net.loss == pytest.approx(loss, rel=1e-4)
            slots, weights = s.batch(70), np.full(70, 1 / 70)
            loss = s.twin.step(*s.of(slots, weights))
            s.net.sgd_batch(s.examples, slots, weights)
            assert s.net.loss == pytest.approx(loss, rel=1e-4)
        assert distance(s.flat(), s.twin.flat()) <= TOLERANCE, task
    strengths, Fishers, stars = zip(*[(a, F.numpy(), star.numpy()) for a, F, star in s.twin.anchors], strict=True)
    stiffness, pull, constant = s.net.anchors()
    assert distance(stiffness, sum(a * F for a, F in zip(strengths, Fishers, strict=True))) <= TOLERANCE
    assert distance(pull, sum(a * F * w for a, F, w in zip(strengths, Fishers, stars, strict=True))) <= TOLERANCE
    wanted = sum((a * F * w * w).sum() for a, F, w in zip(strengths, Fishers, stars, strict=True))
    assert constant == pytest.approx(wanted, rel=TOLERANCE)

    # anchors() and set_anchors() are a round trip, after which both go the same way
    assert other.anchors() is None
    other.copy_from(s.net)
    other.set_anchors((stiffness, pull, constant))
    for found, wanted in zip(other.anchors(), s.net.anchors(), strict=True):
        assert np.array_equal(found, wanted)
    for net in (s.net, other):
        net.sgd_each(s.examples, [1, 2, 3])
    assert same(s.net.weights(), other.weights()) and s.net.loss == other.loss
    plain = Twin(other.weights(), s.lr)
    other.set_anchors(None)
    assert other.anchors() is None
    other.sgd_each(s.examples, [4, 5])
    plain.each(*s.of([4, 5]))
    assert distance(flat(other.weights()), plain.flat()) <= TOLERANCE
    other.anchor(other.vector(np.zeros(other.n_parameters, np.float32)), 1)  # and nothing of the old ones returns
    assert not any(np.any(part) for part in other.anchors())


def test_gradient_leaves_the_anchors_out(kernels):
    s = Setting(kernels, 5)
    wanted = s.net.gradient(s.examples, [1, 2])
    s.net.anchor(s.net.vector(np.ones(s.net.n_parameters, np.float32)), 1)
    before = s.net.weights()
    s.net.descend(s.net.vector(np.zeros(s.net.n_parameters, np.float32)))
    assert same(s.net.weights(), before)
    assert np.array_equal(s.net.gradient(s.examples, [1, 2]), wanted)


# task gradients


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("case", range(12))
def test_task_gradients(kernels, case, factored):
    s = Setting(kernels, case)
    lists = [s.batch(n) for n in [1, 5, 70, 2, 64, 3, 200][: 1 + case % 7]]
    G = np.array([s.twin.gradient(s.twin.loss(*s.of(slots, np.full(len(slots), 1 / len(slots))))) for slots in lists])
    loss = sum(s.twin.loss(*s.of(slots, np.full(len(slots), 1 / len(slots)))).item() for slots in lists)
    if factored and s.n_heads > 1:
        with pytest.raises(ValueError, match="several first layers"):
            s.net.task_gradients(s.examples, lists, factored=True)
        return
    gradients = s.net.task_gradients(s.examples, lists, factored=factored)
    assert type(gradients).__name__ == ("FactoredGradients" if factored else "TaskGradients")
    assert gradients.n_tasks == len(lists) and gradients.loss == pytest.approx(loss, rel=TOLERANCE)
    g = s.rng.normal(0, 0.1, s.net.n_parameters).astype(np.float32)
    vector, scale = s.net.vector(g), np.linalg.norm(G, axis=1)
    assert np.all(np.abs(gradients.dot(vector) - G @ g) <= TOLERANCE * scale * np.linalg.norm(g))
    s.net.descend(vector)  # what they are doesn't change with the net, nor from one question to the next
    s.net.gradient(s.examples, s.batch(7))
    assert np.all(np.abs(gradients.gram() - G @ G.T) <= 2 * TOLERANCE * np.outer(scale, scale))
    v = s.rng.random(len(lists))
    for _ in range(2):
        assert distance(s.net.flat(gradients.combine(v, vector)), G.T @ v + g) <= TOLERANCE
    moved = np.append(np.float32(0), vector)[1:]  # not at the start of a cache line
    assert np.array_equal(gradients.dot(moved), gradients.dot(vector))
    assert np.array_equal(gradients.combine(v, moved), gradients.combine(v, vector))
    assert np.all(np.abs(gradients.dot(vector) - G @ g) <= TOLERANCE * scale * np.linalg.norm(g))
    assert gradients.gram().dtype == gradients.dot(vector).dtype == np.float64
    for wrong in (vector[1:], np.append(vector, vector[:1])):
        with pytest.raises(ValueError):
            gradients.dot(wrong)
        with pytest.raises(ValueError):
            gradients.combine(v, wrong)
    with pytest.raises(ValueError):
        gradients.combine(np.append(v, 1), vector)


def test_factors_follow_the_examples_and_the_weights(kernels):
    """The products of the inputs are kept from step to step, as long as the slots hold what they held."""
    s = Setting(kernels, 1)
    lists = [s.batch(n) for n in (3, 4, 2)]
    for change in ("nothing", "weights", "slot", "copy", "lists", "nothing", "examples"):
        if change == "weights":
            s.net.sgd_batch(s.examples, s.batch(20))
        elif change == "slot":
            s.examples.put(lists[1][0], s.rng.normal(size=s.D).astype(np.float32), 9, 0)
        elif change == "copy":
            s.examples.copy(lists[0][0], lists[2][1])
        elif change == "lists":
            lists = [*lists, s.batch(5)]
        elif change == "examples":
            x, t, y = s.examples.get(range(40))
            s.examples = kernels.Examples(40, s.D)
            for slot in range(40):
                s.examples.put(slot, x[39 - slot], t[slot], y[slot])
        found = s.net.task_gradients(s.examples, lists, factored=True).gram()
        wanted = s.net.task_gradients(s.examples, lists, factored=False).gram()
        assert np.abs(found - wanted).max() <= TOLERANCE * wanted.max(), change
        fresh = kernels.MLP(*s.net.weights(), s.lr).task_gradients(s.examples, lists, factored=True).gram()
        assert np.array_equal(found, fresh), change


def test_what_is_kept_of_the_examples_follows_them(kernels):
    """Inputs that were sorted once are used while the slots hold what they held; a net that keeps nothing agrees."""
    s = Setting(kernels, 1)
    lists = [s.batch(n) for n in (70, 200, 5, 2)]
    for change in ("nothing", "weights", "slot", "copy", "order", "lists", "examples"):
        if change == "weights":
            s.net.sgd_batch(s.examples, s.batch(20))
        elif change == "slot":
            s.examples.put(lists[1][150], s.rng.normal(size=s.D).astype(np.float32), 9, 0)
        elif change == "copy":
            s.examples.copy(lists[0][0], lists[0][69])
        elif change == "order":
            lists[1].reverse()
        elif change == "lists":
            lists = [lists[1][:100], *lists, s.batch(90)]
        elif change == "examples":
            x, t, y = s.examples.get(range(40))
            s.examples = kernels.Examples(40, s.D)
            for slot in range(40):
                s.examples.put(slot, x[39 - slot], t[slot], y[slot])
        for _ in range(3):
            found = s.net.task_gradients(s.examples, lists, factored=False).gram()
            fresh = kernels.MLP(*s.net.weights(), s.lr).task_gradients(s.examples, lists, factored=False).gram()
            assert np.array_equal(found, fresh), change


def test_costs_decide_what_is_factored(kernels):
    rng = np.random.default_rng(8)
    net, examples = kernels.MLP(*random_weights(rng, [784, 100, 100, 10]), 0.1), kernels.Examples(1, 784)
    examples.put(0, np.ones(784, np.float32), 0, 0)
    for n, kind in [(5, "FactoredGradients"), (10, "FactoredGradients"), (25, "TaskGradients"), (256, "TaskGradients")]:
        assert type(net.task_gradients(examples, [[0] * n] * 4)).__name__ == kind
    net = kernels.MLP(*random_weights(rng, [784, 100, 10], 2), 0.1)
    assert type(net.task_gradients(examples, [[0]] * 4)).__name__ == "TaskGradients"


@pytest.mark.parametrize("factored", [None, False, True])
def test_gradients_of_no_tasks(kernels, factored):
    s = Setting(kernels, 3)
    gradients = s.net.task_gradients(s.examples, [], factored=factored)
    g = s.net.vector(np.ones(s.net.n_parameters, np.float32))
    assert gradients.dot(g).shape == (0,) and gradients.gram().shape == (0, 0)
    assert np.array_equal(gradients.combine([], g), g)


def test_threads_find_the_same_task_gradients(kernels):
    s = Setting(kernels, 11)
    lists = [s.batch(n) for n in (200, 1, 5, 164, 300)]
    with ThreadPoolExecutor(4) as pool:
        for threads in (2, 3, 9):  # each time after a step, which all threads see
            s.net.sgd_batch(s.examples, s.batch(5))
            wanted = s.net.task_gradients(s.examples, lists).gram()
            assert np.array_equal(s.net.task_gradients(s.examples, lists, pool, threads).gram(), wanted)
        with pytest.raises(ValueError, match="no examples"):
            s.net.task_gradients(s.examples, [*lists, []], pool, 2)


def test_descend_follows_a_flat_gradient(kernels):
    for case in (0, 2, 7):
        s = Setting(kernels, case)
        g = s.rng.normal(0, 1, s.net.n_parameters).astype(np.float32)
        s.net.descend(s.net.vector(g))
        np.testing.assert_allclose(s.flat(), flat(s.weights) - s.net.lr * g.astype(np.float64), rtol=1e-6, atol=1e-7)


# weights


@pytest.mark.parametrize("case", CASES)
def test_weights_come_back_exactly_and_are_copies(kernels, case):
    s = Setting(kernels, case)
    assert same(s.net.weights(), s.weights)
    found = s.net.weights()
    for W, b in (*found[0], *found[1]):
        W[:], b[:] = 7, 7
    assert same(s.net.weights(), s.weights)
    others = random_weights(s.rng, s.sizes, s.n_heads)
    s.net.set_weights(*others)
    assert same(s.net.weights(), others)
    assert s.net.n_parameters == len(flat(others))
    assert (s.net.n_inputs, s.net.n_outputs, s.net.n_heads) == (s.D, s.C, s.n_heads)


def test_snapshots_and_copies_are_independent(kernels):
    s = Setting(kernels, 11)
    other = kernels.MLP(*random_weights(s.rng, s.sizes, s.n_heads), 0.1)
    snapshot = s.net.snapshot()
    other.copy_from(s.net)
    assert same(snapshot.weights(), s.weights) and same(other.weights(), s.weights)
    s.net.sgd_batch(s.examples, s.batch(9))
    assert not same(s.net.weights(), s.weights)
    assert same(snapshot.weights(), s.weights) and same(other.weights(), s.weights)
    learned = s.net.weights()
    other.sgd_each(s.examples, [1, 2])
    assert same(s.net.weights(), learned)
    s.net.copy_from(snapshot)
    assert same(s.net.weights(), s.weights) and same(snapshot.snapshot().weights(), s.weights)


def test_wrong_shapes_are_refused(kernels):
    rng = np.random.default_rng(3)
    heads, layers = random_weights(rng, [6, 5, 3], 2)
    net, examples = kernels.MLP(heads, layers, 0.1), kernels.Examples(3, 6)
    examples.put(0, np.ones(6, np.float32), 1, 2)
    before = net.weights()
    for wrong in (
        (heads[:1], layers),
        (heads, []),
        (heads, layers * 2),
        ([], heads + layers),
    ):
        with pytest.raises(ValueError):
            net.set_weights(*wrong)
    for wrong in (
        ([], layers),
        ([heads[0], random_weights(rng, [6, 4])[0][0]], layers),
        (heads, random_weights(rng, [4, 3])[0]),
        (random_weights(rng, [6, 5, 3])[0], random_weights(rng, [5, 4, 3])[0] + random_weights(rng, [5, 3])[0]),
    ):
        with pytest.raises(ValueError):
            kernels.MLP(*wrong, 0.1)
    for sizes, n_heads in [([6, 5, 3], 1), ([6, 4, 3], 2), ([7, 5, 3], 2), ([6, 5, 5, 3], 2)]:
        with pytest.raises(ValueError):
            net.copy_from(kernels.MLP(*random_weights(rng, sizes, n_heads), 0.1))
    for n in (0, net.n_parameters - 1, net.n_parameters + 1, 1000):
        g = np.zeros(n, np.float32)
        for call in (
            net.descend,
            lambda g: net.anchor(g, 1),
            lambda g: net.set_anchors((g, g, 0.0)),
            net.vector,
            net.flat,
        ):
            with pytest.raises(ValueError):
                call(g)
    other = kernels.Examples(1, 7)
    other.put(0, np.ones(7, np.float32), 0, 0)
    for call in (net.sgd_batch, net.sgd_each, net.gradient):
        with pytest.raises(ValueError):
            call(other, [0])
    for call in (net.sgd_batch, net.sgd_each):
        with pytest.raises(ValueError):
            call(examples, [0, 0], [1])
    with pytest.raises(ValueError):
        net.predict(np.ones((2, 7), np.float32), 0)
    assert same(net.weights(), before)


@pytest.mark.parametrize("made", [False, True])
def test_every_weight_must_have_its_shape(kernels, made):
    rng = np.random.default_rng(3)
    [(W, b)], layers = weights = random_weights(rng, [6, 5, 3])
    net = kernels.MLP(*weights, 0.1)
    for wrong in [(W, b[:4]), (W, b[:1]), (W, b[0]), (W, b[None]), (W[:4], b), (W[:, :5], b), (W.T, b), (W[:1], b)] + [
        (W[:, :1], b),
        (W[0], b),
    ]:
        with pytest.raises(ValueError):
            if not made:
                net.set_weights([wrong], layers)
            elif np.shape(wrong[0]) == W.shape:  # another W, and it would be another net
                kernels.MLP([wrong], layers, 0.1)
            else:
                raise ValueError
        assert same(net.weights(), weights)  # all or nothing


def test_slots_labels_and_tasks_out_of_range_are_refused(kernels):
    rng = np.random.default_rng(4)
    net, examples = kernels.MLP(*random_weights(rng, [6, 5, 3], 2), 0.1), kernels.Examples(5, 6)
    x, before = np.ones(6, np.float32), net.weights()
    for slot, (t, y) in enumerate([(1, 2), (0, 3), (0, -1), (2, 0)]):
        examples.put(slot, x, t, y)
    for call in (net.sgd_batch, net.sgd_each, net.gradient, lambda e, s: net.task_gradients(e, [s])):
        for slot in (1, 2, 3, 4, 5, -1):
            with pytest.raises(IndexError):
                call(examples, [0, slot])
    with pytest.raises(IndexError):
        net.predict(x[None], 2)
    assert same(net.weights(), before)


# outputs and evaluation


@pytest.mark.parametrize("case", CASES)
def test_predict_is_torchs(kernels, case):
    s = Setting(kernels, case)
    for n in (BATCHES[case], 1, 0):
        x = np.concatenate([s.x] * 4)[:n]
        for t in range(s.n_heads):
            found = s.net.predict(x, t)
            assert found.dtype == np.float32 and found.shape == (n, s.C)
            assert distance(found, s.twin.outputs(x, np.full(n, t)).detach()) <= TOLERANCE


def random_images(rng, n_images, n_pixels, dtype):
    images = rng.integers(1, 256, (n_images, n_pixels)) * (rng.random((n_images, n_pixels)) < 0.3)
    images[5 % n_images] = 0
    return images.astype(np.uint8) if dtype is np.uint8 else (images / 100 - 0.3 * (images > 0)).astype(np.float32)


def gathered(images, pixel_map):
    """The inputs (N, D) that a task sees, explicitly."""
    x = images.astype(np.float64) / (255 if images.dtype == np.uint8 else 1)
    return x if pixel_map is None else np.where(pixel_map >= 0, x[:, pixel_map], 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("case", range(8))
def test_correct_counts_what_torch_gets_right(kernels, case, dtype):
    rng = np.random.default_rng(case)
    n_images, n_pixels = [150, 64, 200, 1][case % 4], [49, 30, 100, 17][case // 2]
    rotation = rng.integers(-1, n_pixels, n_pixels + 5).astype(np.int32)  # repeats some, drops some, -1 at times
    rotation[:4] = -1, -1, 0, 0
    permutation = rng.permutation(n_pixels).astype(np.int32)
    images = random_images(rng, n_images, n_pixels, dtype)
    compiled = kernels.TestImages(images)
    assert (compiled.n_images, compiled.n_pixels) == (n_images, n_pixels)
    for pixel_map in (None, permutation, rotation, np.full(n_pixels, -1, np.int32)):
        s = Setting(kernels, case, n_inputs=n_pixels if pixel_map is None else len(pixel_map))
        x = gathered(images, pixel_map)
        for t in range(s.n_heads):
            outputs = s.twin.outputs(x, np.full(n_images, t)).detach().numpy()
            right = rng.random(n_images) < 0.5
            labels = np.where(right, outputs.argmax(1), outputs.argmin(1))
            for start, stop in [(0, n_images), (0, 0), (n_images, n_images), (n_images // 3, n_images), (0, 1)]:
                assert compiled.correct(s.net, t, pixel_map, labels, start, stop) == right[start:stop].sum()
            cuts = sorted(rng.integers(n_images + 1, size=3))
            parts = zip([0, *cuts], [*cuts, n_images], strict=True)
            assert sum(compiled.correct(s.net, t, pixel_map, labels, *part) for part in parts) == right.sum()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(
    "biases, first",
    [([0, 0, 0, 0], 0), ([1, 3, 3, 2], 1), ([-1, -3, 2, 2], 2), ([1, np.nan, 5, np.nan], 1), ([np.nan, 9, 1, 1], 0)]
    + [([1, np.inf, np.inf, 2], 1), ([-np.inf] * 4, 0), ([np.inf, 1, np.nan, 2], 2)],
)
def test_ties_go_to_the_first_and_nan_is_the_largest(kernels, depth, biases, first):
    sizes = [3, *[6] * depth, 4]
    heads, layers = ([(0 * W, 0 * b) for W, b in part] for part in random_weights(np.random.default_rng(0), sizes))
    [*heads, *layers][-1][1][:] = biases
    net, images = kernels.MLP(heads, layers, 0.1), kernels.TestImages(np.ones((70, 3), np.float32))
    assert np.argmax(biases) == first == torch.tensor(biases).argmax()
    for label in range(4):
        hits = images.correct(net, 0, None, np.full(70, label), 0, 70)
        assert hits == (70 if label == first else 0)


def test_images_and_maps_that_do_not_fit_are_refused(kernels):
    rng = np.random.default_rng(2)
    net, one = (kernels.MLP(*random_weights(rng, [8, 5, 3], n), 0.1) for n in (2, 1))
    images, labels = kernels.TestImages(np.ones((10, 8), np.uint8)), np.zeros(10, np.int64)
    assert images.correct(one, 77, None, labels, 0, 10) in (0, 10)  # one head serves all tasks
    for start, stop in [(-1, 5), (5, 4), (0, 11)]:
        with pytest.raises(IndexError):
            images.correct(net, 0, None, labels, start, stop)
    with pytest.raises(IndexError):
        images.correct(net, 0, None, labels[:9], 0, 5)
    for t in (-1, 2):
        with pytest.raises(IndexError):
            images.correct(net, t, None, labels, 0, 10)
    for entry in (-2, 8):
        with pytest.raises(IndexError):
            images.correct(net, 0, np.array([0] * 7 + [entry], np.int32), labels, 0, 10)
    for wrong in (np.zeros(7, np.int32), np.zeros(9, np.int32), np.zeros(8, np.int64), np.zeros((8, 1), np.int32)):
        with pytest.raises(ValueError):
            images.correct(net, 0, wrong, labels, 0, 10)
    with pytest.raises(ValueError):
        kernels.TestImages(np.ones((10, 9), np.uint8)).correct(net, 0, None, labels, 0, 10)
    for wrong in (np.ones((2, 3)), np.ones((2, 3), np.int64), np.ones(3, np.uint8), np.ones((1, 2, 3), np.float32)):
        with pytest.raises(ValueError):
            kernels.TestImages(wrong)


def test_threads_count_what_one_counts(kernels):
    rng = np.random.default_rng(6)
    s = Setting(kernels, 2, n_inputs=64)
    x = rng.normal(size=(1000, 64)) * (rng.random((1000, 64)) < 0.3)  # of both signs: many classes win
    images = kernels.TestImages(x.astype(np.float32))
    labels = rng.integers(s.C, size=1000)
    maps = [rng.integers(-1, 64, 64).astype(np.int32) for _ in range(8)]
    nets = [s.net.snapshot(), s.net]

    def count(i):
        return [images.correct(net, i % s.n_heads, maps[i], labels, i, 1000 - i) for net in nets for _ in range(3)]

    wanted, found, start = [count(i) for i in range(8)], [None] * 8, threading.Barrier(8)

    def work(i):
        start.wait()
        found[i] = count(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted
    assert len({hits for counts in wanted for hits in counts}) > 3


def test_snapshots_are_evaluated_while_the_net_learns(kernels):
    s = Setting(kernels, 2, n_inputs=64)
    images = kernels.TestImages(random_images(s.rng, 2000, 64, np.uint8))
    labels, snapshot, found = s.rng.integers(s.C, size=2000), s.net.snapshot(), []
    wanted = images.correct(snapshot, 0, None, labels, 0, 2000)
    thread = threading.Thread(
        target=lambda: found.extend(images.correct(snapshot, 0, None, labels, 0, 2000) for _ in "abcd")
    )
    thread.start()
    for _ in range(20):
        s.net.sgd_each(s.examples, s.batch(20))
    thread.join()
    assert found == [wanted] * 4


# numbers that are none


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["head", "head bias", "layer", "layer bias", "output bias"])
def test_weights_that_are_not_finite_are_noticed(kernels, where, value):
    for n in (1, 5):  # on both ways through the kernels
        rng = np.random.default_rng(7)
        heads, layers = random_weights(rng, [6, 37, 20, 3])
        weights = {"head": heads[0][0], "head bias": heads[0][1], "layer": layers[0][0], "layer bias": layers[0][1]}
        target = weights.get(where, layers[-1][1])
        for W, _ in (heads + layers)[1:]:
            W[:] = np.abs(W)  # so that what is large goes on to all outputs
        heads[0][1][:] += 5  # and all units are on
        target.flat[1] = value
        net, examples = kernels.MLP(heads, layers, 0.1), kernels.Examples(1, 6)
        assert not all_finite(net)
        x = np.ones(6, np.float32)
        examples.put(0, x, 0, 1)
        with torch.no_grad():
            wanted = Twin((heads, layers), 0.1).outputs(x[None], [0]).numpy()
        np.testing.assert_array_equal(np.isnan(net.predict(x[None], 0)), np.isnan(wanted))
        np.testing.assert_array_equal(np.isinf(net.predict(x[None], 0)), np.isinf(wanted))
        assert np.isnan(wanted).any() or np.isinf(wanted).any() or value == -np.inf  # which ReLU may stop
        for call, twins in [(net.gradient, Twin.loss), (net.sgd_batch, Twin.loss), (net.sgd_each, Twin.each)]:
            net.set_weights(heads, layers)
            call(examples, [0] * n)
            loss = torch.as_tensor(twins(Twin((heads, layers), 0.1), np.tile(x, (n, 1)), [0] * n, [1] * n, [1] * n))
            assert np.isfinite(net.loss) == bool(loss.isfinite()), call
            assert not all_finite(net)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_noticed(kernels, value):
    heads, layers = random_weights(np.random.default_rng(7), [6, 37, 20, 3])
    net, examples = kernels.MLP(heads, layers, 0.1), kernels.Examples(3, 6)
    x = np.zeros((3, 6), np.float32)
    x[1, 4] = value
    examples.put_many(0, x, 0, [0, 1, 2])
    with torch.no_grad():
        wanted = Twin((heads, layers), 0.1).outputs(x, [0, 0, 0]).numpy()
    np.testing.assert_array_equal(np.isnan(net.predict(x, 0)), np.isnan(wanted))
    assert all_finite(net)
    for call, slots in [(net.gradient, [0, 1, 2]), (net.sgd_batch, [0, 1, 2, 2]), (net.sgd_each, [0, 1, 2])]:
        net.set_weights(heads, layers)
        call(examples, slots)
        assert not np.isfinite(net.loss), call
    assert not all_finite(net)
    net.set_weights(heads, layers)  # nothing of it stays behind
    net.sgd_batch(examples, [0, 2, 0, 2])
    assert np.isfinite(net.loss) and all_finite(net)


def test_relu_lets_nan_pass(kernels):
    eye, zero = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    net = kernels.MLP([(eye, zero)], [(eye, zero)], 0.1)
    found = net.predict(np.array([[1, -1, np.nan], [-1, 2, 0], [np.inf, -np.inf, 0]], np.float32), 0)
    assert np.isnan(found[0]).all()  # 0 NaN is NaN
    assert found[1].tolist() == [0, 2, 0]
    bias = kernels.MLP([(0 * eye, np.array([np.nan, -1, 1], np.float32))], [(eye[:, :1] @ eye[:1], zero)], 0.1)
    assert np.isnan(bias.predict(np.zeros((1, 3), np.float32), 0)).all()


# examples


def test_examples_are_what_was_put(kernels):
    rng = np.random.default_rng(9)
    examples, held = kernels.Examples(6, 200), {}
    for i in range(200):
        slot, kind = int(rng.integers(6)), rng.integers(3)
        x = (rng.normal(size=(3, 200)) * (rng.random((3, 200)) < rng.choice([0, 0.1, 0.4, 1]))).astype(np.float32)
        t, ys = int(rng.integers(100)), rng.integers(10, size=3).tolist()
        if kind == 0:
            examples.put(slot, x[0], t, ys[0])
            held[slot] = x[0], t, ys[0]
        elif kind == 1 and slot + 3 <= 6:
            examples.put_many(slot, x, t, ys)
            held |= {slot + b: (x[b], t, ys[b]) for b in range(3)}
        elif kind == 2 and held:
            source = sorted(held)[i % len(held)]
            examples.copy(source, slot)
            held[slot] = held[source]
        slots = rng.permutation(sorted(held)).tolist() + sorted(held)[:1]
        if not held:
            continue
        for found, wanted in zip(examples.get(slots), zip(*[held[slot] for slot in slots], strict=True), strict=True):
            np.testing.assert_array_equal(found, np.stack(wanted))
    x, t, y = examples.get([0])
    assert x.dtype == np.float32 and t.dtype == y.dtype == np.int64
    assert [part.shape for part in examples.get([])] == [(0, 200), (0,), (0,)]


def test_copies_do_not_share_what_they_hold(kernels):
    examples = kernels.Examples(2, 4)
    examples.put(0, np.array([1, 0, 2, 0], np.float32), 3, 1)
    examples.copy(0, 1)
    examples.copy(1, 1)
    examples.put(0, np.array([5, 6, 7, 8], np.float32), 4, 2)
    x, t, y = examples.get([1, 0])
    assert x.tolist() == [[1, 0, 2, 0], [5, 6, 7, 8]] and t.tolist() == [3, 4] and y.tolist() == [1, 2]


def test_growing_keeps_what_is_held(kernels):
    rng = np.random.default_rng(10)
    heads, layers = random_weights(rng, [30, 5, 3])
    examples, x = kernels.Examples(3, 30), rng.normal(size=(3, 30)).astype(np.float32)
    examples.put_many(0, x[:2], 1, [2, 0])
    wanted = kernels.MLP(heads, layers, 0.1).gradient(examples, [0, 1])
    for capacity in (3, 4, 100, 10000):  # in place or moved
        examples.grow(capacity)
        assert examples.capacity == capacity
        np.testing.assert_array_equal(examples.get([0, 1])[0], x[:2])
        assert examples.get([0, 1])[1].tolist() == [1, 1] and examples.get([0, 1])[2].tolist() == [2, 0]
        for slot in {2, capacity - 1}:  # neither filled nor rubbish
            with pytest.raises(IndexError):
                examples.get([slot])
        with pytest.raises(IndexError):
            examples.put(capacity, x[0], 0, 0)
        assert np.array_equal(kernels.MLP(heads, layers, 0.1).gradient(examples, [0, 1]), wanted)
    examples.grow(5)  # it never shrinks
    assert examples.capacity == 10000
    examples.put(9999, x[2], 4, 1)
    examples.copy(0, 5000)
    np.testing.assert_array_equal(examples.get([9999, 5000])[0], x[[2, 0]])


def test_slots_that_hold_nothing_are_refused(kernels):
    examples, x = kernels.Examples(3, 4), np.ones(4, np.float32)
    examples.put(1, x, 0, 0)
    for slot in (0, 2, 3, -1):
        with pytest.raises(IndexError):
            examples.get([1, slot])
        with pytest.raises(IndexError):
            examples.copy(slot, 1)
    for slot in (3, -1):
        with pytest.raises(IndexError):
            examples.copy(1, slot)
        with pytest.raises(IndexError):
            examples.put(slot, x, 0, 0)
    with pytest.raises(IndexError):
        examples.put_many(2, np.ones((2, 4), np.float32), 0, [0, 0])
    for wrong in (x[:3], np.ones(5, np.float32), np.ones(4), np.ones((1, 4), np.float32)):
        with pytest.raises(ValueError):
            examples.put(0, wrong, 0, 0)
    with pytest.raises(ValueError):
        examples.put_many(0, np.ones((1, 5), np.float32), 0, [0])
    for sizes in [(0, 4), (3, 0), (-1, 4)]:
        with pytest.raises(ValueError):
            kernels.Examples(*sizes)
    assert examples.get([1])[0].tolist() == [[1, 1, 1, 1]]
