"""Task files: what is found, both formats there and back, and files from strangers."""

import os
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import Evil, equal, examples, mapped_tasks, own_tasks

from errors import UserError
from tasks import compact_format, mnist, original_format
from tasks.files import build, load_tasks, read, write_compact, write_original
from tasks.taskset import Split, Task, TaskSet


def content(n_tasks=2, n_pixels=12, n_classes=3):
    """What torch.save gets for the original's format."""
    halves = []
    for n in (20, 8):
        pairs = [examples(n, n_pixels, n_classes, np.float32, seed=t) for t in range(n_tasks)]
        halves.append([[f"task {t}", *map(torch.from_numpy, pair)] for t, pair in enumerate(pairs)])
    return halves


# what is found


def test_tasks_are_built_where_there_is_no_file(tmp_path):
    tasks = load_tasks(tmp_path, "mnist_rotations.pt", data_seed=4)
    assert tasks.name == "mnist_rotations.pt"
    assert tasks.origin == "built in memory from the shipped MNIST (20 rotations by 0 to 180 degrees, data seed 4)"
    assert tasks.identity == load_tasks(tmp_path, "mnist_rotations", 4).identity
    others = [load_tasks(tmp_path, "mnist_rotations.pt"), load_tasks(tmp_path, "mnist_permutations.npz", 4)]
    assert len({tasks.identity, *(other.identity for other in others)}) == 3
    assert len(load_tasks(tmp_path, "mnist_manypermutations.pt").tasks) == 100


def test_loading_moves_no_random_stream(tmp_path):
    write_original(own_tasks(), tmp_path / "own.pt")
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for name in ("mnist_rotations.pt", "mnist_permutations.pt", "own.pt"):
        load_tasks(tmp_path, name).identity  # noqa: B018
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_the_file_comes_first_then_the_npz_of_that_name(tmp_path):
    write_compact(mapped_tasks(), tmp_path / "mnist_rotations.npz")
    tasks = load_tasks(tmp_path, "mnist_rotations.pt")
    assert equal(tasks, mapped_tasks()) and tasks.name == "mnist_rotations.pt"
    assert tasks.origin == f"read from {tmp_path / 'mnist_rotations.npz'} (there is no mnist_rotations.pt)"
    write_original(own_tasks(), tmp_path / "mnist_rotations.pt")
    assert equal(load_tasks(tmp_path, "mnist_rotations.pt"), own_tasks())


def test_the_format_is_told_by_content(tmp_path):
    write_compact(mapped_tasks(), tmp_path / "named.pt")
    write_original(mapped_tasks(), tmp_path / "named.npz")
    assert equal(load_tasks(tmp_path, "named.pt"), load_tasks(tmp_path, "named.npz"))


def test_an_unknown_file_says_what_there_is(tmp_path):
    write_compact(mapped_tasks(), tmp_path / "mine.npz")
    with pytest.raises(UserError, match=r"no data file .*mnist_rotation\.pt; .* has mine\.npz; .* mnist_rotations\.pt"):
        load_tasks(tmp_path, "mnist_rotation.pt")
    with pytest.raises(UserError, match="has mine.npz; .*get_data.py"):
        load_tasks(tmp_path, "cifar100.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError, match="is no file"):
        load_tasks(tmp_path, "folder.pt")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_tasks": 0}, "0 tasks cannot be built; 1 to 10,000 can"),
        ({"n_tasks": 1 << 31}, "tasks cannot be built"),
        ({"seed": -1}, "data seed -1"),
        ({"seed": 1 << 63}, "data seed"),
        ({"min_angle": 10, "max_angle": 9}, "angles from 10 to 9"),
        ({"max_angle": float("nan")}, "angles from 0.0 to nan"),
        ({"max_angle": float("inf")}, "angles"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(UserError, match=message):
        build("mnist_rotations", **options)


# there and back


@pytest.mark.parametrize("write", [write_compact, write_original])
@pytest.mark.parametrize(
    "tasks", [mapped_tasks(), mapped_tasks(dtype=np.float32), own_tasks(), own_tasks(dtypes=(np.float32, np.uint8))]
)
def test_there_and_back(tmp_path, write, tasks):
    write(tasks, tmp_path / "file.pt")
    again = read(tmp_path / "file.pt")
    assert equal(again, tasks) and again.identity == tasks.identity
    assert os.listdir(tmp_path) == ["file.pt"]


def test_a_compact_file_keeps_images_once(tmp_path):
    write_compact(mapped_tasks(), tmp_path / "file.npz")
    first, *others = read(tmp_path / "file.npz").tasks
    assert first.train.images.dtype == np.uint8
    assert all(task.train.images is first.train.images and task.test.images is first.test.images for task in others)


def test_a_compact_file_of_mnist_refers_to_it(tmp_path, monkeypatch):
    tasks = build("mnist_permutations", n_tasks=3, seed=8)
    write_compact(tasks, tmp_path / "few.npz")
    assert (tmp_path / "few.npz").stat().st_size < 30_000
    again = read(tmp_path / "few.npz")
    assert again.identity == tasks.identity and [len(task.train) for task in again.tasks] == [60_000] * 3
    monkeypatch.setattr(mnist, "checksum", lambda: "another")
    with pytest.raises(UserError, match="made from other files than those in .*mnist; make it again"):
        read(tmp_path / "few.npz")


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_written(tmp_path, mmap):
    tasks = mapped_tasks()
    write_original(tasks, tmp_path / "file.pt")
    train, test = torch.load(tmp_path / "file.pt", weights_only=True, mmap=mmap)
    assert zipfile.ZipFile(tmp_path / "file.pt").testzip() is None
    for task, (descriptor, x, y) in zip(tasks.tasks, test, strict=True):
        assert descriptor == task.descriptor and x.equal(task.test.inputs()) and y.tolist() == task.test.labels.tolist()
        assert x.is_contiguous() and (not mmap or x.data_ptr() % 64 == 0)
    assert [len(y) for _, _, y in train] == [30] * 3


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", [list, tuple])
def test_torchs_own_files_are_read(tmp_path, zipped, kind):
    halves = content()
    halves[0][0][2] = halves[0][0][2].to(torch.uint8)  # labels of any integer type
    halves[0][0][0] = halves[1][0][0] = torch.tensor(4.5)
    torch.save(kind(map(kind, halves)), tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    tasks = read(tmp_path / "file.pt")
    assert ("memory-mapped" if zipped else "before PyTorch 1.6") in tasks.origin
    assert [task.descriptor for task in tasks.tasks] == [4.5, "task 1"]
    for task, (_, x, y) in zip(tasks.tasks, halves[0], strict=True):
        assert task.train.inputs().equal(x) and task.train.labels.tolist() == y.tolist()
        assert task.train.labels.dtype == np.int64 and task.train.pixel_map is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_zip_file_is_mapped_not_copied(tmp_path):
    path = tmp_path / "file.pt"
    torch.save(content(), path)
    tasks = read(path)
    place = tasks.tasks[0].train.images.__array_interface__["data"][0]
    ranges = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    bounds = [[int(end, 16) for end in line[0].split("-")] for line in ranges]
    assert any(start <= place < stop for start, stop in bounds)


def test_tensors_that_are_the_same_stay_so(tmp_path):
    halves = content(n_tasks=1)
    torch.save([half * 3 for half in halves], tmp_path / "file.pt")
    first, *others = read(tmp_path / "file.pt").tasks
    assert all(task.train.images is first.train.images for task in others)


@pytest.mark.parametrize("write", [write_compact, write_original])
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, write):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("disk.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(mapped_tasks(), tmp_path / "file")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("write", [write_compact, write_original])
def test_a_full_disk_is_found_out_before(tmp_path, monkeypatch, write):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="file needs 0.00 GB, the disk of .* has 0.00 GB free; make room"):
        write(mapped_tasks(), tmp_path / "file")


# images


def cifar_like(n_tasks=2, classes=(0, 1, 2, 3)):
    per_task = len(classes) // n_tasks
    tasks = []
    for t in range(n_tasks):
        mine = np.array(classes[t * per_task : (t + 1) * per_task], dtype=np.int64)
        tasks.append(Task("", *(Split(examples(n, 3072)[0], np.resize(mine, n)) for n in (6, 4))))
    return tasks


def test_images_are_known_by_their_size_and_labels(tmp_path):
    write_original(TaskSet(cifar_like(), "", ""), tmp_path / "gem.pt")
    tasks = read(tmp_path / "gem.pt")
    assert (tasks.image_shape, tasks.class_ranges, tasks.n_outputs) == ((3, 32, 32), [(0, 2), (2, 4)], 4)
    write_compact(tasks, tmp_path / "cifar100.npz")
    assert equal(load_tasks(tmp_path, "cifar100.pt"), tasks)


def test_vectors_of_that_size_are_vectors_unless_the_name_says_otherwise(tmp_path):
    write_original(TaskSet(cifar_like(classes=(0, 1, 0, 1)), "", ""), tmp_path / "vectors.pt")
    tasks = read(tmp_path / "vectors.pt")
    assert (tasks.image_shape, tasks.class_ranges) == (None, None)
    with pytest.raises(UserError, match="labels outside range: the classes of task 0 are 0 to 0"):
        read(tmp_path / "vectors.pt", "cifar100.pt")


# strangers


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["descriptor", "x", "whole"])
def test_code_is_not_run(tmp_path, zipped, place):
    halves, evil = content(), Evil(tmp_path / "executed")
    if place == "whole":
        halves = evil
    else:
        halves[0][0][0 if place == "descriptor" else 1] = evil
    torch.save(halves, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"carries code or objects of its own \(\S*open\), which is never run"):
        read(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_code_in_an_npz_is_not_run(tmp_path):
    np.savez(tmp_path / "evil.npz", about=np.array(Evil(tmp_path / "executed"), dtype=object))
    with pytest.raises(UserError, match="about has the type object"):
        read(tmp_path / "evil.npz")
    assert not (tmp_path / "executed").exists()


def with_value(place, value):
    """A change of `content`: sets [half][task][part]."""

    def change(halves):
        half, t, part = place
        halves[half][t][part] = value(halves[half][t][part]) if callable(value) else value

    return change


def nan_pixel(x):
    x[4, 5] = torch.nan
    return x


@pytest.mark.parametrize(
    "change, message",
    [
        (with_value((1, 1, 1), nan_pixel), r"the test examples of task 1 have a NaN or infinite pixel \(in image 4\)"),
        (with_value((0, 0, 2), lambda y: y - 1), "labels outside range: -1"),
        (with_value((0, 1, 2), lambda y: y + 70_000), "labels outside range: 7000"),
        (with_value((0, 1, 2), lambda y: y.float()), r"the y of task 1 is torch.float32 \(20,\); an integer tensor"),
        (with_value((0, 1, 2), "labels"), "the y of task 1 is a str"),
        (with_value((0, 1, 2), lambda y: y[:-1]), "20 images with 19 labels"),
        (with_value((0, 0, 1), lambda x: x.double()), r"the x of task 0 is torch.float64 \(20, 12\); a float32 tensor"),
        (with_value((0, 0, 1), lambda x: (x * 255).byte()), "the x of task 0 is torch.uint8"),
        (with_value((0, 0, 1), lambda x: x.view(20, 3, 4)), r"the x of task 0 is torch.float32 \(20, 3, 4\)"),
        (with_value((0, 0, 1), None), "the x of task 0 is a NoneType"),
        (with_value((0, 0, 1), lambda x: x[:, :9].clone()), "tasks of different widths"),
        (with_value((0, 0, 1), lambda x: x[:, :9]), "not plain and contiguous"),
        (with_value((0, 0, 1), lambda x: x[:1, :1].expand(1 << 40, 784)), "not plain and contiguous"),
        (with_value((0, 0, 1), lambda x: x.to_sparse()), "not plain and contiguous"),
        (with_value((0, 0, 1), lambda x: x.to("meta")), "not plain and contiguous"),
        (with_value((1, 0, 1), lambda x: x[:0].clone()), "the test examples of task 0 are 0 images with 8 labels"),
        (
            lambda halves: halves[1].__setitem__(0, ["", torch.zeros(0, 12), torch.zeros(0).long()]),
            "test .* 0 are none",
        ),
        (with_value((1, 0, 0), ["a"]), None),  # descriptors are for the reader alone
        (lambda halves: halves[0].pop(), "1 training and 2 test sets"),
        (lambda halves: halves.pop(), "a list of 1 where lists are needed"),
        (lambda halves: halves[0][0].pop(), "a list of 2 where lists are needed"),
        (lambda halves: halves.__setitem__(0, {"a": 1}), "a dict where lists are needed"),
        (lambda halves: [half.clear() for half in halves], "holds 0 tasks"),
        (lambda halves: [half.extend(half[:1] * 20_000) for half in halves], "holds 20,002 tasks; 1 to 10,000"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_refused(tmp_path, change, message, zipped):
    halves = content()
    change(halves)
    torch.save(halves, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    if message is None:
        assert read(tmp_path / "file.pt")
        return
    with pytest.raises(UserError, match=message):
        read(tmp_path / "file.pt")


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "uint32", "uint64"])
def test_labels_of_any_integers(kind, tmp_path):
    halves = content()
    with_value((0, 1, 2), lambda y: y.to(getattr(torch, kind)))(halves)
    with_value((0, 1, 1), torch.nn.Parameter)(halves)
    torch.save(halves, tmp_path / "file.pt")
    torch.save(content(), tmp_path / "plain.pt")
    assert equal(read(tmp_path / "file.pt"), read(tmp_path / "plain.pt"))


ODD_KINDS = ("uint16", "float8_e5m2", "bfloat16", "complex64", "complex32", "bits8", "float4_e2m1fn_x2")


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("kind", ODD_KINDS)
def test_other_types_are_named_with_the_remedy(kind, tmp_path):
    """And are not taken for code."""
    halves = content()
    with_value((0, 0, 1), lambda x: torch.empty(20, 12, dtype=getattr(torch, kind)))(halves)
    torch.save(halves, tmp_path / "file.pt")
    with pytest.raises(UserError, match=rf"(is|has) torch.{kind} .*\.float\(\)"):
        read(tmp_path / "file.pt")


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_quantized_tensors_are_no_code(tmp_path):
    halves = content()
    with_value((0, 0, 1), lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8))(halves)
    torch.save(halves, tmp_path / "file.pt")
    with pytest.raises(UserError, match=r"has quantized tensors, which are not read; .*\.dequantize\(\)"):
        read(tmp_path / "file.pt")


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda path: path.write_text("1,2,3\n"),
            "is text, and no .npz or .pt; load it with numpy.loadtxt, .* pack them",
        ),
        (lambda path: path.mkdir(), "is no file but a folder; read its images into arrays"),
        (
            lambda path: np.savez(path, x=np.zeros((2, 3)), y=np.arange(2)),
            r"no task file; pack its arrays .python get_data.py pack.",
        ),
        (lambda path: np.save(path, np.zeros((2, 3))), "holds one array; save x and y with numpy.savez, and pack them"),
    ],
)
def test_what_is_to_be_packed_first(make, message, tmp_path):
    make(tmp_path / "file.npz")
    if (tmp_path / "file.npz.npy").exists():
        (tmp_path / "file.npz.npy").rename(tmp_path / "file.npz")
    with pytest.raises(UserError, match=message):
        load_tasks(tmp_path, "file.npz")


def test_a_large_index_is_refused(tmp_path):
    torch.save([[["x" * 5_000_000]], []], tmp_path / "file.pt")
    with pytest.raises(UserError, match="too large an index"):
        read(tmp_path / "file.pt")


def test_overlapping_tensors_are_refused(tmp_path):
    everything = torch.zeros(1000, 12)
    tasks = [["", everything[t:], torch.zeros(1000 - t, dtype=torch.int64)] for t in range(100)]
    torch.save([tasks, tasks], tmp_path / "file.pt")
    with pytest.raises(UserError, match="tensors that overlap, or are larger than the file"):
        read(tmp_path / "file.pt")


@pytest.mark.parametrize("make", [lambda path: torch.save(torch.nn.Linear(2, 2).state_dict(), path), None])
def test_foreign_files(tmp_path, make):
    path = tmp_path / "file.pt"
    if make:
        make(path)
        with pytest.raises(UserError, match="a OrderedDict where lists are needed"):
            read(path)
        return
    for foreign in (b"", b"PK\3\4", b"hello, world", b"\x80\2}.", bytes(5000), b"[1, 2]", b"\x1f\x8b" + bytes(100)):
        path.write_bytes(foreign)
        with pytest.raises(UserError, match="is damaged, or no data file|is no task file|is text, and no .npz"):
            read(path)
    np.savez(path.with_suffix(".npz"), x=np.zeros(3))
    with pytest.raises(UserError, match="is a zip file, but no task file"):
        read(path.with_suffix(".npz"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path):
    write_compact(mapped_tasks(), tmp_path / "file.npz")
    (tmp_path / "file.npz").chmod(0)
    with pytest.raises(UserError, match="cannot be read .* permissions"):
        read(tmp_path / "file.npz")


def test_a_compressed_pt_is_refused(tmp_path):
    torch.save(content(), tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as stored:
        with zipfile.ZipFile(tmp_path / "file.pt", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in stored.namelist():
                packed.writestr(name, stored.read(name))
    with pytest.raises(UserError, match="unpacks to more than it holds"):
        read(tmp_path / "file.pt")


def rewrite(path, name, change):
    """Replaces a member of an .npz by what `change` makes of its bytes; None removes it."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members[f"{name}.npy"] = change(members[f"{name}.npy"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            if data is not None:
                archive.writestr(member, data)


def replacing(old, new):
    def change(data):
        assert old in data
        return data.replace(old, new)

    return change


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("train_images", replacing(b"(30, 12)", b"(99999999999, 12)"), "announces the shape"),
        ("train_images", replacing(b"(30, 12), ", b"(2**40, 1), "), "damaged"),
        ("train_images", replacing(b"(30, 12)", b"(-3, -9)"), "announces the shape"),
        ("train_images", replacing(b"(30, 12)", b"(360,)  "), "announces the shape"),
        ("train_images", replacing(b"|u1", b"|i1"), "has the type int8, not uint8 or float32"),
        ("train_images", lambda data: data[:-1], "announces the shape"),
        ("train_images", lambda data: data + b"x", "announces the shape"),
        ("train_images", lambda data: b"", "damaged"),
        ("train_images", lambda data: None, "no item named 'train_images.npy'"),
        ("train_labels", replacing(b"<u2", b"<f2"), "has the type float16"),
        ("train_rows", replacing(b"(3, 2)", b"(2, 3)"), "damaged"),
        ("train_rows", lambda data: data[:-8] + (31).to_bytes(8, "little"), "rows outside the 30 images"),
        ("train_rows", lambda data: data[:-8] + bytes(8), "a task has no rows"),
        ("train_maps", lambda data: data[:-4] + (12).to_bytes(4, "little"), "pixels outside the image"),
        ("train_maps", replacing(b"<i4", b"<f4"), "has the type float32"),
        ("about", replacing(b"mer-tasks/1", b"mer-tasks/7"), "no task file of this program"),
        ("about", replacing(b'"descriptors": [', b'"descriptors": ]'), "damaged"),
        ("about", replacing(b"[0.0, 1.0, 2.0]", b'{"0":1,"1":2}  '), "not equally many"),
        ("about", replacing(b'"source": null', b'"source": "/x"'), "no task file of this program"),
        (
            "about",
            replacing(b'"image_shape": null', b'"image_shape": [-1]'),
            "channels . height . width must be the inputs|announces",
        ),
        ("about", replacing(b'"class_ranges": null', b'"class_ranges": 4   '), "damaged"),
    ],
)
def test_what_is_refused_in_a_compact_file(tmp_path, name, change, message):
    path = tmp_path / "file.npz"
    write_compact(mapped_tasks(), path)
    rewrite(path, name, change)
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    write_compact(mapped_tasks(), tmp_path / "file.npz")
    rewrite(tmp_path / "file.npz", "train_images", lambda data: data + bytes(2_000_000))
    with pytest.raises(UserError, match="announces"):  # small enough to be looked at
        read(tmp_path / "file.npz")
    monkeypatch.setattr("disk.safe.EXPANDS_FREELY", 1_000_000)
    with pytest.raises(UserError, match="unpacks to 2,00.,... bytes: it is no task file"):
        read(tmp_path / "file.npz")


def test_files_larger_than_the_memory_are_refused(tmp_path, monkeypatch):
    torch.save(content(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    write_compact(mapped_tasks(), tmp_path / "file.npz")
    for module in (original_format, compact_format):
        monkeypatch.setattr(module, "available_memory", lambda: 1000)
    for name, message in (("old.pt", "larger than the free memory"), ("file.npz", "more than the free memory")):
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)


def test_truncated_and_mutated_files_are_refused_or_read(tmp_path):
    """Whatever a file's bytes are, there are tasks or a UserError."""
    write_compact(mapped_tasks(), tmp_path / "a")
    write_original(mapped_tasks(2), tmp_path / "b")
    torch.save(content(), tmp_path / "c", _use_new_zipfile_serialization=False)
    stream, refused = random.Random(0), 0
    originals = [(tmp_path / name).read_bytes() for name in "abc"]
    for number in range(300):
        data = bytearray(originals[number % 3])
        for _ in range(stream.choice([1, 2, 10])):
            place = stream.randrange(len(data))
            kind = stream.randrange(4)
            if kind == 0:
                data[place] = stream.choice([0, 255, stream.randrange(256)])
            elif kind == 1:
                data[place : place + stream.randrange(50)] = b""
            elif kind == 2:
                data[place:place] = stream.randbytes(stream.randrange(1, 20))
            else:
                data[place : place + 4] = stream.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)])
        if number % 5 == 0:
            del data[stream.randrange(len(data)) :]
        (tmp_path / "mutated").write_bytes(data)
        try:
            read(tmp_path / "mutated").identity  # noqa: B018
        except UserError:
            refused += 1
    assert refused > 150
