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

import json
import os
import time
import weakref
import zlib
from collections import deque
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
        if every is not None and not (isinstance(every, int) and every >= 1):
            raise ValueError(f"every={every!r}: it must be a whole number of steps, 1 or more, or None")
        if not np.isfinite(step):
            raise ValueError(f"step={step!r}: it must be a finite number")
        self.every, self.step = every, float(step)

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
    folder     None: the items are in memory. Else they lie in files there, memory-mapped, so that there may be more
               than memory holds; the system keeps in memory what is used.
    n_seen     N, items shown so far: its age, part of its state

    Item number N comes in with chance M/N exactly, in place of one chosen uniformly; an item that was shown is there
    with chance M/N whenever it came. (The paper's own code drew from one number too many: M/(N+1).)

    An item is any object; tensors in it, in dicts, lists and tuples nested as you like, are copied and detached, on
    their device; what is drawn is the item itself. In a folder, items are tensors, NumPy arrays and numbers in such
    nests, all of the same shapes and types (pad what has no fixed size); copies of them come back, on the CPU. One
    process writes a folder, any number read it meanwhile (`ReservoirReader`): an item is checked by its checksum, so
    that nobody sees half of one.

    Where a folder holds items of an earlier life, load_state_dict goes on with them; until then add and draw raise
    RuntimeError. The two latest states that were taken can be loaded, also after the process was killed: no item
    of theirs is overwritten. That, and not M, bounds the size of the file: M items and those that came in between.
    """

    def __init__(self, capacity, seed=0, folder=None):
        if not (isinstance(capacity, int) and capacity >= 1):
            raise ValueError(f"capacity={capacity!r}: it must be a whole number of items, 1 or more")
        self.capacity, self.n_seen = capacity, 0
        self._random = _generator(seed)
        self._items = _InMemory() if folder is None else _OnDisk(Path(folder), capacity)

    def add(self, item):
        """Shows it an item. Returns the place where it is now, or None where it was not kept."""
        self._items.check(item)
        n = self.n_seen + 1
        place = len(self) if len(self) < self.capacity else int(self._random.integers(n))
        if place < self.capacity:
            self._items.put(place, item)
        self.n_seen = n
        return place if place < self.capacity else None

    def extend(self, items):
        """add() for each."""
        for item in items:
            self.add(item)

    def state_dict(self):
        """What `load_state_dict` needs: age, random state, and the items; of a folder, where they are on the disk."""
        return {
            "capacity": self.capacity,
            "n_seen": self.n_seen,
            "random": self._random.bit_generator.state,
            "items": self._items.state(),
        }

    def load_state_dict(self, state):
        """Goes on exactly where `state_dict` was taken. ValueError where it is of another capacity or folder."""
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"a state of a reservoir of {state['capacity']} items; this one's capacity is {self.capacity}"
            )
        self._items.load(state["items"])
        self._random.bit_generator.state = state["random"]
        self.n_seen = state["n_seen"]

    def close(self):
        """Lets go of the folder, so that another process may write to it."""
        self._items.close()


class ReservoirReader(_Drawing):
    """Draws from the folder of a `Reservoir` that another process fills: len, [place] and draw.

    Make one in each process (each worker of a DataLoader), with a seed of its own: two of one seed draw the same.
    Raises FileNotFoundError where `folder` is no reservoir's, OSError where an item is damaged.
    """

    def __init__(self, folder, seed=0):
        self._items = _FolderItems(Path(folder))
        self._random = _generator(seed)

    def __getstate__(self):
        raise TypeError("a ReservoirReader is made in the process that uses it, with a seed of its own")


# items in memory


def _own(item):
    """The item with its tensors copied: a view would keep the whole batch, a graph all that led to it."""
    if isinstance(item, torch.Tensor):
        return item.detach().clone()
    if type(item) is dict:
        return {key: _own(value) for key, value in item.items()}
    if type(item) in (list, tuple):
        return type(item)(map(_own, item))
    return item


class _InMemory(list):
    def check(self, item):
        pass

    def put(self, place, item):
        self[place : place + 1] = [_own(item)]  # at the end: one more

    def state(self):
        return list(self)

    def load(self, items):
        self[:] = items

    def close(self):
        pass


# items in files
#
# layout.json   what an item looks like: the nest, each leaf's kind, type and shape
# items.bin     records, all of one size: a CRC-32 of the data (4 bytes, 4 unused), the data, 0..7 bytes of padding
# index.bin     int64: items held, the ids of the two latest states (0: none), then for each place its record's number
#
# A new item goes to a free record, and then its place to that record; so a record that a reader or a state may know
# stays whole. The writer writes through the file (a full disk is an OSError, not a SIGBUS) and reads through the map.

HELD, STATES, PLACES = 0, slice(1, 3), 3
PATIENCE = 1.0  # seconds until a record that is not whole counts as damaged and not as being written


def _layout(item, path=""):
    """What an item looks like, as JSON has it. TypeError for what cannot lie in a file."""
    if isinstance(item, torch.Tensor):
        return ["tensor", str(item.dtype).removeprefix("torch."), list(item.shape)]
    if isinstance(item, np.ndarray) and item.dtype.kind in "biufc":
        return ["array", item.dtype.str, list(item.shape)]
    if type(item) in (bool, int, float):
        return [type(item).__name__]
    if type(item) is dict:
        if bad := [key for key in item if type(key) not in (str, int)]:
            raise TypeError(f"item{path}: a key {bad[0]!r}; in a folder keys are text or whole numbers")
        return ["dict", [[key, _layout(value, f"{path}[{key!r}]")] for key, value in item.items()]]
    if type(item) in (list, tuple):
        return [type(item).__name__, [_layout(value, f"{path}[{i}]") for i, value in enumerate(item)]]
    raise TypeError(
        f"item{path} is a {type(item).__name__}; in a folder items are tensors, arrays of numbers and numbers, "
        "in dicts, lists and tuples"
    )


NUMBERS = {"bool": np.dtype(np.uint8), "int": np.dtype(np.int64), "float": np.dtype(np.float64)}


def _size(layout):
    """Bytes of an item's data."""
    kind, *about = layout
    if kind in NUMBERS:
        return NUMBERS[kind].itemsize
    if kind in ("tensor", "array"):
        dtype, shape = about
        return int(np.prod(shape, dtype=np.int64)) * (
            getattr(torch, dtype).itemsize if kind == "tensor" else np.dtype(dtype).itemsize
        )
    return sum(_size(part[1] if kind == "dict" else part) for part in about[0])


def _write(item, layout, data, at=0):
    """Writes the item to data (bytes, uint8) from `at` on; returns where it ends."""
    kind = layout[0]
    if kind == "dict":
        for key, part in layout[1]:
            at = _write(item[key], part, data, at)
        return at
    if kind in ("list", "tuple"):
        for value, part in zip(item, layout[1], strict=True):
            at = _write(value, part, data, at)
        return at
    if kind == "tensor":
        raw = item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        raw = np.ascontiguousarray(item, NUMBERS.get(kind)).reshape(-1).view(np.uint8)
    end = at + len(raw)
    data[at:end] = raw
    return end


def _read(layout, data, at=0):
    """(item, where it ends) of data from `at` on."""
    kind = layout[0]
    if kind == "dict":
        item = {}
        for key, part in layout[1]:
            item[key], at = _read(part, data, at)
        return item, at
    if kind in ("list", "tuple"):
        values = []
        for part in layout[1]:
            value, at = _read(part, data, at)
            values.append(value)
        return (values if kind == "list" else tuple(values)), at
    end = at + _size(layout)
    raw = data[at:end].copy()  # aligned, and its own
    if kind == "tensor":
        dtype, shape = getattr(torch, layout[1]), layout[2]
        return torch.from_numpy(raw).view(dtype).reshape(shape) if len(raw) else torch.empty(shape, dtype=dtype), end
    if kind == "array":
        return raw.view(np.dtype(layout[1])).reshape(layout[2]), end
    return {"bool": bool, "int": int, "float": float}[kind](raw.view(NUMBERS[kind])[0]), end


class _FolderItems:
    """The items of a folder, to be read."""

    def __init__(self, folder):
        self.folder = folder
        self._index = np.memmap(folder / "index.bin", np.int64, mode=self.index_mode)
        self._layout = self._map = None

    index_mode = "r"

    def __len__(self):
        return int(self._index[HELD])

    def _open(self):
        """Maps the records, as many as there are now."""
        if self._layout is None:
            self._set_layout(json.loads((self.folder / "layout.json").read_text()))
        path = self.folder / "items.bin"
        n = path.stat().st_size // self._record_size
        if n:
            self._map = np.memmap(path, np.uint8, "r", shape=(n, self._record_size))

    def _set_layout(self, layout):
        self._layout, self._data_size = layout, _size(layout)
        self._record_size = (8 + self._data_size + 7) // 8 * 8

    def __getitem__(self, place):
        give_up = None
        while True:
            record = int(self._index[PLACES + place])
            if self._map is None or record >= len(self._map):
                self._open()
            if self._map is not None and record < len(self._map):
                raw = np.array(self._map[record])
                data = raw[8 : 8 + self._data_size]
                if int(raw[:4].view(np.uint32)[0]) == zlib.crc32(data) and self._index[PLACES + place] == record:
                    return _read(self._layout, data)[0]
            give_up = give_up or time.monotonic() + PATIENCE
            if time.monotonic() > give_up:
                raise OSError(f"the item at place {place} of {self.folder} is damaged (record {record} of items.bin)")


class _OnDisk(_FolderItems):
    """The items of a folder, written by this process."""

    index_mode = "r+"

    def __init__(self, folder, capacity):
        folder.mkdir(parents=True, exist_ok=True)
        self._files = []
        self._close_files = weakref.finalize(self, _close_all, self._files)
        self._claim(folder)
        index = folder / "index.bin"
        if not index.exists():
            _write_whole(index, np.zeros(PLACES + capacity, np.int64).tobytes())
        super().__init__(folder)
        if len(self._index) != PLACES + capacity:
            held = len(self._index) - PLACES
            self.close()
            raise ValueError(f"{folder} is of a reservoir of {held} items, not {capacity}; take that or another folder")
        self._ready, self._process = len(self) == 0, os.getpid()
        self._n_records, self._free = 0, []  # records in use or free
        self._replaced = deque()  # for each of the two latest states: records replaced since
        self._file = open(folder / "items.bin", "r+b" if (folder / "items.bin").exists() else "w+b", buffering=0)
        self._files.append(self._file)
        if self._ready:  # begins anew
            self._file.truncate(0)
            (folder / "layout.json").unlink(missing_ok=True)

    def _claim(self, folder):
        lock = open(folder / "writer.lock", "w")
        self._files.append(lock)
        if fcntl:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._close_files()
                raise RuntimeError(
                    f"another process, or another Reservoir here, writes to {folder}; read it with ReservoirReader"
                ) from None

    def _must_be_ours(self):
        if self._file.closed or os.getpid() != self._process:
            raise RuntimeError(f"{self.folder} is written to by the process that opened it, until it closes it")

    def _must_be_ready(self):
        self._must_be_ours()
        if not self._ready:
            raise RuntimeError(
                f"{self.folder} holds {len(self)} items of an earlier reservoir: load_state_dict goes on with them; "
                "to begin anew, remove the folder"
            )

    def __getitem__(self, place):
        if not self._ready:
            self._must_be_ready()
        return super().__getitem__(place)

    def check(self, item):
        self._must_be_ready()
        layout = _layout(item)
        if self._layout is None:
            self._begin(layout)
        elif layout != self._layout:
            raise ValueError(f"an item of {_text(layout)}; those before it in {self.folder} are {_text(self._layout)}")

    def _begin(self, layout):
        _write_whole(self.folder / "layout.json", json.dumps(layout).encode())
        self._set_layout(layout)

    def put(self, place, item):
        raw = np.zeros(self._record_size, np.uint8)
        data = raw[8 : 8 + self._data_size]
        _write(item, self._layout, data)
        raw[:4].view(np.uint32)[0] = zlib.crc32(data)
        record = self._free[-1] if self._free else self._n_records
        self._write_record(record, raw)
        if self._free:
            self._free.pop()
        else:
            self._n_records += 1
        if place < len(self):
            (self._replaced[-1] if self._replaced else self._free).append(int(self._index[PLACES + place]))
        self._index[PLACES + place] = record
        self._index[HELD] = max(len(self), place + 1)

    def _write_record(self, record, raw):
        size = self._record_size
        if (record + 1) * size > os.fstat(self._file.fileno()).st_size:
            self._file.truncate((record + 64 + record // 4) * size)  # holes, so that maps last
        self._file.seek(record * size)
        left = memoryview(raw)
        while left:
            left = left[self._file.write(left) :]

    # states

    def state(self):
        self._must_be_ready()
        id = int.from_bytes(os.urandom(7), "big") + 1
        os.fsync(self._file.fileno())
        self._index[STATES] = self._index[2], id
        self._index.flush()
        self._replaced.append([])
        while len(self._replaced) > 2:
            self._free += self._replaced.popleft()
        return {"id": id, "records": torch.from_numpy(np.array(self._index[PLACES : PLACES + len(self)]))}

    def load(self, state):
        self._must_be_ours()
        if state["id"] not in self._index[STATES].tolist():
            raise ValueError(
                f"the state is not one of the two latest that were taken of {self.folder}: some of its items are gone"
            )
        records = state["records"].numpy()
        if len(records):
            self._open()
            if self._map is None or records.max() >= len(self._map):
                raise ValueError(f"the state is of more items than {self.folder} has")
        self._index[HELD] = min(len(self), len(records))  # a reader never meets a place without an item
        self._index[PLACES : PLACES + len(records)] = records
        self._index[HELD] = len(records)
        self._index[STATES] = 0, state["id"]
        self._n_records = int(records.max()) + 1 if len(records) else 0
        used = np.zeros(self._n_records, bool)
        used[records] = True
        self._free, self._replaced = np.flatnonzero(~used).tolist(), deque([[]])
        self._ready = True

    def close(self):
        self._index = np.array(self._index)
        self._close_files()


def _close_all(files):
    for file in files:
        file.close()


def _write_whole(path, content):
    """A reader sees all of it or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def _text(layout):
    """A layout for the eyes of people: {'x': float32 (3, 4), 'y': int}."""
    kind, *about = layout
    if kind in NUMBERS:
        return kind
    if kind in ("tensor", "array"):
        return f"{about[0]} {tuple(about[1])}"
    if kind == "dict":
        return "{" + ", ".join(f"{key!r}: {_text(part)}" for key, part in about[0]) + "}"
    return {"list": "[{}]", "tuple": "({})"}[kind].format(", ".join(map(_text, about[0])))
