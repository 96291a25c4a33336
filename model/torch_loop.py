"""Meta-Experience Replay for any PyTorch training loop: `Reptile` and `Reservoir`.

Stands on torch, numpy and the standard library alone: this one file may be copied anywhere.

    memory = Reservoir(5120, seed=0)
    reptile = Reptile(optimizer, every=10, step=0.3)      # nothing else of the loop changes
    for new in stream:                                    # a list of examples
        x, y = default_collate(new + memory.draw(16))     # torch.utils.data.default_collate
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()                                  # after every 10th: theta <- theta0 + 0.3 (theta - theta0)
        memory.extend(new)

Sources
    Reptile     Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018, Algorithm 1
    MER         Riemer et al.: Learning to Learn without Forgetting ..., ICLR 2019: Algorithm 6 (one big batch, Reptile
                over its steps), Algorithm 3 (the reservoir); with minibatches: Abbes et al., arXiv 2508.01908, 2025
    reservoir   Vitter: Random Sampling with a Reservoir, ACM Trans. Math. Software 11, 1985, Algorithm R
"""

import copy
import io
import json
import math
import numbers
import os
import sqlite3
import weakref
from collections import OrderedDict, defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

try:
    import fcntl
except ImportError:  # not POSIX: a second writer of a folder is not noticed
    fcntl = None

__all__ = ["Reptile", "Reservoir", "ReservoirReader"]


class Reptile:
    """After every k steps of an optimizer: theta <- theta0 + step (theta - theta0). (Nichol et al. 2018, Algorithm 1)

    optimizer   any torch.optim.Optimizer. It stays what it is, and is used as before, by schedulers and a GradScaler
                too: a step that the scaler skips does not count. Its moments are not touched.
    every       k, or None: only when `interpolate()` is called
    step        1 changes nothing, 0 takes all steps back; may be set anew at any time
    buffers     further tensors to interpolate, model.buffers() for instance; those of whole numbers are left alone

    theta is all parameters of all groups, theta0 what they were before the first step of a block of k; a parameter that
    joins in mid-block is taken as it was before its first step. Two objects on one optimizer nest: the one made
    first acts first (Algorithm 1: `every` = k within a batch, then s k across batches).
    Without `buffers`, the running statistics of batch norm go on as they are: those of the last weights before the
    interpolation. With them, they are interpolated as well. Neither is exact: statistics are not linear in theta.
    A forward pass changes buffers before the first step: theirs begin where the last block ended (`begin`).

    Raises ValueError for an `every` that is no positive whole number or a `step` that is not finite, TypeError for what
    is no optimizer.
    """

    def __init__(self, optimizer, every=None, step=1.0, buffers=()):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not a torch.optim.Optimizer")
        self.optimizer, self._buffers = optimizer, [b for b in buffers if b.is_floating_point()]
        self._set(every, step)
        self._others = vars(optimizer).setdefault("_reptiles", [])  # all on this optimizer
        self._others.append(self)
        self.begin()
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def _set(self, every, step):
        if every is not None and not (isinstance(every, numbers.Integral) and every >= 1):
            raise ValueError(f"every={every!r}: it must be a whole number of steps, 1 or more, or None")
        if not np.isfinite(step):
            raise ValueError(f"step={step!r}: it must be a finite number")
        self.every, self.step = every if every is None else int(every), float(step)

    def begin(self):
        """A block begins here, whatever was open: for weights and buffers that were loaded after this was made."""
        self.count = 0  # steps since theta0
        self._theta0 = {value: value.detach().clone() for value in self._buffers}  # tensor -> what it was

    def _mark(self):
        for p in self._parameters():
            if p not in self._theta0:
                self._theta0[p] = p.detach().clone()

    def _parameters(self):
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _before_step(self, *_):
        if self.count == 0:  # also after a first step that raised
            self._theta0 = {value: self._theta0[value] for value in self._buffers}
        self._mark()

    def _after_step(self, *_):
        skipped = getattr(self.optimizer, "found_inf", None)  # a GradScaler's, where a fused optimizer skips by itself
        if skipped is not None and skipped.item():
            return
        self.count += 1
        if self.every is not None and self.count >= self.every:
            self.interpolate()

    @torch.no_grad()
    def interpolate(self):
        """Ends the block now: theta <- theta0 + step (theta - theta0). Nothing if no step was taken since the last."""
        if self.count:
            for value, before in self._theta0.items():
                value.copy_(before + (value - before) * self.step)
            self.begin()
            for other in self._others:  # where theirs ended too, their next one begins where this one ended
                if other.count == 0:
                    other.begin()

    def remove(self):
        """Leaves the optimizer alone from now on; the block that is open is not interpolated."""
        for hook in self._hooks:
            hook.remove()
        self._others.remove(self)
        self.begin()

    def state_dict(self):
        """What `load_state_dict` needs, besides the model's and the optimizer's states: theta0, in mid-block."""
        if self.count:
            self._mark()  # those that have joined since the last step
        parameters = self._parameters() if self.count else []
        return {
            "every": self.every,
            "step": self.step,
            "count": self.count,
            "parameters": [self._theta0[p].clone() for p in parameters],
            "buffers": [self._theta0[b].clone() for b in self._buffers],
        }

    def load_state_dict(self, state):
        """Goes on exactly where `state_dict` was taken. ValueError where it is of other parameters or buffers."""
        theta0 = {}
        for name, values in (("buffers", self._buffers), ("parameters", self._parameters() if state["count"] else [])):
            found, wanted = [tuple(v.shape) for v in state[name]], [tuple(v.shape) for v in values]
            if found != wanted:
                raise ValueError(f"a state of {len(found)} {name} of shapes {found}; here are {len(wanted)}: {wanted}")
            for value, before in zip(values, state[name], strict=True):
                theta0[value] = before.detach().to(value.device, value.dtype, copy=True)
        self._set(state["every"], state["step"])
        self.count, self._theta0 = state["count"], theta0


class _Drawing:
    """What a reservoir and its readers share. An item's place is 0..len-1."""

    def __len__(self):
        return len(self._items)

    def __getitem__(self, place):
        """The item at a place. IndexError where there is none."""
        if not 0 <= place < len(self):
            raise IndexError(f"place {place} of {len(self)} items")
        return self._items[place]

    def draw(self, k):
        """A list of min(k, len) items, each uniform over the memory, independent of the others (with replacement)."""
        n = len(self)
        return [self._items[place] for place in self._random.integers(n, size=min(k, n)).tolist()] if n else []


def _generator(seed):
    return seed if hasattr(seed, "integers") else np.random.Generator(np.random.PCG64(seed))


class Reservoir(_Drawing):
    """A uniform sample, without replacement, of all items that it was ever shown. (Vitter 1985, Algorithm R)

    capacity   M, the most items that it holds
    seed       decides what is kept and what is drawn: a whole number, or a numpy.random.Generator
    folder     None: the items are in memory. Else they lie in an SQLite database there, memory-mapped, so that there
               may be more than memory holds; the system keeps in memory what is used.
    n_seen     N, items shown so far: its age, part of its state

    Item number N comes in with chance M/N exactly, in place of one chosen uniformly; an item that was shown is there
    with chance M/N whenever it came. (The paper's own code drew from one number too many: M/(N+1).)

    An item is any object; tensors and NumPy arrays in it, in dicts, lists and tuples (named ones too) nested as you
    like, are copied, tensors detached, on their device; what is drawn is the item itself. In a folder, items are
    tensors, NumPy arrays, numbers, texts and None in plain dicts, lists and tuples (TypeError for others); copies of
    them come back, on the CPU. One process writes a folder, any number read it meanwhile (`ReservoirReader`); nobody
    sees half an item.

    Where a folder holds items of an earlier life, load_state_dict goes on with them; until then add and draw raise
    RuntimeError. The two latest states that were taken can be loaded, also after the process was killed: the
    folder keeps the items of theirs that were replaced since. What goes wrong with the files is a sqlite3.Error.
    """

    def __init__(self, capacity, seed=0, folder=None):
        if not (isinstance(capacity, numbers.Integral) and capacity >= 1):
            raise ValueError(f"capacity={capacity!r}: it must be a whole number of items, 1 or more")
        self.capacity, self.n_seen = int(capacity), 0
        self._random = _generator(seed)
        self._items = _InMemory() if folder is None else _InFolder(Path(folder))

    def add(self, item):
        """Shows it an item. Returns the place where it is now, or None where it was not kept."""
        self._items.must_be_ready()
        n = self.n_seen + 1
        place = n - 1 if n <= self.capacity else int(self._random.integers(n))
        if place < self.capacity:
            self._items.put(place, item, n)
        self.n_seen = n
        return place if place < self.capacity else None

    def extend(self, items):
        """add() for each."""
        for item in items:
            self.add(item)

    def state_dict(self):
        """What `load_state_dict` needs: age, random state, and the items; of a folder, which state of it."""
        return {
            "capacity": self.capacity,
            "n_seen": self.n_seen,
            "random": self._random.bit_generator.state,
            "items": self._items.state(self.n_seen),
        }

    def load_state_dict(self, state):
        """Goes on exactly where `state_dict` was taken. ValueError, with nothing changed, where it is of another
        capacity, folder or kind of generator.
        """
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"a state of a reservoir of {state['capacity']} items; this one's capacity is {self.capacity}"
            )
        before = self._random.bit_generator.state
        self._random.bit_generator.state = state["random"]
        try:
            self._items.load(state["items"], state["n_seen"])
        except BaseException:
            self._random.bit_generator.state = before
            raise
        self.n_seen = state["n_seen"]

    def close(self):
        """Lets go of the folder, so that another process may write to it."""
        self._items.close()


class ReservoirReader(_Drawing):
    """Draws from the folder of a `Reservoir` that another process fills: len, [place] and draw.

    Make one in each process (each worker of a DataLoader), with a seed of its own: two of one seed draw the same.
    Raises sqlite3.Error where `folder` is no reservoir's.
    """

    def __init__(self, folder, seed=0):
        self._items, self._random = _FolderItems(Path(folder), "ro"), _generator(seed)
        len(self)

    def close(self):
        """Lets go of the folder."""
        self._items.close()

    def draw(self, k):
        """As `Reservoir.draw`."""
        with self._items.unchanging():  # the writer may go back to a state with fewer items
            return super().draw(k)


# items in memory


def _own(item):
    """The item with its tensors and arrays copied: a view would keep the whole batch, a graph all that led to it."""
    if isinstance(item, torch.Tensor):
        return item.detach().clone()
    if isinstance(item, np.ndarray):
        return item.copy()
    if type(item) in (dict, OrderedDict, defaultdict):
        own = copy.copy(item)
        for key, value in item.items():
            own[key] = _own(value)
        return own
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return item._make(map(_own, item))
    if type(item) in (list, tuple):
        return type(item)(map(_own, item))
    return item


class _InMemory(list):
    def must_be_ready(self):
        pass

    def put(self, place, item, number):
        self[place : place + 1] = [_own(item)]  # at the end: one more

    def state(self, n_seen):
        return list(self)

    def load(self, items, n_seen):
        if not isinstance(items, list):
            raise ValueError("the state is one of a reservoir in a folder; this one is in memory")
        self[:] = items

    def close(self):
        pass


# items as bytes: how many of them are text, the text (JSON of the nest, its tensors and arrays by what they are), then
# the bytes of those


def _encode(item):
    parts = []
    text = json.dumps(_described(item, parts)).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _described(item, parts, where=""):
    if isinstance(item, torch.Tensor) and item.layout == torch.strided and not item.is_quantized:
        whole = item.detach().cpu().resolve_conj().contiguous()
        parts.append(whole.reshape(-1).view(torch.uint8).numpy().tobytes())
        return {"tensor": [str(item.dtype).removeprefix("torch."), list(item.shape)]}
    if isinstance(item, np.ndarray | np.generic) and _is_plain(item):
        parts.append(item.tobytes())
        return {"array" if isinstance(item, np.ndarray) else "number": [item.dtype.str, list(item.shape)]}
    if type(item) is dict and all(type(key) in (str, int) for key in item):
        return {"dict": [[key, _described(value, parts, f"{where}[{key!r}]")] for key, value in item.items()]}
    if type(item) in (list, tuple):
        return {type(item).__name__: [_described(value, parts, f"{where}[{i}]") for i, value in enumerate(item)]}
    if type(item) in (bool, int, float, str, type(None)):
        return item
    raise TypeError(
        f"item{where} is a {type(item).__name__}; in a folder items are dense tensors, arrays of numbers, numbers, "
        "texts and None, in lists, tuples and dicts whose keys are texts or whole numbers"
    )


def _is_plain(array):
    return array.dtype.kind in "biufc" and not isinstance(array, np.ma.MaskedArray)


def _decode(data):
    start = 8 + int.from_bytes(data[:8], "little")
    return _item(json.loads(data[8:start]), io.BytesIO(data[start:]))


def _item(described, parts):
    if not isinstance(described, dict):
        return described
    ((kind, content),) = described.items()
    if kind == "dict":
        return {key: _item(value, parts) for key, value in content}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_item(value, parts) for value in content)
    dtype, shape = content
    dtype, n = getattr(torch, dtype) if kind == "tensor" else np.dtype(dtype), math.prod(shape)
    raw = bytearray(parts.read(n * dtype.itemsize))
    if kind != "tensor":
        array = np.frombuffer(raw, dtype).reshape(shape)
        return array if kind == "array" else array[()]
    return (torch.frombuffer(raw, dtype=dtype) if n else torch.empty(0, dtype=dtype)).reshape(shape)


# items in a folder

TABLES = """
CREATE TABLE items (
    number INTEGER PRIMARY KEY,  -- of the item, as it was shown: 1..n_seen
    place INTEGER,
    until INTEGER,               -- NULL while it is there; else the latest of the states that it is in
    item BLOB
);
CREATE UNIQUE INDEX held ON items (place) WHERE until IS NULL;
CREATE TABLE states (state INTEGER PRIMARY KEY, id INTEGER);  -- the two latest
"""


class _FolderItems:
    """The items of a folder, to be read."""

    def __init__(self, folder, mode, *also):
        self._folder, self._process = folder, os.getpid()
        address = f"{(folder / 'items.sqlite').absolute().as_uri()}?mode={mode}"
        self._database = sqlite3.connect(address, uri=True, timeout=60, check_same_thread=False)
        self.close = weakref.finalize(self, _close, self._database, *also)
        self._database.execute("PRAGMA mmap_size = 1099511627776")  # as much of it as SQLite's own limit allows

    def _execute(self, words, *values):
        if os.getpid() != self._process:
            raise RuntimeError(f"{self._folder} was opened by another process, before a fork; open it in each")
        return self._database.execute(words, values)

    def __len__(self):
        (last,) = self._execute("SELECT max(place) FROM items WHERE until IS NULL").fetchone()
        return 0 if last is None else last + 1

    def __getitem__(self, place):
        return _decode(*self._execute("SELECT item FROM items WHERE place = ? AND until IS NULL", place).fetchone())

    @contextmanager
    def unchanging(self):
        """Within it, the folder is read as it is now, whatever is written meanwhile."""
        self._execute("BEGIN")
        try:
            yield
        finally:
            self._database.rollback()


class _InFolder(_FolderItems):
    """The items of a folder, written by this process."""

    _ready = True

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "writer.lock", "w")
        if fcntl:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise RuntimeError(
                    f"another process, or another Reservoir here, writes to {folder}; read it with ReservoirReader"
                ) from None
        super().__init__(folder, "rwc", lock)
        self._execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
        self._execute("PRAGMA synchronous = NORMAL")
        if not self._execute("SELECT name FROM sqlite_master").fetchone():
            self._database.executescript(TABLES)
        self._state, self._shown = self._latest(), 0  # the latest state, and the items shown before it
        self._ready = len(self) == 0

    def _latest(self):
        return self._execute("SELECT coalesce(max(state), 0) FROM states").fetchone()[0]

    def must_be_ready(self):
        if not self._ready:
            raise RuntimeError(
                f"{self._folder} holds the items of an earlier reservoir: load_state_dict goes on with them; to begin "
                "anew, remove the folder"
            )

    def _execute(self, words, *values):
        self.must_be_ready()
        return super()._execute(words, *values)

    def put(self, place, item, number):
        data = _encode(item)
        with self._database:
            self._execute("DELETE FROM items WHERE place = ? AND until IS NULL AND number > ?", place, self._shown)
            self._execute("UPDATE items SET until = ? WHERE place = ? AND until IS NULL", self._state, place)
            self._execute("INSERT INTO items VALUES (?, ?, NULL, ?)", number, place, data)

    # states

    def state(self, n_seen):
        id = int.from_bytes(os.urandom(7), "little")
        with self._database:
            self._execute("INSERT INTO states VALUES (?, ?)", self._state + 1, id)
            self._execute("DELETE FROM states WHERE state < ?", self._state)
            self._execute("DELETE FROM items WHERE until < ?", self._state)
        self._state, self._shown = self._state + 1, n_seen
        self._execute("PRAGMA wal_checkpoint")  # to the disk
        return id

    def load(self, id, n_seen):
        if not isinstance(id, int):
            raise ValueError("the state is one of a reservoir in memory; this one is in a folder")
        execute = super()._execute
        found = execute("SELECT state FROM states WHERE id = ?", id).fetchone()
        if not found:
            raise ValueError(
                f"the state is not one of the two latest that were taken of {self._folder}: some of its items are gone"
            )
        with self._database:
            execute("DELETE FROM states WHERE state > ?", *found)
            execute("DELETE FROM items WHERE number > ?", n_seen)
            execute("UPDATE items SET until = NULL WHERE until >= ?", *found)
        self._ready, self._state, self._shown = True, *found, n_seen


def _close(*opened):
    for it in opened:
        it.close()
