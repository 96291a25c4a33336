"""The reference engine: PyTorch autograd, on CPU or CUDA, operation by operation what the original does."""

import numpy as np
import torch
from torch.nn import functional as F

from model import networks
from model.engine import base
from model.losses import SquaredError


class ReferenceEngine(base.Engine):
    """Bit for bit the original on the same machine with the same number of threads."""

    name = "reference"

    def __init__(self, draws, device="cpu"):
        self.draws, self.device = draws, torch.device(device)
        self._loss = 0.0

    def examples(self, n_inputs, n_logits=0):
        return base.Examples(n_inputs, n_logits, self.device)

    def network(self, module, examples, lr, class_ranges=None):
        return ReferenceNetwork(self, module.to(self.device), examples, lr, class_ranges)

    def add_loss(self, loss):
        self._loss = self._loss + loss.detach()

    def take_loss(self):
        loss, self._loss = self._loss, 0.0
        return float(loss)


class ReferenceNetwork(base.Network):
    """A torch module whose gradients autograd computes.

    class_ranges   None, or (start, stop) for each task: its classes. Then a training loss sees the task's outputs only,
                   and the labels are shifted by start. (GEM's protocol for CIFAR-100)
    """

    def __init__(self, engine, module, examples, lr, class_ranges):
        self.engine, self.module, self.examples, self.lr, self.class_ranges = engine, module, examples, lr, class_ranges
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self._masks = {
            name for name, value in module.state_dict().items() if value.is_floating_point() and value.isinf().any()
        }
        self._before = []  # theta0 of each open reptile block
        self._anchors = []  # (strength * importance, theta*), one tensor for each parameter, of each past task

    # losses

    def mean_loss(self, batch, training=True):
        """The mean loss of a batch, that can be differentiated."""
        self.module.train(training)
        x, y, tasks = self.examples.get(batch)
        return self._loss(self._outputs(x, tasks), y, tasks)

    def _loss(self, outputs, y, tasks, reduction="mean"):
        if self.class_ranges is None:
            return self.module.loss(outputs, y, reduction=reduction)
        # which is also that of log-probabilities: among some of the classes they are outputs like any
        if len(set(tasks)) == 1:
            start, stop = self.class_ranges[tasks[0]]
            return F.cross_entropy(outputs[:, start:stop], y - start, reduction=reduction)
        return F.cross_entropy(networks.masked(outputs, tasks, self.class_ranges), y, reduction=reduction)

    def _term(self, term, kept):
        """A term of model.losses; kept gets (batch, outputs) of which the logits are to be stored."""
        self.module.train()
        x, y, tasks = self.examples.get(term.batch)
        outputs = self._outputs(x, tasks)
        if isinstance(term, SquaredError):
            return term.weight * self._squared_error(outputs, self.examples.logits[term.batch], tasks)
        if term.keeps_logits:
            kept.append((term.batch, outputs.detach()))
        if term.classes is not None:
            absent = torch.ones(outputs.shape[1], dtype=torch.bool, device=outputs.device)
            absent[term.classes] = False
            outputs = outputs.masked_fill(absent, networks.MASKED)
        return term.weight * self._loss(outputs, y, tasks)

    def _squared_error(self, outputs, logits, tasks):
        """Mean over the examples and the classes; where these belong to tasks, over those of each example's task."""
        squares = (outputs - logits).pow(2)
        if self.class_ranges is None:
            return squares.mean()
        parts = [squares[i, slice(*self.class_ranges[t])] for i, t in enumerate(tasks)]
        return torch.cat(parts).mean()

    def _outputs(self, x, tasks):
        if len(set(tasks)) == 1 or not self.module.reads_task:
            return self.module(x, tasks[0])
        return torch.cat([self.module(x[i : i + 1], t) for i, t in enumerate(tasks)])

    def _penalised(self, loss):
        for importances, optima in self._anchors:
            for p, importance, optimum in zip(self.parameters, importances, optima, strict=True):
                loss = loss + (importance * (p - optimum).pow(2)).sum()
        return loss

    # steps

    def _step(self, loss):
        loss = self._penalised(loss)
        self.engine.add_loss(loss)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        with torch.no_grad():
            for p, g in zip(self.parameters, gradients, strict=True):
                if g is not None:
                    p.add_(g, alpha=-self.lr)

    def sgd(self, batch):
        self._step(self.mean_loss(batch))

    def sgd_groups(self, groups):
        self._step(sum(self.mean_loss(group) for group in groups))

    def sgd_each(self, batch, weights=None):
        for i, slot in enumerate(batch):
            loss = self.mean_loss([slot])
            self._step(loss if weights is None or weights[i] == 1 else weights[i] * loss)

    def sgd_sum(self, terms):
        kept = []
        self._step(sum(self._term(term, kept) for term in terms if term.batch))
        for batch, outputs in kept:
            self.examples.store_logits(batch, outputs)

    # what is asked without a step

    @torch.no_grad()
    def losses(self, batch):
        self.module.eval()
        x, y, tasks = self.examples.get(batch)
        return self._loss(self._outputs(x, tasks), y, tasks, reduction="none").cpu().numpy()

    @torch.no_grad()
    def outputs(self, batch):
        self.module.eval()
        x, _, tasks = self.examples.get(batch)
        outputs = self._outputs(x, tasks)
        if self.class_ranges is not None:
            outputs = networks.masked(outputs, tasks, self.class_ranges)
        return outputs.cpu().numpy()

    # Reptile

    def _interpolated(self):
        """What Reptile moves: the weights, and the running statistics with the weights that they were taken of.

        (docs/your_network.md says why.) A mask of -inf among the buffers stays what it is.
        """
        state = self.module.state_dict()
        return [value for name, value in state.items() if value.is_floating_point() and name not in self._masks]

    def begin_reptile(self):
        self._before.append([value.clone() for value in self._interpolated()])

    def end_reptile(self, step):
        with torch.no_grad():
            for value, before in zip(self._interpolated(), self._before.pop(), strict=True):
                value.copy_(before + (value - before) * step if step else before)

    # gradients

    def gradient(self, batch, training=True):
        loss = self.mean_loss(batch, training)
        if training:
            self.engine.add_loss(loss)
        return torch.cat([g.flatten() for g in self.gradients(loss)])

    def gradients(self, loss):
        """The gradient of a loss, by parameter."""
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients, strict=True)]

    @property
    def shared(self):
        return not self.module.reads_task

    def gradient_products(self, examples, batch):
        self.module.eval()
        rows = []
        for slot in batch:
            x, y, tasks = examples.get([slot])
            loss = self._loss(self._outputs(x, tasks), y, tasks)
            rows.append(torch.cat([g.flatten() for g in self.gradients(loss)]).cpu())
        G = torch.stack(rows).double()
        return (G @ G.T).numpy()

    def task_gradients(self, batches, training=True):
        return ReferenceTaskGradients(torch.stack([self.gradient(batch, training) for batch in batches], dim=1))

    def split(self, flat):
        """(P,) numbers as a list of tensors, one for each parameter."""
        sizes = [p.numel() for p in self.parameters]
        return [part.view_as(p) for part, p in zip(flat.split(sizes), self.parameters, strict=True)]

    def descend(self, gradient):
        with torch.no_grad():
            for p, g in zip(self.parameters, self.split(gradient), strict=True):
                p.add_(g, alpha=-self.lr)

    def anchor(self, importance, strength):
        optima = [p.detach().clone() for p in self.parameters]
        self._anchors.append(([strength * part for part in self.split(importance)], optima))

    # the rest

    def copy_from(self, other):
        self.module.load_state_dict(other.module.state_dict())

    def average(self, other, keep):
        with torch.no_grad():
            for value, new in zip(self._interpolated(), other._interpolated(), strict=True):
                value.mul_(keep).add_(new, alpha=1 - keep)

    def rates(self, value):
        return ReferenceRates(self, value)

    @torch.no_grad()
    def predict(self, x, t):
        self.module.eval()
        parts = x.to(self.engine.device).split(self.module.most_rows or len(x))
        outputs = torch.cat([self.module(part, t) for part in parts]) if len(parts) > 1 else self.module(parts[0], t)
        return outputs if self.class_ranges is None else networks.masked(outputs, [t] * len(outputs), self.class_ranges)

    def n_weights(self):
        return sum(p.numel() for p in self.parameters)

    def is_finite(self):
        """Whether the weights that it learns are; a mask of -inf among the buffers is none of them."""
        return all(bool(torch.isfinite(p).all()) for p in self.parameters)

    def state_dict(self):
        return {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}

    def load_state_dict(self, state):
        self.module.load_state_dict(self.module.state_dict() | state)  # a network may have more heads than are known

    def state(self):
        def flat(parts):
            return torch.cat([part.flatten() for part in parts]).cpu()

        anchors = [{"importance": flat(parts), "optimum": flat(optima)} for parts, optima in self._anchors]
        return {"weights": self.state_dict(), "anchors": anchors}

    def load_state(self, state):
        self.load_state_dict(state["weights"])
        anchors = [base.as_one(anchor) for anchor in state["anchors"]]
        self._anchors = [
            tuple(self.split(anchor[name].to(self.engine.device)) for name in ("importance", "optimum"))
            for anchor in anchors
        ]


class ReferenceTaskGradients(base.TaskGradients):
    """The gradients as columns of a float32 matrix (P, K), as in GEM's code: its sums run in the original's order."""

    def __init__(self, columns):
        self._columns = columns
        self._rows = columns.cpu().t().double().numpy()

    def interferes(self, gradient):
        return bool((torch.mm(gradient.unsqueeze(0), self._columns) < 0).any())

    def dot(self, gradient):
        return self._rows @ gradient.cpu().double().numpy()

    def gram(self):
        return self._rows @ self._rows.T

    def combine(self, v, gradient):
        return torch.from_numpy((np.dot(v, self._rows) + gradient.cpu().double().numpy()).astype(np.float32)).to(
            gradient.device
        )


class ReferenceRates(base.Rates):
    """alpha, u and v as lists of tensors, one for each parameter."""

    def __init__(self, net, value):
        self.net, self.alpha = net, [torch.full_like(p, value) for p in net.parameters]
        self.begin()

    def begin(self):
        self.path, self.u, self.v = ([torch.zeros_like(a) for a in self.alpha] for _ in range(3))

    @torch.no_grad()
    def step(self, batch):
        with torch.enable_grad():
            gradients = self.net.gradients(self.net.mean_loss(batch))
        for p, a, g, path in zip(self.net.parameters, self.alpha, gradients, self.path, strict=True):
            p.sub_(a.relu() * g)
            path.add_(g)

    @torch.no_grad()
    def look(self, batch, weight):
        with torch.enable_grad():
            loss = weight * self.net.mean_loss(batch)
            gradients = self.net.gradients(loss)
        self.net.engine.add_loss(loss)
        for u, v, a, g, path in zip(self.u, self.v, self.alpha, gradients, self.path, strict=True):
            u.add_(g)
            v.sub_((a > 0) * g * path)

    @staticmethod
    def _shortened(gradients, most):
        """The gradients scaled to a norm of at most `most`, of all of them together."""
        norm = torch.stack([g.norm() for g in gradients]).norm()
        factor = (most / (norm + 1e-6)).clamp(max=1)
        return [factor * g for g in gradients]

    def learn(self, rate, most):
        for a, v in zip(self.alpha, self._shortened(self.v, most), strict=True):
            a.sub_(rate * v)

    @torch.no_grad()
    def descend(self, most, rate=None):
        for p, a, u in zip(self.net.parameters, self.alpha, self._shortened(self.u, most), strict=True):
            p.sub_(a.relu() * u if rate is None else rate * u)

    def state(self):
        return {"rates": torch.cat([a.flatten() for a in self.alpha]).cpu()}

    def load_state(self, state):
        rates = base.checked_rates(state, sum(a.numel() for a in self.alpha))
        self.alpha = [part.clone() for part in self.net.split(rates.to(self.net.engine.device))]
        self.begin()
