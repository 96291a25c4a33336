"""Anybody's arrays as tasks: what is read is what was given, and all else is refused in one sentence."""

import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import Evil, equal, own_tasks
from hypothesis import HealthCheck, Phase, assume, event, given, settings
from hypothesis import strategies as some
from PIL import Image

import get_data
import tasks
from disk import safe
from errors import UserError
from run import settings as run_settings
from tasks.files import load_tasks, read, write_original
from tasks.pack import array_of

# what is fed: pixels and classes of each task, and the many ways to write them down


FLOATS = ("float16", "float32", "float64", ">f4", ">f8")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "int64", "uint64", ">i4", "float32", "float64")
SHAPES = {"flat": (12,), "grey": (2, 6), "channel": (1, 2, 6), "colour": (3, 2, 2), "colour last": (2, 2, 3)}
HALVES = ("train", "test")


def true_tasks(draw, n_tasks):
    """Two lists of (pixels 0..255 (N, 12), classes (N,)): every class of a task in its training half."""
    n_classes, seed = draw(some.integers(1, 4)), draw(some.integers(0, 1 << 20))
    apart = draw(some.booleans())
    generator, halves = np.random.default_rng(seed), ([], [])
    for t in range(n_tasks):
        for half, least in zip(halves, (n_classes, 1), strict=True):
            n = least + draw(some.integers(0, 5))
            pixels = generator.integers(0, 256, (n, 12), dtype=np.uint8)
            pixels[0, 0] = 255 - t  # never binary
            half.append((pixels, np.arange(n) % n_classes + apart * t * n_classes))
    return halves


class Writing:
    """How a task set is written down: the same for all of its arrays where they have to be alike."""

    def __init__(self, draw, labels):
        self.draw = draw
        self.kind = draw(some.sampled_from(("bytes", "floats", "wide")))
        self.shape = draw(some.sampled_from(list(SHAPES)))
        self.offset = draw(some.sampled_from((0, 0, 1, 3, -2)))
        self.stretch = draw(some.sampled_from((1, 1, 7)))
        least, most = (f(int(f(y)) for y in labels) * self.stretch + self.offset for f in (min, max))
        self.label_types = [kind for kind in INTEGERS if least >= low_of(kind) and most <= high_of(kind)]
        self.one_hot = self.offset == 0 and self.stretch == 1 and draw(some.booleans())
        self.n_columns = max(int(y.max()) for y in labels) + 1 + draw(some.integers(1, 2))

    def pixels(self, pixels):
        """(x as it is given, x (N, 12) float32 as it is meant)"""
        if self.kind == "bytes":
            x, meant = pixels, pixels / np.float32(255)
        else:
            kind = np.dtype(self.draw(some.sampled_from(FLOATS)))
            scaled = pixels / 256.0 if self.kind == "floats" else (pixels - 99.5) * 3.0  # exact in float16
            x, meant = scaled.astype(kind), scaled.astype(np.float32)
        x = x.reshape(-1, *SHAPES[self.shape])
        if self.shape == "colour last":  # what is meant has channels first
            meant = np.moveaxis(meant.reshape(-1, 2, 2, 3), 3, 1).reshape(-1, 12)
        return self.holder(x), meant

    def labels(self, classes):
        """(y as it is given, y (N,) as it is meant)"""
        y = classes * self.stretch + self.offset
        if self.one_hot:
            kind = self.draw(some.sampled_from(("bool", "uint8", "int64", "float32", "float64")))
            return self.holder(np.eye(self.n_columns)[y].astype(kind)), y
        given = y.astype(self.draw(some.sampled_from(self.label_types)))
        return self.holder(given[:, None] if self.draw(some.booleans()) else given), y

    def holder(self, array):
        """The same numbers, in a tensor, in another order of memory, or as a part of more."""
        way = self.draw(some.sampled_from(("plain", "tensor", "tensors", "fortran", "strided", "frozen", "list")))
        event(way)
        if way in ("tensor", "tensors") and array.dtype.isnative:
            whole = torch.from_numpy(array.copy())
            return whole if way == "tensor" else list(whole)
        if way == "fortran":
            return np.asfortranarray(array)
        if way == "strided":
            return np.repeat(array, 2, axis=0)[::2]
        if way == "frozen":
            array.flags.writeable = False
        if way == "list" and array.dtype.kind != "u":  # whose bytes a list would not tell
            return array.tolist()
        return array


def low_of(kind):
    return np.iinfo(kind).min if np.dtype(kind).kind in "iu" else -(1 << 20)


def high_of(kind):
    return np.iinfo(kind).max if np.dtype(kind).kind in "iu" else 1 << 20


def written(draw):
    """(given, meant): two lists of (x, y) each, in lists."""
    halves = true_tasks(draw, draw(some.integers(1, 4)))
    way = Writing(draw, [y for half in halves for _, y in half])
    given, meant = ([], []), ([], [])
    for number, half in enumerate(halves):
        for pixels, classes in half:
            (x, x_meant), (y, y_meant) = way.pixels(pixels), way.labels(classes)
            given[number].append((x, y))
            meant[number].append((x_meant, y_meant))
    return given, meant


def check_read(found, meant):
    """That a TaskSet is what was meant: the same inputs; labels up to one increasing renumbering for all tasks."""
    classes = {}
    for half, pairs in zip(HALVES, meant, strict=True):
        assert len(found.tasks) == len(pairs)
        for task, (x, y) in zip(found.tasks, pairs, strict=True):
            split = getattr(task, half)
            assert split.inputs().dtype == torch.float32
            assert np.array_equal(split.inputs().numpy(), x)
            assert len(split.labels) == len(y)
            for label, number in zip(y.tolist(), split.labels.tolist(), strict=True):
                assert classes.setdefault(label, number) == number
    assert sorted(classes.values()) == list(range(found.n_outputs))
    own = found.labels or list(range(found.n_outputs))
    assert {label: number for number, label in enumerate(own)} == classes
    assert classes == {label: number for number, label in enumerate(sorted(classes))}  # tasks are in order here
    per_task = [set(np.concatenate([a, b]).tolist()) for (_, a), (_, b) in zip(*meant, strict=True)]
    together = sum(map(len, per_task))
    if len(per_task) == 1 or len(set.union(*per_task)) < together:
        assert found.class_ranges is None
    else:
        for labels, (start, stop) in zip(per_task, found.class_ranges, strict=True):
            assert {classes[label] for label in labels} == set(range(start, stop))


MOST = 300  # generated task sets of each kind
QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": False, "phases": [Phase.generate]}


@settings(max_examples=MOST, **QUICK)
@given(some.data())
def test_what_is_given_is_what_is_read(tmp_path_factory, data):
    given, meant = written(data.draw)
    path = tmp_path_factory.getbasetemp() / "own.npz"
    check_read(tasks.save(path, *given), meant)
    check_read(load_tasks(path.parent, path.name), meant)


# what is wrong with one array of an otherwise good task set, and what the message says


def with_nan(x):
    x = np.array(x, dtype=np.float64)
    x[(-1,) * x.ndim] = random.choice((np.nan, np.inf, -np.inf))
    return x


FAULTS = {  # (which of x and y, the change, what the message says)
    "nan": (0, with_nan, r"x has pixels that are NaN or infinite \(in image \d+\); give finite numbers"),
    "large": (0, lambda x: np.array(x, dtype=np.float64) + 1e39, "larger than float32 can hold"),
    "int pixels": (0, lambda x: np.array(x).astype(np.int64), "x is int64 .*; give uint8"),
    "complex": (0, lambda x: np.array(x) * 1j, "x is complex.*; give uint8"),
    "texts": (0, lambda x: np.array(x).astype(str), "x is <U.*; give uint8"),
    "objects": (0, lambda x: np.array(x).astype(object), "x is object .*; give uint8"),
    "row": (0, lambda x: np.array(x).reshape(-1), r"x is .*; give one row of inputs for each example"),
    "number": (0, lambda x: 3.5, r"x is float64 \(\); give one row"),
    "nothing": (0, lambda x: None, "x is None; an array of numbers is needed"),
    "ragged": (0, lambda x: [[1.0, 2.0], [3.0]], "x is a list of 2 that is no array; give one of one shape"),
    "sparse": (0, lambda x: torch.from_numpy(np.array(x, dtype=np.float32)).to_sparse(), "x is a sparse"),
    "hidden": (0, lambda x: np.ma.masked_array(x, np.arange(np.size(x)).reshape(np.shape(x)) == 0), "masked array"),
    "six": (0, lambda x: np.array(x)[:, None, None, None, None], r"give images \(N, H, W\)"),
    "narrow": (
        0,
        lambda x: np.array(x).reshape(len(x), -1)[:, :5],
        "have (5|12) inputs, and .* have (5|12); give all",
    ),
    "wider": (
        0,
        lambda x: np.repeat(np.array(x).reshape(len(x), -1), 2, axis=1),
        "inputs, and .*; give all",
    ),
    "fewer": (0, lambda x: np.concatenate([x, x]), r"\d+ images \(.*\) with \d+ labels; give one label for each"),
    "no inputs": (
        0,
        lambda x: np.array(x).reshape(len(x), -1)[:, :0],
        "without inputs; give each example",
    ),
    "fractions": (1, lambda y: np.array(y, dtype=np.float64) + 0.5, r"the label -?\d+\.5; give one whole|not one-hot"),
    "nan labels": (1, lambda y: np.array(y, dtype=np.float64) * np.nan, "with the label nan|not one-hot"),
    "words": (1, lambda y: np.array(y).astype(str), r"y is <U.* \(np.unique\(all_labels"),
    "soft": (1, lambda y: np.full((len(y), 3), 1 / 3), "but not one-hot; give one label for each example"),
    "two hot": (1, lambda y: np.ones((len(y), 3), dtype=int), "but not one-hot"),
    "cold": (1, lambda y: np.zeros((len(y), 3), dtype=int), "but not one-hot"),
    "cube": (1, lambda y: np.zeros((len(y), 2, 2)), r"y is float64 .*; give one label for each example"),
    "one label": (1, lambda y: 3, r"y is int64 \(\); give one label"),
    "no labels": (1, lambda y: None, "y is None; an array of numbers is needed"),
    "short": (1, lambda y: np.array(y)[:-1], "with .* labels; give one label for each example"),
    "huge": (1, lambda y: np.full(len(y), 1 << 63, dtype=np.uint64), f"has the label {1 << 63}"),
}


@settings(max_examples=MOST, **QUICK)
@given(some.data())
def test_what_is_wrong_is_refused(tmp_path_factory, data):
    """One array of one task is spoilt: the message names the task and the fault, and nothing is written."""
    pairs, _ = written(data.draw)
    fault = data.draw(some.sampled_from(list(FAULTS)))
    event(fault)
    which, change, message = FAULTS[fault]
    half, t = data.draw(some.integers(0, 1)), data.draw(some.integers(0, len(pairs[0]) - 1))
    pair = list(pairs[half][t])
    pair[which] = change(array_of("", "", pair[which]))
    pairs[half][t] = tuple(pair)
    assume(fault != "six" or np.ndim(pairs[half][t][0]) > 4)
    path = tmp_path_factory.getbasetemp() / "spoilt.npz"
    with pytest.raises(UserError, match=message) as caught:
        tasks.save(path, *pairs)
    said = str(caught.value)
    assert f"{('training', 'test')[half]} examples of task {t}" in said or "give all tasks" in said, said
    assert "\n" not in said and not path.exists()


# single cases


def pair(n=6, kind=np.uint8, n_classes=3, shape=(12,), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)
    return (pixels if kind == np.uint8 else (pixels / 256).astype(kind)), np.arange(n) % n_classes


def test_one_task_is_fine(tmp_path):
    found = tasks.save(tmp_path / "one.npz", [pair()], [pair(4)])
    assert len(found.tasks) == 1 and found.class_ranges is None and found.labels is None
    assert found.tasks[0].descriptor == "task 0"


def test_what_tasks_share_stays_one(tmp_path):
    train, test = pair(50), pair(20)
    tasks.save(tmp_path / "shared.npz", [train] * 30, [test] * 30)
    again = read(tmp_path / "shared.npz")
    assert all(task.train.images is again.tasks[0].train.images for task in again.tasks)


def test_labels_that_are_apart_belong_to_tasks(tmp_path):
    """Whatever the labels are: the classes of a task are neighbours, and the file tells what they were."""
    labels = [np.array([7, 1, 7]), np.array([0, 9, 0])]
    x = pair(3)[0]
    found = tasks.save(tmp_path / "apart.npz", [(x, y) for y in labels], [(x, y) for y in labels])
    again = read(tmp_path / "apart.npz")
    for one in (found, again):
        assert one.class_ranges == [(0, 2), (2, 4)] and one.labels == [1, 7, 0, 9]
        assert [task.train.labels.tolist() for task in one.tasks] == [[1, 0, 1], [2, 3, 2]]
    assert again.origin.endswith("; the labels 1, 7, 0, 9 are the classes 0, 1, 2, 3")
    found = tasks.save(tmp_path / "all.npz", [(x, y) for y in labels], [(x, y) for y in labels], class_ranges=())
    assert found.class_ranges is None and found.labels == [0, 1, 7, 9]


def test_given_class_ranges_are_kept(tmp_path):
    pairs = [(pair(4)[0], np.array(y)) for y in ([1, 2, 1, 2], [3, 4, 3, 3])]
    found = tasks.save(tmp_path / "given.npz", pairs, pairs, class_ranges=[(1, 3), (3, 5)])
    assert found.class_ranges == [(1, 3), (3, 5)] and found.labels is None
    assert found.tasks[1].test.labels.tolist() == [3, 4, 3, 3] and found.n_outputs == 5
    assert equal(read(tmp_path / "given.npz"), found)


def test_the_image_shape_is_kept(tmp_path):
    first, last = pair(shape=(3, 32, 32)), pair(shape=(32, 32, 3))
    found = tasks.save(tmp_path / "rgb.npz", [first, last], [last, first], image_shape=(3, 32, 32))
    again = read(tmp_path / "rgb.npz")
    assert again.image_shape == found.image_shape == (3, 32, 32)
    moved = np.moveaxis(last[0], 3, 1).reshape(6, -1)
    assert np.array_equal(again.tasks[1].train.images, moved) and np.array_equal(again.tasks[0].test.images, moved)


@pytest.mark.parametrize(
    "train, test, options, message",
    [
        ([pair()], [], {}, "1 training and 0 test sets; give one"),
        ([], [], {}, "0 training and 0 test sets"),
        (pair(), [pair()], {}, r"train: task 0 is uint8 \(6, 12\), not a pair \(x, y\); give one for each task"),
        ({"x": 1}, [pair()], {}, "train is a dict; give a list"),
        (None, [pair()], {}, "train is None; give a list"),
        ([pair()], [(1, 2, 3, 4)], {}, "test: task 0 is a tuple of 4, not a pair"),
        ([(*pair(), np.zeros(6))], [pair()], {}, r"train: task 0 has uint8 \(6, 12\) for a name; give \(x, y\)"),
        ([(pair(0))], [pair()], {}, "training examples of task 0 are none .*; give it some, or leave the task out"),
        ([([], [])], [pair()], {}, "training examples of task 0 are none"),
        ([pair(), pair()], [pair(), pair(0)], {}, "test examples of task 1 are none"),
        ([pair(shape=(3, 4))], [pair(shape=(4, 3))], {}, r"images of \(1, 4, 3\) \(C, H, W\), and .* of \(1, 3, 4\)"),
        ([pair(shape=(3, 5, 3))], [pair()], {}, "with channels first or last; say which"),
        ([pair(kind=float)], [pair()], {}, None),
        ([(pair()[0] * 1.0, pair()[1])], [pair()], {}, "floats that are whole numbers up to 255, and .* are uint8"),
        ([pair(kind=float)], [(pair()[0] * 1.0, pair()[1])], {}, "whole numbers up to 255, and .* floats from 0 to 1"),
        ([(pair(kind=float)[0] - 0.5, pair()[1])], [pair()], {}, "are floats beyond 0 to 1, and .* are uint8"),
        ([(pair()[0] % 2, pair()[1])], [(pair()[0] % 2, pair()[1])], {}, "uint8 of 0 and 1 only.*floats or bools"),
        ([pair()], [(pair()[0] % 2, pair()[1])], {}, "test examples of task 0: x is uint8 of 0 and 1 only"),
        ([pair(kind=float)], [(pair()[0] % 2, pair()[1])], {}, "test examples of task 0: x is uint8 of 0 and 1 only"),
        ([pair(shape=(5, 5, 3))], [pair(shape=(75,))], {}, r"test .* are rows, .* of task 0 are images \(N, H, W, C\)"),
        (
            [pair(shape=(75,))],
            [pair(shape=(5, 5, 3))],
            {"image_shape": (3, 5, 5)},
            "training .* are rows, .* are images",
        ),
        ([pair(shape=(3, 5, 5))], [pair(shape=(75,))], {}, None),
        ([pair(shape=(5, 5, 1))], [pair(shape=(25,))], {}, None),
        ([(pair()[0] > 9, pair()[1])], [(pair()[0] > 9, pair()[1])], {}, None),
        ([pair()], [pair()], {"image_shape": (3, 2, 2, 1)}, r"the image shape is \(channels, height, width\)"),
        ([pair()], [pair()], {"image_shape": (3, 2, 3)}, r"x is .*; the image shape is said to be \(3, 2, 3\)"),
        ([pair(shape=(3, 4))], [pair(shape=(3, 4))], {"image_shape": (3, 2, 2)}, "is said to be .*: correct one"),
        ([pair()], [pair()], {"class_ranges": [(0, 2)]}, "labels outside range: the classes of task 0 are 0 to 1"),
        ([pair()], [pair()], {"class_ranges": [(0, 3)] * 2}, "2 class ranges for 1 tasks: give one"),
        ([pair()], [pair()], {"class_ranges": [3]}, r"class ranges are pairs of whole numbers \(start, stop\)"),
        (
            [(np.zeros((70_000, 1)), np.arange(70_000))],
            [pair(shape=(1,))],
            {},
            "have 70,000 labels; 65,536 classes are the most",
        ),
    ],
)
def test_what_goes_together(tmp_path, train, test, options, message):
    path = tmp_path / "out.npz"
    if message is None:
        found = tasks.save(path, train, test, **options)
        assert read(path).identity == found.identity
        return
    with pytest.raises(UserError, match=message):
        tasks.save(path, train, test, **options)
    assert os.listdir(tmp_path) == []


def test_the_name_ends_as_it_should(tmp_path):
    with pytest.raises(UserError, match="does not end in .npz: name the task file own.npz"):
        tasks.save(tmp_path / "own.pt", [pair()], [pair()])


@pytest.mark.parametrize("path", ["", ".", "..", "/", "folder/..", "a\0b.npz"])
def test_what_is_no_name_of_a_file(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    with pytest.raises(UserError, match="is no name of a file: name the task file, such as"):
        tasks.save(path, [pair()], [pair()])


@pytest.mark.parametrize("name", ["two\nlines.npz", "\udcff.npz", "x" * 252 + ".npz"])
def test_a_name_that_no_run_may_have(name, tmp_path):
    with pytest.raises(UserError, match="a name has 1 to 255 characters that can be printed, and no /; name the task"):
        tasks.save(tmp_path / name, [pair()], [pair()])


def arrays_of(path):
    np.savez(path, about=np.zeros(3), x=pair()[0], y=pair()[1])


@pytest.mark.parametrize(
    "make, message",
    [
        (arrays_of, "is there already, and nothing tells that this program made it; take another name"),
        (lambda path: torch.save(pair(), path), "is there already"),
        (lambda path: write_original(own_tasks(), path), "is there already"),
        (lambda path: Path(path).write_text("notes"), "is there already"),
        (lambda path: Path(path).touch(), "is there already"),
        (lambda path: os.mkfifo(path), "is there already"),
        (lambda path: (arrays_of("other.npz"), os.symlink("other.npz", path)), "is there already"),
        (os.mkdir, "is a folder; take another name"),
    ],
)
def test_only_task_files_are_replaced(make, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("out.npz")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=message):
        tasks.save("out.npz", [pair()], [pair()])
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_task_file_is_replaced(tmp_path):
    for seed in (0, 1):
        found = tasks.save(tmp_path / "out.npz", [pair(seed=seed)], [pair()])
        assert read(tmp_path / "out.npz").identity == found.identity


# files


@pytest.fixture
def pack(tmp_path, capsys, monkeypatch):
    """pack(*words): exit code of `get_data.py pack out.npz words`, what it says, and the TaskSet or None."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        try:
            code = get_data.main(["pack", "out.npz", *map(str, words)])
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out + err, read("out.npz") if os.path.exists("out.npz") else None

    return run


def is_of(found, train, test):
    return check_read(
        found, [[(x.reshape(len(x), -1) / np.float32(255), y) for x, y in half] for half in (train, test)]
    )


def test_a_pair_a_file(pack):
    train, test = [pair(seed=1), pair(5, seed=2)], [pair(4, seed=3), pair(3, seed=4)]
    for name, (x, y) in zip("abcd", train + test, strict=True):
        np.savez(f"{name}.npz", x=x, y=y)
    code, said, found = pack("--train", "a.npz", "b.npz", "--test", "c.npz", "d.npz")
    assert code == 0
    is_of(found, train, test)
    assert [task.descriptor for task in found.tasks] == ["a.npz", "b.npz"]
    assert "task 0 (a.npz): 6 training and 4 test examples of 12 inputs (uint8 / 255" in said
    assert "learn it: python main.py --data_path . --data_file out.npz" in said


def test_a_file_by_another_name_is_no_test(pack):
    """What is learned from is not what is tested on, however it is named."""
    np.savez("a.npz", x=pair()[0], y=pair()[1])
    os.symlink("a.npz", "b.npz")
    for other in ("a.npz", "b.npz", os.path.abspath("a.npz")):
        code, said, found = pack("--train", "a.npz", "--test", other)
        assert code == 2 and found is None and "is given to train and to test on; give other examples" in said


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("way", [None, os.symlink, os.link])
@pytest.mark.parametrize("is_ours", [False, True])
def test_what_is_packed_is_not_replaced(half, way, is_ours, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in HALVES:
        if is_ours and name == half:
            tasks.save(f"{name}.npz", [pair()], [pair()])
        else:
            np.savez(f"{name}.npz", x=pair()[0], y=pair()[1])
    if way is None:
        os.rename(f"{half}.npz", "out.npz")
    else:
        way(f"{half}.npz", "out.npz")
    names = {name: f"{name}.npz" for name in HALVES} | ({} if way else {half: "out.npz"})
    before = Path("out.npz").read_bytes()
    assert get_data.main(["pack", "out.npz", "--train", names["train"], "--test", names["test"]]) == 2
    why = f"out.npz is to be read ({names[half]}), and would be replaced; take another name"
    assert why in capsys.readouterr().err
    assert Path("out.npz").read_bytes() == before


@pytest.mark.parametrize("folder", [".", "my runs", "-x", "it's $HOME"])
@pytest.mark.parametrize("name", ["out.npz", "my tasks.npz", "-x.npz", "a'b;c.npz", "[x]$.npz"])
def test_the_command_that_is_printed_is_understood(folder, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.makedirs(folder, exist_ok=True)
    for half in HALVES:
        np.savez(f"{half}.npz", x=pair()[0], y=pair()[1])
    assert get_data.main(["pack", "--train", "train.npz", "--test", "test.npz", "--", f"{folder}/{name}"]) == 0
    words = shlex.split(capsys.readouterr().out.partition("learn it: ")[2])
    found = run_settings.parse(words[2:])
    assert words[:2] == ["python", "main.py"] and (found.data_path, found.data_file) == (folder, name)


def test_a_name_that_stdout_cannot_show(tmp_path):
    for name in (b"\xff.npz", b"b.npz"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            np.savez(file, x=pair()[0], y=pair()[1])
    words = [sys.executable, get_data.__file__, "pack", "out.npz", "--train", b"\xff.npz", "--test", "b.npz"]
    encoding = {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | encoding, capture_output=True, text=True)
    assert done.returncode == 0 and "task 0 (\\udcff.npz): 6 training" in done.stdout, done.stderr


def saved(way, x, y, name):
    """Saves a pair in one of the ways that people have; returns the file's name."""
    if way == "npz by position":
        np.savez(f"{name}.npz", x, y)
    elif way == "npz compressed":
        np.savez_compressed(f"{name}.npz", images=np.asfortranarray(x), labels=y)
    elif way == "torchvision":
        torch.save((torch.from_numpy(x), torch.from_numpy(y)), f"{name}.pt")
    elif way == "old torch":
        torch.save([torch.from_numpy(x), torch.from_numpy(y)], f"{name}.pt", _use_new_zipfile_serialization=False)
    elif way == "numpy in torch":
        torch.save((x, y), f"{name}.pt")
    elif way == "dictionary":
        torch.save({"data": torch.from_numpy(x), "targets": y, "classes": ["a", "b"]}, f"{name}.pt")
    elif way == "views":
        torch.save((torch.from_numpy(np.asfortranarray(x)), torch.from_numpy(np.repeat(y, 2))[::2]), f"{name}.pt")
    return f"{name}.npz" if "npz" in way else f"{name}.pt"


WAYS = ("npz by position", "npz compressed", "torchvision", "old torch", "numpy in torch", "dictionary", "views")


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_save_a_pair(pack, way):
    train, test = pair(9, shape=(3, 4), seed=1), pair(5, shape=(3, 4), seed=2)
    code, said, found = pack("--train", saved(way, *train, "training"), "--test", saved(way, *test, "test"))
    assert code == 0, said
    is_of(found, [train], [test])


INTEGERS_OF_PYTORCH = ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")


@pytest.mark.parametrize("kind", (*INTEGERS_OF_PYTORCH, "float16", "bfloat16", "float64", "bool"))
def test_labels_of_any_type_of_pytorch(pack, kind):
    (x, y), test = pair(n_classes=2), pair(seed=1, n_classes=2)
    torch.save((torch.from_numpy(x), torch.from_numpy(y).to(getattr(torch, kind))), "a.pt")
    np.savez("b.npz", *test)
    code, said, found = pack("--train", "a.pt", "--test", "b.npz")
    assert code == 0, said
    is_of(found, [(x, y)], [test])


FLOATS_OF_PYTORCH = ("float16", "bfloat16", "float64", *(kind for kind in safe.NEW_KINDS if kind.startswith("float")))


@pytest.mark.parametrize("holder", [torch.Tensor, torch.nn.Parameter])
@pytest.mark.parametrize("kind", FLOATS_OF_PYTORCH)
def test_floats_of_any_size_of_pytorch(pack, kind, holder):
    x = torch.tensor([0.5, 1, 2, 4, 0.25, 1]).expand(6, 6).contiguous().to(getattr(torch, kind))
    for name in ("a", "b"):
        torch.save((x if holder is torch.Tensor else holder(x), torch.arange(6) % 3), f"{name}.pt")
    code, said, found = pack("--train", "a.pt", "--test", "b.pt")
    assert code == 0, said
    assert found.tasks[0].train.inputs().equal(x.float())


ODD = ("complex64", "complex128", "complex32", "bits8", "float4_e2m1fn_x2")


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("kind", ODD)
def test_other_types_of_pytorch_are_named(pack, kind):
    """And are not taken for code."""
    x, y = torch.empty(6, 4, dtype=getattr(torch, kind)), torch.arange(6)
    torch.save((x, y), "a.pt")
    torch.save((torch.rand(6, 4), y), "b.pt")
    code, said, found = pack("--train", "a.pt", "--test", "b.pt")
    assert code == 2 and found is None and "code" not in said and "float" in said.partition(kind)[2], said
    with pytest.raises(UserError, match=f"x is {kind} .6, 4.; give"):
        tasks.save("c.npz", [(x, y)], [(x, y)])


def keras(name, train, test):
    np.savez(name, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])


def test_both_halves_in_a_file(pack):
    trains, tests = [pair(9, seed=1), pair(8, seed=2)], [pair(5, seed=3), pair(4, seed=4)]
    keras("mnist.npz", trains[0], tests[0])
    torch.save({"train": trains[1], "test": {"data": tests[1][0], "target": tests[1][1]}}, "other.pt")
    code, said, found = pack("--train", "mnist.npz", "other.pt")
    assert code == 0, said
    is_of(found, trains, tests)
    code, said, found = pack("--train", "mnist.npz", "--test", "mnist.npz")
    assert code == 0, said
    is_of(found, trains[:1], tests[:1])


def test_a_task_column(pack):
    (x, y), (x_test, y_test) = pair(30, seed=1), pair(12, seed=2)
    t, t_test = np.array([5, 2, 9])[np.arange(30) // 10], np.array([2.0, 9.0, 5.0])[np.arange(12) % 3][:, None]
    np.savez("all.npz", x=x, y=y, task=t)
    np.savez("held_out.npz", data=x_test, targets=y_test, t=t_test)
    code, said, found = pack("--train", "all.npz", "--test", "held_out.npz")
    assert code == 0, said
    order, column = [2, 5, 9], t_test.reshape(-1)
    is_of(found, [(x[t == n], y[t == n]) for n in order], [(x_test[column == n], y_test[column == n]) for n in order])
    assert [task.descriptor for task in found.tasks] == order
    np.savez("both.npz", x_train=x, y_train=y, task_train=t, x_test=x_test, y_test=y_test, task_test=column)
    assert pack("--train", "both.npz")[2].identity == found.identity


def test_the_original_format(pack):
    """Its names stay; what it does not allow itself, NumPy arrays and other types, is read here."""
    given = own_tasks()
    write_original(given, "original.pt")
    code, said, found = pack("--train", "original.pt")
    assert code == 0 and found.identity == given.identity
    halves = [
        [[task.descriptor, getattr(task, half).inputs().double().numpy(), getattr(task, half).labels.astype(np.int32)]]
        for half in HALVES
        for task in given.tasks[:1]
    ]
    torch.save(halves, "numpy.pt")
    code, said, found = pack("--train", "numpy.pt")
    assert code == 0, said
    assert found.tasks[0].descriptor == "task 0" and found.tasks[0].train.inputs().equal(given.tasks[0].train.inputs())


def test_flags_of_packing(pack):
    np.savez("a.npz", x=pair(shape=(32, 32, 3))[0], y=pair()[1])
    np.savez("b.npz", x=pair(shape=(32, 32, 3), seed=1)[0], y=pair()[1])
    files = ("--train", "a.npz", "--test", "b.npz")
    assert pack(*files, "--image_shape", 3, 32, 32, "--class_ranges", "0:5")[2].class_ranges == [(0, 5)]
    assert pack(*files, "--class_ranges", "none")[2].image_shape is None
    assert "is not START:STOP" in pack(*files, "--class_ranges", "5")[1]
    assert "either none, or START:STOP" in pack(*files, "--class_ranges", "0:5", "none")[1]


@pytest.mark.parametrize(
    "shape, given, said",
    [((32, 32, 3), (3, 32, 32), "3x32x32"), ((784,), (1, 28, 28), "1x28x28"), ((9, 9), None, "81")],
)
def test_the_shape_is_said(pack, shape, given, said):
    np.savez("a.npz", x=pair(shape=shape)[0], y=pair()[1])
    np.savez("b.npz", x=pair(shape=shape, seed=1)[0], y=pair()[1])
    words = ["--image_shape", *given] if given else []
    assert f"6 test examples of {said} inputs (uint8" in pack("--train", "a.npz", "--test", "b.npz", *words)[1]


def test_what_the_guide_makes_of_a_csv_and_of_images_is_packed(pack):
    """The lines of docs/your_data.md, on files as they say."""
    guide = (Path(get_data.__file__).parent / "docs" / "your_data.md").read_text()
    of_text, of_images = (block for block in guide.split("```")[1::2] if "np.savez(" in block)
    Path("a.csv").write_text("width,height,label\n0.5,1,3\n2.5,3,4\n")
    exec(of_text.removeprefix("python"), {})
    os.rename("a.npz", "b.npz")
    exec(of_text.removeprefix("python"), {})
    code, said, found = pack("--train", "a.npz", "--test", "b.npz")
    assert code == 0 and found.tasks[0].train.inputs().tolist() == [[0.5, 1], [2.5, 3]] and found.labels == [3, 4]
    for name, size, colour in (("cat/1", (40, 50), "red"), ("dog/1", (32, 32), "blue"), ("dog/2", (9, 9), "blue")):
        Path("a", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("P" if colour == "red" else "RGB", size, colour).save(f"a/{name}.png")
    exec(of_images.removeprefix("python"), {})
    os.rename("a.npz", "b.npz")
    exec(of_images.removeprefix("python"), {})
    code, said, found = pack("--train", "a.npz", "--test", "b.npz", "--image_shape", 3, 32, 32)
    assert code == 0 and found.image_shape == (3, 32, 32) and found.tasks[0].train.labels.tolist() == [0, 1, 1]
    red, *blue = found.tasks[0].train.inputs().view(3, 3, -1).mean(2).tolist()
    assert red == [1, 0, 0] and blue == [[0, 0, 1]] * 2


TEXTS = (
    *(b"1,2,3\n", b"x,y\r\n1,2\r\n", b".5\t1", b"(1, 2)", b"80\n", "größe,y\n".encode(), "größe,y\n".encode("latin1")),
    *("\ufeffx,y\n".encode(), "x,y\n1,2\n".encode("utf-16"), b"1,2\n" * 100_000),
)


def big_ones(path):
    torch.save((torch.zeros(1, 1).expand(1 << 20, 784), torch.zeros(1).long().expand(1 << 20)), path)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: np.savez(path, a=np.zeros(3)), "a.npz holds a; save np.savez"),
        (lambda path: np.savez(path, x=pair()[0]), "a.npz holds x; save"),
        (lambda path: np.savez(path, x=pair()[0], data=pair()[0], y=pair()[1]), "which is x is not clear"),
        (lambda path: np.savez(path, x_train=pair()[0], y_train=pair()[1], x_test=pair()[0]), "x_test; save"),
        (lambda path: np.savez(path, x_train=pair()[0], y_train=pair()[1]), "a.npz holds no test examples"),
        (
            lambda path: np.savez(path, x=pair()[0], y=pair()[1], t=np.arange(6) / 4),
            "t is float64 .6,.; give one",
        ),
        (
            lambda path: np.savez(path, x=pair()[0], y=pair()[1], t=np.arange(5)),
            r"t int64 \(5,\); give each",
        ),
        (
            lambda path: np.savez(path, x=pair()[0], y=np.array(["a"] * 6, object)),
            "Python objects",
        ),
        (lambda path: np.savez(path, x=pair()[0], y=pair()[1]), "holds examples of one kind only; give .* with --test"),
        (
            lambda path: (np.save("a.npy", pair()[0]), os.rename("a.npy", path)),
            "holds one array",
        ),
        (
            lambda path: keras(path, pair(), (np.zeros((3, 5)), np.zeros(3))),
            r"test .* task 0 \(a.npz\) have 5",
        ),
        (lambda path: torch.save([pair(), pair()], path), "two pairs .x, y., which may be two tasks or the halves"),
        (lambda path: torch.save({"state": 3}, path), "a.npz holds state; save"),
        (lambda path: torch.save([1, 2, 3], path), "a list of 3 in which no examples are seen"),
        (lambda path: torch.save((*pair(), pair()[1]), path), "a tuple of 3 in which no examples are seen"),
        (lambda path: torch.save(Evil("executed"), path), "carries code or objects of its own .*never run"),
        (lambda path: torch.save(torch.utils.data.TensorDataset(*map(torch.tensor, pair())), path), "carries code"),
        (big_ones, "tensors that overlap, or are larger than the file"),
        *((lambda path, text=text: Path(path).write_bytes(text), "is text, .*loadtxt.*savez") for text in TEXTS),
        (lambda path: Path(path).write_bytes(b"a\0b"), "is damaged, or no data file"),
        (lambda path: None, "a.npz is no file"),
        (lambda path: os.mkdir(path), r"a.npz is no file but a folder; read its images into arrays \(with PIL\)"),
        (lambda path: tasks.save(path, [pair()], [pair()]), "is a task file already: give it to main.py --data_file"),
    ],
)
def test_files_that_are_refused(pack, make, message):
    make("a.npz")
    code, said, found = pack("--train", "a.npz")
    assert code == 2 and found is None and not os.path.exists("executed")
    assert len(said.splitlines()) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)


def test_files_that_do_not_go_together(pack):
    x, y = pair(6)
    np.savez("a.npz", x=x, y=y, t=np.arange(6) // 3)
    np.savez("b.npz", x=x, y=y, t=np.arange(6) // 2)
    np.savez("c.npz", x=x, y=y)
    code, said, _ = pack("--train", "a.npz", "--test", "b.npz")
    assert code == 2 and "hold other tasks (task 2 is in one of them only)" in said
    code, said, _ = pack("--train", "a.npz", "--test", "a.npz")
    assert code == 2 and "a.npz is given to train and to test on" in said
    code, said, _ = pack("--train", "c.npz", "c.npz", "--test", "b.npz")
    assert code == 2


def test_a_packed_file_is_learned(pack, run_main, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        np.savez(f"{name}.npz", x=pair(40, np.float64, seed=seed)[0], y=pair(40)[1] + 1)
    assert pack("--train", "a.npz", "--test", "b.npz")[0] == 0
    done = run_main("--model", "online", "--data_path", tmp_path, "--data_file", "out.npz")
    assert done.code == 0 and "the labels 1, 2, 3 are the classes 0, 1, 2" in done.err
