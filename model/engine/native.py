"""The native engine: compiled kernels for multi-layer perceptrons on the CPU.

The reference engine's algorithms in float32 with other rounding: sums run in another order, a Reptile step of exactly 1
is left out, EWC's penalty over all past tasks is kept as two sums.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F

from model import networks
from model.engine import _compiled, base
from model.losses import SquaredError


class NativeEngine(base.Engine):
    """Runs networks.MLP and networks.TaskInputMLP; their snapshots may be evaluated while training goes on.

    A step takes one thread; the gradients of many past tasks are shared out over `threads`.
    """

    name = "native"
    overlaps = True

    def __init__(self, draws, threads=1):
        self.draws, self.threads, self._loss = draws, threads, 0.0
        self.pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="gradients") if threads > 1 else None
        self._images, self._lock = {}, threading.Lock()

    def examples(self, n_inputs, n_logits=0):
        return NativeExamples(n_inputs, n_logits)

    def network(self, module, examples, lr, class_ranges=None):
        if not isinstance(module, networks.MLP | networks.TaskInputMLP):
            raise TypeError("the native engine runs plain MLPs only")
        return NativeNetwork(self, module, examples, lr, class_ranges)

    def add_loss(self, loss):
        self._loss += loss

    def take_loss(self):
        loss, self._loss = self._loss, 0.0
        return loss

    def test_images(self, split):
        """The compiled form of a split's images, made once for all tasks that are maps of them."""
        with self._lock:
            key = id(split.images)
            if key not in self._images:
                self._images[key] = (
                    _compiled.TestImages(split.images),
                    split.images,
                )  # the images, so that no id returns
            return self._images[key][0]


class NativeExamples:
    """`base.Examples` in the kernels' sparse form: the non-zero inputs of each slot."""

    def __init__(self, n_inputs, n_logits=0):
        self.n_inputs, self.n_logits, self.tasks, self.labels = n_inputs, n_logits, [], []
        self.compiled = _compiled.Examples(1, n_inputs, n_logits)

    def _reserve(self, n):
        if n > len(self.tasks):
            room = max(n, 2 * len(self.tasks), 64)
            self.compiled.grow(room)
            self.tasks += [-1] * (room - len(self.tasks))
            self.labels += [-1] * (room - len(self.labels))

    def put(self, first_slot, x, t, y):
        """Writes a minibatch of task t, x (B, D) and y (B,), to slots first_slot..; returns the slots."""
        end = first_slot + len(y)
        self._reserve(end)
        labels = y.tolist()
        self.compiled.put_many(first_slot, np.ascontiguousarray(x, dtype=np.float32), t, labels)
        self.tasks[first_slot:end], self.labels[first_slot:end] = [t] * len(y), labels
        return list(range(first_slot, end))

    def copy(self, source, target):
        """Slot target becomes what slot source is."""
        self._reserve(target + 1)
        self.compiled.copy(source, target)
        self.tasks[target], self.labels[target] = self.tasks[source], self.labels[source]

    def store_logits(self, batch, logits):
        """The logits of a batch become these, (B, n_logits) float32."""
        self.compiled.store_logits(batch, np.ascontiguousarray(logits, dtype=np.float32))

    by_task = base.Examples.by_task
    load_state = base.Examples.load_state

    def state(self):
        slots = [slot for slot, t in enumerate(self.tasks) if t >= 0]
        x, t, y = (torch.from_numpy(values) for values in self.compiled.get(slots))
        state = {"slots": slots, "x": x, "t": t, "y": y}
        return state | ({"logits": torch.from_numpy(self.compiled.get_logits(slots))} if self.n_logits else {})


class NativeNetwork(base.Network):
    """The kernels' MLP, with the weights, and the names of the weights, of a torch module.

    class_ranges   as in ReferenceNetwork
    """

    def __init__(self, engine, module, examples, lr, class_ranges=None):
        self.engine, self.examples, self.class_ranges = engine, examples, class_ranges
        self._placed = networks.place_of(module)  # None, or (first class, number of classes) of what it answers for
        own = {"class_ranges": class_ranges} if self._placed is None else {"first_class": self._placed[0]}
        self._log_probabilities = module.log_probabilities
        self._names = list(module.state_dict())
        heads, layers = module.heads_and_layers()
        self._n_heads = len(heads)
        self.mlp = _compiled.MLP(*self._arrays(module.state_dict()), lr, **own)

    def _arrays(self, state):
        """(heads, layers), lists of (weight, bias), from the named weights: PyTorch's order is heads first."""
        values = [np.ascontiguousarray(state[name].numpy(), dtype=np.float32) for name in self._names]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        return pairs[: self._n_heads], pairs[self._n_heads :]

    def sgd(self, batch):
        self.mlp.sgd_batch(self.examples.compiled, batch, [1 / len(batch)] * len(batch))
        self.engine.add_loss(self.mlp.loss)

    def sgd_groups(self, groups):
        batch = [slot for group in groups for slot in group]
        self.mlp.sgd_batch(self.examples.compiled, batch, [1 / len(group) for group in groups for _ in group])
        self.engine.add_loss(self.mlp.loss)

    def sgd_each(self, batch, weights=None):
        self.mlp.sgd_each(self.examples.compiled, batch, weights)
        self.engine.add_loss(self.mlp.loss)

    def sgd_sum(self, terms):
        wanted = [
            (term.batch, term.weight, True, None, False)
            if isinstance(term, SquaredError)
            else (term.batch, term.weight, False, term.classes, term.keeps_logits)
            for term in terms
            if term.batch
        ]
        self.mlp.sgd_sum(self.examples.compiled, wanted)
        self.engine.add_loss(self.mlp.loss)

    def losses(self, batch):
        return self.mlp.losses(self.examples.compiled, batch)

    def outputs(self, batch):
        outputs = self.mlp.outputs(self.examples.compiled, batch)
        return self._answers(outputs, [self.examples.tasks[slot] for slot in batch]).numpy()

    def _answers(self, outputs, tasks):
        """What the module gives out where the kernels give these outputs, for one task each; MASKED where not its."""
        outputs = torch.from_numpy(outputs)
        if self._log_probabilities:
            outputs = F.log_softmax(outputs, dim=1)
        if self._placed is not None:
            outputs = networks.padded(outputs, *self._placed)
        return outputs if self.class_ranges is None else networks.masked(outputs, tasks, self.class_ranges)

    def begin_reptile(self):
        self.mlp.begin_reptile()

    def end_reptile(self, step):
        self.mlp.end_reptile(step)

    def gradient(self, batch):
        gradient = self.mlp.gradient(self.examples.compiled, batch)
        self.engine.add_loss(self.mlp.loss)
        return gradient

    @property
    def shared(self):
        return self._n_heads == 1

    def gradient_products(self, examples, batch):
        return self.mlp.task_gradients(examples.compiled, [[slot] for slot in batch], factored=True).gram()

    def task_gradients(self, batches, training=True):
        engine = self.engine
        compiled = self.mlp.task_gradients(self.examples.compiled, batches, engine.pool, engine.threads)
        if training:
            engine.add_loss(compiled.loss)
        return NativeTaskGradients(compiled)

    def descend(self, gradient):
        self.mlp.descend(gradient)

    def anchor(self, importance, strength):
        self.mlp.anchor(importance, strength)

    def copy_from(self, other):
        self.mlp.copy_from(other.mlp)

    def average(self, other, keep):
        self.mlp.average(other.mlp, keep)

    def rates(self, value):
        return NativeRates(self, value)

    def predict(self, x, t):
        return self._answers(self.mlp.predict(np.ascontiguousarray(x, dtype=np.float32), t), [t] * len(x))

    def snapshot(self):
        """The network as it is now, to be evaluated by other threads."""
        return Snapshot(self.engine, self.mlp.snapshot())

    def state_dict(self):
        heads, layers = self.mlp.weights()
        values = [torch.from_numpy(value) for pair in (*heads, *layers) for value in pair]
        return dict(zip(self._names, values, strict=True))

    def load_state_dict(self, state):
        self.mlp.set_weights(*self._arrays(self.state_dict() | state))  # a network may have more heads than are known

    def state(self):
        anchors = []
        if (sums := self.mlp.anchors()) is not None:
            stiffness, pull, constant = sums
            anchors = [{"stiffness": torch.from_numpy(stiffness), "pull": torch.from_numpy(pull), "constant": constant}]
        return {"weights": self.state_dict(), "anchors": anchors}

    def load_state(self, state):
        self.load_state_dict(state["weights"])
        anchors = [base.as_sums(anchor) for anchor in state["anchors"]]
        stiffness, pull, constant = (
            sum(anchor[name] for anchor in anchors) for name in ("stiffness", "pull", "constant")
        )
        self.mlp.set_anchors((stiffness.numpy(), pull.numpy(), constant) if anchors else None)


class NativeTaskGradients(base.TaskGradients):
    """The kernels' task gradients: a product with g needs no full gradient, and only a projection makes them."""

    def __init__(self, compiled):
        self._compiled, self._products = compiled, (None, None)

    def interferes(self, gradient):
        return bool((self.dot(gradient) < 0).any())

    def dot(self, gradient):
        if self._products[0] is not gradient:  # a learner asks whether it interferes, then how much
            self._products = gradient, self._compiled.dot(gradient)
        return self._products[1]

    def gram(self):
        return self._compiled.gram()

    def combine(self, v, gradient):
        return self._compiled.combine(v, gradient)


class NativeRates(base.Rates):
    """The kernels' rates, in which nothing but the rows of a step's non-zero inputs is touched by it."""

    def __init__(self, net, value):
        self._net, self._compiled = net, net.mlp.rates(value)

    def begin(self):
        self._compiled.begin()

    def step(self, batch):
        self._compiled.step(self._net.examples.compiled, batch)

    def look(self, batch, weight):
        self._compiled.look(self._net.examples.compiled, batch, weight)
        self._net.engine.add_loss(self._compiled.loss)

    def learn(self, rate, most):
        self._compiled.learn(rate, most)

    def descend(self, most, rate=None):
        self._compiled.descend(most, rate)

    def state(self):
        return {"rates": torch.from_numpy(self._compiled.values())}

    def load_state(self, state):
        rates = base.checked_rates(state, self._net.mlp.n_parameters)
        self._compiled.set_values(rates.numpy())
        self._compiled.begin()


class Snapshot:
    """Weights that do not change."""

    def __init__(self, engine, mlp):
        self._engine, self._mlp = engine, mlp

    def hits(self, split, t, n):
        """How many of the first n examples of a split it gets right as task t's."""
        return self._engine.test_images(split).correct(self._mlp, t, split.pixel_map, split.labels, 0, n)
