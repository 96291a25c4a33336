"""Draws, reservoir and rings against the original's numbers, against literal loops, and against chance."""

import random

import numpy as np
import pytest
import torch

from model.engine import _draws
from model.memory import (
    ALJUNDI,
    RIEMER,
    VITTER,
    LeastLosses,
    PastTasks,
    Reservoir,
    ScoredMemory,
    ShuffleDraws,
    TaskRings,
    TaskStartReservoir,
    UniformDraws,
)

SHUFFLES = [ShuffleDraws, _draws.ShuffleDraws]
KINDS = {
    "shuffle": lambda seed: ShuffleDraws(random.Random(seed).getstate()),
    "compiled shuffle": lambda seed: _draws.ShuffleDraws(random.Random(seed).getstate()),
    "uniform": UniformDraws,
}


class Slots:
    """In place of an engine's Examples: what lies in which slot."""

    def __init__(self, **content):
        self.at = dict(content)

    def copy(self, source, target):
        self.at[target] = self.at[source]


# draws


@pytest.mark.parametrize("Draws", SHUFFLES)
def test_draws_are_the_original_ones(Draws, golden_streams):
    assert len(golden_streams["draws"]) >= 3
    for case in golden_streams["draws"]:
        random.seed(case["seed"])
        draws = Draws(random.getstate())
        assert [draws.draw(n, case["k"]) for n in case["memory_sizes"]] == case["indices"]


@pytest.mark.parametrize("Draws", SHUFFLES)
def test_shuffle_draws_are_what_random_gives(Draws):
    random.seed(11)
    draws = Draws(random.getstate())
    for n, k in [(1, 1), (2, 5), (7, 3), (0, 4), (3, 0), (100, 12)]:
        order, wanted = list(range(n)), []
        for j in range(min(k, n)):
            random.shuffle(order)
            wanted.append(order[j])
        assert draws.draw(n, k) == wanted
        assert draws.randint(n) == random.randint(0, n)
        order = list(range(n))
        random.shuffle(order)
        assert draws.shuffle(n) == order
    assert draws.getstate() == random.getstate()


def some_draws(draws):
    return [draws.draw(50, 9), draws.randint(1000), draws.shuffle(6), draws.draw(3, 3)]


@pytest.mark.parametrize("kind", KINDS)
def test_draws_go_on_from_their_state(kind):
    draws, other = KINDS[kind](4), KINDS[kind](5)
    some_draws(draws)
    state = draws.getstate()
    wanted = some_draws(draws)
    other.setstate(state)
    assert some_draws(other) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_draws_leave_the_global_streams_alone_and_the_seed_decides(kind):
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    draws = [some_draws(KINDS[kind](seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_uniform_draws_draw_as_many_as_the_original():
    draws = UniformDraws(0)
    assert [len(draws.draw(n, k)) for n, k in [(0, 5), (5, 0), (3, 9), (9, 3)]] == [0, 0, 3, 3]
    assert sorted(draws.shuffle(8)) == list(range(8)) and draws.shuffle(0) == [] and draws.randint(0) == 0
    assert all(isinstance(i, int) for i in draws.draw(4, 4))


def chi_square(counts):
    """Of counts that should be equal; its expectation is len - 1, its variance 2 (len - 1)."""
    counts = np.asarray(counts, dtype=float)
    return ((counts - counts.mean()) ** 2 / counts.mean()).sum()


def limit(cells):
    """Above it a chi-square with that many cells is in 1 of about 10,000 (Wilson and Hilferty)."""
    k = cells - 1
    return k * (1 - 2 / (9 * k) + 3.72 * np.sqrt(2 / (9 * k))) ** 3


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_uniform_and_independent(kind):
    """Every draw over the whole memory, with replacement; pairs of draws too; shuffles over all orders."""
    draws, n = KINDS[kind](7), 6
    drawn = np.array([draws.draw(n, 3) for _ in range(6000)])
    for j in range(3):
        assert chi_square(np.bincount(drawn[:, j], minlength=n)) < limit(n)
    assert chi_square(np.bincount(drawn[:, 0] * n + drawn[:, 1], minlength=n * n)) < limit(n * n)
    assert chi_square(np.bincount(drawn[:, 1] * n + drawn[:, 2], minlength=n * n)) < limit(n * n)
    ends = np.array([draws.randint(n) for _ in range(6000)])
    assert chi_square(np.bincount(ends, minlength=n + 1)) < limit(n + 1)
    orders = np.array([draws.shuffle(4) for _ in range(6000)]) @ [64, 16, 4, 1]
    counts = np.unique(orders, return_counts=True)[1]
    assert len(counts) == 24 and chi_square(counts) < limit(24)


# the reservoir


def pass_through(reservoir, n):
    """Shows the reservoir the examples 0..n-1, each in slot 0."""
    for example in range(n):
        reservoir.examples.at[0] = example
        reservoir.remember(0)
    return [reservoir.examples.at[slot] for slot in sorted(reservoir.examples.at) if slot > 0]


@pytest.mark.parametrize("Draws", SHUFFLES)
def test_reservoir_holds_what_the_original_holds(Draws, golden_streams):
    assert len(golden_streams["reservoir"]) >= 2
    for case in golden_streams["reservoir"]:
        random.seed(case["seed"])
        reservoir = Reservoir(Slots(), 1, case["capacity"], Draws(random.getstate()))
        assert pass_through(reservoir, case["n_seen"]) == case["kept"]
        assert (reservoir.size, reservoir.n_seen) == (case["capacity"], case["n_seen"])


def test_reservoir_accepts_as_the_original_does():
    """The last of N examples is there with chance M / (N + 1): the draw is from 0..N, both ends included."""
    draws, M, N, trials = UniformDraws(1), 5, 9, 4000
    there = sum(N - 1 in pass_through(Reservoir(Slots(), 1, M, draws), N) for _ in range(trials)) / trials
    chance = M / (N + 1)
    assert abs(there - chance) < 4 * np.sqrt(chance * (1 - chance) / trials) < M / N - chance


def test_reservoir_draws_slots_of_what_it_holds():
    reservoir = Reservoir(Slots(), 10, 4, UniformDraws(0))
    assert reservoir.draw(3) == []
    for size in range(1, 7):
        reservoir.examples.at[0] = size
        reservoir.remember(0)
        assert reservoir.size == min(size, 4)
        assert set(reservoir.draw(100)) <= set(range(10, 10 + reservoir.size))
        assert len(reservoir.draw(100)) == reservoir.size and len(reservoir.draw(1)) == 1


def test_reservoir_state():
    one = Reservoir(Slots(), 1, 3, UniformDraws(0))
    pass_through(one, 7)
    other = Reservoir(Slots(), 1, 3, UniformDraws(0))
    other.load_state(one.state())
    assert (other.size, other.n_seen) == (3, 7)


CHANCE = {"riemer": (RIEMER, 5 / 10), "vitter": (VITTER, 5 / 9), "aljundi": (ALJUNDI, 5 / 7)}


@pytest.mark.parametrize("name", CHANCE)
def test_conventions_of_accepting(name):
    """The ninth example, in a minibatch with the eighth, for a memory of five: M / (N + 1), M / N, M / N0."""
    convention, chance = CHANCE[name]
    draws, trials, there, held = UniformDraws(1), 4000, 0, 0
    for _ in range(trials):
        reservoir = Reservoir(Slots(), 10, 5, draws, convention)
        for first, batch in [(0, [0, 1, 2]), (3, [0, 1, 2, 3]), (7, [0, 1])]:
            reservoir.examples.at |= {slot: first + slot for slot in batch}
            slots = reservoir.remember_all(batch)
        there += slots[-1] is not None
        held += 8 in [reservoir.examples.at[slot] for slot in range(10, 15)]
    assert there == held  # what it says is where it is
    assert abs(there / trials - chance) < 4 * np.sqrt(chance * (1 - chance) / trials) < 0.04


@pytest.mark.parametrize("convention", (RIEMER, VITTER))
def test_conventions_of_drawing(convention):
    reservoir = Reservoir(Slots(), 10, 4, UniformDraws(0), convention)
    pass_through(reservoir, 4)
    drawn = [reservoir.draw(3) for _ in range(200)]
    assert {len(slots) for slots in drawn} == {3} and len(reservoir.draw(9)) == 4
    repeats = sum(len(set(slots)) < 3 for slots in drawn)
    assert (60 < repeats < 190) if convention.replacement else repeats == 0


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_uniform_over_all_orders(kind):
    draws = KINDS[kind](3)
    drawn = np.array([draws.sample(4, 2) for _ in range(6000)]) @ [4, 1]
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 12 and chi_square(counts) < limit(12)
    assert [len(draws.sample(n, k)) for n, k in [(0, 5), (5, 0), (3, 9), (9, 3)]] == [0, 0, 3, 3]
    assert sorted(draws.sample(6, 9)) == list(range(6))


class Tasks(Slots):
    """Slots whose example's task is what lies in them, over a thousand."""

    @property
    def tasks(self):
        return {slot: example // 1000 for slot, example in self.at.items()}


@pytest.mark.parametrize("asked", [0.1, 0.9])
def test_a_reservoir_knows_what_is_of_other_tasks(asked):
    chance = random.Random(4)
    reservoir = Reservoir(Tasks(), 10, 8, UniformDraws(2), VITTER)
    for i in range(400):
        t = chance.choice((i // 100, chance.randrange(4)))
        reservoir.examples.at[0] = 1000 * t + i
        reservoir.remember(0)
        if chance.random() < asked:
            task, at = chance.choice((t, i // 100)), reservoir.examples.at
            wanted = [slot for slot in range(10, 10 + reservoir.size) if at[slot] // 1000 != task]
            assert reservoir.of_other_tasks(task) == wanted


# memories of past tasks alone


def show(memory, t, n, batch_size=3):
    """Shows it examples 1000 t .. 1000 t + n - 1, as minibatches of task t."""
    for begin in range(0, n, batch_size):
        memory.begin(t)
        batch = range(min(batch_size, n - begin))
        memory.examples.at |= {slot: 1000 * t + begin + slot for slot in batch}
        memory.remember_all(batch)


def test_past_tasks_are_drawn_from_when_they_are_over():
    memory = PastTasks(Slots(), 10, 8, 4, UniformDraws(0), VITTER)
    show(memory, 3, 10)
    assert memory.draw(5) == [] and memory.size == 4
    for t, n in [(1, 2), (7, 30), (2, 3), (5, 9)]:
        show(memory, t, n)
        held = [memory.examples.at[slot] for slot in memory.draw(100)]
        assert len(set(held)) == len(held) == len(memory.past) <= 8
        assert t not in {example // 1000 for example in held} and min(held) >= 1000
    slots = sorted(memory.past + memory.sample + memory.free)
    assert slots == list(range(10, 10 + memory.size)) and memory.size <= 12


def test_past_tasks_hold_a_uniform_sample():
    """Four of the ten examples of a task, then five of the eight that two tasks hand over."""
    draws, counts, trials = UniformDraws(5), np.zeros((2, 10)), 3000
    for _ in range(trials):
        memory = PastTasks(Slots(), 10, 5, 4, draws, VITTER)
        for t in (0, 1, 2):
            show(memory, t, 10 if t < 2 else 1)
        for slot in memory.past:
            counts[memory.examples.at[slot] // 1000, memory.examples.at[slot] % 1000] += 1
    assert counts.sum() == 5 * trials
    assert abs(counts[0].sum() / counts.sum() - 0.5) < 0.02
    for row in counts:
        assert chi_square(row) < limit(10)


def test_past_tasks_state():
    one, other = (PastTasks(Slots(), 10, 5, 4, UniformDraws(seed), VITTER) for seed in (0, 1))
    for t, n in [(0, 7), (1, 2), (2, 9)]:
        show(one, t, n)
    other.load_state(one.state())
    other.examples.at, other.draws = dict(one.examples.at), UniformDraws(8)
    one.draws = UniformDraws(8)
    for memory in (one, other):
        show(memory, 3, 8)
    assert one.state() == other.state() and one.examples.at == other.examples.at
    state = one.state()
    for change in (
        {"past": [*state["past"][:-1], 99]},
        {"sample": state["past"]},
        {"free": [*state["free"], 10]},
        {"n_past": 1},
        {"n_of_task": -1},
        {"task": "0"},
        {"past": [str(slot) for slot in state["past"]]},
    ):
        with pytest.raises((ValueError, TypeError)):
            other.load_state(state | change)
    assert other.state() == state


# the reservoir as it was when a task began


@pytest.mark.parametrize("capacity", [1, 3, 5, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_task_start_reservoir_holds_what_a_reservoir_does_and_draws_what_it_held(capacity, kind):
    """Against copies of all that is held, over tasks of many lengths, with a state taken on the way."""
    plain, memory = Reservoir(Slots(), 1, capacity, KINDS[kind](3)), None
    for stop in (0, 6, 13, 30):
        plain = Reservoir(Slots(), 1, capacity, KINDS[kind](3))
        memory = TaskStartReservoir(Slots(), 1, capacity, KINDS[kind](3))
        old = None
        for example in range(40):
            t = [0, 1, 0, 2, 3][min(example // 5, 4)]
            if example == stop:
                other = TaskStartReservoir(memory.examples, 1, capacity, memory.draws)
                other.load_state(memory.state())
                memory = other
            if example and example % 5 == 0 and example <= 20:
                old = [plain.examples.at[slot] for slot in range(1, 1 + plain.size)]
            memory.begin(t)
            known = [plain.examples.at[slot] for slot in range(1, 1 + plain.size)] if old is None else old
            drawn = [memory.examples.at[slot] for slot in memory.draw(3)]
            assert drawn == [known[i] for i in plain.draws.draw(len(known), 3)]
            for reservoir in (plain, memory):
                reservoir.examples.at[0] = example
                reservoir.remember(0)
            assert [memory.examples.at[slot] for slot in memory.held] == [
                plain.examples.at[slot] for slot in range(1, 1 + plain.size)
            ]
            assert {*memory.examples.at} == set(range(1 + memory.size))  # one after another, as a state keeps them
            assert memory.size <= 2 * capacity and memory.n_seen == plain.n_seen


@pytest.mark.parametrize(
    "change",
    [{"held": [1, 1]}, {"held": [5, 6]}, {"free": [1]}, {"n_seen": 1}, {"old": [1, 2, 3]}, {"task": "0"}, {"old": [9]}],
    ids=str,
)
def test_a_task_start_reservoir_refuses_what_is_no_state(change):
    memory = TaskStartReservoir(Slots(), 1, 2, UniformDraws(0))
    with pytest.raises(ValueError):
        memory.load_state({"task": 0, "n_seen": 2, "held": [1, 2], "old": None, "free": []} | change)
    memory.load_state({"task": 1, "n_seen": 3, "held": [3, 2], "old": [1, 2], "free": []})
    assert memory.size == 3


# a memory with scores


def test_a_scored_memory_fills_up_and_then_lets_low_scores_win():
    examples = Slots()
    memory = ScoredMemory(examples, 1, 3, 2, UniformDraws(1))
    assert memory.batches(2) == []
    for example in range(3):
        examples.at[0] = example
        waiting = memory.wait(0)
        assert waiting == ([1, 2] if example == 1 else [])
        if waiting:
            memory.add(waiting, [0.5, -1.0])
    assert memory.has_room()
    memory.add([1, 2], [1.0, -1.0])  # there was room for one, so both enter
    assert not memory.has_room() and memory.scores.tolist() == [0.5, -1.0, 1.0, -1.0]
    assert [examples.at[slot] for slot in (3, 4, 5, 6)] == [0, 1, 2, 1] and memory.n_waiting == 1
    found = memory.batches(3)
    assert [len(batch) for batch in found] == [3, 1] and sorted(sum(found, [])) == [3, 4, 5, 6]
    examples.at |= {1: "a", 2: "b"}
    memory.compete([1, 2], [-1.0, -1.0])  # sure wins; the least scores have no rival
    assert examples.at[4] == 1 and {examples.at[3], examples.at[5]} == {"a", "b"}
    assert memory.scores.tolist() == [-1.0] * 4


def test_a_scored_memory_replaces_with_the_chance_that_the_scores_give():
    wins, n = 0, 4000
    memory = ScoredMemory(Slots(), 1, 2, 1, UniformDraws(2))
    for _ in range(n):
        memory.size, memory.scores = 2, np.array([0.8, -0.5])
        memory.examples.at = {1: "new", 2: "old", 3: "old"}
        memory.compete([1], [0.2])
        wins += memory.examples.at[2] == "new"
        assert memory.examples.at[3] == "old"
    p = 0.9 / (0.9 + 0.6)
    assert abs(wins / n - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_a_scored_memory_goes_on_from_its_state_and_refuses_what_is_none():
    memory, other = (ScoredMemory(Slots(), 1, 3, 4, UniformDraws(1)) for _ in "ab")
    memory.examples.at = dict.fromkeys(range(9), 0)
    memory.add([1, 2], [0.1, 0.2])
    memory.wait(0)
    state = memory.state()
    other.load_state(state)
    assert (other.size, other.n_waiting, other.scores.tolist()) == (2, 1, [0.1, 0.2])
    scores = state["scores"]
    for change in (
        {"size": 7, "scores": scores[[0] * 7]},
        {"n_candidates": 5},
        {"size": 1},
        {"n_waiting": 4},
        {"scores": 9 * scores},
        {"scores": scores * float("nan")},
    ):
        with pytest.raises(ValueError):
            other.load_state(state | change)
    assert (other.size, other.n_waiting, other.scores.tolist()) == (2, 1, [0.1, 0.2])


# what a memory's examples once gave


def test_least_losses_are_of_the_example_that_is_there():
    losses = LeastLosses(1000)
    assert losses.lower([2, 0], np.float32([3, 5])).tolist() == [3, 5]  # none is infinite
    assert losses.lower([0, 2], np.float32([9, 1])).tolist() == [5, 1]
    losses.forget([2, 7])
    assert losses.lower([2, 0, 7, 999], np.float32([8, 6, 7, 4])).tolist() == [8, 5, 7, 4]
    other = LeastLosses(1000)
    other.load_state(losses.state())
    assert other.lower([0, 2, 3], np.float32([6, 9, 2])).tolist() == [5, 8, 2]
    for least in (torch.zeros(1001), torch.zeros(2, 2), torch.tensor([np.nan])):
        with pytest.raises(ValueError):
            other.load_state({"least": least})


# the rings


@pytest.mark.parametrize("per_task,batch_size", [(1, 1), (3, 1), (3, 2), (4, 4), (4, 6), (5, 3), (50, 4)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_rings_are_the_literal_ones(per_task, batch_size, order):
    """One array (T, per_task) and one pointer, as GEM's code has them; what was never written is not used."""
    first = batch_size
    examples = Slots()
    rings = TaskRings(examples, first, per_task)
    memory, pointer, seen, example = [[None] * per_task for _ in order], 0, [], 0
    for t in order:
        seen.append(t)
        for _ in range(5):
            batch = []
            for slot in range(batch_size):
                examples.at[slot] = example
                batch.append(example)
                example += 1
            rings.remember(list(range(batch_size)), t)
            end = min(pointer + batch_size, per_task)
            memory[t][pointer:end] = batch[: end - pointer]
            pointer = 0 if end == per_task else end
            past = [[e for e in memory[k] if e is not None] for k in seen[:-1]]
            assert [[examples.at[slot] for slot in slots] for slots in rings.past(t)] == past
    copy = TaskRings(examples, first, per_task)
    copy.load_state(rings.state())
    assert (copy.pointer, copy.past(-1)) == (rings.pointer, rings.past(-1))
    rings.remember([0], order[-1])
    copy.remember([0], order[-1])
    assert (copy.pointer, copy.past(-1)) == (rings.pointer, rings.past(-1))
