"""Transfer and interference: how the loss gradients of tasks lie to each other. (Riemer et al. 2019, eq. 1-3)

A step on one example lowers the loss of another where the inner product of their gradients is positive (transfer), and
raises it where that is negative (interference).
"""

import numpy as np
import torch

from errors import UserError
from model.learner import Learner

KINDS = ("inner", "cosine")


class Alignment:
    """Measures a learner's gradients on n test examples of each of some tasks, {number: Task}.

    Of the i-th task the i-th n of its test set, from the first again where that ends: tasks that are made of the same
    images are compared by different ones, as far as there are enough. Touches no random stream, and nothing that the
    learner computes. Raises UserError where the tasks share no network.

    measured    of each measurement, {"inner": (between, within), "cosine": (between, within)}: means over all pairs of
                examples of different tasks, and of different examples of one task; None where there are no such pairs
    latest      of the last measurement: {"tasks": T numbers, "inner": (T, T), "cosine": (T, T)} means by pair of tasks
    """

    def __init__(self, learner, tasks, n):
        if not isinstance(learner, Learner):
            raise UserError(
                "--alignment compares gradients of learners of model.learner.Learner; this is a torch module"
            )
        if not learner.network_of(next(iter(tasks))).shared:
            raise UserError("--alignment compares gradients of one network for all tasks, which this learner has not")
        if len({learner.network_of(t) for t in tasks}) > 1:
            raise UserError("--alignment compares gradients of one network for all tasks; this learner has several")
        self.learner, self.slots, self.measured, self.latest, first = learner, {}, [], None, 0
        self.examples = learner.engine.examples(learner.n_inputs)
        for i, (t, task) in enumerate(tasks.items()):
            n_sets = max(len(task.test) // n, 1)
            part = slice(i % n_sets * n, i % n_sets * n + n)
            y = torch.from_numpy(task.test.labels[part])
            self.slots[t] = self.examples.put(first, task.test.inputs(part), t, y)
            first += len(y)

    def measure(self, tasks):
        """Measures it between these tasks, numbers, as the learner is now."""
        batch, of = [], []
        for i, t in enumerate(tasks):
            batch += self.slots[t]
            of += [i] * len(self.slots[t])
        inner = self.learner.network_of(tasks[0]).gradient_products(self.examples, batch)
        norms = np.sqrt(inner.diagonal())
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = np.where(np.outer(norms, norms) > 0, inner / np.outer(norms, norms), 0.0)
        member = np.eye(len(tasks))[of]  # (examples, T)
        pairs = member.T @ (1 - np.eye(len(of))) @ member  # (T, T) pairs of different examples, each in both orders
        own = np.eye(len(tasks), dtype=bool)
        measured, latest = {}, {"tasks": list(tasks)}
        for kind, values in zip(KINDS, (inner, cosine), strict=True):
            sums = member.T @ (values - np.diag(values.diagonal())) @ member
            measured[kind] = [_ratio(sums[of_these].sum(), pairs[of_these].sum()) for of_these in (~own, own)]
            latest[kind] = [
                [_ratio(*both) for both in zip(*rows, strict=True)] for rows in zip(sums, pairs, strict=True)
            ]
        self.measured.append(measured)
        self.latest = latest

    def state(self):
        return {"measured": list(self.measured), "latest": self.latest}

    def load_state(self, state):
        if not all(set(one) == {*KINDS} and all(len(one[kind]) == 2 for kind in KINDS) for one in state["measured"]):
            raise ValueError("its alignments are none")
        self.measured, self.latest = list(state["measured"]), state["latest"]


def _ratio(sum_of_all, n):
    """A mean, a float of six digits; None where there is nothing, or where it is not finite."""
    mean = sum_of_all / n if n else np.nan
    return float(f"{mean:.6g}") if np.isfinite(mean) else None
