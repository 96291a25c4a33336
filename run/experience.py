"""A learner's life: the stream of tasks that it goes through, and what it could do at each moment."""

import math
import random
import time

import numpy as np
import torch

from model import foreign
from run.evaluation import Diverged, Evaluation

MOST_PENDING = 2  # evaluations under way: each holds a copy of the weights


class Experience:
    """One learner, one stream, and how far it has come.

    first_task       the learner's number for task 0 of the stream: it may have learned others before, of which
                     earlier_tasks are evaluated too
    next_minibatch   number of the next minibatch;  seen: examples learned so far
    current          the task being learned
    result_t, seen_at of every evaluation: the task being learned, the examples learned before it
    evaluations      their accuracies (run.evaluation.Evaluation), perhaps still under way, first of the earlier tasks
    alignment        None, or the run.alignment.Alignment that each evaluation measures, of the tasks seen so far
    waited           seconds that learning has waited for evaluations
    """

    def __init__(self, learner, tasks, stream, evaluator, log_every, first_task=0, alignment=None):
        self.learner, self.tasks, self.stream, self.first_task = learner, tasks, stream, first_task
        self.evaluator, self.log_every = evaluator, log_every
        self.next_minibatch, self.seen, self.current = 0, 0, stream.order[0]
        self.result_t, self.seen_at, self.evaluations = [], [], []
        self.alignment, self.waited = alignment, 0.0

    @property
    def earlier_tasks(self):
        """The learner's numbers of the tasks that are evaluated without being learned here."""
        return [t for t in self.evaluator.tasks if t < self.first_task]

    def learn(self):
        """Streams the tasks through the learner, evaluating it on all of them on the way; yields each minibatch.

        Before a minibatch is learned, if its number is a multiple of log_every or its task is new; and after the last.
        (GEM's protocol)
        """
        for batch in self.stream.minibatches(self.next_minibatch):
            if batch.number % self.log_every == 0 or batch.current != self.current:
                self.evaluate()
                self.current = batch.current
            train = self.tasks[batch.t].train
            x, y = train.inputs(batch.indices), torch.from_numpy(train.labels[batch.indices])
            try:
                self.learner.observe(x, self.first_task + batch.t, y)
            except Exception as error:
                raise foreign.failure(self.learner, "observe", error) from error
            self.next_minibatch, self.seen = batch.number + 1, batch.first + len(batch.indices)
            self._check_finite(batch)
            yield batch
        if not self.learner.is_finite():
            raise Diverged(f"the weights are not finite after example {self.seen}")
        self.evaluate()

    def evaluate(self):
        """Has the learner evaluated as it is now."""
        begin = time.perf_counter()
        try:
            self.evaluations.append(self.evaluator.evaluate(self.learner))
        except Diverged as error:
            raise Diverged(f"{error} after example {self.seen}") from error
        except Exception as error:
            raise foreign.failure(self.learner, "forward", error) from error
        if self.alignment:
            seen = self.stream.order[: self.stream.order.index(self.current) + 1]
            self.alignment.measure([*self.earlier_tasks, *(self.first_task + t for t in seen)])
        self.result_t.append(self.current)
        self.seen_at.append(self.seen)
        for evaluation in self.evaluations[-1 - MOST_PENDING : -MOST_PENDING]:
            evaluation.accuracies()
        self.waited += time.perf_counter() - begin

    def result_a(self):
        """(E, T) accuracies as lists; waits for the evaluations under way."""
        return self._accuracies()[1]

    def earlier_a(self):
        """(E, T0) accuracies on the earlier tasks, as lists; waits for the evaluations under way."""
        return self._accuracies()[0]

    def _accuracies(self):
        begin = time.perf_counter()
        rows = [evaluation.accuracies() for evaluation in self.evaluations]
        self.waited += time.perf_counter() - begin
        n = len(self.earlier_tasks)
        return [row[:n] for row in rows], [row[n:] for row in rows]

    def accuracies_at(self, i):
        """(T,) accuracies of the i-th evaluation, as a list; waits for it."""
        return self.evaluations[i].accuracies()[len(self.earlier_tasks) :]

    def latest(self):
        """The accuracies of the newest evaluation that is done, or None."""
        n = len(self.evaluations)
        done = [i for i in range(n)[-1 - MOST_PENDING :] if self.evaluations[i].done()]
        return self.accuracies_at(done[-1]) if done else None

    def _check_finite(self, batch):
        if not math.isfinite(self.learner.take_loss()):
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
            "result_a": [evaluation.accuracies() for evaluation in self.evaluations],
            "alignment": self.alignment.state() if self.alignment else None,
            "learner": self.learner.state(),
            "random": random_state(),
        }

    def load_state(self, state):
        """Goes on where `state` was taken, with the same tasks, stream and kind of learner."""
        self._check(**{name: value for name, value in state.items() if name not in ("alignment", "learner", "random")})
        measured = state.get("alignment")  # there was none before this was measured
        if bool(measured) != bool(self.alignment) or (measured and len(measured["measured"]) != len(state["result_t"])):
            raise ValueError("its --alignment is another")
        if self.alignment:
            self.alignment.load_state(measured)
        for name in ("next_minibatch", "seen", "current", "result_t", "seen_at"):
            setattr(self, name, state[name])
        self.evaluations = [Evaluation.of(accuracies) for accuracies in state["result_a"]]
        self.learner.load_state(state["learner"])
        load_random_state(state["random"])

    def _check(self, next_minibatch, seen, current, result_t, seen_at, result_a):
        """Raises ValueError or TypeError where these cannot be this experience's."""
        places = [(next_minibatch, self.stream.n_minibatches), *((n, self.stream.n_examples) for n in (seen, *seen_at))]
        places += [(t, len(self.tasks) - 1) for t in (current, *result_t)]
        if not all(isinstance(n, int) and 0 <= n <= most for n, most in places):
            raise ValueError("it is outside of the stream")
        upcoming = next(self.stream.minibatches(next_minibatch), None)
        ranks = [self.stream.order.index(t) for t in (*result_t, current, *([upcoming.current] if upcoming else []))]
        if seen != (upcoming.first if upcoming else self.stream.n_examples) or ranks != sorted(ranks):
            raise ValueError("it is at another place of the stream")
        width = len(self.evaluator.tasks)
        if not len(result_t) == len(seen_at) == len(result_a) or any(len(row) != width for row in result_a):
            raise ValueError("its evaluations are not as many as they should be")
        if not all(isinstance(accuracy, float) and 0 <= accuracy <= 1 for row in result_a for accuracy in row):
            raise ValueError("its accuracies are none")


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
    """Sets the three global random streams; raises one of several errors where it is no state of theirs."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(state["python"])
