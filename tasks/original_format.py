"""The original's task files (.pt): what torch.save makes of [train, test].

Each is a list of one [descriptor, x, y] per task: x float32 (N, D), y integers (N,). PyTorch's zip format is
memory-mapped; that of PyTorch before 1.6, which is no zip file and cannot be, is read into memory.
"""

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from disk.atomic import target_of, writing
from disk.resources import available_memory, check_room
from disk.safe import check_pickles, load_plain
from errors import UserError
from tasks.taskset import HALVES, IMAGE_SHAPE, MOST_TASKS, Split, Task, TaskSet, plain_descriptor

# what tensors name that are refused later, in words that help
ODD_TENSORS = {
    *("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_meta_tensor_no_storage"),
    *("torch.serialization _get_layout", "torch Size", "torch float32"),
    *("torch ComplexFloatStorage", "torch ComplexDoubleStorage", "torch complex32"),
}
PARAMETER = "torch._utils _rebuild_parameter"  # of torch.nn: as plain as its tensor
ALSO = ODD_TENSORS | {PARAMETER}
LARGEST_INDEX = 4 << 20  # bytes of a file without its tensors; 10,000 tasks have 3 MB
BLOCK_BYTES = 1 << 20  # written at once
ALIGNMENT = 64  # tensors begin at multiples of it
RECORD_HEADER = 30 + 20 + 4  # bytes of a zip record before its data, less its name: fixed, 64-bit sizes, ours
NUMPY_TYPES = {torch.FloatStorage: np.dtype("<f4"), torch.LongStorage: np.dtype("<i8")}
REMEDY = "save [train, test], lists of one [descriptor, x, y] per task"


def refuse_odd_zip(path, archive):
    """Raises UserError where a zip file is not as torch.save makes them: nothing is compressed, the index is small."""
    infos, size = archive.infolist(), path.stat().st_size
    indexes = [info.file_size for info in infos if info.filename.endswith(".pkl")]
    if not indexes:
        raise UserError(f"{path} is a zip file, but no task file; {REMEDY}")
    stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
    if not stored or sum(info.file_size for info in infos) > size or max(indexes) > LARGEST_INDEX:
        raise UserError(f"{path} is no task file: it unpacks to more than it holds, or has too large an index")


def read_original(path, name, origin, mapped):
    """The TaskSet in a .pt. Raises UserError, or what torch.load raises on a damaged file.

    mapped   whether it is in the zip format, and is memory-mapped
    """
    if not mapped and path.stat().st_size > available_memory():
        raise UserError(
            f"{path} is larger than the free memory, and cannot be memory-mapped in the format before PyTorch 1.6; "
            "load it and save it again with a newer one on a larger machine, or have the tasks built without it"
        )
    with open(path, "rb") as file:
        check_pickles(file, ALSO)
    content = load_plain(path, mmap=mapped)
    train, test = (_sequence(path, half) for half in _sequence(path, content, 2))
    if len(train) != len(test):
        raise UserError(f"{path} has {len(train)} training and {len(test)} test sets; every task needs both")
    if len(train) > MOST_TASKS:
        raise UserError(f"{path} holds {len(train):,} tasks; 1 to {MOST_TASKS:,} are allowed")
    arrays, tasks = _Arrays(path), []
    for t, halves in enumerate(zip(train, test, strict=True)):
        (descriptor, *examples), (_, *tests) = (_sequence(path, half, 3) for half in halves)
        tasks.append(Task(plain_descriptor(descriptor), _split(arrays, t, *examples), _split(arrays, t, *tests)))
    image_shape, class_ranges = _image_net(name, tasks)
    return TaskSet(tasks, name, origin, image_shape, class_ranges, mapped=mapped)


def _sequence(path, value, length=None):
    """The value, which must be a list or a tuple, of this length."""
    if not isinstance(value, list | tuple) or length not in (None, len(value)):
        raise UserError(f"{path} is no task file: it has {_kind(value)} where lists are needed; {REMEDY}")
    return value


def _kind(value):
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array, {value.dtype} {value.shape}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list | tuple) else "")


class _Arrays:
    """Tensors as numpy arrays over the same memory; one object for all tensors that are the same.

    Together they can be no larger than the file: tensors can be made to look larger than what they hold.
    """

    def __init__(self, path):
        self.path, self._left, self._known = path, path.stat().st_size, {}

    def __call__(self, tensor):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise UserError(f"{self.path} has a tensor that is not plain and contiguous; save x.contiguous()")
        key = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        if key not in self._known:
            self._left -= tensor.numel() * tensor.element_size()
            if self._left < 0:
                raise UserError(f"{self.path} has tensors that overlap, or are larger than the file; save x.clone()")
            self._known[key] = tensor.detach().numpy()
        return self._known[key]


def _split(arrays, t, x, y):
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32 or x.dim() != 2:
        remedy = ": save x.float()" if isinstance(x, torch.Tensor) and x.dtype != torch.float32 else ""
        raise UserError(f"{arrays.path}: the x of task {t} is {_kind(x)}; a float32 tensor (N, D) is needed{remedy}")
    if not isinstance(y, torch.Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        remedy = ": save y.to(torch.int64)" if isinstance(y, torch.Tensor) else ""
        raise UserError(f"{arrays.path}: the y of task {t} is {_kind(y)}; an integer tensor (N,) is needed{remedy}")
    return Split(arrays(x), arrays(y).astype(np.int64, copy=False))


def _image_net(name, tasks):
    """(image_shape, class_ranges) of the original's files, which do not say: (None, None), or GEM's CIFAR-100 protocol.

    It is the latter where the inputs are 3072 and the labels are as there (equally many classes for each task, in
    order), or should be so by the file's name.
    """
    if not tasks or any(task.train.n_inputs != math.prod(IMAGE_SHAPE) for task in tasks):
        return None, None
    labels = [np.concatenate([task.train.labels.ravel(), task.test.labels.ravel()]) for task in tasks]
    if not all(map(len, labels)):
        return None, None
    per_task = (1 + max(int(y.max()) for y in labels)) // len(tasks)
    ranges = [(t * per_task, (t + 1) * per_task) for t in range(len(tasks))]
    fit = all(start <= y.min() and y.max() < stop for y, (start, stop) in zip(labels, ranges, strict=True))
    return (IMAGE_SHAPE, ranges) if fit or name.startswith("cifar100") else (None, None)


def write_original(tasks, path):
    """Writes a TaskSet in the zip format, block by block: gigabytes on disk, little memory.

    torch.save would need all tensors at once. Raises OSError, with nothing left behind, and UserError where the disk
    has too little room.
    """
    path, content, tensors = Path(path), [], []
    for half in HALVES:
        content.append([])
        for task in tasks.tasks:
            split = getattr(task, half)
            x = _Tensor(torch.FloatStorage, len(tensors), (len(split), split.n_inputs), _input_blocks(split))
            y = _Tensor(torch.LongStorage, len(tensors) + 1, (len(split),), [split.labels])
            tensors += [x, y]
            content[-1].append([task.descriptor, x, y])
    check_room(target_of(path).parent, sum(tensor.n_bytes for tensor in tensors), path.name)
    with writing(path) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open(zipfile.ZipInfo("archive/data.pkl"), "w") as index:
            _Pickler(index, protocol=2).dump(content)
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), "little")
        for tensor in tensors:
            info = zipfile.ZipInfo(f"archive/data/{tensor.key}")
            info.file_size = tensor.n_bytes
            gap = -(file.tell() + RECORD_HEADER + len(info.filename)) % ALIGNMENT
            info.extra = struct.pack("<2sH", b"FB", gap) + bytes(gap)  # as PyTorch fills the gap
            with archive.open(info, "w", force_zip64=True) as record:
                for block in tensor.blocks:
                    record.write(np.ascontiguousarray(block, dtype=NUMPY_TYPES[tensor.storage]).data)
        archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")


def _input_blocks(split):
    rows = max(1, BLOCK_BYTES // (4 * split.n_inputs))
    return (split.inputs(slice(start, start + rows)).numpy() for start in range(0, len(split), rows))


class _Tensor:
    """A contiguous tensor that is not in memory: its type of storage, its number, its shape, and blocks of its rows."""

    def __init__(self, storage, key, shape, blocks):
        self.storage, self.key, self.shape, self.blocks = storage, str(key), shape, blocks
        self.size = math.prod(shape)
        self.n_bytes = self.size * NUMPY_TYPES[storage].itemsize

    def __reduce__(self):
        """As torch.save pickles tensors."""
        strides = tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))
        return torch._utils._rebuild_tensor_v2, (_StorageOf(self), 0, self.shape, strides, False, OrderedDict())


class _StorageOf:
    """The memory of a _Tensor, in a pickle."""

    def __init__(self, tensor):
        self.persistent_id = ("storage", tensor.storage, tensor.key, "cpu", tensor.size)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.persistent_id if isinstance(value, _StorageOf) else None
