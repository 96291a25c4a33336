"""Episodic memories and how they are drawn from. An example is known by its slot in the engine's `Examples`."""

import random

import numpy as np

MOST_SEEN = 1 << 31  # examples that a reservoir can choose from: what the compiled draws can do


class ShuffleDraws:
    """The original's draws: Python's `random` stream, one shuffle of the whole memory for each draw.

    Every draw is uniform over the memory and independent of the others (sampling with replacement), at O(n) a draw.
    Goes on from a state of `random`. The compiled twin is model.engine._draws.ShuffleDraws.
    """

    def __init__(self, state):
        self._random = random.Random()
        self._random.setstate(state)

    def draw(self, n, k):
        """min(k, n) indices of 0..n-1."""
        order = list(range(n))
        drawn = []
        for j in range(min(k, n)):
            self._random.shuffle(order)
            drawn.append(order[j])
        return drawn

    def discard(self, n, k):
        """Moves the stream as a draw does whose indices nobody wants: the original throws some away."""
        self.draw(n, k)

    def randint(self, n):
        """Uniform in 0..n, both ends included."""
        return self._random.randint(0, n)

    def shuffle(self, n):
        """The numbers 0..n-1 in random order."""
        order = list(range(n))
        self._random.shuffle(order)
        return order

    def getstate(self):
        return self._random.getstate()

    def setstate(self, state):
        self._random.setstate(state)


class UniformDraws:
    """The same distributions from a generator of our own (PCG64, seeded with (seed, "draws")), at O(1) a draw."""

    def __init__(self, seed):
        self._generator = np.random.Generator(np.random.PCG64([seed, *b"draws"]))

    def draw(self, n, k):
        """min(k, n) indices uniform over 0..n-1, with replacement."""
        return self._generator.integers(n, size=min(k, n)).tolist() if n else []

    def discard(self, n, k):
        """Nothing: this stream is nobody else's, and needs no draw that nobody wants."""

    def randint(self, n):
        """Uniform in 0..n, both ends included."""
        return int(self._generator.integers(n + 1))

    def shuffle(self, n):
        """The numbers 0..n-1 in random order."""
        return self._generator.permutation(n).tolist()

    def getstate(self):
        return self._generator.bit_generator.state

    def setstate(self, state):
        self._generator.bit_generator.state = state


class Reservoir:
    """A memory that holds a near uniform sample of all examples it was shown. (Vitter 1985; the paper's Algorithm 3)

    examples     where they lie: slots first_slot .. first_slot + capacity - 1 belong to the reservoir
    n_seen       N, examples passed so far; size, examples held
    """

    def __init__(self, examples, first_slot, capacity, draws):
        self.examples, self.first_slot, self.capacity, self.draws = examples, first_slot, capacity, draws
        self.size = self.n_seen = 0

    def draw(self, k):
        """Slots of min(k, size) examples, uniform over the memory, with replacement."""
        first = self.first_slot
        return [first + i for i in self.draws.draw(self.size, k)]

    def discard_draw(self, k):
        """Keeps the original's random stream in step where it throws a draw away."""
        self.draws.discard(self.size, k)

    def remember(self, example):
        """Kept while there is room; then in place of slot p ~ U{0..N} if p < capacity.

        N counts this example too, so acceptance is capacity / (N + 1), not capacity / N: the original's, kept.
        """
        self.n_seen += 1
        if self.size < self.capacity:
            place = self.size
            self.size += 1
        else:
            place = self.draws.randint(self.n_seen)
        if place < self.capacity:
            self.examples.copy(example, self.first_slot + place)

    def state(self):
        return {"size": self.size, "n_seen": self.n_seen}

    def load_state(self, state):
        size, n_seen = int(state["size"]), int(state["n_seen"])
        if not 0 <= size <= min(n_seen, self.capacity) or n_seen > MOST_SEEN:
            raise ValueError(f"{size} memories of {n_seen} in a reservoir of {self.capacity}")
        self.size, self.n_seen = size, n_seen


class TaskRings:
    """The last examples of every task, `per_task` each, in rings that share ONE write pointer.

    The pointer goes on across tasks and is not reset when a task begins: the original's, kept. Slots not yet written
    are not used (the original read whatever was in them).
    """

    def __init__(self, examples, first_slot, per_task):
        self.examples, self.first_slot, self.per_task = examples, first_slot, per_task
        self.pointer = self.size = 0
        self.written = {}  # task -> {place: slot}; the tasks in order of appearance, the slots in order of writing
        self._past = None, []  # the latest past(t), which stays while t is learned

    def remember(self, batch, t):
        """Writes the batch to t's ring, cut at the ring's end; there the pointer returns to 0."""
        if t != self._past[0]:
            self._past = None, []
        slots = self.written.setdefault(t, {})
        for example in batch[: self.per_task - self.pointer]:
            if self.pointer not in slots:
                slots[self.pointer] = self.first_slot + self.size
                self.size += 1
            self.examples.copy(example, slots[self.pointer])
            self.pointer += 1
        self.pointer %= self.per_task

    def past(self, t):
        """For each task before t, in order of appearance: the slots of its memories."""
        if t != self._past[0]:
            self._past = t, [[slots[place] for place in sorted(slots)] for k, slots in self.written.items() if k != t]
        return self._past[1]

    def state(self):
        return {"pointer": self.pointer, "written": [[t, sorted(slots.items())] for t, slots in self.written.items()]}

    def load_state(self, state):
        written = {int(t): {int(place): int(slot) for place, slot in slots} for t, slots in state["written"]}
        pointer, known = int(state["pointer"]), sorted(slot for slots in written.values() for slot in slots.values())
        if known != list(range(self.first_slot, self.first_slot + len(known))):
            raise ValueError("the memories are not where memories are")
        if not all(place in range(self.per_task) for slots in written.values() for place in [*slots, pointer]):
            raise ValueError(f"places outside of rings of {self.per_task}")
        self.pointer, self.size, self.written, self._past = pointer, len(known), written, (None, [])


class FirstExamples:
    """The first examples of the current task: whole minibatches until `per_task` are kept, then cut; the first whole.

    task    the current one, None before the first
    slots   of what is kept, in order
    """

    def __init__(self, examples, first_slot, per_task):
        self.examples, self.first_slot, self.per_task = examples, first_slot, per_task
        self.task, self.size = None, 0

    @property
    def slots(self):
        return list(range(self.first_slot, self.first_slot + self.size))

    def remember(self, batch, t):
        """Keeps what there is room for; of a new task after forgetting the last one's."""
        if t != self.task:
            self.task, self.size = t, 0
        room = self.per_task - self.size if self.size else len(batch)
        for example in batch[: max(room, 0)]:
            self.examples.copy(example, self.first_slot + self.size)
            self.size += 1

    def state(self):
        return {"task": self.task, "size": self.size}

    def load_state(self, state):
        task, size = state["task"], state["size"]
        if not isinstance(size, int) or size < 0 or not (task is None or (isinstance(task, int) and task >= 0)):
            raise ValueError(f"it keeps {size} examples of task {task}")
        self.task, self.size = task, size


class LatestTask:
    """Which of the tasks was learned last; 0 before any was."""

    def __init__(self, n_tasks):
        self.n_tasks, self.task = n_tasks, 0

    def state(self):
        return {"task": self.task}

    def load_state(self, state):
        task = state["task"]
        if not isinstance(task, int) or task not in range(self.n_tasks):
            raise ValueError(f"its task is {task}, of {self.n_tasks}")
        self.task = task
