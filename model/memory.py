"""Episodic memories and how they are drawn from. An example is known by its slot in the engine's `Examples`."""

import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

MOST_SEEN = 1 << 31  # examples that a reservoir can choose from: what the compiled draws can do


def choose(random, weights, k):
    """min(k, n) different indices of n weights, none negative, one after another, each with a chance in proportion.

    Those of weight 0 are never chosen, unless all are 0: then each has the same chance. One random() for each of them.
    """
    left, chosen = np.array(weights, dtype=float), []
    if not left.any():
        left[:] = 1
    for _ in range(min(k, np.count_nonzero(left))):
        sums, last = np.cumsum(left), np.flatnonzero(left)[-1]
        chosen.append(min(int(np.searchsorted(sums, random() * sums[-1], side="right")), int(last)))
        left[chosen[-1]] = 0
    return chosen


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

    def sample(self, n, k):
        """min(k, n) different indices of 0..n-1, in random order."""
        return self.shuffle(n)[:k]

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

    def random(self):
        """Uniform in [0, 1)."""
        return self._random.random()

    def choose(self, weights, k):
        """`choose` with these numbers."""
        return choose(self.random, weights, k)

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

    def sample(self, n, k):
        """min(k, n) different indices of 0..n-1, in random order."""
        return self._generator.choice(n, min(k, n), replace=False).tolist() if n else []

    def discard(self, n, k):
        """Nothing: this stream is nobody else's, and needs no draw that nobody wants."""

    def randint(self, n):
        """Uniform in 0..n, both ends included."""
        return int(self._generator.integers(n + 1))

    def shuffle(self, n):
        """The numbers 0..n-1 in random order."""
        return self._generator.permutation(n).tolist()

    def random(self):
        """Uniform in [0, 1)."""
        return float(self._generator.random())

    def choose(self, weights, k):
        """`choose` with these numbers."""
        return choose(self.random, weights, k)

    def getstate(self):
        return self._generator.bit_generator.state

    def setstate(self, state):
        self._generator.bit_generator.state = state


@dataclass(frozen=True)
class Convention:
    """What authors do differently with a reservoir of M examples, full, when another one comes.

    highest       (N, N0) -> it takes place p ~ U{0..highest} if p < M, where N examples came so far, this one
                  included, and N0 before those of its minibatch for which there was no room
    replacement   whether examples are drawn with replacement
    """

    highest: Callable
    replacement: bool


RIEMER = Convention(lambda N, N0: N, replacement=True)  # kept with probability M / (N + 1): the original's
VITTER = Convention(lambda N, N0: N - 1, replacement=False)  # M / N: Vitter 1985; Buzzega et al. 2020
ALJUNDI = Convention(lambda N, N0: N0 - 1, replacement=False)  # M / N0: Aljundi et al. 2019, MIR


class Reservoir:
    """A memory that holds a near uniform sample of all examples it was shown. (Vitter 1985; the paper's Algorithm 3)

    examples     where they lie: slots first_slot .. first_slot + capacity - 1 belong to the reservoir
    convention   a Convention
    n_seen       N, examples passed so far; size, examples held
    """

    def __init__(self, examples, first_slot, capacity, draws, convention=RIEMER):
        self.examples, self.first_slot, self.capacity, self.draws = examples, first_slot, capacity, draws
        self.convention, self.size, self.n_seen = convention, 0, 0
        self._others = None, []  # t, and the slots of `of_other_tasks(t)`

    def draw(self, k):
        """Slots of min(k, size) examples, uniform over the memory."""
        first = self.first_slot
        draw = self.draws.draw if self.convention.replacement else self.draws.sample
        return [first + i for i in draw(self.size, k)]

    def discard_draw(self, k):
        """Keeps the original's random stream in step where it throws a draw away."""
        self.draws.discard(self.size, k)

    def remember(self, example, n_before=None):
        """Kept while there is room; then in place of a random one, or not at all, as the convention says.

        n_before is the convention's N0, where this example is one of a minibatch. Returns its slot, or None.
        """
        self.n_seen += 1
        if self.size < self.capacity:
            place = self.size
            self.size += 1
        else:
            place = self.draws.randint(self.convention.highest(self.n_seen, n_before or self.n_seen - 1))
            if place >= self.capacity:
                return None
        slot = self.first_slot + place
        self.examples.copy(example, slot)
        self._tell_others(slot)
        return slot

    def remember_all(self, batch):
        """Remembers the examples of a minibatch, in its order; their slots."""
        n_before = max(self.n_seen, self.capacity)
        return [self.remember(example, n_before) for example in batch]

    def of_other_tasks(self, t):
        """The slots of all examples held that are not of task t, in order."""
        if t != self._others[0]:
            slots = range(self.first_slot, self.first_slot + self.size)
            self._others = t, [slot for slot in slots if self.examples.tasks[slot] != t]
        return self._others[1]

    def _tell_others(self, slot):
        t, slots = self._others
        if t is not None:
            i = bisect_left(slots, slot)
            known, other = i < len(slots) and slots[i] == slot, self.examples.tasks[slot] != t
            if known and not other:
                del slots[i]
            elif other and not known:
                slots.insert(i, slot)

    def state(self):
        return {"size": self.size, "n_seen": self.n_seen}

    def load_state(self, state):
        size, n_seen = int(state["size"]), int(state["n_seen"])
        if not 0 <= size <= min(n_seen, self.capacity) or n_seen > MOST_SEEN:
            raise ValueError(f"{size} memories of {n_seen} in a reservoir of {self.capacity}")
        self.size, self.n_seen, self._others = size, n_seen, (None, [])


class TaskStartReservoir:
    """A reservoir that is drawn from as it was when the current task began; in the first task, as it is.

    An example that is replaced stays where it is as long as it can be drawn; the new one takes a free slot.

    held    slots of the reservoir, by place; old: those when the task began, None in the first task; free: the others'
    """

    def __init__(self, examples, first_slot, capacity, draws, convention=RIEMER):
        self.examples, self.first_slot, self.capacity, self.draws = examples, first_slot, capacity, draws
        self.convention, self.task, self.n_seen = convention, None, 0
        self.held, self.old, self.free, self.size = [], None, [], 0  # size: slots in use, free ones included

    def begin(self, t):
        """To be called before a minibatch of task t is learned."""
        if t == self.task:
            return
        if self.task is not None:
            self.free = sorted({*self.free, *(self.old or ())} - {*self.held}, reverse=True)
            self.old = list(self.held)
        self.task = t

    def draw(self, k):
        """Slots of min(k, held) of the examples, uniform over them."""
        slots = self.held if self.old is None else self.old
        draw = self.draws.draw if self.convention.replacement else self.draws.sample
        return [slots[i] for i in draw(len(slots), k)]

    def remember_all(self, batch):
        """Remembers the examples of a minibatch, in its order."""
        for example in batch:
            self.remember(example)

    def remember(self, example):
        """Kept while there is room; then in place of a random one, or not at all, as the convention says."""
        self.n_seen += 1
        place = len(self.held)
        if place == self.capacity:
            place = self.draws.randint(self.convention.highest(self.n_seen, self.n_seen - 1))
            if place >= self.capacity:
                return
        if place < len(self.held) and self.held[place] not in (self.old or ())[place : place + 1]:
            self.free.append(self.held[place])
        if self.free:
            slot = self.free.pop()
        else:
            slot, self.size = self.first_slot + self.size, self.size + 1
        self.held[place : place + 1] = [slot]
        self.examples.copy(example, slot)

    def state(self):
        old = None if self.old is None else list(self.old)
        return {"task": self.task, "n_seen": self.n_seen, "held": list(self.held), "old": old, "free": list(self.free)}

    def load_state(self, state):
        task, n_seen, held, free = state["task"], int(state["n_seen"]), list(state["held"]), list(state["free"])
        old = None if state["old"] is None else list(state["old"])
        slots = {*held, *(old or ()), *free}
        if not (task is None or isinstance(task, int)) or slots != {self.first_slot + i for i in range(len(slots))}:
            raise ValueError("the memories are not where memories are")
        if len({*held}) != len(held) or {*free} & {*held, *(old or ())} or len(old or ()) > len(held):
            raise ValueError("two memories lie in one place")
        if len(held) > min(n_seen, self.capacity) or n_seen > MOST_SEEN:
            raise ValueError(f"{len(held)} memories of {n_seen} in a reservoir of {self.capacity}")
        self.task, self.n_seen, self.held, self.old, self.free, self.size = task, n_seen, held, old, free, len(slots)


class PastTasks:
    """A reservoir of past tasks alone: a random sample of a task, per_task examples, enters when the task is over.

    It holds up to `capacity` examples of past tasks, and besides the sample of the current one.

    past    slots of the examples of past tasks, by place in the reservoir
    """

    def __init__(self, examples, first_slot, capacity, per_task, draws, convention):
        self.examples, self.first_slot, self.capacity, self.per_task = examples, first_slot, capacity, per_task
        self.draws, self.convention = draws, convention
        self.task, self.past, self.sample, self.free = None, [], [], []  # the rest: lists of slots
        self.n_past = self.n_of_task = 0  # examples shown to either

    @property
    def size(self):
        return len(self.past) + len(self.sample) + len(self.free)

    def draw(self, k):
        """Slots of min(k, held) examples of past tasks, uniform over the memory."""
        draw = self.draws.draw if self.convention.replacement else self.draws.sample
        return [self.past[i] for i in draw(len(self.past), k)]

    def begin(self, t):
        """To be called before a minibatch of task t is learned: if the task is new, the last one's sample is kept."""
        if t == self.task:
            return
        for i in self.draws.shuffle(len(self.sample)):
            self._keep(self.sample[i])
        self.task, self.sample, self.n_of_task = t, [], 0

    def _keep(self, slot):
        self.n_past += 1
        place = self._place(len(self.past), self.capacity, self.n_past)
        if place == len(self.past):
            self.past.append(slot)
            return
        if place is not None:
            slot, self.past[place] = self.past[place], slot
        self.free.append(slot)

    def remember_all(self, batch):
        """Shows it a minibatch of the current task."""
        for example in batch:
            self.n_of_task += 1
            place = self._place(len(self.sample), self.per_task, self.n_of_task)
            if place == len(self.sample):
                self.sample.append(self.free.pop() if self.free else self.first_slot + self.size)
            if place is not None:
                self.examples.copy(example, self.sample[place])

    def _place(self, size, capacity, n_seen):
        """The place that the n-th example takes among `size`: a new one, one of theirs, or None."""
        if size < capacity:
            return size
        place = self.draws.randint(self.convention.highest(n_seen, n_seen - 1))
        return place if place < capacity else None

    def state(self):
        lists = {name: list(getattr(self, name)) for name in ("past", "sample", "free")}
        return {"task": self.task, **lists, "n_past": self.n_past, "n_of_task": self.n_of_task}

    def load_state(self, state):
        task, past, sample, free = state["task"], *(list(state[name]) for name in ("past", "sample", "free"))
        n_past, n_of_task = int(state["n_past"]), int(state["n_of_task"])
        slots = sorted(past + sample + free)
        if not (task is None or isinstance(task, int)) or slots != [self.first_slot + i for i in range(len(slots))]:
            raise ValueError("the memories are not where memories are")
        for held, most, n in ((past, self.capacity, n_past), (sample, self.per_task, n_of_task)):
            if len(held) > min(n, most) or n > MOST_SEEN:
                raise ValueError(f"{len(held)} memories of {n} where there is room for {most}")
        self.task, self.past, self.sample, self.free = task, past, sample, free
        self.n_past, self.n_of_task = n_past, n_of_task


class ScoredMemory:
    """Examples with scores, -1..1: the lower, the likelier they stay. New ones wait until they are n_candidates.

    All candidates enter while there is room for one, so that fewer than n_candidates may be held above the capacity.

    size     examples held, at slots first_slot ..; before them lie those that wait, n_waiting of them
    scores   float64 array of those held
    """

    def __init__(self, examples, first_slot, capacity, n_candidates, draws):
        self.examples, self.capacity, self.n_candidates, self.draws = examples, capacity, n_candidates, draws
        self.first_waiting, self.first_slot = first_slot, first_slot + n_candidates
        self.size = self.n_waiting = 0
        self.scores = np.empty(0)

    def batches(self, k):
        """All slots in random order, in batches of k, the last of which may be smaller; none where nothing is held."""
        slots = [self.first_slot + i for i in self.draws.shuffle(self.size)] if self.size else []
        return [slots[i : i + k] for i in range(0, self.size, k)]

    def wait(self, example):
        """All that wait, a list of slots, if they are n_candidates with this example, and wait no longer; else none."""
        self.examples.copy(example, self.first_waiting + self.n_waiting)
        self.n_waiting = (self.n_waiting + 1) % self.n_candidates
        return [] if self.n_waiting else list(range(self.first_waiting, self.first_slot))

    def has_room(self):
        return self.size < self.capacity

    def add(self, candidates, scores):
        """Keeps the candidates."""
        for candidate in candidates:
            self.examples.copy(candidate, self.first_slot + self.size)
            self.size += 1
        self.scores = np.concatenate([self.scores, scores])

    def compete(self, candidates, scores):
        """Each candidate may replace a memory, drawn with a chance in proportion to its score above the least one.

        It does with probability a / (a + b), a = (the memory's score + 1) / 2, b = (its own + 1) / 2.
        """
        above = self.scores - self.scores.min()
        rivals = self.draws.choose(above / (above.max() + 0.01), len(candidates))
        for candidate, score, rival in zip(candidates, scores, rivals, strict=False):  # there may be fewer rivals
            b, a = (max(0.0, (value + 1) / 2) for value in (score, self.scores[rival]))
            if self.draws.choose([b, a], 1) == [1]:
                self.examples.copy(candidate, self.first_slot + rival)
                self.scores[rival] = score

    def state(self):
        scores = torch.tensor(self.scores)
        return {"n_candidates": self.n_candidates, "size": self.size, "n_waiting": self.n_waiting, "scores": scores}

    def load_state(self, state):
        size, n_waiting, n_candidates = int(state["size"]), int(state["n_waiting"]), int(state["n_candidates"])
        if n_candidates != self.n_candidates:
            raise ValueError(f"{n_candidates} candidates wait together, not {self.n_candidates}")
        if not (0 <= size < self.capacity + n_candidates and 0 <= n_waiting < n_candidates):
            raise ValueError(f"{size} memories in a memory of {self.capacity}, {n_waiting} of {n_candidates} wait")
        scores = state["scores"].double()
        if scores.shape != (size,) or not bool((scores.abs() <= 1.001).all()):
            raise ValueError(f"scores of {size} memories that are none")
        self.size, self.n_waiting, self.scores = size, n_waiting, scores.numpy().copy()


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


class LeastLosses:
    """The least loss that the example at each place of a reservoir has had; infinite before it had any.

    least   float32 array, of as many places as were ever reached
    """

    def __init__(self, capacity):
        self.capacity, self.least = capacity, np.empty(0, np.float32)

    def lower(self, places, losses):
        """(B,) the least losses at these places now that they have had these."""
        self._reach(places)
        self.least[places] = np.minimum(self.least[places], losses)
        return self.least[places]

    def forget(self, places):
        """They hold other examples now."""
        self._reach(places)
        self.least[places] = np.inf

    def _reach(self, places):
        more = reached(places, len(self.least), self.capacity) - len(self.least)
        self.least = np.pad(self.least, (0, more), constant_values=np.inf)

    def state(self):
        return {"least": torch.tensor(self.least)}

    def load_state(self, state):
        least = state["least"].to(torch.float32, copy=True).numpy()
        if least.ndim != 1 or len(least) > self.capacity or np.isnan(least).any():
            raise ValueError(f"least losses {least.shape} of {self.capacity} memories that are none")
        self.least = least


class OldLogits:
    """What a network once gave out for the example at each place of a list: n_outputs numbers, 0 at first.

    logits   (as many places as were ever reached, n_outputs)
    """

    def __init__(self, capacity, n_outputs):
        self.capacity, self.logits = capacity, torch.zeros(0, n_outputs)

    def lower(self, places, losses, outputs, labels):
        """(B,) these losses or those of the logits at these places, which outputs of less loss replace."""
        more = reached(places, len(self.logits), self.capacity) - len(self.logits)
        self.logits = F.pad(self.logits, (0, 0, 0, more))
        old = F.cross_entropy(self.logits[places], torch.tensor(labels), reduction="none").numpy()
        for i in np.flatnonzero(losses < old):
            self.logits[places[i]] = torch.from_numpy(outputs[i])
        return np.minimum(losses, old)

    def state(self):
        return {"logits": self.logits.clone()}

    def load_state(self, state):
        n, width = state["logits"].shape
        if n > self.capacity or width != self.logits.shape[1]:
            raise ValueError(f"old logits {n} x {width} for {self.capacity} x {self.logits.shape[1]}")
        self.logits = state["logits"].to(torch.float32, copy=True)


def reached(places, there, capacity):
    """The places that there is to be room for, which there is for `there`: more than are needed, unless that is all."""
    needed = max(places, default=-1) + 1
    return max(needed, min(2 * there, capacity)) if needed > there else there


class ClassesSeen:
    """The largest label that was seen, -1 before any was, and the task that was learned first, None before."""

    def __init__(self, n_outputs, n_tasks):
        self.n_outputs, self.n_tasks, self.largest, self.first_task = n_outputs, n_tasks, -1, None

    def see(self, labels, t):
        """Labels of a minibatch of task t."""
        self.largest = max(self.largest, *labels)
        self.first_task = t if self.first_task is None else self.first_task

    def state(self):
        return {"largest": self.largest, "first_task": self.first_task}

    def load_state(self, state):
        largest, task = state["largest"], state["first_task"]
        if largest not in range(-1, self.n_outputs) or not (task is None or task in range(self.n_tasks)):
            raise ValueError(f"its largest label is {largest}, its first task {task}")
        self.largest, self.first_task = largest, task


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
