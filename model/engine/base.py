"""What a learner may ask of a network, whatever machine computes it.

    x, t, y   inputs, task and label of an example
    slot      an example's place in `Examples`; a batch is a list of slots
    theta     the parameters of a network
    vector    one number for each parameter, and zeros, in an order of the engine's own: what `gradient` gives and other
              methods take. Elementwise operations leave it one. In PyTorch's order, flat, P numbers, in a `state`

An engine offers `examples`, `network` and `draws`, and adds up the training losses.
"""

from abc import ABC, abstractmethod
from contextlib import contextmanager

import torch


class Network(ABC):
    """A network in training: plain SGD, and cross-entropy over the classes of an example's task."""

    @abstractmethod
    def sgd(self, batch):
        """One SGD step on the mean loss of the batch."""

    @abstractmethod
    def sgd_groups(self, groups):
        """One SGD step on the sum over groups (lists of slots) of each group's mean loss."""

    @abstractmethod
    def sgd_each(self, batch, weights=None):
        """One SGD step per example, in the order of the batch; the i-th loss times weights[i]."""

    @abstractmethod
    def sgd_sum(self, terms):
        """One SGD step on a sum of terms (model.losses), in their order; one of no examples is left out."""

    @abstractmethod
    def begin_reptile(self):
        """Marks theta0. Nests."""

    @abstractmethod
    def end_reptile(self, step):
        """theta <- theta0 + (theta - theta0) * step, elementwise, with the theta0 marked last; theta0 for step 0."""

    @contextmanager
    def reptile(self, step):
        """Interpolates between the weights before and after the block. (Nichol et al. 2018; Algorithms 1, 6, 7)"""
        self.begin_reptile()
        yield
        self.end_reptile(step)

    def tried(self):
        """A block whose steps are taken back at its end: what would be, if they were taken."""
        return self.reptile(0)

    @abstractmethod
    def losses(self, batch):
        """(B,) float32 array: the loss of each example of a batch, of one or more; no training loss is added up."""

    @abstractmethod
    def outputs(self, batch):
        """(B, C) float32 array: the outputs for each example of a batch, of one or more, as `predict` gives them."""

    @abstractmethod
    def gradient(self, batch):
        """Gradient of the mean loss of the batch, a vector: no anchor counts; the engine adds up the loss."""

    @property
    @abstractmethod
    def shared(self):
        """Whether all tasks have all of its parameters."""

    @abstractmethod
    def gradient_products(self, examples, batch):
        """(B, B) inner products of the loss gradients of single examples, slots of other `Examples`, float64 numpy.

        No training loss is added up. Only for a `shared` network.
        """

    @abstractmethod
    def task_gradients(self, batches, training=True):
        """TaskGradients of the mean loss of each batch.

        Not for training: batch norm and dropout as in evaluation, and no training loss is added up.
        """

    @abstractmethod
    def descend(self, gradient):
        """theta <- theta - lr * gradient, a vector."""

    @abstractmethod
    def anchor(self, importance, strength):
        """Adds strength * sum_i importance_i (theta_i - theta*_i)^2, theta* = theta now, to every later step's loss."""

    @abstractmethod
    def copy_from(self, other):
        """theta <- theta of another network of the same shape."""

    @abstractmethod
    def average(self, other, keep):
        """theta <- keep * theta + (1 - keep) * theta of another network of the same shape."""

    @abstractmethod
    def rates(self, value):
        """Rates of this network, all of them `value`."""

    @abstractmethod
    def predict(self, x, t):
        """(B, C) outputs for x (B, D) of task t; -10e10 for classes that are not the task's."""

    def n_weights(self):
        """How many numbers it learns."""
        return sum(value.numel() for value in self.state_dict().values())

    def is_finite(self):
        """Whether all weights are finite numbers."""
        return all(bool(torch.isfinite(value).all()) for value in self.state_dict().values())

    @abstractmethod
    def state_dict(self):
        """The weights, as torch tensors on the CPU under PyTorch's names."""

    @abstractmethod
    def load_state_dict(self, state):
        """The weights from a `state_dict`."""

    @abstractmethod
    def state(self):
        """All that `load_state` needs, on any engine: {"weights": state_dict(), "anchors": [...]}.

        An anchor is {"importance", "optimum"}, its strength * importance and its theta*, (P,) each; or, for several,
        the sums {"stiffness", "pull", "constant"}: of importance, importance * optimum, importance * optimum^2.
        `as_one` and `as_sums` make either of the other.
        """

    @abstractmethod
    def load_state(self, state):
        """Goes on where `state` was taken: exactly if that was on this engine, else up to rounding."""


def as_one(anchor):
    """An anchor of a `Network.state` in the first form: of sums it keeps the gradient, but not the constant."""
    if "importance" in anchor:
        return anchor
    stiffness, pull = anchor["stiffness"], anchor["pull"].view_as(anchor["stiffness"])
    return {"importance": stiffness, "optimum": torch.where(stiffness == 0, 0.0, pull / stiffness)}


def as_sums(anchor):
    """An anchor of a `Network.state` in the second form."""
    if "stiffness" in anchor:
        return anchor
    importance, optimum = anchor["importance"], anchor["optimum"].view_as(anchor["importance"])
    pull = importance * optimum
    return {"stiffness": importance, "pull": pull, "constant": float((pull.double() * optimum).sum())}


def checked_rates(state, n_parameters):
    """The rates of a `Rates.state`: (P,) float32. ValueError unless there is one for each parameter."""
    if state["rates"].shape != (n_parameters,):
        raise ValueError(f"rates {tuple(state['rates'].shape)} for {n_parameters} parameters")
    return state["rates"].to(torch.float32)


class TaskGradients(ABC):
    """The gradients g_1..g_K of K tasks' mean losses, G (K, P); each product is computed when it is asked for."""

    @abstractmethod
    def interferes(self, gradient):
        """Whether any g_k . gradient < 0: the step would increase a past task's loss."""

    @abstractmethod
    def dot(self, gradient):
        """(K,) products G gradient, float64 numpy."""

    @abstractmethod
    def gram(self):
        """(K, K) products G G^T, float64 numpy."""

    @abstractmethod
    def combine(self, v, gradient):
        """G^T v + gradient, a vector."""


class Rates(ABC):
    """Learning rates alpha of a network, one for each parameter; one that is negative counts as 0: [alpha]+.

    A path of steps goes from theta_0 down its gradients g_1, ..., g_j, and looks at the loss of other examples on its
    way. With G_k the gradient of the k-th look, where the path has gone down g_1, ..., g_j(k), and first order, that is
    with the g constant,

        u = sum_k G_k,  v = -1[alpha > 0] * sum_k G_k * (g_1 + ... + g_j(k)),  elementwise

    are the gradients of all that was looked at with respect to theta_0 and to alpha.
    """

    @abstractmethod
    def begin(self):
        """A path starts at theta; u = v = 0."""

    @abstractmethod
    def step(self, batch):
        """theta <- theta - [alpha]+ * the gradient of the mean loss of the batch, a further step of the path."""

    @abstractmethod
    def look(self, batch, weight):
        """Looks at weight * the mean loss of the batch; the engine adds it up."""

    @abstractmethod
    def learn(self, rate, most):
        """alpha <- alpha - rate * v, v scaled to a norm of at most `most`. Ends the path."""

    @abstractmethod
    def descend(self, most, rate=None):
        """theta <- theta - rate * u, u scaled to a norm of at most `most`; without a rate that is [alpha]+."""

    @abstractmethod
    def state(self):
        """{"rates": alpha, (P,)}, for any engine. There is no path to go on with: `begin` comes next."""

    @abstractmethod
    def load_state(self, state):
        """Goes on where `state` was taken. Raises ValueError for rates of another network."""


class Engine(ABC):
    """A way to compute. `draws` is the random source of the memories (model.memory)."""

    name: str
    overlaps = False  # whether networks have a `snapshot()` that may be evaluated while training goes on

    @abstractmethod
    def examples(self, n_inputs, n_logits=0):
        """Empty `Examples`, with room for so many stored logits each."""

    @abstractmethod
    def network(self, module, examples, lr, class_ranges=None):
        """The Network of a module of model.networks, trained on examples of `examples`."""

    @abstractmethod
    def take_loss(self):
        """The sum of the losses since the last call, a float (not finite if any was not)."""


class Examples:
    """Slots of examples, grown as they are written: inputs (n, D), tasks and labels (n,).

    tasks, labels   lists; a slot's task is -1 until it is written
    logits          (n, n_logits) what a network gave out for each of them once; 0 until they are stored
    """

    def __init__(self, n_inputs, n_logits=0, device="cpu"):
        self.n_logits = n_logits
        self.x = torch.empty(0, n_inputs, device=device)
        self.y = torch.empty(0, dtype=torch.long, device=device)
        self.logits = torch.empty(0, n_logits, device=device)
        self.tasks, self.labels = [], []

    def _reserve(self, n):
        have = len(self.tasks)
        if n > have:
            room = max(n, 2 * have, 64)
            for name in ("x", "y", "logits"):
                old = getattr(self, name)
                new = torch.zeros(room, *old.shape[1:], dtype=old.dtype, device=old.device)
                new[:have] = old
                setattr(self, name, new)
            self.tasks += [-1] * (room - have)
            self.labels += [-1] * (room - have)

    def put(self, first_slot, x, t, y):
        """Writes a minibatch of task t, x (B, D) and y (B,), to slots first_slot..; returns the slots."""
        end = first_slot + len(y)
        self._reserve(end)
        self.x[first_slot:end] = x
        self.y[first_slot:end] = y
        self.tasks[first_slot:end] = [t] * len(y)
        self.labels[first_slot:end] = y.tolist()
        if self.n_logits:
            self.logits[first_slot:end] = 0
        return list(range(first_slot, end))

    def copy(self, source, target):
        """Slot target becomes what slot source is."""
        self._reserve(target + 1)
        self.x[target] = self.x[source]
        self.y[target] = self.y[source]
        self.tasks[target], self.labels[target] = self.tasks[source], self.labels[source]
        if self.n_logits:
            self.logits[target] = self.logits[source]

    def get(self, batch):
        """Inputs (B, D), labels (B,) and the list of tasks of a batch."""
        if len(batch) == 1:  # a view: a copy would cost a batch-1 step several microseconds
            (slot,) = batch
            return self.x[slot : slot + 1], self.y[slot : slot + 1], self.tasks[slot : slot + 1]
        return self.x[batch], self.y[batch], [self.tasks[slot] for slot in batch]

    def store_logits(self, batch, logits):
        """The logits of a batch become these, (B, n_logits) float32."""
        self.logits[batch] = torch.as_tensor(logits, device=self.logits.device)

    def by_task(self, batch):
        """The batch grouped by task, groups and their members in order of first appearance."""
        groups = {}
        for slot in batch:
            groups.setdefault(self.tasks[slot], []).append(slot)
        return list(groups.values())

    def state(self):
        slots = [slot for slot, t in enumerate(self.tasks) if t >= 0]
        state = {
            "slots": slots,
            "x": self.x[slots].cpu(),
            "t": torch.tensor([self.tasks[s] for s in slots]),
            "y": self.y[slots].cpu(),
        }
        return state | ({"logits": self.logits[slots].cpu()} if self.n_logits else {})

    def load_state(self, state):
        for slot, x, t, y in zip(state["slots"], state["x"], state["t"].tolist(), state["y"], strict=True):
            self.put(slot, x[None], t, y[None])
        if self.n_logits and state["slots"]:
            self.store_logits(state["slots"], state["logits"])
