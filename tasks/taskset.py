"""Tasks. Most are maps of the pixels of shared images, applied when needed: a task is 784 numbers, not 200 MB.

N images, P pixels of an image, D inputs of a network.
"""

import hashlib
import math
import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from errors import UserError
from tasks.mnist import SIDE

HALVES = ("train", "test")
MOST_TASKS = 10_000
MOST_OUTPUTS = 1 << 16  # a larger label is a mistake: each costs a row of weights
IMAGE_SHAPE = (3, 32, 32)  # channels, height, width: CIFAR's
BLOCK = 256  # rows gathered at once, so that temporaries stay in the cache
RUNS, RUN = 8, 16  # a sample of a split: so many runs of so many rows (neighbours: few pages of a mapped file)
MOST_CHECKED = 10_000  # rows of a split in a mapped file that are searched for NaN


class Split:
    """The training or the test examples of a task.

    images      (N, P) uint8, which stand for value / 255, or float32; one object for all tasks that are maps of them
    labels      (N,) int64
    pixel_map   (D,) int32: input j is pixel pixel_map[j], or 0 where that is -1; None: the inputs are the pixels
    """

    def __init__(self, images, labels, pixel_map=None):
        self.images, self.labels, self.pixel_map = images, labels, pixel_map
        self._divisor = np.float32(255 if images.dtype == np.uint8 else 1)
        if pixel_map is not None:
            self._gather = np.maximum(pixel_map, 0).astype(np.intp)
            if (pixel_map < 0).any():  # any pixel / infinity is 0
                self._divisor = np.where(pixel_map < 0, np.float32(np.inf), self._divisor)

    def __len__(self):
        return len(self.labels)

    @property
    def n_inputs(self):
        return self.images.shape[1] if self.pixel_map is None else len(self.pixel_map)

    def inputs(self, indices=None):
        """(n, D) float32 tensor of the examples at `indices` (an int, a slice, a list or array of ints; None: all).

        A fresh copy each time: uint8 / 255 in float32, or the float32 pixels themselves, gathered by the map.
        """
        images = self.images
        if indices is None or isinstance(indices, slice):
            images, indices = images[indices or slice(None)], None
            n = len(images)
        else:
            indices = np.asarray(indices)
            n = indices.size
            indices = indices.reshape(n)
        out = np.empty((n, self.n_inputs), dtype=np.float32)
        for start in range(0, n, BLOCK):
            block = slice(start, start + BLOCK)
            rows = images[block] if indices is None else images.take(indices[block], axis=0)
            if self.pixel_map is not None:
                rows = rows.take(self._gather, axis=1)
            np.divide(rows, self._divisor, out=out[block])
        return torch.from_numpy(out)


@dataclass(frozen=True)
class Task:
    """descriptor: what the file or the generator says of it, a number (an angle in degrees) or a string."""

    descriptor: object
    train: Split
    test: Split


class TaskSet:
    """The tasks of a run, checked.

    tasks          list of Task
    name           the data file
    origin         one line for the user: where the data come from
    n_inputs       D;  n_outputs: 1 + the largest label, and no less than the class ranges
    image_shape    None for plain vectors, or (channels, height, width)
    class_ranges   None, or the (start, stop) of each task's classes
    source         "mnist" where the images are all of the shipped MNIST, in order; else None
    labels         None, or for each class the label that it had in the data, where they have been numbered anew

    Raises UserError on no tasks, empty ones, tasks of different widths, labels or pixels out of range. Images of a
    memory-mapped file (`mapped`) are searched for NaN in full only up to 10,000 rows a split, and else in 128 of them:
    reading gigabytes takes longer than most runs, and a run that meets a NaN says so.
    """

    def __init__(
        self, tasks, name, origin, image_shape=None, class_ranges=None, source=None, mapped=False, labels=None
    ):
        self.tasks, self.name, self.origin = tasks, name, origin
        self.image_shape, self.class_ranges, self.source, self.labels = image_shape, class_ranges, source, labels
        self._check(mapped)
        largest = max(int(split.labels.max()) for split in self._splits())
        self.n_inputs = tasks[0].train.n_inputs
        self.n_outputs = max([1 + largest] + [stop for _, stop in class_ranges or []])

    def _splits(self):
        return [split for task in self.tasks for split in (task.train, task.test)]

    @cached_property
    def identity(self):
        """Hex sha256 of what the numbers are: sizes, all labels, and the inputs of 128 examples of each split.

        The same for the same numbers, whether generated or read from either kind of file.
        """
        digest, of_labels = hashlib.sha256(), {}
        digest.update(repr((self.n_inputs, self.n_outputs, self.image_shape, self.class_ranges)).encode())
        for split in self._splits():
            key = id(split.labels)  # shared by tasks that are maps of the same images
            if key not in of_labels:
                of_labels[key] = hashlib.sha256(split.labels.astype("<i8").tobytes()).digest()
            digest.update(b"%d " % len(split) + of_labels[key])
            digest.update(split.inputs(_sample(len(split))).numpy().astype("<f4", copy=False).tobytes())
        return digest.hexdigest()

    def _check(self, mapped):
        if not 1 <= len(self.tasks) <= MOST_TASKS:
            raise UserError(f"{self.name} holds {len(self.tasks):,} tasks; 1 to {MOST_TASKS:,} are allowed")
        widths, seen = set(), set()
        for t, task in enumerate(self.tasks):
            for kind, split in (("training", task.train), ("test", task.test)):
                place = f"{self.name}: the {kind} examples of task {t}"
                key = (id(split.images), id(split.labels))
                if key not in seen:  # shared ones once
                    seen.add(key)
                    _check_examples(place, split, mapped)
                _check_map(place, split)
                self._check_classes(place, t, split)
                widths.add(split.n_inputs)
        if len(widths) > 1:
            raise UserError(f"{self.name}: tasks of different widths ({_listed(widths)} inputs); all need the same")
        if self.image_shape is not None and not (
            _is_shape(self.image_shape) and widths == {math.prod(self.image_shape)}
        ):
            found = f"{self.image_shape} of {_listed(widths)} inputs"
            raise UserError(f"{self.name}: images of shape {found}; channels * height * width must be the inputs")

    def _check_classes(self, place, t, split):
        if self.class_ranges is None:
            return
        if len(self.class_ranges) != len(self.tasks):
            raise UserError(f"{self.name}: {len(self.class_ranges)} class ranges for {len(self.tasks)} tasks")
        start, stop = self.class_ranges[t]
        if not 0 <= start < stop <= MOST_OUTPUTS:
            raise UserError(f"{self.name}: classes {start} to {stop}: 0 <= start < stop <= {MOST_OUTPUTS} is needed")
        if split.labels.min() < start or split.labels.max() >= stop:
            raise UserError(f"{place} have labels outside range: the classes of task {t} are {start} to {stop - 1}")


def _is_shape(shape):
    return len(shape) == 3 and all(isinstance(side, int) and side > 0 for side in shape)


def _check_examples(place, split, mapped):
    images, labels = split.images, split.labels
    if images.ndim != 2 or labels.ndim != 1 or images.dtype not in (np.uint8, np.float32) or labels.dtype != np.int64:
        shapes = f"{images.dtype} {images.shape} with {labels.dtype} {labels.shape}"
        raise UserError(f"{place} are {shapes}; images (N, P) of uint8 or float32 with N int64 labels are needed")
    if len(images) != len(labels):
        raise UserError(f"{place} are {len(images)} images with {len(labels)} labels; each image needs one")
    if images.size == 0:
        raise UserError(f"{place} are none (shape {images.shape}); each task needs at least one, of at least one pixel")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MOST_OUTPUTS:
        wrong = low if low < 0 else high
        raise UserError(f"{place} have labels outside range: {wrong}; labels are integers from 0 to {MOST_OUTPUTS - 1}")
    if images.dtype == np.float32:
        rows = _sample(len(images)) if mapped and len(images) > MOST_CHECKED else np.arange(len(images))
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            finite = np.isfinite(images[block]).all(axis=1)
            if not finite.all():
                row = block[finite.argmin()]
                raise UserError(f"{place} have a NaN or infinite pixel (in image {row}); pixels are finite numbers")


def _check_map(place, split):
    pixel_map, n_pixels = split.pixel_map, split.images.shape[1]
    if pixel_map is None:
        return
    if pixel_map.dtype != np.int32 or pixel_map.ndim != 1 or not len(pixel_map):
        raise UserError(f"{place} have a map of {pixel_map.dtype} {pixel_map.shape}; D int32 pixel numbers are needed")
    if pixel_map.min() < -1 or pixel_map.max() >= n_pixels:
        raise UserError(f"{place} have a map to pixels outside the image: -1 to {n_pixels - 1} are allowed")


def _sample(n):
    """Rows of n, in order: all, or 8 runs of 16, evenly spaced from the first to the last."""
    if n <= RUNS * RUN:
        return np.arange(n)
    starts = np.linspace(0, n - RUN, num=RUNS).astype(np.int64)
    return (starts[:, None] + np.arange(RUN)).reshape(-1)


def _listed(numbers):
    return ", ".join(map(str, sorted(numbers)[:5]))


def some(values):
    """All of a few values, or the first and the last of many, for the user."""
    shown = [str(value) for value in values]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:4], "…", shown[-1]])


def numbered(labels):
    """What a TaskSet's `labels` say, for the user."""
    return f"the labels {some(labels)} are the classes {some(range(len(labels)))}"


def plain_descriptor(descriptor):
    """What a stranger's file says of a task, as a number or a short string."""
    if isinstance(descriptor, torch.Tensor) and descriptor.numel() == 1:
        descriptor = descriptor.item()
    if isinstance(descriptor, np.generic):
        descriptor = descriptor.item()
    if isinstance(descriptor, int | float):
        return descriptor
    return descriptor[:200] if isinstance(descriptor, str) else type(descriptor).__name__


def rotation_map(angle):
    """(784,) int32: the pixel that each pixel of a 28×28 image comes from when it is rotated; -1: from outside.

    angle   degrees, counter-clockwise about the centre; nearest neighbour (Pillow's Image.rotate)
    """
    numbers = np.arange(1, SIDE * SIDE + 1, dtype=np.int32).reshape(SIDE, SIDE)  # from 1: Pillow fills with 0
    return np.asarray(Image.fromarray(numbers).rotate(angle), dtype=np.int32).reshape(-1) - 1


def rotations(mnist, n_tasks=20, min_angle=0.0, max_angle=180.0, seed=0):
    """MNIST Rotations: the angle of task t is uniform in the t-th of n_tasks equal parts of min_angle..max_angle.

    In degrees; drawn from a stream of its own, random.Random(seed). The paper's benchmark (Riemer et al. 2019).
    """
    stream, width = random.Random(seed), (max_angle - min_angle) / n_tasks
    angles = [stream.random() * width + (min_angle + width * t) for t in range(n_tasks)]
    return [_mapped(mnist, angle, rotation_map(angle)) for angle in angles]


def permutations(mnist, n_tasks=20, seed=0):
    """MNIST Permutations: every task is one random permutation of the pixels, uniform and independent of the others.

    torch.randperm from a stream of its own, seeded with `seed`. The paper's benchmark (Riemer et al. 2019).
    """
    stream = torch.Generator().manual_seed(seed)
    n_pixels = mnist.train_images.shape[1]
    maps = [torch.randperm(n_pixels, generator=stream).numpy().astype(np.int32) for _ in range(n_tasks)]
    return [_mapped(mnist, "random permutation", pixel_map) for pixel_map in maps]


def split(mnist, n_tasks=None):
    """(tasks, class ranges) of Split MNIST: each task has the images of some digits, in order, as equally as can be.

    n_tasks   None: tasks of two digits
    (Zenke et al. 2017; van de Ven & Tolias 2019 on its scenarios.) A task's images are in MNIST's order.
    """
    n_classes = 1 + int(max(mnist.train_labels.max(), mnist.test_labels.max()))
    n_tasks = (n_classes + 1) // 2 if n_tasks is None else n_tasks
    if n_tasks > n_classes:
        raise UserError(f"{n_classes} classes cannot be split into {n_tasks} tasks; {n_classes} can")
    parts = np.array_split(np.arange(n_classes), n_tasks)
    ranges = [(int(part[0]), int(part[-1]) + 1) for part in parts]
    tasks = []
    for start, stop in ranges:
        halves = []
        for half in HALVES:
            images, labels = getattr(mnist, f"{half}_images"), getattr(mnist, f"{half}_labels")
            rows = np.flatnonzero((start <= labels) & (labels < stop))
            halves.append(Split(images[rows], labels[rows]))
        tasks.append(Task(f"classes {start} to {stop - 1}", *halves))
    return tasks, ranges


def _mapped(mnist, descriptor, pixel_map):
    train = Split(mnist.train_images, mnist.train_labels, pixel_map)
    return Task(descriptor, train, Split(mnist.test_images, mnist.test_labels, pixel_map))
