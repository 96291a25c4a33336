"""A learner's life: the stream of tasks that it goes through, and what it could do at each moment."""

import math
import random
import time

import numpy as np
import torch

from continuum.evaluation import Evaluation
from model.learner import Learner

MOST_PENDING = 2  # evaluations under way: each holds a copy of the weights


class Diverged(ArithmeticError):
    """The training loss is no finite number any more."""


class Experience:
    """One learner, one stream, and how far it has come.

    next_minibatch   number of the next minibatch;  seen: examples learned so far
    current          the task being learned
    result_t, seen_at of every evaluation: the task being learned, the examples learned before it
    evaluations      their accuracies (continuum.evaluation.Evaluation), perhaps still under way
    held             seconds that learning has waited for evaluations
    """

    def __init__(self, learner, tasks, stream, evaluator, log_every):
        self.learner, self.tasks, self.stream = learner, tasks, stream
        self.evaluator, self.log_every = evaluator, log_every
        self.next_minibatch, self.seen, self.current = 0, 0, stream.order[0]
        self.result_t, self.seen_at, self.evaluations = [], [], []
        self.held = 0.0

    def live(self):
        """Streams the tasks through the learner, evaluating it on all of them as it goes; yields each minibatch learned.

        Before a minibatch is learned, if its number is a multiple of log_every or its task is new; and after the last.
        (GEM's protocol)
        """
        for batch in self.stream.minibatches(self.next_minibatch):
            if batch.number % self.log_every == 0 or batch.t != self.current:
                self.evaluate()
                self.current = batch.t
            train = self.tasks[batch.t].train
            labels = torch.from_numpy(train.labels[batch.indices])
            self.learner.observe(train.inputs(batch.indices), batch.t, labels)
            self.next_minibatch, self.seen = batch.number + 1, batch.first + len(batch.indices)
            self._check_finite(batch)
            yield batch
        self.evaluate()

    def evaluate(self):
        """Has the learner evaluated as it is now."""
        begin = time.perf_counter()
        self.result_t.append(self.current)
        self.seen_at.append(self.seen)
        self.evaluations.append(self.evaluator.evaluate(self.learner))
        for evaluation in self.evaluations[-1 - MOST_PENDING : -MOST_PENDING]:
            evaluation.accuracies()
        self.held += time.perf_counter() - begin

    def result_a(self):
        """(E, T) accuracies as lists; waits for the evaluations under way."""
        begin = time.perf_counter()
        accuracies = [evaluation.accuracies() for evaluation in self.evaluations]
        self.held += time.perf_counter() - begin
        return accuracies

    def latest(self):
        """The accuracies of the newest evaluation that is done, or None."""
        return next((e.accuracies() for e in reversed(self.evaluations[-1 - MOST_PENDING :]) if e.done()), None)

    def _check_finite(self, batch):
        if isinstance(self.learner, Learner) and not math.isfinite(self.learner.engine.take_loss()):
            place = f"example {self.seen} (task {batch.t}, minibatch {batch.number})"
            raise Diverged(f"the training loss is not finite at {place}")

    def state(self):
        """All that `load_state` needs to go on exactly: plain values and tensors."""
        return {
            "next_minibatch": self.next_minibatch,
            "seen": self.seen,
            "current": self.current,
            "result_t": list(self.result_t),
            "seen_at": list(self.seen_at),
            "result_a": self.result_a(),
            "learner": self.learner.state(),
            "random": random_state(),
        }

    def load_state(self, state):
        """Goes on where `state` was taken, with the same tasks, stream and kind of learner."""
        for name in ("next_minibatch", "seen", "current", "result_t", "seen_at"):
            setattr(self, name, state[name])
        self.evaluations = [Evaluation.of(accuracies) for accuracies in state["result_a"]]
        self.learner.load_state(state["learner"])
        load_random_state(state["random"])


def seed_everything(seed):
    """The original's seeds, of all three global random streams."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def random_state():
    """The states of the three global random streams, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {"torch": torch.get_rng_state(), "numpy": (kind, keys.tolist(), *rest), "python": random.getstate()}


def load_random_state(state):
    """Sets the three global random streams."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(state["python"])
