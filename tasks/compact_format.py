"""Our task files (.npz): images once, and how each task sees them.

Members, for half = train and test, T tasks, N images of P pixels, D inputs:
  about          JSON as uint8: format, descriptors, image_shape, class_ranges; source: "mnist" where the images are all
                 of the shipped MNIST, whose source_sha256 is here, instead of images, labels and rows; labels: the
                 label that each class had before they were numbered, or null
  <half>_images  (N, P) uint8 or float32
  <half>_labels  (N,) uint16
  <half>_rows    (T, 2) int64: task t has the images and labels rows[t, 0] .. rows[t, 1] - 1
  <half>_maps    (T, D) int32: the tasks' pixel maps; not there where the inputs are the pixels
"""

import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from disk.atomic import target_of, writing
from disk.resources import available_memory, check_room
from disk.safe import DAMAGED, most_unpacked
from errors import UserError
from tasks import mnist
from tasks.taskset import HALVES, Split, Task, TaskSet, numbered, plain_descriptor

FORMAT = "mer-tasks/1"
BLOCK_BYTES = 1 << 20  # read or written at once
MEMBERS = {"about.npy", *(f"{half}_{of}.npy" for half in HALVES for of in ("images", "labels", "rows", "maps"))}
REMEDY = "make it again (python get_data.py --help)"


def check_replaceable(path):
    """Raises UserError where there is something at the path that is no task file of ours: it cannot be made again."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; take another name for the task file")
    if os.path.exists(path) and not (os.path.isfile(path) and _is_compact(path)):
        raise UserError(
            f"{path} is there already, and nothing tells that this program made it; take another name or folder for "
            "the task file, or delete it"
        )


def _is_compact(path):
    """Whether a file has what `write_compact` writes, and nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, *DAMAGED):
        return False
    return "about.npy" in names <= MEMBERS


def write_compact(tasks, path):
    """Writes a TaskSet: some 100 kB where the images are the shipped MNIST, else each image once.

    Raises OSError, with nothing left behind, and UserError where the disk has too little room.
    """
    path, of_mnist = Path(path), tasks.source == "mnist"
    about = {
        "format": FORMAT,
        "descriptors": [task.descriptor for task in tasks.tasks],
        "image_shape": tasks.image_shape,
        "class_ranges": tasks.class_ranges,
        "labels": tasks.labels,
        "source": tasks.source,
        "source_sha256": mnist.checksum() if of_mnist else None,
    }
    halves = {half: [getattr(task, half) for task in tasks.tasks] for half in HALVES}
    sizes = {id(split.images): split.images.nbytes for splits in halves.values() for split in splits}
    check_room(target_of(path).parent, BLOCK_BYTES + (0 if of_mnist else sum(sizes.values())), path.name)
    with writing(path) as file, zipfile.ZipFile(file, "w") as archive:
        write_member(archive, "about", np.frombuffer(json.dumps(about).encode(), dtype=np.uint8))
        for half, splits in halves.items():
            if any(split.pixel_map is not None for split in splits):
                maps = [np.arange(split.n_inputs) if split.pixel_map is None else split.pixel_map for split in splits]
                write_member(archive, f"{half}_maps", np.array(maps, dtype=np.int32))
            if not of_mnist:
                _write_examples(archive, half, splits)


def _write_examples(archive, half, splits):
    """The images and labels of the splits, shared ones once, and which rows are whose."""
    rows, distinct, n = {}, [], 0
    for split in splits:
        key = (id(split.images), id(split.labels))
        if key not in rows:
            rows[key], n = (n, n + len(split)), n + len(split)
            distinct.append(split)
    of_splits = [rows[id(split.images), id(split.labels)] for split in splits]
    images = [split.images for split in distinct]
    if len({array.dtype for array in images}) > 1:
        images = [Split(split.images, split.labels).inputs().numpy() for split in distinct]
    write_member(archive, f"{half}_rows", np.array(of_splits, dtype=np.int64))
    write_member(archive, f"{half}_labels", *(split.labels.astype(np.uint16) for split in distinct))
    write_member(archive, f"{half}_images", *images)


def write_member(archive, name, *arrays):
    """An .npy of the arrays one after another, never joined in memory."""
    dtype = arrays[0].dtype.newbyteorder("<")
    shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(info, "w", force_zip64=True) as member:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        for array in arrays:
            rows = max(1, BLOCK_BYTES // array[:1].nbytes)
            for start in range(0, len(array), rows):
                member.write(np.ascontiguousarray(array[start : start + rows], dtype).data)


def read_compact(path, archive, name, origin):
    """The TaskSet in an open .npz. Raises UserError, or what zipfile, numpy and json raise on a damaged file."""
    size = sum(info.file_size for info in archive.infolist())
    if size > most_unpacked(path.stat().st_size) or size > available_memory():
        raise UserError(f"{path} unpacks to {size:,} bytes: it is no task file, or more than the free memory")
    about = json.loads(read_member(archive, "about", 1, "uint8").tobytes())
    descriptors, source, shipped = list(about["descriptors"]), about["source"], None
    image_shape, class_ranges = about["image_shape"], about["class_ranges"]
    if about["format"] != FORMAT or source not in (None, "mnist"):
        raise UserError(f"{path} is no task file of this program ({FORMAT}); {REMEDY}")
    if source == "mnist":
        shipped = mnist.read()
        if about["source_sha256"] != mnist.checksum():
            raise UserError(f"{path} was made from other files than those in {mnist.FOLDER}; {REMEDY}")
    splits = [_read_splits(archive, half, len(descriptors), shipped) for half in HALVES]
    tasks = [Task(*parts) for parts in zip(map(plain_descriptor, descriptors), *splits, strict=True)]
    if image_shape is not None:
        image_shape = tuple(image_shape)
    if class_ranges is not None:
        class_ranges = [(int(start), int(stop)) for start, stop in class_ranges]
    labels = about.get("labels")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, int) for label in labels)):
        raise ValueError("its labels are no list of numbers")
    origin += f"; {numbered(labels)}" if labels else ""
    return TaskSet(tasks, name, origin, image_shape, class_ranges, source, labels=labels)


def _read_splits(archive, half, n_tasks, shipped):
    """One half of every task. Raises ValueError where the members do not fit together."""
    if shipped:
        images, labels = getattr(shipped, f"{half}_images"), getattr(shipped, f"{half}_labels")
        rows = [(0, len(images))] * n_tasks
    else:
        images = read_member(archive, f"{half}_images", 2, "uint8", "float32")
        labels = read_member(archive, f"{half}_labels", 1, "uint16").astype(np.int64)
        rows = [(start, stop) for start, stop in read_member(archive, f"{half}_rows", 2, "int64").tolist()]
    maps = [None] * n_tasks
    if f"{half}_maps.npy" in archive.namelist():
        maps = list(read_member(archive, f"{half}_maps", 2, "int32"))
    if len(labels) != len(images) or {len(rows), len(maps)} != {n_tasks}:
        raise ValueError("images, labels, rows and maps are not equally many")
    if not all(0 <= start < stop <= len(images) for start, stop in rows):
        raise ValueError(f"a task has no rows, or rows outside the {len(images)} images")
    views = {row: (images[slice(*row)], labels[slice(*row)]) for row in rows}  # shared where the rows are
    return [Split(*views[row], pixel_map) for row, pixel_map in zip(rows, maps, strict=True)]


def read_member(archive, name, n_dimensions, *dtypes):
    """The array of an .npy in a zip file. Raises ValueError on any other type or shape than it should have.

    What its header announces is checked before there is memory for it.
    """
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{name} has an unknown version")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(member)
        n_bytes = math.prod(shape) * dtype.itemsize
        if dtype not in [np.dtype(allowed) for allowed in dtypes] or fortran_order:
            raise ValueError(f"{name} has the type {dtype}, not {' or '.join(dtypes)}")
        if len(shape) != n_dimensions or min(shape) < 0 or member.tell() + n_bytes != info.file_size:
            raise ValueError(f"{name} announces the shape {shape}, which is not what it holds")
        array = np.empty(shape, dtype)
        view = array.reshape(-1).view(np.uint8)
        for start in range(0, n_bytes, BLOCK_BYTES):
            block = view[start : start + BLOCK_BYTES]
            block[:] = np.frombuffer(member.read(len(block)), dtype=np.uint8)
    return array
