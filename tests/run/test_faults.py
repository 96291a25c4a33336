"""Every write that the program makes fails, in every way that disks know: a run goes on, and its result is never lost.

Also folders that vanish, disks and streams that are full for real, and the faults that learners meet inside.
"""

import builtins
import errno
import gzip
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import DATA, WAYS, a_signal, after, go_fixture, learners, place, result_in, words_of  # noqa: F401

import main
from disk import atomic
from run import checkpoints, provenance, saving

ROOT = Path(main.__file__).parent
NATIVE, REFERENCE = WAYS[0], WAYS[2]
WORDS = words_of("meralg1", NATIVE, "--checkpoint_every", 10)
REQUESTS = ("open", "write", "sync", "rename")  # what one file needs
N_CHECKPOINTS, N_FILES = 2, 4


class Crash(BaseException):
    """The process ends here, and tidies nothing up."""


class Disk:
    """Stands between atomic.py and the disk: lists what is asked of it, and fails from the n-th request on.

    fault   "full", "broken"; "short": full, with half of the data written; "crash": the process ends at that moment
    lasts   how many requests fail
    """

    def __init__(self, n=None, fault="full", lasts=10**9):
        self.n, self.fault, self.lasts = n, fault, lasts
        self.asked, self.paths, self.dead = [], {}, False

    def ask(self, what, path):
        number = len(self.asked)
        self.asked.append((what, Path(path).suffixes[-3 if what != "rename" else -1]))
        if self.n is not None and self.n <= number < self.n + self.lasts:
            if self.fault == "crash":
                self.dead = True
                raise Crash
            raise OSError(errno.EIO if self.fault == "broken" else errno.ENOSPC, "it fails", str(path))

    def open_file(self, path, *arguments, **more):
        self.ask("open", path)
        file = builtins.open(path, *arguments, **more)
        self.paths[file.fileno()] = path
        return DiskFile(self, path, file)

    def fsync(self, descriptor):
        if descriptor in self.paths:
            self.ask("sync", self.paths[descriptor])

    def replace(self, source, target):
        self.ask("rename", target)
        os.replace(source, target)

    def unlink(self, path):
        if not self.dead:
            os.unlink(path)

    def __getattr__(self, name):
        return getattr(os, name)


class DiskFile:
    def __init__(self, disk, path, file):
        self.disk, self.path, self.file, self.name = disk, path, file, file.name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        del self.disk.paths[self.file.fileno()]
        self.file.close()

    def write(self, data):
        try:
            self.disk.ask("write", self.path)
        except (OSError, Crash):
            if self.disk.fault in ("short", "crash"):
                self.file.write(data[: len(data) // 2])
            raise
        return self.file.write(data)

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


@pytest.fixture
def use(monkeypatch):
    """use(disk): atomic.py writes to it."""

    def use(disk):
        monkeypatch.setattr(atomic, "open", disk.open_file, raising=False)
        monkeypatch.setattr(atomic, "os", disk)
        return disk

    return use


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """What WORDS leave undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("run.provenance.commit", lambda: {"commit": None, "dirty": None})
        patch.chdir(place(tmp_path_factory.mktemp("whole")))
        assert main.main(WORDS) == 0
        return result_in(".")


def rescued(temporary, found):
    """What was saved in the temporary folder, as the message says."""
    path = re.search(r"the results are saved as (\S+)\.\*$", found.err, re.MULTILINE)[1]
    assert Path(path).parent.parent == temporary and found.out.startswith(f"{path}: ")
    return result_in(Path(path).parent, ".")


def test_every_write_is_known(use, go, tmp_path):
    """What the others count on: checkpoints and results are all that is written, each by these four requests."""
    opened, recording = [], True

    def hook(event, arguments):
        if recording and event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            opened.append(arguments[0])

    sys.addaudithook(hook)
    disk = use(Disk())
    assert go(place(tmp_path / "run"), *WORDS).code == 0
    recording = False
    checkpoint = [(request, ".checkpoint") for request in REQUESTS]
    files = [(request, ending) for ending in (".json", ".pt", ".txt", ".state") for request in ("open", "write")]
    files += [(request, ending) for ending in saving.ENDINGS for request in ("sync", "rename")]
    assert disk.asked == checkpoint * N_CHECKPOINTS + files
    names = [Path(path).name for path in opened]
    assert names[0].endswith(".writable") and all(name.endswith(".tmp") for name in names[1:])
    assert len(names) == 1 + N_CHECKPOINTS + N_FILES


def each_fails(requests):
    """Each of the requests fails in one way; in every way in `make torture`."""
    faults = ("full", "broken", "short")
    usual = {(n, faults[n % 3]) for n in requests}
    cases = [(n, fault) for n in requests for fault in faults]
    return pytest.mark.parametrize(
        "request_number,fault",
        [pytest.param(*case, marks=() if case in usual else pytest.mark.torture) for case in cases],
    )


@each_fails(range(N_CHECKPOINTS * len(REQUESTS)))
def test_a_checkpoint_that_cannot_be_written_ends_no_run(request_number, fault, use, go, tmp_path, wanted):
    use(Disk(request_number, fault, lasts=1))
    found = go(place(tmp_path / "run"), *WORDS)
    assert found.code == 0 and result_in(tmp_path / "run").files == wanted.files
    assert found.err.count("warning: no checkpoint can be written (") == 1
    assert len(list(tmp_path.glob("run/results/*"))) == N_FILES


def test_no_checkpoint_can_be_written_is_said_once(use, go, tmp_path, wanted):
    use(Disk(0, "full", lasts=N_CHECKPOINTS))
    found = go(place(tmp_path / "run"), *WORDS)
    assert found.code == 0 and result_in(tmp_path / "run").files == wanted.files
    assert found.err.count("warning: no checkpoint can be written (") == 1


RESULTS = range(N_CHECKPOINTS * len(REQUESTS), (N_CHECKPOINTS + N_FILES) * len(REQUESTS))


@each_fails(RESULTS)
def test_a_result_that_cannot_be_written_is_saved_elsewhere(
    request_number, fault, use, go, tmp_path, temporary, wanted
):
    use(Disk(request_number, fault, lasts=1))
    found = go(place(tmp_path / "run"), *WORDS)
    assert found.code == 1
    assert re.search(
        r"^error: cannot write to results/ \(.*it fails.*\); the results are saved", found.err, re.MULTILINE
    )
    assert rescued(temporary, found).files == wanted.files
    left = {path.suffix: path.read_bytes() for path in tmp_path.glob("run/results/*")}
    assert left.pop(".checkpoint") and ".json" not in left, "no complete result where the message says there is none"
    for ending, content in left.items():
        assert (gzip.decompress(content) if ending == ".state" else content) == wanted.files[ending]


def test_where_nothing_can_be_written_at_all(use, go, tmp_path, temporary, wanted):
    """The summary is shown, and the last checkpoint stays."""
    use(Disk(RESULTS[0]))
    found = go(place(tmp_path / "run"), *WORDS)
    assert found.code == 1 and not found.out
    assert "error: no result can be written, neither to results/ (" in found.err and " # " in found.err
    (path,) = tmp_path.glob("run/results/*")
    use(Disk())
    assert go(tmp_path / "run", "--resume", path).code == 0
    assert result_in(tmp_path / "run").files == wanted.files


@pytest.mark.parametrize("request_number", range((N_CHECKPOINTS + N_FILES) * len(REQUESTS)))
def test_a_crash_at_any_request(request_number, use, go, tmp_path, wanted):
    """What has its name is whole; going on ends as if nothing had happened, and tidies up."""
    use(Disk(request_number, "crash"))
    folder = place(tmp_path / "run")
    with pytest.raises(Crash):
        go(folder, *WORDS)
    for path in folder.glob("results/[!.]*"):
        if path.suffix == ".checkpoint":
            assert checkpoints.load(path)["format"] == checkpoints.FORMAT
        else:
            content = path.read_bytes()
            assert (gzip.decompress(content) if path.suffix == ".state" else content) == wanted.files[path.suffix]
    use(Disk())
    found = go(folder, *WORDS, "--resume", "auto")
    assert found.code == 0 and ("goes on after" in found.err) == (request_number >= len(REQUESTS))
    assert result_in(folder).files == wanted.files
    stale = len(list(folder.glob("results/.*")))
    assert stale <= (request_number < len(REQUESTS)), "only of a run whose name nobody knows any more"


def test_a_crash_between_the_results_and_the_end(go, tmp_path, wanted, monkeypatch):
    folder, discard = place(tmp_path / "run"), checkpoints.Journal.discard_checkpoints
    monkeypatch.setattr(checkpoints.Journal, "discard_checkpoints", lambda self: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        go(folder, *WORDS)
    assert result_in(folder).files == wanted.files
    monkeypatch.setattr(checkpoints.Journal, "discard_checkpoints", discard)
    assert go(folder, *WORDS, "--resume", "auto").code == 0
    assert result_in(folder).files == wanted.files and len(list(folder.glob("results/*"))) == N_FILES


# folders


def replace_by_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.parametrize("harm", [shutil.rmtree, replace_by_a_file])
def test_a_folder_that_vanishes(harm, go, tmp_path, temporary, wanted):
    folder = place(tmp_path / "run")
    with after(5, lambda: harm(folder / "results")):
        found = go(folder, *WORDS)
    assert found.code == 1 and rescued(temporary, found).files == wanted.files
    assert found.err.count("warning: no checkpoint can be written (") == 1


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_when_the_folder_has_vanished(by, go, tmp_path, temporary, wanted):
    folder = place(tmp_path / "run")
    with after(12, lambda: (shutil.rmtree(folder / "results"), a_signal(by)())):
        found = go(folder, *WORDS)
    assert found.code == 128 + by and "error: no checkpoint can be written there (" in found.err
    path = Path(re.search(r"go on with: python main.py --resume (\S+)$", found.err, re.MULTILINE)[1])
    assert path.parent.parent == temporary
    assert go(folder, "--resume", path).code == 0
    assert result_in(folder).files == wanted.files and not path.exists()


def test_a_signal_when_nothing_can_be_written(use, go, tmp_path):
    folder = place(tmp_path / "run")
    with after(5, lambda: (use(Disk(0)), a_signal(signal.SIGTERM)())):
        found = go(folder, *WORDS)
    assert found.code == 143 and found.err.endswith("\nstopped by SIGTERM\n")
    with after(15, lambda: (use(Disk(0)), a_signal(signal.SIGTERM)())):
        use(Disk())
        found = go(folder, *WORDS)
    assert found.code == 143 and re.search(r"--resume results/\S+\.checkpoint$", found.err), "an earlier one is there"


@pytest.mark.parametrize("name", ["x" * 220 + ".pt", "ü" * 100 + ".pt", "[a]*?.pt", "-.pt", "a b.pt", ".pt"])
def test_odd_names_of_data(name, go, tmp_path):
    """The results have it in theirs, or the beginning of it."""
    folder = place(tmp_path / "run")
    (folder / "data" / "tiny.pt").rename(folder / "data" / name)
    words = [f"--data_file={name}" if word == "tiny.pt" else word for word in WORDS if word != "--data_file"]
    found = go(folder, *words)
    assert found.code == 0 and len(list(folder.glob("results/*"))) == N_FILES
    with after(5, a_signal(signal.SIGTERM)):
        path = re.search(r"--resume ('?)(results/[^']*checkpoint)\1$", go(folder, *words).err, re.MULTILINE)[2]
    assert go(folder, *words, "--resume", "auto").code == 0 and not (folder / path).exists()


@pytest.mark.parametrize("letter", ["x", "ü", "\udcff"])
def test_names_of_runs(letter):
    """The original's as long as there is room, then no two alike."""
    known = set()
    for n in range(230 // len(os.fsencode(letter))):
        it = SimpleNamespace(model="meralg1", data_file=f"{letter * n}.pt")
        name = saving.new_name(it)
        whole = f"meralg1_{it.data_file}_"
        fits = len(os.fsencode(f"{whole}2000_01_01_00_00_00_{'0' * 32}.checkpoint")) <= 255
        assert name.startswith(whole) == fits and name.startswith(saving.name_stem(it))
        assert len(os.fsencode(f"{name}.checkpoint")) <= 255
        known.add(saving.name_stem(it))
    assert len(known) == n + 1


# for real


@contextmanager
def small_disk(folder, size):
    """A file system of so many bytes as the folder."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
    if made.returncode:
        pytest.skip("needs to be root, and allowed to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def large(*more):
    """A run whose memories are more than 16 kB."""
    return words_of("eralg4", REFERENCE, "--memories", 1000, "--checkpoint_every", 10, "--lr", 0.01, *more)


def test_a_small_disk(go, tmp_path, temporary):
    assert go(place(tmp_path / "whole", n_train=40, n_inputs=200), *large()).code == 0
    folder = place(tmp_path / "run", n_train=40, n_inputs=200)
    with small_disk(folder / "results", 20480):
        found = go(folder, *large())
        assert found.code == 1 and "No space left on device" in found.err and "warning: no checkpoint" in found.err
        assert {path.suffix for path in folder.glob("results/*")} <= {".checkpoint"}
    assert rescued(temporary, found).files == result_in(tmp_path / "whole").files


def test_a_disk_that_becomes_read_only(go, tmp_path, temporary, wanted):
    folder = place(tmp_path / "run")
    with small_disk(folder / "results", 1 << 20):
        with after(12, lambda: subprocess.run(["mount", "-o", "remount,ro", folder / "results"], check=True)):
            found = go(folder, *WORDS)
        (path,) = folder.glob("results/*")
        assert checkpoints.load(path)["experience"]["next_minibatch"] == 10
        assert found.code == 1 and "Read-only file system" in found.err
        again = go(folder, *WORDS)
        assert again.code == 2 and "error: --save_path results/ cannot be written: Read-only file system" in again.err
    assert rescued(temporary, found).files == wanted.files


def test_files_that_may_not_grow(go, tmp_path):
    """`ulimit -f`: everywhere, so that not even the temporary folder takes the results."""
    folder, before = place(tmp_path / "run", n_train=40, n_inputs=200), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    try:
        found = go(folder, *large())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found.code == 1 and "File too large" in found.err and "no result can be written, neither to" in found.err
    assert all(path.suffix == ".checkpoint" for path in folder.glob("results/*"))


@pytest.mark.parametrize("stream,code", [("stdout", 1), ("stderr", 0)])
def test_a_stream_that_nobody_takes(stream, code, tmp_path, wanted):
    """A program of its own, as what Python does with its streams at the end is part of it."""
    folder = place(tmp_path / "run")
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: full}
        command = [sys.executable, ROOT / "main.py", *WORDS, "--progress", "yes"]
        found = subprocess.run(command, cwd=folder, text=True, timeout=100, **streams)
    assert found.returncode == code
    if stream == "stdout":
        assert re.search(
            r"^error: cannot write to stdout \(.*No space left.*\); the results are saved", found.stderr, re.M
        )
    assert "Traceback" not in (found.stderr or "") and result_in(folder).files[".state"] == wanted.files[".state"]


def test_streams_that_are_closed(tmp_path, wanted):
    """On the way, as a learner may do it."""
    folder = place(tmp_path / "run")
    code = (
        "import sys, main; from run.experience import Experience; evaluate = Experience.evaluate\n"
        "def closing(self): evaluate(self); sys.stdout.close(); sys.stderr.close()\n"
        "Experience.evaluate = closing; sys.exit(main.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *WORDS, "--progress", "yes"]
    found = subprocess.run(command, cwd=folder, timeout=100, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert found.returncode == 1 and result_in(folder).files[".state"] == wanted.files[".state"]


def test_a_watcher_that_cannot_write(go, tmp_path, monkeypatch, wanted):
    class SummaryWriter:
        def __init__(self, folder, purge_step):
            self.n = 0

        def add_scalar(self, *_):
            self.n += 1
            if self.n > 5:
                raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    found = go(place(tmp_path / "run"), *WORDS, "--tensorboard", "board")
    assert found.code == 0 and found.err.count("warning: TensorBoard cannot write (") == 1
    assert result_in(tmp_path / "run").files[".state"] == wanted.files[".state"]


# inside


def tasks(folder, change):
    """The folder, with its tasks changed: change(t, x, y) gives x and y."""
    path = folder / "data" / "tiny.pt"
    halves = torch.load(path, weights_only=True)
    torch.save([[[name, *change(t, x, y)] for t, (name, x, y) in enumerate(half)] for half in halves], path)
    return folder


ODD = {
    "black images": lambda t, x, y: (x * 0, y),
    "equal images": lambda t, x, y: (x[:1].repeat(len(x), 1), y),
    "white images": lambda t, x, y: (x * 0 + 1, y),
    "huge pixels": lambda t, x, y: (x * 1e4, y),
    "tiny pixels": lambda t, x, y: (x * 1e-40, y),
    "negative pixels": lambda t, x, y: (-x, y),
    "one class": lambda t, x, y: (x, y * 0),
    "a task with one class": lambda t, x, y: (x, y * 0 + 1 if t == 1 else y),
    "one example": lambda t, x, y: (x[:1].clone(), y[:1].clone()),
    "a task with one example": lambda t, x, y: (x[:1].clone(), y[:1].clone()) if t == 1 else (x, y),
    "one input": lambda t, x, y: (x[:, :1].clone(), y),
    "far classes": lambda t, x, y: (x, y + 1000 * t),
}


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.torture)])
@pytest.mark.parametrize("way", [NATIVE, REFERENCE], ids="-".join)
@pytest.mark.parametrize("oddity", ODD)
def test_odd_tasks(oddity, way, every, go, tmp_path):
    """Every learner, or every third, comes to a sensible end: numbers in range, or a divergence that is said."""
    folder = tasks(place(tmp_path / "run"), ODD[oddity])
    for name in learners()[list(ODD).index(oddity) % every :: every]:
        found = go(folder, *words_of(name, way, "--save_path", f"{name}/"))
        (described,) = folder.glob(f"{name}/*.json")
        about = json.loads(described.read_text())
        if about["status"] == "complete":
            assert found.code == 0 and 0 <= about["stats"]["RA"] <= 1 and -1 <= about["stats"]["BTI"] <= 1
        else:
            assert oddity == "huge pixels" and found.code == 1 and f"error: {name} diverged: " in found.err


@pytest.mark.parametrize("way", [NATIVE, REFERENCE], ids="-".join)
def test_memories_larger_than_the_stream(way, go, tmp_path):
    """And steps, batches and draws: sizes that would not fit into memory, of which no more is used than there is."""
    folder = place(tmp_path / "run")
    before = provenance.peak_memory()
    for name in learners():
        more = (
            "--memories",
            2**31 - 1,
            "--n_memories",
            2**31 - 1,
            "--replay_batch_size",
            2**31 - 1,
            "--batch_size",
            10**9,
        )
        found = go(folder, *words_of(name, way), *more)
        assert found.code == 0, found.err
    assert provenance.peak_memory() - before < 100e6


@pytest.mark.parametrize("way", [NATIVE, REFERENCE], ids="-".join)
def test_exploding_learning_rates(way, go, tmp_path):
    folder = place(tmp_path / "run")
    for name in learners():
        for lr in ("1e3", "1e10", "1e38"):
            found = go(folder, *words_of(name, way, "--lr", lr, "--save_path", f"{name}{lr}/"))
            (described,) = folder.glob(f"{name}{lr}/*.json")
            about = json.loads(described.read_text())
            assert found.code == (about["status"] != "complete")
            assert ("error: " in found.err) == (found.code == 1) == (f"{name} diverged: " in found.err)


@pytest.mark.parametrize("half", ["training", "test"])
def test_a_task_without_examples(half, go, tmp_path):
    def empty(t, x, y):
        return (x[:0].clone(), y[:0].clone()) if t == 1 and (len(x) == 8) == (half == "training") else (x, y)

    found = go(tasks(place(tmp_path / "run"), empty), *WORDS)
    assert found.code == 2 and f"error: tiny.pt: the {half} examples of task 1 are none" in found.err


@pytest.mark.parametrize("way", [NATIVE, REFERENCE], ids="-".join)
def test_gem_with_dependent_gradients(way, go, tmp_path):
    """All tasks have the same example, with labels that contradict each other."""
    folder = place(tmp_path / "run", n_tasks=6)
    tasks(folder, lambda t, x, y: (x * 0 + torch.linspace(0, 1, 12), y * 0 + t % 2))
    for strength in (0, 0.5):
        words = words_of("gem", way, "--memory_strength", strength, "--n_layers", 0, "--save_path", f"{strength}/")
        assert go(folder, *words).code == 0
        (described,) = folder.glob(f"{strength}/*.json")
        about = json.loads(described.read_text())
        assert about["status"] == "complete" and about["notes"]["qp_repairs"] > 0


@pytest.mark.parametrize(
    "words,text",
    [
        (("--n_hiddens", 10**6), "weights; 268,435,456 are the most: use smaller --n_hiddens"),
        (("--n_hiddens", 2**31), "2147483648 is too large: it must be 2147483647 or less"),
        (("--n_layers", 10**6), "1000000 is too large"),
        (("--n_epochs", 2**31 - 1), "examples; 268,435,456 can be streamed"),
        (("--threads", 10**5), "100000 is too large"),
        (("--lr", "1e39"), "1e+39 is too large: it must be 3e+38 or less"),
    ],
)
def test_sizes_beyond_reason(words, text, go, tmp_path):
    for name in ("taskinput", "meralg1"):
        found = go(place(tmp_path / name), *words_of(name, NATIVE), *words)
        assert found.code == 2 and text in found.err and not list((tmp_path / name).glob("results/*"))
