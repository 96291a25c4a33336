"""Accuracy on every task's test set, while training goes on where the engine allows it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from model.learner import Learner

CHUNK_NUMBERS = 1 << 23  # inputs handed to a network at once; a test set of 10,000 MNIST images goes in one piece


class Diverged(ArithmeticError):
    """A training loss, a weight at the end, or an answer at an evaluation is no number any more."""


def n_scored(n_test):
    """How many of a task's test examples are scored: all but the last (but the only one where there is one).

    The number of hits is divided by n_test all the same. The original's slip, kept: published numbers have it.
    """
    return max(n_test - 1, 1)


def hits(learner, split, t):
    """How many of the scored examples of a test split the learner gets right, by its `forward`.

    Raises Diverged where an output is not a number, the largest of which would be the first.
    """
    n = n_scored(len(split))
    chunk = max(1, CHUNK_NUMBERS // split.n_inputs)
    right = 0
    with torch.no_grad():
        for start in range(0, n, chunk):
            stop = min(start + chunk, n)
            outputs = learner(split.inputs(slice(start, stop)), t)
            if outputs.isnan().any():
                raise Diverged(f"outputs for test examples of task {t} are not numbers (NaN)")
            predicted = outputs.argmax(1).cpu()
            right += int((predicted == torch.from_numpy(split.labels[start:stop])).sum())
    return right


class Evaluation:
    """The accuracies of one evaluation, perhaps still being computed."""

    def __init__(self, units):
        self._units = units  # (future, the function that it computes) for each task
        self._accuracies = None

    @classmethod
    def of(cls, accuracies):
        """An Evaluation whose numbers are known."""
        evaluation = cls([])
        evaluation._accuracies = accuracies
        return evaluation

    def accuracies(self):
        """One number in 0..1 for each task. Waits; work that no thread has begun is done here.

        From the last task on: the pool begins at the first, so the two meet once and wait for at most one task.
        """
        if self._accuracies is None:
            self._accuracies = [
                function() if future.cancel() else future.result() for future, function in reversed(self._units)
            ][::-1]
            self._units = None
        return self._accuracies

    def done(self):
        return self._accuracies is not None or all(future.done() for future, _ in self._units)


class Evaluator:
    """Evaluates learners on the test sets of tasks.

    tasks        {number: Task}, each under the learner's number for it
    tells_task   whether the learner is told which task an example is of; else it is always told task 0

    A learner on an engine whose networks give snapshots is evaluated on other threads (threads - 1 of them) while it
    goes on learning; any other here and now. The numbers are the same.
    """

    def __init__(self, tasks, threads=1, tells_task=True):
        self.told = {t: t if tells_task else 0 for t in tasks}
        self.tasks, self.seconds, self._lock = tasks, 0.0, threading.Lock()
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="evaluation") if threads > 1 else None

    def evaluate(self, learner):
        """An Evaluation of the learner as it is now, on the tasks in their order."""
        ours = isinstance(learner, Learner) and type(learner).forward is Learner.forward
        if ours and learner.engine.overlaps:
            nets = {t: learner.network_of(self.told[t]) for t in self.tasks}
            snapshots = {net: net.snapshot() for net in set(nets.values())}  # one net may serve all tasks
            counts = [
                partial(snapshots[nets[t]].hits, task.test, self.told[t], n_scored(len(task.test)))
                for t, task in self.tasks.items()
            ]
            return self._evaluation(counts, self._pool)
        return self._evaluation([partial(hits, learner, task.test, self.told[t]) for t, task in self.tasks.items()])

    def _evaluation(self, counts, pool=None):
        sizes = [len(task.test) for task in self.tasks.values()]
        units = [partial(self._accuracy, count, n_test) for count, n_test in zip(counts, sizes, strict=True)]
        if pool is None:
            return Evaluation.of([unit() for unit in units])
        return Evaluation([(pool.submit(unit), unit) for unit in units])

    def _accuracy(self, count, n_test):
        start = time.thread_time()
        accuracy = count() / n_test
        with self._lock:
            self.seconds += time.thread_time() - start
        return accuracy

    def close(self):
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
