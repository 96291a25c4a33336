"""The stream: which examples arrive, in which order, in which minibatches."""

import random
from dataclasses import dataclass

import numpy as np
import torch

from errors import UserError

MOST_EXAMPLES = 1 << 28  # 16 bytes each are held


@dataclass(frozen=True)
class Minibatch:
    """Consecutive examples of one task. number: its place in the stream, from 0; first: examples before it."""

    number: int
    first: int
    t: int
    indices: np.ndarray  # (B,) into the task's training examples


class Stream:
    """The examples of all tasks, one task after another; a task's in random order, once per epoch.

    Draws from the global random streams, in the original's order: torch for the order of the tasks (if shuffled) and,
    for every task by number, which n = min(samples_per_task, N_t) of its examples are kept (all if that is <= 0);
    then `random` for the order of the kept ones, for every task in order of presentation, for every epoch.
    A minibatch has at most batch_size examples and never spans two tasks; a task's epochs run on.
    """

    def __init__(self, train_sizes, samples_per_task=-1, n_epochs=1, batch_size=1, shuffle_tasks=False):
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

    @property
    def n_examples(self):
        return sum(len(indices) for _, indices in self._runs)

    @property
    def n_minibatches(self):
        return sum(-(-len(indices) // self.batch_size) for _, indices in self._runs)

    def n_evaluations(self, log_every):
        """How often a run of this stream evaluates: when it is due, and once after the last minibatch."""
        count, number, current = 1, 0, self.order[0]
        for t, indices in self._runs:
            n = -(-len(indices) // self.batch_size)
            due = -(-(number + n) // log_every) - -(-number // log_every)
            count += due + (t != current and number % log_every != 0)
            number, current = number + n, t
        return count

    def minibatches(self, start=0):
        """The minibatches from number `start` on."""
        number, seen = 0, 0
        for t, indices in self._runs:
            for begin in range(0, len(indices), self.batch_size):
                if number >= start:
                    yield Minibatch(number, seen + begin, t, indices[begin : begin + self.batch_size])
                number += 1
            seen += len(indices)
