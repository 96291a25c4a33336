"""Files that people have, as examples for tasks.pack: what NumPy and PyTorch save, told by content, not by name.

  .npz   x and y; x_train, y_train, x_test and y_test; with a task for each example: t
  .pt    the same in a dictionary; (x, y), as torchvision's training.pt; {"train": …, "test": …} of those; the
         original's [train, test], lists of one [name, x, y] per task

Nothing that a file carries is executed.
"""

import math
import os
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from disk.resources import available_memory
from disk.safe import check_pickles, load_plain, most_unpacked
from errors import UserError
from tasks.files import NPY, ZIP, reading
from tasks.original_format import ALSO
from tasks.pack import Examples, array_of, kind_of
from tasks.taskset import HALVES, MOST_TASKS

ROLES = {
    "x": ("x", "data", "images", "image", "inputs", "features", "pixels"),
    "y": ("y", "targets", "target", "labels", "label"),
    "t": ("t", "task", "tasks", "task_id", "task_ids", "task_label", "task_labels"),
}
ROLE_OF = {word: role for role, words in ROLES.items() for word in words}
REMEDY = "save np.savez(FILE, x=…, y=…), one task a file, or x_train, y_train, x_test, y_test"


class Source(NamedTuple):
    """What is in a file. halves: {"train": [Examples], "test": …}, or {None: [Examples]} where it does not say which.

    by_task   whether the tasks come from a task column, and are named by what stands there
    """

    path: Path
    halves: dict
    by_task: bool


def gather(train, test):
    """(train, test) for tasks.pack, of the paths of files; test: None where the training files hold both.

    Raises UserError where that cannot be told, or the files cannot be read.
    """
    known = {}

    def source_of(path):
        file = os.path.realpath(path)  # which may have other names
        if file not in known:
            known[file] = read(path)
        return known[file]

    given = {"train": [source_of(path) for path in train], "test": [source_of(path) for path in (test or train)]}
    for source in given["test"]:
        if test is None and None in source.halves:
            raise UserError(f"{source.path} holds examples of one kind only; give those to test on with --test")
        if source in given["train"] and None in source.halves:
            raise UserError(f"{source.path} is given to train and to test on; give other examples to test on")
    found = {half: [one for source in given[half] for one in _half(source, half)] for half in HALVES}
    if any(source.by_task for sources in given.values() for source in sources):
        names = [[examples.name for examples in found[half]] for half in HALVES]
        if names[0] != names[1]:
            lonely = sorted(set(map(str, names[0])) ^ set(map(str, names[1])))
            which = f"task {lonely[0]} is in one of them only" if lonely else "they are in another order"
            raise UserError(f"the training and the test files hold other tasks ({which}); give both the same")
    return found["train"], found["test"]


def _half(source, half):
    """[Examples] of a half of a file."""
    for key in (half, None):
        if key in source.halves:
            return source.halves[key]
    raise UserError(f"{source.path} holds no {half} examples, only {', '.join(map(str, source.halves))}; {REMEDY}")


def read(path):
    """The Source in a file. Raises UserError."""
    path = Path(path)
    with reading(path, REMEDY) as file:
        is_zip = file.read(4) == ZIP
        if is_zip:
            with zipfile.ZipFile(file) as archive:
                if "about.npy" in archive.namelist():
                    raise UserError(f"{path} is a task file already: give it to main.py --data_file")
                if any(name.endswith(".npy") for name in archive.namelist()):
                    return _of_dictionary(path, _read_npz(path, archive))
        file.seek(0)
        if file.read(6) == NPY:
            raise UserError(f"{path} holds one array, and examples need x and y; {REMEDY}")
        return _of_content(path, _read_torch(path, file, is_zip))


def _read_npz(path, archive):
    """{name: array} of an .npz."""
    infos = archive.infolist()
    size = sum(info.file_size for info in infos)
    if size > most_unpacked(path.stat().st_size) or size > available_memory():
        raise UserError(f"{path} unpacks to {size:,} bytes: more than it should, or than the free memory; {REMEDY}")
    return {info.filename.removesuffix(".npy"): _read_npy(archive, info) for info in infos}


def _read_npy(archive, info):
    """An array, whose size is checked before there is memory for it."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"{info.filename} has an unknown version")
        shape, _, dtype = read_header[version](member)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects, which are never read")
        if member.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename} announces the shape {shape}, which is not what it holds")
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _read_torch(path, file, is_zip):
    """What torch.save saved: plain values, tensors and NumPy's arrays."""
    size = path.stat().st_size
    if is_zip:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
        if not stored or sum(info.file_size for info in infos) > size:
            raise UserError(f"{path} is no file of torch.save: it unpacks to more than it holds; {REMEDY}")
    elif size > available_memory():
        raise UserError(f"{path} is larger than the free memory; split it, one task a file")
    check_pickles(file, ALSO)
    content = load_plain(path, mmap=is_zip)
    _check_sizes(path, content, size)
    return content


def _check_sizes(path, content, left):
    """Refuses tensors that claim more numbers than the file has bytes, by strides of 0 or as views of one another."""
    found, seen = [content], set()
    while found:
        value = found.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            left -= value.numel() * value.element_size()
            if left < 0:
                raise UserError(f"{path} has tensors that overlap, or are larger than the file; save x.clone()")
        elif isinstance(value, dict):
            found += value.values()
        elif isinstance(value, list | tuple):
            found += value


# what it means


def _of_content(path, content):
    """The Source in what torch.save saved."""
    if isinstance(content, dict):
        return _of_dictionary(path, content)
    if _is_pair(content):
        return Source(path, {None: [Examples(path.name, *content)]}, False)
    if isinstance(content, list | tuple) and len(content) == 2:
        halves = [_named_tasks(half) for half in content]
        if all(halves):
            return Source(path, dict(zip(HALVES, halves, strict=True)), False)
        if all(map(_is_pair, content)):
            remedy = 'save {"train": (x, y), "test": (x, y)}, or one task a file'
            raise UserError(f"{path} holds two pairs (x, y), which may be two tasks or the halves of one; {remedy}")
    raise UserError(f"{path} holds {kind_of(content)} in which no examples are seen; {REMEDY}")


def _is_array(value):
    return isinstance(value, np.ndarray | torch.Tensor)


def _is_pair(value):
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_array, value))


def _named_tasks(half):
    """[Examples] of a half in the original's format, or None."""
    if not isinstance(half, list | tuple) or not 0 < len(half) <= MOST_TASKS:
        return None
    for task in half:
        if not isinstance(task, list | tuple) or len(task) != 3 or not all(map(_is_array, task[1:])):
            return None
    return [Examples(_plain(name), x, y) for name, x, y in half]


def _plain(name):
    """A task's name in a file: a number or a text."""
    if _is_array(name) and math.prod(name.shape) == 1:
        name = name.item()
    return name.item() if isinstance(name, np.generic) else name


def _of_dictionary(path, content):
    """The Source in named arrays, or in the halves "train" and "test"."""
    if all(half in content and not _is_array(content[half]) for half in HALVES):
        halves, by_task = {}, set()
        for half in HALVES:
            source = _of_content(path, content[half])
            if None not in source.halves:
                raise UserError(f"{path} has halves in its {half} half; {REMEDY}")
            halves[half] = source.halves[None]
            by_task.add(source.by_task)
        return Source(path, halves, by_task == {True})
    arrays = {}
    for key, value in content.items():
        half, role = _meaning(str(key))
        if role and _is_array(value):
            if role in arrays.setdefault(half, {}):
                words = ", ".join(map(str, content))
                raise UserError(f"{path} holds {words:.200}: which is {role} is not clear; keep one of each; {REMEDY}")
            arrays[half][role] = value
    if not arrays and set(content) == {"arr_0", "arr_1"}:  # np.savez(FILE, x, y)
        arrays = {None: {"x": content["arr_0"], "y": content["arr_1"]}}
    complete = [half for half, found in arrays.items() if found.keys() >= {"x", "y"}]
    if len(complete) < len(arrays) or set(arrays) not in ({None}, set(HALVES), {"train"}, {"test"}):
        words = ", ".join(map(str, content)) or "nothing"
        raise UserError(f"{path} holds {words:.200}; {REMEDY}")
    halves = {half: _split_by_task(path, **found) for half, found in arrays.items()}
    by_task = {"t" in found for found in arrays.values()}
    if len(by_task) > 1:
        raise UserError(f"{path} tells the tasks of one half only; give each example a task in both")
    return Source(path, halves, by_task == {True})


def _meaning(key):
    """(half or None, role or None) of an array's name, such as x_train, test-labels or targets."""
    words = [word for word in re.split(r"[^a-z0-9]+", key.lower()) if word]
    half = next((half for half in HALVES if half in (words[:1] + words[-1:])), None)
    if half:
        words.remove(half)
    return half, ROLE_OF.get("_".join(words))


def _split_by_task(path, x, y, t=None):
    """[Examples], one for each task where t says which task each example is of."""
    if t is None:
        return [Examples(path.name, x, y)]
    x, y, t = (array_of(str(path), letter, value) for letter, value in (("x", x), ("y", y), ("t", t)))
    t = t.reshape(len(t)) if t.ndim == 2 and t.shape[1] == 1 else t
    whole = t.dtype.kind in "iu" or (t.dtype.kind == "f" and np.isfinite(t).all() and (t == np.rint(t)).all())
    if t.ndim != 1 or not whole:
        raise UserError(f"{path}: t is {kind_of(t)}; give one whole number for each example, the number of its task")
    if x.ndim < 1 or y.ndim < 1 or not len(x) == len(y) == len(t):
        raise UserError(f"{path}: x is {kind_of(x)}, y {kind_of(y)}, t {kind_of(t)}; give each example one of each")
    numbers = np.unique(t)
    if len(numbers) > MOST_TASKS:
        raise UserError(f"{path}: t has {len(numbers):,} tasks; {MOST_TASKS:,} are the most")
    return [Examples(int(number), x[t == number], y[t == number]) for number in numbers]
