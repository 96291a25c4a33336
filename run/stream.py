"""The stream: which examples arrive, in which order, in which minibatches."""

import random
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch

from errors import UserError

MOST_EXAMPLES = 1 << 28  # 16 bytes each are held


@dataclass(frozen=True)
class Minibatch:
    """Consecutive examples of one task.

    number   its place in the stream, from 0; first: examples before it
    t        the task;  current: the one that is being learned, which only in a mixed stream is another
    """

    number: int
    first: int
    current: int
    t: int
    indices: np.ndarray  # (B,) into the task's training examples


class Stream:
    """The examples of all tasks, one task after another; a task's in random order, once per epoch.

    Draws from the global random streams, in the original's order: torch for the order of the tasks (if shuffled) and,
    for every task by number, which n = min(samples_per_task, N_t) of its examples are kept (all if that is <= 0);
    then `random` for the order of the kept ones, for every task in order of presentation, for every epoch.
    A minibatch has at most batch_size examples and never spans two tasks; a task's epochs run on.

    mixed   the minibatches of all tasks come in random order (one more draw from `random`). The stream then counts as
            one of as many tasks, in the same order, each current for an equal part of it.
    """

    def __init__(self, train_sizes, samples_per_task=-1, n_epochs=1, batch_size=1, shuffle_tasks=False, mixed=False):
        n_tasks = len(train_sizes)
        self.order = torch.randperm(n_tasks).tolist() if shuffle_tasks else list(range(n_tasks))
        kept = []
        for size in train_sizes:
            n = min(samples_per_task, size) if samples_per_task > 0 else size
            kept.append(torch.randperm(size)[:n].tolist())
        most = max(map(len, kept)) * n_epochs
        if most * n_tasks > MOST_EXAMPLES:
            raise UserError(
                f"--n_epochs {n_epochs} makes up to {most * n_tasks:,} examples; {MOST_EXAMPLES:,} can be streamed"
            )
        self.batch_size = min(batch_size, most)
        self._runs = []  # (task, indices) in order of presentation
        for t in self.order:
            epochs = []
            for _ in range(n_epochs):
                epoch = list(kept[t])
                random.shuffle(epoch)
                epochs += epoch
            self._runs.append((t, np.array(epochs, dtype=np.int64)))
        self._begins = [0]  # the number of each run's first minibatch, were they not mixed
        for _, indices in self._runs:
            self._begins.append(self._begins[-1] + -(-len(indices) // self.batch_size))
        self._mixed = list(range(self.n_minibatches)) if mixed else None
        if mixed:
            random.shuffle(self._mixed)

    @property
    def n_examples(self):
        return sum(len(indices) for _, indices in self._runs)

    @property
    def n_minibatches(self):
        return self._begins[-1]

    def n_evaluations(self, log_every):
        """How often a run of this stream evaluates: when it is due, and once after the last minibatch."""
        n, n_tasks = self.n_minibatches, len(self.order)
        begins = self._begins if self._mixed is None else [-(-n * k // n_tasks) for k in range(n_tasks + 1)]
        changes = sum(begin % log_every != 0 for begin in begins[1:-1])  # to another current task
        return -(-n // log_every) + changes + 1

    def minibatches(self, start=0):
        """The minibatches from number `start` on."""
        seen, n, n_tasks = 0, self.n_minibatches, len(self.order)
        for number in range(n):
            i = number if self._mixed is None else self._mixed[number]
            run = bisect_right(self._begins, i) - 1
            t, indices = self._runs[run]
            begin = (i - self._begins[run]) * self.batch_size
            chosen = indices[begin : begin + self.batch_size]
            if number >= start:
                current = t if self._mixed is None else self.order[number * n_tasks // n]
                yield Minibatch(number, seen, current, t, chosen)
            seen += len(chosen)
