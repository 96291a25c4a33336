"""The reference engine: PyTorch autograd, on CPU or CUDA, operation by operation what the original does."""

import numpy as np
import torch

from model import networks
from model.engine import base


class ReferenceEngine(base.Engine):
    """Bit for bit the original on the same machine with the same number of threads."""

    name = "reference"

    def __init__(self, draws, device="cpu"):
        self.draws, self.device = draws, torch.device(device)
        self._loss = 0.0

    def examples(self, n_inputs):
        return base.Examples(n_inputs, self.device)

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

    def _mean_loss(self, batch):
        self.module.train()
        x, y, tasks = self.examples.get(batch)
        outputs = self._outputs(x, tasks)
        if self.class_ranges is None:
            return self.module.loss(outputs, y)
        if len(set(tasks)) == 1:
            start, stop = self.class_ranges[tasks[0]]
            return self.module.loss(outputs[:, start:stop], y - start)
        return self.module.loss(self._mask(outputs, tasks), y)

    def _outputs(self, x, tasks):
        if len(set(tasks)) == 1 or not self.module.reads_task:
            return self.module(x, tasks[0])
        return torch.cat([self.module(x[i : i + 1], t) for i, t in enumerate(tasks)])

    def _mask(self, outputs, tasks):
        """Outputs (B, C) with those outside of each example's task out of the game."""
        classes = torch.arange(outputs.shape[1], device=outputs.device)
        ranges = torch.tensor([self.class_ranges[t] for t in tasks], device=outputs.device)
        outside = (classes < ranges[:, :1]) | (classes >= ranges[:, 1:])
        return outputs.masked_fill(outside, networks.MASKED)

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
        self._step(self._mean_loss(batch))

    def sgd_groups(self, groups):
        self._step(sum(self._mean_loss(group) for group in groups))

    def sgd_each(self, batch, weights=None):
        for i, slot in enumerate(batch):
            loss = self._mean_loss([slot])
            self._step(loss if weights is None or weights[i] == 1 else weights[i] * loss)

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
                value.copy_(before + (value - before) * step)

    # gradients

    def gradient(self, batch):
        loss = self._mean_loss(batch)
        self.engine.add_loss(loss)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for p, g in zip(self.parameters, gradients, strict=True)
            ]
        )

    def task_gradients(self, batches):
        return ReferenceTaskGradients(torch.stack([self.gradient(batch) for batch in batches], dim=1))

    def _split(self, flat):
        sizes = [p.numel() for p in self.parameters]
        return [part.view_as(p) for part, p in zip(flat.split(sizes), self.parameters, strict=True)]

    def descend(self, gradient):
        with torch.no_grad():
            for p, g in zip(self.parameters, self._split(gradient), strict=True):
                p.add_(g, alpha=-self.lr)

    def anchor(self, importance, strength):
        optima = [p.detach().clone() for p in self.parameters]
        self._anchors.append(([strength * part for part in self._split(importance)], optima))

    # the rest

    def copy_from(self, other):
        self.module.load_state_dict(other.module.state_dict())

    @torch.no_grad()
    def predict(self, x, t):
        self.module.eval()
        parts = x.to(self.engine.device).split(self.module.most_rows or len(x))
        outputs = torch.cat([self.module(part, t) for part in parts]) if len(parts) > 1 else self.module(parts[0], t)
        return outputs if self.class_ranges is None else self._mask(outputs, [t] * len(outputs))

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
            tuple(self._split(anchor[name].to(self.engine.device)) for name in ("importance", "optimum"))
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
