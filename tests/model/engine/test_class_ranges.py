"""Classes that belong to tasks: kernels against autograd in float64, engine against engine, learner by learner."""

import random

import numpy as np
import pytest
import torch
from conftest import toy_examples
from torch.nn import functional as F

import model
from model import networks
from model.engine import _compiled
from model.learner import Learner

D, H, C = 40, 20, 9
RANGES = [(0, 2), (2, 3), (3, 9)]  # of two, one and six classes
TOLERANCE = 1e-5
N = 70  # examples: more than a group
LEARNERS = [name for name, learner in model.load_all().items() if issubclass(learner, Learner)]


def examples(n=N, n_inputs=D, seed=0):
    """x (n, D) with zeros, tasks and labels (n,), each label of its task."""
    generator = np.random.default_rng(seed)
    x = (generator.random((n, n_inputs)) * (generator.random((n, n_inputs)) < 0.4)).astype(np.float32)
    t = generator.integers(0, len(RANGES), n)
    y = np.array([generator.integers(*RANGES[task]) for task in t])
    return x, t, y


def distance(found, wanted):
    """Relative to the norm of what is wanted."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def weights_of(sizes, seed=0):
    generator = np.random.default_rng(seed)
    return [
        tuple((generator.random(shape) - 0.5).astype(np.float32) for shape in ((n_out, n_in), (n_out,)))
        for n_in, n_out in zip(sizes, sizes[1:], strict=False)
    ]


class Autograd:
    """The same net in float64; its losses one example at a time, from the formula."""

    def __init__(self, weights):
        self.parameters = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for w in weights for value in w]

    def outputs(self, x):
        h = torch.tensor(x, dtype=torch.float64)
        for i in range(0, len(self.parameters), 2):
            h = F.linear(h.relu() if i else h, *self.parameters[i : i + 2])
        return h

    def losses(self, x, t, y, classes=None):
        found = []
        for z, task, label in zip(self.outputs(x), t, y, strict=True):
            own = [c for c in range(*RANGES[task]) if classes is None or c in classes]
            found.append(torch.logsumexp(z[own], 0) - z[label])
        return torch.stack(found)

    def squares(self, x, t, logits):
        """Squared errors of all outputs that belong to the examples' tasks, of all examples, in a row."""
        differences = self.outputs(x) - torch.tensor(logits, dtype=torch.float64)
        return torch.cat([d[slice(*RANGES[task])] ** 2 for d, task in zip(differences, t, strict=True)])

    def gradient(self, loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.parameters)])

    def step(self, loss, lr):
        for p, g in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
            p.data -= lr * g

    def flat(self):
        return torch.cat([p.detach().flatten() for p in self.parameters]).numpy()


class Case:
    """A kernels' net and the autograd one, with the same weights, and examples in slots 0..N-1."""

    def __init__(self, kernels, sizes=(D, H, C), lr=0.3, n_logits=C):
        weights = weights_of(sizes)
        self.x, self.t, self.y = examples()
        self.net, self.wanted = kernels.MLP(weights[:1], weights[1:], lr, RANGES), Autograd(weights)
        self.examples = kernels.Examples(N, D, n_logits)
        for slot in range(N):
            self.examples.put(slot, self.x[slot], self.t[slot], self.y[slot])
        self.lr = lr

    def loss(self, slots, classes=None):
        return self.wanted.losses(self.x[slots], self.t[slots], self.y[slots], classes)

    def flat(self):
        heads, layers = self.net.weights()
        return np.concatenate([value.ravel() for pair in (*heads, *layers) for value in pair])

    def check(self):
        assert distance(self.flat(), self.wanted.flat()) < TOLERANCE


@pytest.fixture(params=list(_compiled.runnable()))
def kernels(request):
    return _compiled.load(request.param)


@pytest.fixture(params=[(D, H, C), (D, C), (D, 130, 30, C)], ids=["one layer", "linear", "two layers"])
def case(request, kernels):
    return Case(kernels, request.param)


SLOTS = [[3], [4, 9, 11], list(range(20, 70))]


@pytest.mark.parametrize("slots", SLOTS, ids=len)
def test_steps(case, slots):
    scales = np.linspace(0.2, 1, len(slots))
    case.net.sgd_batch(case.examples, slots, scales.tolist())
    loss = (torch.tensor(scales) * case.loss(slots)).sum()
    case.wanted.step(loss, case.lr)
    assert case.net.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    case.check()
    case.net.sgd_each(case.examples, slots)
    for slot in slots:
        case.wanted.step(case.loss([slot]).sum(), case.lr)
    case.check()


@pytest.mark.parametrize("slots", SLOTS, ids=len)
def test_gradients_and_losses(case, slots):
    wanted = case.wanted.gradient(case.loss(slots).mean())
    assert distance(case.net.flat(case.net.gradient(case.examples, slots)), wanted) < TOLERANCE
    np.testing.assert_allclose(case.net.losses(case.examples, slots), case.loss(slots).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factored", [False, True])
def test_task_gradients(case, factored):
    lists = [[slot for slot in range(N) if case.t[slot] == t] for t in range(3)] + [[0, 1, 2]]
    found = case.net.task_gradients(case.examples, lists, factored=factored)
    rows = torch.stack([case.wanted.gradient(case.loss(slots).mean()) for slots in lists])
    assert distance(found.gram(), rows @ rows.T) < TOLERANCE
    zero = case.net.vector(np.zeros(case.net.n_parameters, np.float32))
    combined = case.net.flat(found.combine([1.0, -2.0, 0.5, 3.0], zero))
    assert distance(combined, torch.tensor([1.0, -2, 0.5, 3]).double() @ rows) < TOLERANCE


@pytest.mark.parametrize("slots", SLOTS, ids=len)
def test_sums_of_terms(case, slots):
    """Squared errors count the outputs of each example's task; classes that compete are among them."""
    logits = np.random.default_rng(3).standard_normal((len(slots), C)).astype(np.float32)
    case.examples.store_logits(slots, logits)
    classes = sorted({int(case.y[slot]) for slot in slots} | {8})
    terms = [(slots, 0.7, True, None, False), (slots, 1.5, False, classes, False)]
    case.net.sgd_sum(case.examples, terms)
    loss = 0.7 * case.wanted.squares(case.x[slots], case.t[slots], logits).mean()
    loss = loss + 1.5 * case.loss(slots, classes).mean()
    case.wanted.step(loss, case.lr)
    assert case.net.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    case.check()


def test_hits_are_among_the_tasks_classes(case, kernels):
    images = np.random.default_rng(5).integers(0, 256, (700, D), dtype=np.uint8)
    outputs = case.wanted.outputs(images.astype(np.float32) / np.float32(255)).detach().numpy()
    labels = np.random.default_rng(6).integers(0, C, len(images))
    kernels_images = kernels.TestImages(images)
    for t, (start, stop) in enumerate(RANGES):
        best = start + outputs[:, start:stop].argmax(axis=1)
        assert kernels_images.correct(case.net.snapshot(), t, None, labels, 0, 700) == (best == labels).sum()
    with pytest.raises(IndexError, match="task 3 of a net with classes of 3 tasks"):
        kernels_images.correct(case.net.snapshot(), 3, None, labels, 0, 700)


def test_what_does_not_fit_is_refused(kernels):
    case = Case(kernels)
    case.examples.put(0, case.x[0], 1, 5)
    with pytest.raises(IndexError, match="label 5 of a net with classes 2 to 2 for task 1"):
        case.net.sgd_batch(case.examples, [0])
    case.examples.put(0, case.x[0], 3, 5)
    with pytest.raises(IndexError, match="task 3 of a net with classes of 3 tasks"):
        case.net.gradient(case.examples, [0])
    weights = weights_of((D, H, C))
    for wrong in ([(0, 10)], [(2, 2)], [(-1, 3)], [(0, 3), (5, 4)]):
        with pytest.raises(ValueError, match="of a net with 9 outputs from 0 on"):
            kernels.MLP(weights[:1], weights[1:], 0.1, wrong)


def test_all_variants_find_the_same_bits():
    found = {}
    for name in _compiled.runnable():
        case = Case(_compiled.load(name), (D, 130, 30, C))
        for slots in SLOTS:
            case.net.sgd_batch(case.examples, slots)
            case.net.sgd_each(case.examples, slots)
        found[name] = case.flat()
    first, *others = found.values()
    assert all(np.array_equal(first, other) for other in others)


# learners

SIZES = D, C, len(RANGES)


def stream(n=12, seed=2):
    """Minibatches of 2, task by task."""
    generator = np.random.default_rng(seed)
    for t, (start, stop) in enumerate(RANGES):
        x, y = toy_examples(n, D, stop - start, generator)
        for i in range(0, n, 2):
            yield t, x[i : i + 2], y[i : i + 2] + start


@pytest.fixture
def make(make_learner):
    def make(name, engine, ranges=RANGES, **flags):
        declared = {flag.name for flag in model.load(name).flags}
        given = {"n_memories": 4, "memory_strength": 0.5, "memories": 6, "replay_batch_size": 3, "lr": 0.05}
        given = {flag: value for flag, value in (given | {"n_hiddens": 12} | flags).items() if flag in declared}
        common = {"batch_size": 2, "engine": engine, "draws": "shuffle"}
        return make_learner(name, given | common, SIZES, class_ranges=ranges)

    return make


@pytest.mark.parametrize("name", LEARNERS)
def test_engines_learn_the_same(name, make):
    """Steps and answers of the native engine are the reference engine's, up to rounding; for every learner there is."""
    pair = [make(name, engine) for engine in ("reference", "native")]
    x = torch.from_numpy(examples(6, seed=9)[0])
    for learner in pair:
        random.seed(4)
        for batch in stream():
            learner.observe(batch[1], batch[0], batch[2])
    wanted, found = (learner.state_dict() for learner in pair)
    assert wanted.keys() == found.keys()
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=0, atol=1e-4, msg=key)
    for t, (start, stop) in enumerate(RANGES):
        one, other = (learner.forward(x, t) for learner in pair)
        assert one.shape == other.shape == (6, C)
        for outputs in (one, other):
            assert (outputs[:, :start] == networks.MASKED).all() and (outputs[:, stop:] == networks.MASKED).all()
        torch.testing.assert_close(
            torch.as_tensor(other)[:, start:stop], torch.as_tensor(one)[:, start:stop], rtol=0, atol=1e-3
        )
    assert pair[1].take_loss() == pytest.approx(pair[0].take_loss(), rel=1e-3)


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_a_step_of_online_is_on_the_tasks_outputs_alone(engine, make):
    learner = make("online", engine)
    before = learner.state_dict()
    learner.observe(torch.rand(2, D), 2, torch.tensor([3, 8]))
    after = learner.state_dict()
    last = [key for key in before if key.endswith("weight")][-1]
    assert torch.equal(after[last][:3], before[last][:3]) and not torch.equal(after[last][3:], before[last][3:])


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_taskinputs_loss_is_over_the_tasks_classes(engine, make):
    """Its outputs are log-probabilities over all classes; among the task's they are renormalised."""
    learner = make("taskinput", engine, lr=0.0)
    x, y = torch.rand(2, D), torch.tensor([4, 7])
    outputs = torch.as_tensor(learner.forward(x, 2))[:, 3:]
    learner.take_loss()
    learner.observe(x, 2, y)
    assert learner.take_loss() == pytest.approx(float(F.cross_entropy(outputs, y - 3)), rel=1e-5)


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_independent_takes_over_all_but_outputs_of_another_number(engine, make):
    learner = make("independent", engine, lr=0.0)
    learner.observe(torch.rand(1, D), 0, torch.tensor([1]))
    own = learner.nets[1].state_dict()
    learner.observe(torch.rand(1, D), 1, torch.tensor([2]))
    first, found = learner.nets[0].state_dict(), learner.nets[1].state_dict()
    for name in first:
        same = first[name].shape == own[name].shape
        assert torch.equal(found[name], first[name] if same else own[name]), name
    assert any(first[name].shape != own[name].shape for name in first)
