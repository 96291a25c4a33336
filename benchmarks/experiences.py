"""Learners in the middle of their lives, whose time can be taken: what bench.py and works.py both measure.

works.py takes it from each of the checkouts that it compares, since every version makes its learners in its own way.
"""

import statistics
import time

import torch

from model.engine import _compiled
from run import life, settings
from tasks.files import load_tasks

__all__ = ["_compiled", "examples", "fill", "load_tasks", "make_experience", "seconds_per_example"]


def make_experience(tasks, flags, engine, threads=1):
    """The Experience of a learner on an engine, nothing learned yet; threads 0: as many as a run takes by itself."""
    line = f"{flags} --data_file {tasks.name} --engine {engine} --threads {threads}"
    chosen, _ = settings.resolve(settings.parse(line.split()), tasks)
    torch.set_num_threads(chosen.threads)
    return life.make_experience(chosen, tasks)


def examples(experience, t, n, size=1):
    """n minibatches of task t as `observe` takes them, cycling through the first of its training images."""
    train = experience.tasks[t].train
    for begin in range(0, n * size, size):
        index = [i % len(train) for i in range(begin, begin + size)]
        yield train.inputs(index), t, torch.from_numpy(train.labels[index])


def fill(experience):
    """Fills the memory of a replay learner, one task after another, without learning; of any other nothing."""
    learner, n_tasks = experience.learner, len(experience.tasks)
    for t in range(n_tasks if hasattr(learner, "memory") else 0):
        for x, _, y in examples(experience, t, -(-learner.memory.capacity // n_tasks)):
            if hasattr(learner.memory, "begin"):
                learner.memory.begin(t)
            slots = learner.examples.put(0, x, t, y)
            if hasattr(learner.memory, "scores"):
                learner.memory.add(slots, [0.5])
            else:
                learner.memory.remember_all(slots)


def seconds_per_example(experience, t, budget=1.0, stretches=5):
    """Median over stretches of the time that `observe` takes for an example of task t; all last `budget` together.

    In minibatches of the size that the experience learns.
    """
    learner, size = experience.learner, experience.stream.batch_size
    source = examples(experience, t, 10**9, size)

    def stretch(n):
        batch = [next(source) for _ in range(n)]
        begin = time.perf_counter()
        for x, task, y in batch:
            learner.observe(x, task, y)
        if torch.cuda.is_initialized():  # a GPU goes on by itself
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / (n * size)

    once = stretch(2)
    n = max(1, min(2000, int(budget / stretches / once / size)))
    return statistics.median(stretch(n) for _ in range(stretches))
