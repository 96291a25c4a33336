"""Task- and class-incremental runs: which outputs compete, what is told at test; Split MNIST; other IDX files."""

import gzip
import json

import numpy as np
import pytest
from data_helpers import equal, examples

import get_data
from errors import UserError
from run.evaluation import Evaluator
from tasks import mnist
from tasks.files import N_TASKS, build, load_tasks, read
from tasks.taskset import Split, Task, TaskSet, split


def write_idx(path, array, compressed=True):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if compressed else content)


def lit(n, classes, seed=0):
    """(images (n, 28, 28), labels (n,)): an image of the k-th class has the rows 2 k and 2 k + 1 lit."""
    which = np.arange(n) % len(classes)
    images = np.random.default_rng(seed).integers(0, 60, (n, 28, 28))
    for image, k in zip(images, which, strict=True):
        image[2 * k : 2 * k + 2] = 255
    return images, np.array(classes)[which]


@pytest.fixture
def idx_folder(tmp_path):
    """idx_folder(classes, …): a folder with four IDX files, named as EMNIST's or as MNIST's."""

    def make(classes=range(10), n_train=300, n_test=100, compressed=True, emnist=False, name="idx"):
        folder = tmp_path / name
        folder.mkdir()
        names = ("emnist-letters-train-", "emnist-letters-test-") if emnist else ("train-", "t10k-")
        for half, n, seed in zip(names, (n_train, n_test), (1, 2), strict=True):
            images, labels = lit(n, list(classes), seed)
            end = ".gz" if compressed else ""
            write_idx(folder / f"{half}images-idx3-ubyte{end}", images, compressed)
            write_idx(folder / f"{half}labels-idx1-ubyte{end}", labels, compressed)
        return folder

    return make


# Split MNIST


def test_split_mnist_is_all_of_mnist_in_five_tasks(tmp_path):
    shipped, tasks = mnist.read(), load_tasks(tmp_path, "mnist_split.pt")
    assert tasks.class_ranges == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)] and tasks.n_outputs == 10
    assert tasks.origin == "built in memory from the shipped MNIST (5 tasks of 2 classes)"
    for half, labels in (("train", shipped.train_labels), ("test", shipped.test_labels)):
        halves = [getattr(task, half) for task in tasks.tasks]
        assert sum(map(len, halves)) == len(labels)
        for t, one in enumerate(halves):
            rows = (labels == 2 * t) | (labels == 2 * t + 1)
            assert np.array_equal(one.images, getattr(shipped, f"{half}_images")[rows])
            assert np.array_equal(one.labels, labels[rows])


def test_split_with_other_numbers_of_tasks():
    ranges = build("mnist_split", n_tasks=3).class_ranges
    assert ranges == [(0, 4), (4, 7), (7, 10)]
    with pytest.raises(UserError, match="10 classes cannot be split into 11 tasks; 10 can"):
        build("mnist_split", n_tasks=11)


def test_a_split_file(tmp_path, capsys, idx_folder):
    folder = idx_folder(classes=range(1, 8), emnist=True)
    words = ["split", "--data_path", str(tmp_path / "data"), "--mnist", str(folder)]
    assert get_data.main(words) == 0
    found = read(tmp_path / "data" / "mnist_split.npz")
    assert equal(found, build("mnist_split", mnist_path=folder))
    assert found.class_ranges == [(0, 2), (2, 4), (4, 6), (6, 7)]  # seven classes: the last task has one


# other IDX files


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", N_TASKS)
def test_four_idx_files_stand_in_for_mnist(kind, compressed, idx_folder, tmp_path):
    folder = idx_folder(compressed=compressed)
    found = load_tasks(tmp_path, f"{kind}.pt", 3, folder)
    shipped = load_tasks(tmp_path, f"{kind}.pt", 3)
    assert str(folder) in found.origin and found.identity != shipped.identity
    assert [task.descriptor for task in found.tasks] == [task.descriptor for task in shipped.tasks]
    for half, n, seed in (("train", 300, 1), ("test", 100, 2)):
        images, labels = lit(n, list(range(10)), seed)
        for task, other in zip(found.tasks[:3], shipped.tasks, strict=False):
            one, like = getattr(task, half), getattr(other, half)
            if kind == "mnist_split":
                rows = np.isin(labels, range(*found.class_ranges[found.tasks.index(task)]))
                wanted = images[rows].reshape(-1, 784), labels[rows]
            else:  # the very maps that MNIST would have
                wanted = Split(images.reshape(n, -1).astype(np.uint8), labels, like.pixel_map), labels
                wanted = wanted[0].inputs().numpy() * 255, labels
            np.testing.assert_allclose(one.inputs().numpy() * 255, wanted[0], atol=1e-4)
            assert np.array_equal(one.labels, wanted[1])


def test_labels_from_1_on(idx_folder, tmp_path):
    folder = idx_folder(classes=range(1, 5), emnist=True)
    found = load_tasks(tmp_path, "mnist_permutations", 0, folder)
    assert found.n_outputs == 4 and "its labels 1 to 4 as classes 0 to 3" in found.origin
    assert found.tasks[0].train.labels[:5].tolist() == [0, 1, 2, 3, 0]


def test_a_file_made_of_other_idx_files_stands_alone(idx_folder, tmp_path):
    folder = idx_folder()
    path = get_data.generate("permutations", tmp_path, "compact", n_tasks=3, mnist=folder)
    tasks = build("mnist_permutations", n_tasks=3, mnist_path=folder)
    for one in folder.iterdir():
        one.unlink()
    assert read(path).identity == tasks.identity


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: (f / "train-images-idx3-ubyte.gz").unlink(), "has 0 files of train images .t10k-images"),
        (lambda f: write_idx(f / "train2-images-idx3-ubyte", np.zeros((2, 28, 28))), "has 2 files of train images"),
        (lambda f: write_idx(f / "t10k-labels-idx1-ubyte.gz", np.zeros(99)), "100 test images with 99 labels; give"),
        (lambda f: write_idx(f / "t10k-images-idx3-ubyte.gz", np.zeros((100, 16, 16))), r"\(100, 16, 16\) .*28, 28"),
        (lambda f: write_idx(f / "t10k-images-idx3-ubyte.gz", np.zeros(100)), r"images \(100,\) .* are needed"),
        (lambda f: (f / "t10k-labels-idx1-ubyte.gz").write_bytes(b"hello"), "is no IDX file of bytes; fetch it again"),
        (
            lambda f: (f / "t10k-labels-idx1-ubyte.gz").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1])),
            "does not hold the 9 values that it announces",
        ),
        (
            lambda f: (f / "t10k-labels-idx1-ubyte.gz").write_bytes(bytes([0, 0, 8, 1]) + b"\xff" * 4),
            "announces 4,294,967,295 bytes, more than it should",
        ),
        (
            lambda f: (f / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(99))[:-9]),
            "cannot read|is no IDX file",
        ),
    ],
)
def test_idx_files_that_are_refused(idx_folder, change, message):
    folder = idx_folder()
    change(folder)
    with pytest.raises(UserError, match=message):
        mnist.read_like(folder)


def test_flags_that_do_not_go_with_mnist(idx_folder, run_main, tmp_path):
    done = run_main("--mnist", tmp_path / "nowhere")
    assert done.code == 2 and "nowhere': No such file or directory; give a folder with four IDX files" in done.err
    done = run_main("--mnist", idx_folder(), "--data_file", "own.pt")
    assert done.code == 2 and "goes with --data_file mnist_rotations.pt, " in done.err


# scenarios


def split_tasks(n=200):
    """A Split of ten lit classes that is easy."""
    train, test = lit(n, list(range(10)), 1), lit(n, list(range(10)), 2)
    like = mnist.Mnist(*((a.reshape(n, -1).astype(np.uint8) if a.ndim == 3 else a) for a in (*train, *test)))
    tasks, ranges = split(like)
    return TaskSet(tasks, "toy", "", class_ranges=ranges)


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_runs_of_both_scenarios(engine, run_main, idx_folder):
    """The same stream: among a task's two classes online SGD forgets less than among all ten."""
    found = {}
    for scenario in ("task", "class"):
        words = (
            "--model",
            "online",
            "--data_file",
            "mnist_split.pt",
            "--mnist",
            idx_folder(name=scenario),
            "--lr",
            0.1,
        )
        done = run_main(*words, "--lr", 0.1, "--engine", engine, "--scenario", scenario)
        assert done.code == 0 and f"scenario: {scenario}; " in done.err
        found[scenario] = json.loads(done.files[".json"].read_text())
    last = {scenario: result["result_a"][-1] for scenario, result in found.items()}
    assert min(last["task"]) >= 0.9 and last["class"][-1] >= 0.9
    assert np.mean(last["class"][:-1]) <= np.mean(last["task"][:-1]) - 0.2
    assert found["task"]["data"]["identity"] == found["class"]["data"]["identity"]


@pytest.mark.parametrize("scenario, tells", [("task", [0, 1, 2, 3, 4]), ("class", [0] * 5)])
def test_the_task_is_told_or_not(scenario, tells):
    class Listener:
        heard = []

        def __call__(self, x, t):
            self.heard.append(t)
            return x[:, :10]

    tasks = split_tasks()
    listener = Listener()
    Evaluator(dict(enumerate(tasks.tasks)), tells_task=scenario == "task").evaluate(listener)
    assert listener.heard == tells


@pytest.mark.parametrize("name", ["independent", "taskinput"])
def test_what_needs_the_task_is_not_class_incremental(name, run_main):
    done = run_main("--model", name, "--data_file", "mnist_split.pt", "--scenario", "class")
    assert done.code == 2 and f"tells no task at test, and {name} has weights of its own for each task" in done.err


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_a_class_incremental_learner_goes_on(engine, run_main, tmp_path):
    """Its state keeps the scenario; the other one is refused."""
    from tasks.files import write_compact

    tasks = [Task(t, Split(*examples(20, seed=t)), Split(*examples(8, seed=t))) for t in range(2)]
    for task, shift in zip(tasks, (0, 3), strict=True):
        task.train.labels, task.test.labels = task.train.labels + shift, task.test.labels + shift
    write_compact(TaskSet(tasks, "toy", "", class_ranges=[(0, 3), (3, 6)]), tmp_path / "own.npz")
    words = ("--model", "eralg4", "--data_path", tmp_path, "--data_file", "own.npz", "--engine", engine)
    first = run_main(*words, "--scenario", "class")
    assert first.code == 0, first.err
    again = run_main(*words, "--scenario", "class", "--start_from", first.files[".pt"], save_path=tmp_path / "more")
    assert again.code == 0, again.err
    other = run_main(*words, "--start_from", first.files[".pt"], save_path=tmp_path / "other")
    assert other.code == 2 and "--scenario was class, now task" in other.err
