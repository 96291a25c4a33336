"""Tasks: maps of pixels against Pillow and plain indexing, the shipped MNIST, what a TaskSet refuses."""

import random
import shutil

import numpy as np
import pytest
import torch
from data_helpers import examples, mapped_tasks, own_tasks
from PIL import Image

from errors import UserError
from tasks import mnist
from tasks.files import build
from tasks.taskset import Split, Task, TaskSet, permutations, rotation_map, rotations


@pytest.fixture(scope="module")
def digits():
    return mnist.read()


# MNIST


def test_the_shipped_mnist_is_mnist(digits):
    assert digits.train_images.shape == (60_000, 784) and digits.test_images.shape == (10_000, 784)
    counts = [np.bincount(labels).tolist() for labels in (digits.train_labels, digits.test_labels)]
    assert counts == [  # as published
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ]
    assert round(digits.train_images.mean() / 255, 4) == 0.1307 and round(digits.train_images.std() / 255, 4) == 0.3081


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name, harm, message",
    [
        ("train-labels-idx1-ubyte.gz", damage, "damaged .*git checkout"),
        ("t10k-images-idx3-ubyte.gz", lambda path: path.write_bytes(path.read_bytes()[:1000]), "damaged"),
        ("t10k-labels-idx1-ubyte.gz", lambda path: path.unlink(), "cannot read .*git checkout"),
        ("SHA256SUMS", lambda path: path.unlink(), "cannot read .*SHA256SUMS"),
        ("SHA256SUMS", lambda path: path.write_text("what?"), "cannot read .*SHA256SUMS"),
    ],
)
def test_a_damaged_mnist_is_noticed(tmp_path, name, harm, message):
    folder = shutil.copytree(mnist.FOLDER, tmp_path / "mnist")
    harm(folder / name)
    with pytest.raises(UserError, match=message):
        mnist.read(folder)


# maps


@pytest.mark.parametrize("angle", [0, 4.7, 45, 90, 133.3, 180, 271.5, -30])
def test_a_rotation_is_pillows(digits, angle):
    images = digits.train_images[:40]
    ours = Split(images, digits.train_labels[:40], rotation_map(angle)).inputs().numpy()
    for image, row in zip(images, ours, strict=True):
        turned = np.asarray(Image.fromarray(image.reshape(28, 28)).rotate(angle)).reshape(-1)
        assert np.array_equal(row, turned / np.float32(255))


def test_the_angles_are_one_in_each_band(digits):
    tasks = rotations(digits, seed=3)
    stream = random.Random(3)
    assert [task.descriptor for task in tasks] == [stream.random() * 9 + 9 * t for t in range(20)]
    tasks = rotations(digits, n_tasks=4, min_angle=-90, max_angle=30, seed=3)
    assert [int((task.descriptor + 90) // 30) for task in tasks] == [0, 1, 2, 3]


def test_permutations_are_torchs(digits):
    tasks = permutations(digits, n_tasks=3, seed=11)
    images = torch.from_numpy(digits.test_images[:50]).float() / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        for task in tasks:
            assert task.test.inputs(slice(50)).equal(images[:, torch.randperm(784)])


@pytest.mark.parametrize("kind, n_tasks", [("mnist_rotations", 20), ("mnist_permutations", 20)])
def test_what_is_built_is_of_the_papers_size(kind, n_tasks):
    tasks = build(kind)
    assert len(tasks.tasks) == n_tasks and (tasks.n_inputs, tasks.n_outputs) == (784, 10)
    assert {(len(task.train), len(task.test)) for task in tasks.tasks} == {(60_000, 10_000)}
    assert len({id(task.train.images) for task in tasks.tasks}) == 1  # never materialised
    assert (tasks.image_shape, tasks.class_ranges) == (None, None)


# splits


def plain_inputs(split):
    """What `inputs` says it computes, literally."""
    scale = np.float32(255 if split.images.dtype == np.uint8 else 1)
    pixels = range(split.images.shape[1]) if split.pixel_map is None else split.pixel_map
    return torch.tensor([[np.float32(row[p]) / scale if p >= 0 else 0 for p in pixels] for row in split.images])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("with_map", [True, False])
def test_inputs(dtype, with_map):
    pixel_map = np.array([3, -1, 0, 11, 3, -1], dtype=np.int32) if with_map else None
    split = Split(*examples(700, dtype=dtype), pixel_map)
    all_of_it = plain_inputs(split)
    assert len(split) == 700 and split.n_inputs == all_of_it.shape[1]
    assert split.inputs().equal(all_of_it) and split.inputs().dtype == torch.float32
    assert split.inputs(7).equal(all_of_it[7:8])
    assert split.inputs([7]).equal(all_of_it[[7]])
    assert split.inputs(np.array([699, 0, 0, -1])).equal(all_of_it[[699, 0, 0, -1]])
    assert split.inputs(torch.tensor([5, 2])).equal(all_of_it[[5, 2]])
    assert split.inputs(slice(3, 690)).equal(all_of_it[3:690])
    assert split.inputs([]).shape == (0, split.n_inputs)
    with pytest.raises(IndexError):
        split.inputs([700])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_inputs_are_a_copy(dtype):
    split = Split(*examples(5, dtype=dtype))
    before = split.inputs()
    split.inputs().zero_()
    split.inputs(slice(0, 5)).zero_()
    assert split.inputs().equal(before)


def test_every_grey_value_is_exact():
    split = Split(np.arange(256, dtype=np.uint8)[None], np.zeros(1, dtype=np.int64))
    assert split.inputs()[0].equal(torch.arange(256, dtype=torch.uint8).float() / 255)


# task sets


def test_identity_is_of_the_numbers():
    identities = [tasks().identity for tasks in (mapped_tasks, own_tasks)]
    assert identities == [mapped_tasks().identity, own_tasks(dtypes=(np.float32,)).identity]
    assert len(set(identities)) == 2
    for change in ("labels", "images"):
        tasks = own_tasks()
        array = getattr(tasks.tasks[1].test, change)
        array.reshape(-1)[3] = 1 - min(1, array.reshape(-1)[3])
        assert tasks.identity not in identities
    tasks = own_tasks()
    assert TaskSet(tasks.tasks[::-1], "toy", "").identity not in identities
    assert mapped_tasks(2).identity not in identities


def test_identity_and_check_look_at_few_rows_of_a_large_mapped_split():
    images, labels = examples(10_001, 2, dtype=np.float32)
    images[5000] = np.nan  # between two runs of the sample
    tasks = [Task("", Split(images, labels), Split(*examples(5, 2, dtype=np.float32)))]
    assert TaskSet(tasks, "large", "", mapped=True).identity
    with pytest.raises(UserError, match="in image 5000"):
        TaskSet(tasks, "large", "")
    images[10_000] = np.nan
    with pytest.raises(UserError, match="in image 10000"):
        TaskSet(tasks, "large", "", mapped=True)


def task(images=None, labels=None, pixel_map=None, test=None):
    good = examples(6)
    train = Split(good[0] if images is None else images, good[1] if labels is None else labels, pixel_map)
    return Task("", train, Split(*examples(4), pixel_map) if test is None else test)


def of_floats(value):
    return np.full((6, 12), value, dtype=np.float32)


@pytest.mark.parametrize(
    "tasks, message",
    [
        ([], "toy holds 0 tasks; 1 to 10,000 are allowed"),
        ([task()] * 10_001, "toy holds 10,001 tasks"),
        (
            [task(), task(*examples(6, 13), test=Split(*examples(4, 13)))],
            r"different widths \(12, 13 inputs\)",
        ),
        ([task(test=Split(*examples(4, 13)))], "tasks of different widths"),
        ([task(*examples(0))], r"training examples of task 0 are none \(shape \(0, 12\)\)"),
        ([task(), task(test=Split(*examples(0)))], "test examples of task 1 are none"),
        ([task(labels=examples(5)[1])], "6 images with 5 labels"),
        ([task(labels=np.array([0, 1, -3, 0, 1, 2]))], "labels outside range: -3; labels are integers from 0"),
        ([task(labels=np.array([0, 1, 2, 0, 1, 1 << 40]))], f"labels outside range: {1 << 40}"),
        ([task(labels=np.zeros((6, 1), dtype=np.int64))], r"int64 \(6, 1\)"),
        ([task(labels=np.zeros(6))], "float64"),
        ([task(images=np.zeros((6, 3, 4), dtype=np.uint8))], r"uint8 \(6, 3, 4\)"),
        ([task(images=np.zeros((6, 12)))], "float64 .*images .* of uint8 or float32"),
        ([task(images=of_floats(np.nan))], r"NaN or infinite pixel \(in image 0\)"),
        ([task(images=of_floats(np.inf))], "NaN or infinite pixel"),
        ([task(pixel_map=np.array([12], dtype=np.int32))], "pixels outside the image: -1 to 11"),
        ([task(pixel_map=np.array([-2], dtype=np.int32))], "pixels outside the image"),
        ([task(pixel_map=np.array([], dtype=np.int32))], "D int32 pixel numbers"),
    ],
)
def test_what_a_task_set_refuses(tasks, message):
    with pytest.raises(UserError, match=message):
        TaskSet(tasks, "toy", "invented")


@pytest.mark.parametrize(
    "shape, ranges, message",
    [
        (None, [(0, 2)], "labels outside range: the classes of task 0 are 0 to 1"),
        (None, [(0, 3), (3, 6)], "2 class ranges for 1 tasks"),
        (None, [(3, 0)], "0 <= start < stop"),
        (None, [(0, 1 << 40)], "0 <= start < stop"),
        ((3, 32, 32), None, r"\(3, 32, 32\) of 12 inputs; channels \* height \* width must be the inputs"),
        ((1, 3, 5), None, r"channels \* height \* width must be the inputs"),
        ((3, 4), None, r"channels \* height \* width must be the inputs"),
        ((-1, -3, 4), None, r"channels \* height \* width must be the inputs"),
    ],
)
def test_what_a_task_set_of_images_refuses(shape, ranges, message):
    with pytest.raises(UserError, match=message):
        TaskSet([task()], "toy", "invented", shape, ranges)


def test_class_ranges_count_as_outputs():
    assert TaskSet([task()], "toy", "", class_ranges=[(0, 7)]).n_outputs == 7
    assert TaskSet([task()], "toy", "").n_outputs == 3
