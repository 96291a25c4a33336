"""Anybody's arrays as tasks: one pair (x, y) a task, of the types and shapes that people have.

What cannot be read in one way only is refused, with the task, what was found and what to do. In none of it is a number
changed but by rounding to float32; labels are numbered anew where they are not 0, 1, 2, …, which is recorded.
"""

import itertools
import math
import operator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from disk import names
from errors import UserError
from tasks.compact_format import check_replaceable, write_compact
from tasks.taskset import HALVES, MOST_OUTPUTS, Split, Task, TaskSet, numbered, some

CHANNELS = (1, 3, 4)  # grey, colour, colour and opacity: what tells (H, W, C) from (C, H, W)
ENDING = ".npz"
WORDS = {"train": "training", "test": "test"}
MOST_PIXEL = 255
SCALES = {
    "bytes": "uint8, which stand for value / 255",
    "unit": "floats from 0 to 1",
    "raw": "floats that are whole numbers up to 255",
    "wide": "floats beyond 0 to 1",
}


class Examples(NamedTuple):
    """The training or the test examples of a task, as they were given. name: a number or a short text, for messages."""

    name: Any
    x: Any
    y: Any


class _Read(NamedTuple):
    """The same, read: images (N, P) uint8 or float32; labels (N,) int64; shape: (C, H, W), or None for flat ones.

    moved   whether their channels, several, came last
    """

    place: str
    images: np.ndarray
    labels: np.ndarray
    shape: tuple | None
    moved: bool


def save(path, train, test, image_shape=None, class_ranges=None):
    """Writes tasks to a file that `main.py --data_file` reads; returns them as a TaskSet.

    path          ends in .npz; a task file that is there is replaced, anything else is not
    train, test   a list of one (x, y), or (name, x, y), for each task; NumPy arrays, PyTorch tensors, or what NumPy
                  makes an array of. x: examples of D inputs, or images (N, H, W), (N, C, H, W) or (N, H, W, C) with
                  1, 3 or 4 channels C; uint8, which stand for value / 255, bools, or floats, taken as they are.
                  y: (N,) or (N, 1) integers, also as floats or bools, or one-hot rows (N, C)
    image_shape   (C, H, W), for networks that need it; None: plain vectors
    class_ranges  (start, stop) of each task's labels, which then stay as they are. None: found, where no label is in
                  two tasks; then, and where they are not 0, 1, 2, …, they are numbered anew, task by task, in order.
                  (): all classes belong to all tasks

    Raises UserError, in one sentence that names the task, on what cannot be read in one way only; OSError, with
    nothing left behind.
    """
    path = Path(path)
    check_place(path)
    tasks = make_tasks(train, test, path.name, image_shape, class_ranges)
    write_compact(tasks, path)
    return tasks


def check_place(path):
    """Raises UserError where no task file may be written to this Path."""
    if path.name in ("", "..") or "\0" in path.name:
        raise UserError(f"{str(path)!r} is no name of a file: name the task file, such as tasks{ENDING}")
    if not names.is_name(path.name):
        raise UserError(f"{str(path)!r}: {names.RULE}; name the task file otherwise, such as tasks{ENDING}")
    if path.suffix != ENDING:
        raise UserError(f"{path} does not end in {ENDING}: name the task file {path.stem}{ENDING}")
    check_replaceable(path)


def make_tasks(train, test, name, image_shape=None, class_ranges=None):
    """The TaskSet of what `save` takes."""
    wanted = None if image_shape is None else checked_shape(image_shape)
    given = {half: _listed(half, value) for half, value in zip(HALVES, (train, test), strict=True)}
    n_train, n_test = map(len, given.values())
    if n_train != n_test or n_train == 0:
        raise UserError(f"{n_train} training and {n_test} test sets; give one (x, y) of each for every task")
    arrays, halves = {}, {half: [] for half in HALVES}
    for (half, sets), t in itertools.product(given.items(), range(n_train)):
        halves[half].append(_read(f"the {WORDS[half]} examples of task {t}", sets[t], wanted, arrays))
    splits = [split for pair in zip(*halves.values(), strict=True) for split in pair]
    _check_alike(splits)
    labels, ranges, own = _number(halves, checked_ranges(class_ranges, n_train))
    tasks = []
    for t in range(n_train):
        parts = [Split(halves[half][t].images, labels[half][t]) for half in HALVES]
        tasks.append(Task(_name(given["train"][t].name, t), *parts))
    return TaskSet(tasks, name, "packed", wanted, ranges, labels=own)


def describe(tasks):
    """Lines that tell what was read, and what of it may not be what was meant."""
    lines = []
    for t, task in enumerate(tasks.tasks):
        classes = np.unique(np.concatenate([task.train.labels, task.test.labels]))
        inputs = "x".join(map(str, tasks.image_shape)) if tasks.image_shape else f"{task.train.n_inputs:,}"
        kind = "uint8 / 255" if task.train.images.dtype == np.uint8 else "float32"
        lines.append(
            f"task {t} ({task.descriptor}): {len(task.train):,} training and {len(task.test):,} test examples of "
            f"{inputs} inputs ({kind}, {_extent(task)}), {len(classes):,} classes"
        )
        if missing := sorted(set(task.test.labels.tolist()) - set(task.train.labels.tolist())):
            lines.append(f"note: task {t} tests classes that it has no training examples of: {some(missing)}")
        if tasks.class_ranges and len(classes) == 1:
            lines.append(f"note: task {t} has one class of its own: all is right with --scenario task")
    if tasks.class_ranges:
        lines.append("classes belong to tasks: main.py's --scenario says whether a task's outputs compete alone")
    if tasks.labels:
        lines.append(numbered(tasks.labels))
    return lines


def _extent(task):
    values = [split.images for split in (task.train, task.test)]
    factor = 1 / MOST_PIXEL if values[0].dtype == np.uint8 else 1
    return f"{min(v.min() for v in values) * factor:.4g} to {max(v.max() for v in values) * factor:.4g}"


def _name(name, t):
    if isinstance(name, str):
        return name[:200]
    return name if isinstance(name, int | float) and math.isfinite(name) else f"task {t}"


# what was given


def _listed(half, value):
    """[Examples] of one half."""
    if isinstance(value, dict) or not isinstance(value, list | tuple):
        raise UserError(f"{half} is {kind_of(value)}; give a list of one (x, y) for each task")
    found = []
    for t, pair in enumerate(value):
        if not isinstance(pair, list | tuple) or len(pair) not in (2, 3):
            remedy = f"give one for each task, {half}=[(x, y), …]; [(x, y)] if there is one task"
            raise UserError(f"{half}: task {t} is {kind_of(pair)}, not a pair (x, y); {remedy}")
        if len(pair) == 3 and not isinstance(pair[0], str | int | float):
            raise UserError(f"{half}: task {t} has {kind_of(pair[0])} for a name; give (x, y), or (name, x, y)")
        found.append(Examples(*pair) if len(pair) == 3 else Examples(None, *pair))
    return found


def kind_of(value):
    """What a value is, for messages."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def checked_shape(shape):
    """(C, H, W); UserError unless it is that."""
    try:
        shape = tuple(operator.index(size) for size in shape)
    except TypeError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise UserError("the image shape is (channels, height, width), three whole numbers from 1 on: give those")
    return shape


def checked_ranges(ranges, n_tasks):
    """None, or [(start, stop)], one for each task or none; UserError unless it is that."""
    if ranges is None:
        return None
    try:
        ranges = [(operator.index(start), operator.index(stop)) for start, stop in ranges]
    except (TypeError, ValueError):
        raise UserError("class ranges are pairs of whole numbers (start, stop): give one for each task") from None
    if ranges and len(ranges) != n_tasks:
        raise UserError(f"{len(ranges)} class ranges for {n_tasks} tasks: give one (start, stop) for each task")
    return ranges


def _read(place, examples, wanted, arrays):
    """The _Read of Examples. arrays: {id: what was made of it}, so that what tasks share stays one."""
    if isinstance(examples.name, str):
        place = f"{place} ({examples.name[:60]})"
    key = (id(examples.x), id(examples.y))
    if key not in arrays:
        x, y = (array_of(place, letter, value) for letter, value in (("x", examples.x), ("y", examples.y)))
        _check_counts(place, x, y)
        images, *form = _pixels(place, x, wanted)
        arrays[key] = images, _labels(place, y), form, examples  # the examples, so that no id returns
    images, labels, form, _ = arrays[key]
    return _Read(place, images, labels, *form)


def array_of(place, letter, value):
    """The NumPy array of whatever holds numbers."""
    whole = value
    if isinstance(value, list | tuple) and value and all(isinstance(one, torch.Tensor) for one in value):
        if len({one.shape for one in value}) == 1:
            value = torch.stack(tuple(value))
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{place}: {letter} is a sparse, quantized or meta tensor; give a plain, dense one")
        value = value.detach().cpu().resolve_conj().resolve_neg()
        unknown = value.is_floating_point() and value.dtype not in (torch.float16, torch.float32, torch.float64)
        try:
            return (value.float() if unknown else value).numpy()
        except (TypeError, RuntimeError):  # types that little can be done with, such as bits8
            remedy = "give another type: .to(torch.int64) for integers, .float() for others"
            raise UserError(f"{place}: {letter} is {kind_of(value)}; {remedy}") from None
    if np.ma.is_masked(value):
        raise UserError(f"{place}: {letter} is a masked array, where some are hidden; give the examples that count")
    if isinstance(value, str | bytes | dict | set | None):
        raise UserError(f"{place}: {letter} is {kind_of(value)}; an array of numbers is needed")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise UserError(f"{place}: {letter} is {kind_of(whole)} that is no array; give one of one shape") from None
    return array


def _check_counts(place, x, y):
    if x.ndim and y.ndim and len(x) == len(y) == 0:
        raise UserError(f"{place} are none (x is {kind_of(x)}); give it some, or leave the task out")
    if x.ndim < 2:
        remedy = "give one row of inputs for each example" + (": x.reshape(-1, 1)" if x.ndim else "")
        raise UserError(f"{place}: x is {kind_of(x)}; {remedy}")
    if y.ndim not in (1, 2):
        raise UserError(f"{place}: y is {kind_of(y)}; give one label for each example")
    if len(x) != len(y):
        remedy = "give one label for each example"
        if x.shape[-1] == len(y):
            remedy += ", and the examples along the first axis of x"
        raise UserError(f"{place}: {len(x):,} images ({kind_of(x)}) with {len(y):,} labels; {remedy}")
    if x.size == 0:
        raise UserError(f"{place}: x is {kind_of(x)}, without inputs; give each example at least one")


# pixels


def _pixels(place, x, wanted):
    """(images (N, P) of uint8 or float32, (C, H, W) or None, whether channels came last) of an array."""
    if x.dtype.kind == "b":
        x = x.astype(np.float32)
    elif x.dtype.kind == "f":
        with np.errstate(over="ignore"):
            converted = x.astype(np.float32)
        finite = np.isfinite(converted).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            row = int(finite.argmin())
            what = "larger than float32 can hold" if np.isfinite(x[row]).all() else "NaN or infinite"
            raise UserError(f"{place}: x has pixels that are {what} (in image {row}); give finite numbers")
        x = converted
    elif x.dtype != np.uint8:
        remedy = "give uint8, which stand for value / 255, or floats, which are taken as they are"
        raise UserError(f"{place}: x is {kind_of(x)}; {remedy}")
    shape, moved = None, False
    if x.ndim == 3:
        shape = (1, *x.shape[1:])
    elif x.ndim == 4:
        x, shape, moved = _channels_first(place, x, wanted)
    elif x.ndim > 4:
        raise UserError(f"{place}: x is {kind_of(x)}; give images (N, H, W) or (N, C, H, W), or rows (N, D)")
    if wanted is not None and (shape not in (None, wanted) or math.prod(wanted) != math.prod(x.shape[1:])):
        raise UserError(f"{place}: x is {kind_of(x)}; the image shape is said to be {wanted}: correct one of them")
    return np.ascontiguousarray(x).reshape(len(x), -1), shape, moved


def _channels_first(place, x, wanted):
    """Images (N, C, H, W) of an array that may also be (N, H, W, C), their shape, and whether it was, C > 1."""
    first, last = x.shape[1:], (x.shape[3], *x.shape[1:3])
    if wanted is not None:
        is_last = first != wanted and last == wanted
    else:
        is_last = x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS
        if x.shape[3] in CHANNELS and x.shape[1] in CHANNELS and max(x.shape[1], x.shape[3]) > 1:
            remedy = "say which (image_shape=(C, H, W)), or give (N, C, H, W)"
            raise UserError(f"{place}: x is {kind_of(x)}, with channels first or last; {remedy}")
    return (x.transpose(0, 3, 1, 2), last, last[0] > 1) if is_last else (x, first, False)


def _check_alike(splits):
    """Raises UserError where the splits are not the same inputs, on the same scale."""
    first, shaped = splits[0], None
    for split in splits:
        if split.images.shape[1] != first.images.shape[1]:
            found = f"{split.images.shape[1]:,} inputs, and {first.place} have {first.images.shape[1]:,}"
            raise UserError(f"{split.place} have {found}; give all tasks the same inputs")
        shaped = shaped or (split if split.shape else None)
        if split.shape not in (None, shaped and shaped.shape):
            found = f"images of {split.shape} (C, H, W), and {shaped.place} of {shaped.shape}"
            raise UserError(f"{split.place} have {found}; give all tasks the same shape")
    moved = next((split for split in splits if split.moved), None)
    flat = next((split for split in splits if split.shape is None), None)
    if moved and flat:
        found = f"rows, in which channels may be first or last, and {moved.place} are images (N, H, W, C)"
        raise UserError(f"{flat.place} are {found}; give all tasks images")
    extents = {id(split.images): _scale(split.images) for split in splits}
    scale = {split.place: extents[id(split.images)] for split in splits}
    known = {kind: place for place, kind in reversed(scale.items())}  # the first place of each kind
    if "binary" in known:
        found = "uint8 of 0 and 1 only; uint8 stand for value / 255"
        raise UserError(f"{known['binary']}: x is {found}: give floats or bools instead")
    for one, other in itertools.product(("bytes", "unit"), ("raw", "wide")):
        if one in known and other in known and (one, other) != ("unit", "wide"):
            found = f"{SCALES[other]}, and {known[one]} are {SCALES[one]}"
            raise UserError(f"{known[other]} are {found}; give all tasks pixels on one scale")


def _scale(images):
    """What scale pixels are on, one of SCALES; "any" where they are 0 and 1 alone, "binary" where those are uint8."""
    low, high = images.min(), images.max()
    if images.dtype == np.uint8:
        return {0: "any", 1: "binary"}.get(int(high), "bytes")
    whole = (images == np.rint(images)).all()
    if 0 <= low and high <= 1:
        return "any" if whole else "unit"
    return "raw" if whole and 0 <= low and high <= MOST_PIXEL else "wide"


# labels


def _labels(place, y):
    """(N,) int64 of integers, of floats or bools that are integers, or of one-hot rows."""
    if y.dtype.kind not in "biuf":
        remedy = "number the classes from 0, the same in all tasks"
        if y.dtype.kind in "OUS":
            remedy += " (np.unique(all_labels, return_inverse=True) does)"
        raise UserError(f"{place}: y is {kind_of(y)}; {remedy}")
    if y.ndim == 2 and y.shape[1] != 1:
        hot = ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()
        if not hot:
            raise UserError(f"{place}: y is {kind_of(y)}, but not one-hot; give one label for each example")
        return y.argmax(axis=1).astype(np.int64)
    y = y.reshape(len(y))
    if y.dtype.kind == "f":
        whole = np.isfinite(y) & (y == np.rint(y)) & (np.abs(y) < np.float64(1 << 53))
        if not whole.all():
            wrong = y[whole.argmin()]
            raise UserError(f"{place}: y is {kind_of(y)} with the label {wrong}; give one whole number for each class")
    if y.dtype.kind == "u" and y.max() > np.iinfo(np.int64).max:
        raise UserError(f"{place}: y has the label {y.max()}; number the classes from 0")
    return y.astype(np.int64)


def _number(halves, ranges):
    """({half: [labels]}, class ranges or None, None or the label that each class had)."""
    given = {half: [split.labels for split in splits] for half, splits in halves.items()}
    if ranges:
        return given, ranges, None
    known, per_task = {}, []
    for t in range(len(given["train"])):
        classes = set()
        for half in HALVES:
            labels = given[half][t]
            if id(labels) not in known:
                known[id(labels)] = set(np.unique(labels).tolist())
            classes |= known[id(labels)]
        per_task.append(sorted(classes))
    together = sorted(set().union(*per_task))
    if len(together) > MOST_OUTPUTS:
        place = halves["train"][0].place
        raise UserError(f"{place} and all others have {len(together):,} labels; {MOST_OUTPUTS:,} classes are the most")
    apart = len(per_task) > 1 and sum(map(len, per_task)) == len(together)
    found = None
    if ranges is None and apart:
        together = [label for labels in per_task for label in labels]
        stops = list(itertools.accumulate(map(len, per_task)))
        found = list(zip([0, *stops], stops, strict=False))
    if together == list(range(len(together))):
        return given, found, None
    order = np.argsort(together)
    in_order, numbered = np.array(together, dtype=np.int64)[order], {}
    for labels in itertools.chain(*given.values()):
        if id(labels) not in numbered:
            numbered[id(labels)] = order[np.searchsorted(in_order, labels)].astype(np.int64)
    return {half: [numbered[id(labels)] for labels in all_of] for half, all_of in given.items()}, found, together
