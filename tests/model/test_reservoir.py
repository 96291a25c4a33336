"""The reservoir of other people's loops: its chances, its items in memory and on disk, kills, readers and writers."""

import itertools
import os
import random
import signal
import sqlite3
import time
from collections import Counter, OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch
from runs import start_child
from scipy import stats

from model.torch_loop import Reservoir, ReservoirReader


def held(memory):
    return [memory[place] for place in range(len(memory))]


@pytest.fixture(params=["memory", "disk"])
def make(request, tmp_path):
    """make(capacity, seed): a reservoir in memory, or in a folder of its own."""
    opened = []

    def make(capacity, seed=0):
        folder = tmp_path / str(len(opened)) if request.param == "disk" else None
        opened.append(Reservoir(capacity, seed, folder))
        return opened[-1]

    yield make
    for memory in opened:
        memory.close()


# chances


class OneTooMany:
    """The paper's code: item N comes in with chance M/(N+1)."""

    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)

    def integers(self, n):
        return self.generator.integers(n + 1)


def p_values(n_reservoirs, capacity, n, random_of=lambda seed: seed):
    """Of chi-square tests over many reservoirs: that items of all ages are held as often; that all are anywhere."""
    counts = np.zeros((n, capacity))
    for seed in range(n_reservoirs):
        memory = Reservoir(capacity, random_of(seed))
        memory.extend(range(n))
        counts[held(memory), range(capacity)] += 1
    late = counts[capacity:]  # the first ones have places of their own
    return stats.chisquare(counts.sum(1)).pvalue, stats.chisquare(late.ravel()).pvalue


def test_all_ages_and_places_are_as_likely():
    ages, places = p_values(4000, 6, 30)
    assert ages > 1e-3 and places > 1e-3
    assert p_values(4000, 6, 30, OneTooMany)[0] < 1e-6, "and the test tells that from a chance that is a little off"


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_a_million_items(on_disk, tmp_path):
    """Items of all ages in equal numbers: of one reservoir in 50 parts, which makes a chi-square of 49 degrees."""
    memory = Reservoir(2000, 7, tmp_path / "it" if on_disk else None)
    memory.extend(range(10**6))
    assert len(memory) == 2000 and memory.n_seen == 10**6
    ages = held(memory)
    assert len(set(ages)) == 2000
    assert 1e-3 < stats.chisquare(np.histogram(ages, 50, (0, 10**6))[0]).pvalue < 1 - 1e-3
    memory.close()


def test_draws_are_uniform_and_independent(make):
    memory = make(5)
    assert memory.draw(3) == []
    memory.add(0)
    assert memory.draw(3) == [0] and memory.draw(0) == []
    memory.extend(range(1, 5))
    pairs = np.zeros((5, 5))
    for _ in range(2000):
        one, other = memory.draw(2)
        pairs[one, other] += 1
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3
    assert len(memory.draw(100)) == 5


def test_the_disk_holds_what_memory_holds(tmp_path):
    """The seed decides both, through states and replacements."""
    one, other = Reservoir(20, 3), Reservoir(20, 3, tmp_path / "it")
    for n in range(500):
        assert one.add(n) == other.add(n)
        assert one.draw(3) == other.draw(3)
        if n % 60 == 59:
            one.state_dict(), other.state_dict()
    assert held(one) == held(other)
    (rows,) = other._items._execute("SELECT count(*) FROM items").fetchone()
    assert rows <= 60, "what no state needs is deleted"
    other.close()


# items


def nests():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64):
        yield torch.randn(3, 4, generator=generator, dtype=dtype)
    yield torch.tensor([float("nan"), float("-inf"), -0.0])
    yield torch.tensor([1 + 2j, 3 - 1j]).conj()
    yield from (np.int64(3), np.float32(0.1), np.bool_(True))
    yield torch.arange(24).reshape(2, 3, 4).transpose(0, 2)[1:]
    yield from (torch.tensor(5), torch.tensor(True), torch.empty(0, 3), torch.zeros(2, 0, dtype=torch.int16))
    yield torch.randint(256, (2, 3), generator=generator, dtype=torch.uint8)
    yield from (np.arange(6.0).reshape(2, 3)[:, ::2], np.array(3), np.zeros((0, 2), np.int8), np.array([1, 2], ">i4"))
    yield from (1, -(2**70), 0.1, float("inf"), True, None, "tensor", "ünï", [], (), {})
    yield {"x": torch.rand(2), "y": (1, [2.5, {"z": np.arange(3)}]), 7: ((), ""), "tensor": ["float32", [1]]}
    yield {"dict": {"list": {"tuple": ("array", None)}}}


def same(one, other):
    if isinstance(one, torch.Tensor):
        bits = [value.resolve_conj().contiguous().reshape(-1).view(torch.uint8) for value in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)
    if isinstance(one, np.ndarray | np.generic):
        return (
            type(one) is type(other)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_items_of_many_kinds(make):
    """As they were, whatever becomes of what was added; on disk what comes out is a copy that can be written to."""
    items = list(nests())
    memory = make(len(items))
    memory.extend(items)
    wanted = [item.clone() if isinstance(item, torch.Tensor) else item for item in items]
    for item in items:
        if isinstance(item, torch.Tensor) and item.numel():
            item.zero_()
    assert all(map(same, held(memory), wanted))
    assert all(type(found) is type(item) for found, item in zip(held(memory), items, strict=True))


def test_an_item_keeps_no_graph_and_no_batch(make):
    weights = torch.ones(3, requires_grad=True)
    memory = make(1)
    memory.add({"x": (weights * 2)[1:]})
    (item,) = memory.draw(1)
    assert not item["x"].requires_grad and item["x"].untyped_storage().nbytes() == 8


Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    "nest",
    [
        lambda x: Pair(x, 1),
        lambda x: OrderedDict(x=[x]),
        lambda x: defaultdict(list, x=(x,)),
        lambda x: {"x": Pair(1, {"y": x})},
    ],
)
def test_whatever_holds_it_a_tensor_is_copied(nest):
    """And an array; the nest is of the same types."""
    weights, array, memory = torch.ones(3, requires_grad=True), np.ones(3), Reservoir(2)
    memory.extend([nest((weights * 2)[1:]), nest(array)])
    array[:] = 0
    for found, wanted in zip(held(memory), (nest(torch.full((2,), 2.0)), nest(np.ones(3))), strict=True):
        assert repr(found) == repr(wanted)


def test_other_objects_stay_what_they_are():
    memory = Reservoir(2)
    memory.add(Counter("aab"))
    assert memory[0] == {"a": 2, "b": 1}


def test_any_object_in_memory_but_not_on_disk(tmp_path):
    thing = object()
    memory = Reservoir(2)
    memory.add({"it": thing})
    assert memory.draw(1)[0]["it"] is thing
    memory = Reservoir(2, folder=tmp_path / "it")
    for item, where in (
        ({"a": [thing]}, r"item\['a'\]\[0\] is a object"),
        ({(1, 2): 3}, "item is a dict; .*whose keys"),
        ([torch.eye(2).to_sparse()], r"item\[0\] is a Tensor; .* dense tensors"),
        (np.ma.masked_array([1, 2], [0, 1]), "item is a MaskedArray"),
        (Pair(1, 2), "item is a Pair"),
    ):
        with pytest.raises(TypeError, match=where):
            memory.add(item)
    assert len(memory) == memory.n_seen == 0
    memory.close()


def test_refusals(tmp_path):
    for capacity in (0, -1, 2.0, "3"):
        with pytest.raises(ValueError, match="it must be a whole number of items, 1 or more"):
            Reservoir(capacity)
    state = Reservoir(3).state_dict()
    with pytest.raises(ValueError, match="of a reservoir of 3 items; this one's capacity is 4"):
        Reservoir(4).load_state_dict(state)
    assert Reservoir(np.int64(3)).state_dict() == state
    memory = Reservoir(4)
    memory.add(1)
    for place in (1, -1):
        with pytest.raises(IndexError, match=f"place {place} of 1 items"):
            memory[place]


# states and kills


def test_a_state_that_is_not_its_own_changes_nothing(tmp_path):
    def make(seed, folder=None):
        return Reservoir(3, seed, folder)

    def twister():
        return np.random.Generator(np.random.MT19937(0))

    in_memory, on_disk, twisted = make(0), make(0, tmp_path / "it"), make(twister())
    for memory in (in_memory, on_disk, twisted):
        memory.extend(range(20))
    states = [memory.state_dict() for memory in (in_memory, on_disk, twisted)]
    for memory, wrong, message in (
        (make(7), states[1], "of a reservoir in a folder; this one is in memory"),
        (make(7, tmp_path / "other"), states[0], "of a reservoir in memory; this one is in a folder"),
        (make(7), states[2], "PCG64"),
        (make(twister()), states[0], "MT19937"),
    ):
        memory.extend("abcd")
        before = held(memory), repr(memory.state_dict()["random"])
        with pytest.raises(ValueError, match=message):
            memory.load_state_dict(wrong)
        assert (held(memory), repr(memory.state_dict()["random"])) == before and memory.n_seen == 4


def test_the_two_latest_states_can_be_loaded(tmp_path):
    """In either order of their ages, again and again; after the older one the newer one is no more."""
    memory, twin, states = Reservoir(8, 1, tmp_path / "it"), Reservoir(8, 1), []
    for n in range(100):
        memory.add(n), twin.add(n)
        if n % 20 == 5:
            states.append((memory.state_dict(), twin.state_dict(), held(twin)))
    assert [state["n_seen"] for state, _, _ in states] == [6, 26, 46, 66, 86]
    with pytest.raises(ValueError, match="not one of the two latest that were taken of .*: some of its items are gone"):
        memory.load_state_dict(states[2][0])
    assert held(memory) == held(twin), "what is refused changes nothing"
    for which in (4, 4, 3, 3):
        state, twins, wanted = states[which]
        memory.load_state_dict(state), twin.load_state_dict(twins)
        assert held(memory) == wanted and memory.n_seen == state["n_seen"]
        for n in range(1000, 1100):
            assert memory.add(n) == twin.add(n) and memory.draw(2) == twin.draw(2)
        assert held(memory) == held(twin)
    with pytest.raises(ValueError, match="some of its items are gone"):
        memory.load_state_dict(states[4][0])
    other = Reservoir(8, 1, tmp_path / "other")
    with pytest.raises(ValueError, match="not one of the two latest that were taken of .*other"):
        other.load_state_dict(states[3][0])
    memory.close(), other.close()


def test_a_folder_of_an_earlier_life_waits_for_its_state(tmp_path):
    memory = Reservoir(3, 1, tmp_path / "it")
    memory.extend(range(10))
    state, wanted = memory.state_dict(), held(memory)
    memory.close()
    memory = Reservoir(3, 1, tmp_path / "it")
    for use in (
        lambda: memory.add(1),
        lambda: memory.draw(1),
        lambda: memory[0],
        lambda: len(memory),
        memory.state_dict,
    ):
        with pytest.raises(RuntimeError, match="load_state_dict goes on with them; to begin anew, remove the folder"):
            use()
    memory.load_state_dict(state)
    assert held(memory) == wanted
    memory.close()


def start_writer(folder):
    """A process that adds items for ever, from its latest state on, and saves one every 37 items; its number."""

    def write():
        memory = Reservoir(20, 5, folder / "it")
        if (folder / "state").exists():
            memory.load_state_dict(torch.load(folder / "state", weights_only=True))
        for n in itertools.count(memory.n_seen):
            memory.add({"x": torch.full((500,), n), "n": n})
            if n % 37 == 0:
                torch.save(memory.state_dict(), folder / "state.part")
                os.replace(folder / "state.part", folder / "state")

    return start_child(write, folder / "said")


def kill(process):
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def saved_at(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_at_any_moment_it_goes_on_exactly(tmp_path):
    """Five times by SIGKILL, then from its latest state: what one holds that was never disturbed."""
    chance = random.Random(2)
    for _ in range(5):
        before = saved_at(tmp_path / "state")
        writer = start_writer(tmp_path)
        wait_for(lambda before=before: saved_at(tmp_path / "state") > before)
        time.sleep(chance.random() / 5)
        assert kill(writer) == -signal.SIGKILL
    memory, twin = Reservoir(20, 5, tmp_path / "it"), Reservoir(20, 5)
    memory.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    twin.extend(range(memory.n_seen))
    for n in range(memory.n_seen, memory.n_seen + 200):
        assert memory.add({"x": torch.full((500,), n), "n": n}) == twin.add(n)
    assert [item["n"] for item in held(memory)] == held(twin)
    assert all((item["x"] == item["n"]).all() for item in held(memory))
    memory.close()


# several processes


def read_for_a_while(folder, seed):
    """A function that draws, checks that items are whole, and prints which it met."""

    def read():
        reader, met, end = ReservoirReader(folder, seed), [], time.monotonic() + 2
        while time.monotonic() < end:
            for item in reader.draw(8):
                assert len(item["x"]) == 500 and (item["x"] == item["n"]).all(), item
                met.append(item["n"])
        print(*met[:8], len(set(met)))
        return 0

    return read


def test_two_processes_read_while_one_writes(tmp_path):
    writer = start_writer(tmp_path)
    try:
        wait_for((tmp_path / "state").exists)
        said = [tmp_path / f"reader {seed}" for seed in (1, 2)]
        readers = [start_child(read_for_a_while(tmp_path / "it", seed), said[seed - 1]) for seed in (1, 2)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) for reader in readers]
        found = [path.read_text().split() for path in said]
        assert codes == [0, 0], found
        assert all(int(of_one[-1]) > 20 for of_one in found), "they saw how it changed"
        assert found[0][:8] != found[1][:8], "each draws by its own seed"
        with pytest.raises(
            RuntimeError, match="another process, or another Reservoir here, writes to .*ReservoirReader"
        ):
            Reservoir(20, 5, tmp_path / "it")
    finally:
        kill(writer)
    assert len(ReservoirReader(tmp_path / "it")) == 20
    Reservoir(20, 5, tmp_path / "it").close()  # the lock died with the writer


def test_a_reader_of_what_is_no_reservoir(tmp_path):
    with pytest.raises(sqlite3.Error):
        ReservoirReader(tmp_path)
    (tmp_path / "items.sqlite").write_bytes(b"something else" * 1000)
    with pytest.raises(sqlite3.Error):
        ReservoirReader(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork among threads
def test_after_a_fork_each_process_opens_its_own(tmp_path):
    memory = Reservoir(3, 1, tmp_path / "it")
    memory.add(1)
    child = os.fork()
    if not child:
        try:
            memory.draw(1)
        except RuntimeError as error:
            os._exit(0 if "opened by another process, before a fork; open it in each" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert memory.draw(1) == [1]
    memory.close()
