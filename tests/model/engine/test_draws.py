"""The compiled shuffle draws against the Python twin and `random` itself, number for number and state for state."""

import random
from collections import Counter

import pytest

from model.engine import _draws
from model.memory import ShuffleDraws, UniformDraws

SIZES = [0, 1, 2, 3, 31, 32, 33, 255, 256, 257, 1000, 5120]
WORDS = 624  # of a state; the position goes from 0 to that


@pytest.fixture(autouse=True)
def keep_random():
    """The global stream as it was, whatever a test does to it."""
    state = random.getstate()
    yield
    random.setstate(state)


def literal_draw(n, k):
    """The original's: for each j shuffle all of it, take place j."""
    order, drawn = list(range(n)), []
    for j in range(min(k, n)):
        random.shuffle(order)
        drawn.append(order[j])
    return drawn


def literal_shuffle(n):
    order = list(range(n))
    random.shuffle(order)
    return order


LITERAL = {"draw": literal_draw, "randint": lambda n: random.randint(0, n), "shuffle": literal_shuffle}


def some_calls(seed, sizes, n):
    """n random calls (name, arguments), every size at least once."""
    chance = random.Random(seed)
    sizes = list(sizes) + [chance.choice(sizes) for _ in range(n - len(sizes))]
    chance.shuffle(sizes)
    for size in sizes:
        name = chance.choice(["draw", "randint", "shuffle"])
        k = chance.choice([0, 1, 2, 5]) if size > 300 else chance.choice([0, 1, 2, 7, 300])
        yield name, (size, min(k, 10) if size > 40 else k) if name == "draw" else (size,)


@pytest.mark.parametrize("seed", range(5))
def test_any_calls_give_what_the_twin_and_random_give(seed):
    random.seed(100 + seed)
    compiled, twin = _draws.ShuffleDraws(random.getstate()), ShuffleDraws(random.getstate())
    for name, arguments in some_calls(seed, SIZES, 40):
        wanted = LITERAL[name](*arguments)
        assert getattr(twin, name)(*arguments) == wanted, (name, arguments)
        assert getattr(compiled, name)(*arguments) == wanted, (name, arguments)
        assert compiled.getstate() == twin.getstate() == random.getstate(), (name, arguments)


@pytest.mark.parametrize("n", [*SIZES, 127, 128, 129, 511, 512, 513, 2**20 - 1, 2**20, 2**30 + 7, 2**31 - 1])
def test_randint_reaches_both_ends_as_random_does(n):
    random.seed(n)
    draws = _draws.ShuffleDraws(random.getstate())
    drawn = [draws.randint(n) for _ in range(300)]
    assert drawn == [random.randint(0, n) for _ in range(300)]
    assert n > 3 or set(drawn) == set(range(n + 1))


@pytest.mark.parametrize("n", SIZES)
def test_shuffles_are_permutations_and_random_s(n):
    random.seed(3)
    draws = _draws.ShuffleDraws(random.getstate())
    for _ in range(3):
        order = draws.shuffle(n)
        assert order == literal_shuffle(n)
        assert sorted(order) == list(range(n))


@pytest.mark.parametrize("seed", range(3))
def test_numbers_and_weighted_choices_are_the_twin_s(seed):
    random.seed(seed)
    chance = random.Random(100 + seed)
    compiled, twin = _draws.ShuffleDraws(random.getstate()), ShuffleDraws(random.getstate())
    for _ in range(400):
        assert compiled.random() == twin.random() == random.random()  # two words: over every position
        n, k = chance.choice([0, 1, 2, 7, 100]), chance.choice([0, 1, 3, 8])
        weights = [chance.choice([0.0, chance.random(), 1e-9, 100.0]) for _ in range(n)]
        chosen = twin.choose(weights, k)
        assert compiled.choose(weights, k) == chosen
        random.setstate(twin.getstate())
        assert compiled.getstate() == twin.getstate()
        assert len({*chosen}) == len(chosen) == min(k, sum(w > 0 for w in weights) or n)
        assert all(weights[i] > 0 for i in chosen) or not any(weights)


@pytest.mark.parametrize("draws", [ShuffleDraws, _draws.ShuffleDraws, UniformDraws])
def test_choices_have_chances_in_proportion_to_their_weights(draws):
    draws = draws(1 if draws is UniformDraws else random.Random(1).getstate())
    weights, n = [0.1, 0.0, 0.5, 0.4], 20_000
    counts = Counter(tuple(draws.choose(weights, 2)) for _ in range(n))
    for (first, second), count in counts.items():
        p = weights[first] * weights[second] / (1 - weights[first])
        assert abs(count - n * p) < 5 * (n * p) ** 0.5
    assert len(counts) == 6  # never one of weight 0
    alike = Counter(i for _ in range(3000) for i in draws.choose([0.0] * 3, 1))
    assert all(abs(alike[i] - 1000) < 150 for i in range(3))
    assert 0 <= min(draws.random() for _ in range(100)) < 0.1 and max(draws.random() for _ in range(100)) < 1


def test_the_golden_indices(golden_streams):
    for case in golden_streams["draws"]:
        draws = _draws.ShuffleDraws(random.Random(case["seed"]).getstate())
        assert [draws.draw(n, case["k"]) for n in case["memory_sizes"]] == case["indices"]


@pytest.mark.parametrize("used", [0, 1, 2, 311, WORDS - 1, WORDS, WORDS + 1, 2 * WORDS, 5003])
def test_states_come_back_from_any_position(used):
    random.seed(used)
    draws = _draws.ShuffleDraws(random.getstate())
    for _ in range(used):  # one word each
        draws.randint(2**31 - 2)
    state = draws.getstate()
    assert state[1][-1] == ((used - 1) % WORDS + 1 if used else WORDS)

    wanted = [draws.draw(33, 4), draws.randint(1000), draws.shuffle(256)]
    again = _draws.ShuffleDraws(state)
    assert again.getstate() == state
    assert [again.draw(33, 4), again.randint(1000), again.shuffle(256)] == wanted
    draws.setstate(state)  # also into one that has moved on
    assert [draws.draw(33, 4), draws.randint(1000), draws.shuffle(256)] == wanted
    random.setstate(state)  # and into Python's own
    assert [literal_draw(33, 4), random.randint(0, 1000), literal_shuffle(256)] == wanted
    assert random.getstate() == draws.getstate() == again.getstate()


def test_python_goes_on_where_the_draws_stopped_and_the_other_way_round():
    random.seed(8)
    random.gauss(0, 1)  # leaves a second number for the next call: a part of the state
    draws = _draws.ShuffleDraws()  # from where `random` stands
    assert draws.getstate() == random.getstate() and draws.getstate()[2] is not None
    draws.shuffle(77), literal_shuffle(77)
    wanted = [random.gauss(0, 1), random.random(), random.getrandbits(70)]
    random.setstate(draws.getstate())
    assert [random.gauss(0, 1), random.random(), random.getrandbits(70)] == wanted
    draws.setstate(random.getstate())
    assert draws.draw(50, 5) == literal_draw(50, 5)


def test_draws_leave_the_global_stream_alone_and_share_nothing():
    random.seed(2)
    before = random.getstate()
    draws, other = _draws.ShuffleDraws(before), _draws.ShuffleDraws(before)
    drawn = draws.draw(100, 20)
    assert random.getstate() == before == other.getstate() != draws.getstate()
    assert other.draw(100, 20) == drawn


def broken(change):
    version, words, gauss_next = random.Random(1).getstate()
    return change(version, list(words), gauss_next)


@pytest.mark.parametrize(
    "change",
    [
        lambda version, words, gauss: (2, tuple(words), gauss),
        lambda version, words, gauss: (version, tuple(words[:-1]), gauss),
        lambda version, words, gauss: (version, (*words, 0), gauss),
        lambda version, words, gauss: (version, (*words[:-1], WORDS + 1), gauss),
        lambda version, words, gauss: (version, (*words[:-1], -1), gauss),
        lambda version, words, gauss: (version, tuple(words)),
    ],
    ids=["version", "too short", "too long", "position beyond", "position before", "no third part"],
)
def test_what_is_no_state_is_refused_and_changes_nothing(change):
    draws = _draws.ShuffleDraws(random.Random(5).getstate())
    before = draws.getstate()
    with pytest.raises(ValueError):
        draws.setstate(broken(change))
    assert draws.getstate() == before
    with pytest.raises(ValueError):
        _draws.ShuffleDraws(broken(change))


@pytest.mark.parametrize("n", [-1, 2**31])
def test_impossible_numbers_are_refused(n):
    draws = _draws.ShuffleDraws(random.Random(5).getstate())
    with pytest.raises(ValueError):
        draws.draw(n, 1)
    with pytest.raises(ValueError):
        draws.shuffle(n)
