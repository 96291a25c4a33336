"""get_data.py: fetching from a server that misbehaves, archives from strangers, CIFAR-100, generating."""

import contextlib
import gzip
import hashlib
import io
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from data_helpers import Site, equal, own_tasks, python2_pickle, serving, special_member, targz

import get_data
from tasks import archives
from tasks.files import build, load_tasks, read

GOOD = bytes(range(256)) * 800  # 204,800 bytes of a "task file"


def random_bytes(n, seed=0):
    return np.random.default_rng(seed).bytes(n)


CONTENT = random_bytes(300_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pauses between attempts, and archives that are small."""
    monkeypatch.setattr(archives, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(archives, "BLOCK_BYTES", 10_000)
    for name, archive in get_data.ARCHIVES.items():
        monkeypatch.setitem(get_data.ARCHIVES, name, replace(archive, unpacked=1_000_000))


@pytest.fixture
def site():
    """A server of an archive as the authors'. (the file in it is random: what is fetched is not looked into)"""
    return Site(targz(("./mnist_rotations.pt", CONTENT)))


@pytest.fixture
def fetch(site, tmp_path, capsys):
    """fetch(*words): get_data.py's exit code and what it says, fetching rotations from the site into tmp_path."""

    def run(*words, name="rotations"):
        with serving(site) as url:
            code = get_data.main([name, "--data_path", str(tmp_path), "--url", url, *words])
        out, err = capsys.readouterr()
        return code, out + err

    return run


def starts(site):
    """The first bytes asked for, request by request."""
    return [int(headers.get("Range", "bytes=0-")[6:-1]) for headers in site.requests]


# fetching


def test_fetching(fetch, site, tmp_path):
    code, said = fetch()
    assert code == 0 and said == f"{tmp_path / 'mnist_rotations.pt'}: 300,000 bytes\n"
    assert (tmp_path / "mnist_rotations.pt").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["mnist_rotations.pt"]
    assert site.requests[0]["Accept-Encoding"] == "identity"
    code, said = fetch()
    assert code == 0 and "is there already; delete it" in said and len(site.requests) == 1


def test_a_broken_connection_is_taken_up_again(fetch, site, tmp_path):
    site.breaks = [100_000, 50_000]
    code, said = fetch()
    assert code == 0 and starts(site) == [0, 100_000, 150_000]
    assert (tmp_path / "mnist_rotations.pt").read_bytes() == CONTENT


def test_what_is_kept_when_it_breaks_for_good(fetch, site, tmp_path):
    site.breaks = [100_000, 0, 0, 0]
    code, said = fetch()
    assert code == 1 and "mnist_rotations.tar.gz.part is kept, the same command goes on from there" in said
    assert "main.py needs no file for it" in said and "get_data.py rotations --generate" in said
    assert (tmp_path / "mnist_rotations.tar.gz.part").read_bytes() == site.content[:100_000]
    site.requests.clear()
    assert fetch()[0] == 0 and starts(site) == [0]  # from another port, which is another address: it begins anew


@pytest.fixture
def begun(site, tmp_path):
    """begun(n): the address of a server, with the first n bytes of the archive fetched from it."""
    with serving(site) as url:

        def begin(n):
            site.breaks = [n] + [0] * (archives.ATTEMPTS - 1)
            assert get_data.main(["rotations", "--data_path", str(tmp_path), "--url", url]) == 1
            site.requests.clear()
            return ["rotations", "--data_path", str(tmp_path), "--url", url]

        yield begin


@pytest.mark.parametrize("etag", ['"one"', 'W/"weak"', None])
def test_resuming(begun, site, tmp_path, etag):
    site.etag = etag
    words = begun(120_000)
    assert get_data.main(words) == 0
    assert starts(site) == [120_000]
    assert site.requests[0]["If-Range"] == ('"one"' if etag == '"one"' else None)
    assert (tmp_path / "mnist_rotations.pt").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["mnist_rotations.pt"]


def test_resuming_what_is_complete(begun, site, tmp_path):
    words = begun(len(site.content) - 1)
    with open(tmp_path / "mnist_rotations.tar.gz.part", "ab") as part:
        part.write(site.content[-1:])
    assert get_data.main(words) == 0
    assert (tmp_path / "mnist_rotations.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ['"two"', None])
@pytest.mark.parametrize("size", [100_000, 300_000, 500_000])
def test_a_file_that_changed_meanwhile_is_fetched_anew(begun, site, tmp_path, etag, size):
    site.etag = etag and '"one"'
    words = begun(120_000)
    site.etag, new = etag, random_bytes(size, seed=1)
    site.content = targz(("mnist_rotations.pt", new))
    assert get_data.main(words) == 0
    assert (tmp_path / "mnist_rotations.pt").read_bytes() == new


def test_a_server_without_ranges(begun, site, tmp_path):
    words = begun(120_000)
    site.ranges = False
    assert get_data.main(words) == 0
    assert starts(site) == [120_000] and (tmp_path / "mnist_rotations.pt").read_bytes() == CONTENT


def test_a_part_without_its_description_is_not_trusted(begun, site, tmp_path):
    words = begun(120_000)
    for text in ("", "[]", '{"url": 1}'):
        (tmp_path / "mnist_rotations.tar.gz.about.part").write_text(text)
    assert get_data.main(words) == 0 and starts(site) == [0]


def test_no_length_is_fine(fetch, site, tmp_path):
    site.length = ""
    assert fetch()[0] == 0
    assert (tmp_path / "mnist_rotations.pt").read_bytes() == CONTENT


def test_a_length_that_is_never_reached(fetch, site, tmp_path):
    site.length = len(site.content) + 1000
    site.ranges = False
    code, said = fetch()
    assert code == 1 and "trying again" in said and "error: http" in said
    assert not (tmp_path / "mnist_rotations.pt").exists()


def test_a_truncated_archive_without_a_length(fetch, site, tmp_path):
    site.content, site.length = site.content[:200_000], ""
    code, said = fetch()
    assert code == 1 and "mnist_rotations.tar.gz is damaged" in said
    assert os.listdir(tmp_path) == []


def test_a_length_that_cannot_be(fetch, site, tmp_path):
    site.length = 1 << 50
    code, said = fetch()
    assert code == 1 and "more than the 1,500,000 that it can have" in said and os.listdir(tmp_path) == []


def test_an_endless_answer(fetch, site):
    site.content, site.length = bytes(2_000_000), ""
    code, said = fetch()
    assert code == 1 and "longer than the server says, or than it can be" in said


@pytest.mark.parametrize("status, requests", [(404, 1), (403, 1), (503, 4), (429, 4)])
def test_what_a_server_refuses(fetch, site, tmp_path, status, requests):
    site.status = status
    code, said = fetch()
    assert code == 1 and f"the server answers {status}" in said and len(site.requests) == requests
    assert "main.py needs no file for it" in said and os.listdir(tmp_path) == []


def test_no_server(tmp_path, capsys):
    with serving(Site(b"")) as url:
        pass
    assert get_data.main(["rotations", "--data_path", str(tmp_path), "--url", url]) == 1
    assert "the connection failed (ConnectionError)" in capsys.readouterr().err
    assert get_data.main(["rotations", "--data_path", str(tmp_path), "--url", "nonsense"]) == 2
    assert "nonsense/mnist_rotations.tar.gz cannot be fetched" in capsys.readouterr().err


def test_all_goes_on_after_a_failure(fetch, site, tmp_path):
    site.content = targz(("mnist_permutations.pt", CONTENT))
    code, said = fetch(name="all")
    assert code == 1 and os.listdir(tmp_path) == ["mnist_permutations.pt"]
    assert "it does not hold mnist_rotations.pt" in said and "it does not hold mnist_manypermutations.pt" in said
    assert "cifar-100-python.tar.gz is damaged, or another file: its MD5 is" in said


def test_an_archive_that_is_there_is_not_fetched(fetch, site, tmp_path):
    (tmp_path / "mnist_rotations.tar.gz").write_bytes(site.content)
    assert fetch()[0] == 0 and not site.requests
    (tmp_path / "mnist_rotations.pt").unlink()
    (tmp_path / "mnist_rotations.tar.gz").write_bytes(b"the user's")
    code, said = fetch()
    assert code == 1 and "mnist_rotations.tar.gz is damaged" in said
    assert os.listdir(tmp_path) == ["mnist_rotations.tar.gz"]


# the disk, Ctrl-C


class Full:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.room -= self.file.write(data[: self.room])
        if self.room <= 0:
            raise OSError(28, "No space left on device")


def test_a_disk_that_fills_up_while_fetching(begun, site, tmp_path, monkeypatch, capsys):
    words = begun(50_000)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "open", lambda *args: Full(open(*args), 70_000), raising=False)
        assert get_data.main(words) == 1
    said = capsys.readouterr().err
    assert "tar.gz.part (No space left on device); make room: the same command goes on from there" in said
    site.requests.clear()
    assert get_data.main(words) == 0 and starts(site) == [120_000]
    assert (tmp_path / "mnist_rotations.pt").read_bytes() == CONTENT


def test_a_disk_that_fills_up_while_unpacking(fetch, tmp_path, monkeypatch, site):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archives.shutil, "copyfileobj", full)
        code, said = fetch()
    assert code == 1 and "No space left on device; what has been fetched is kept" in said
    assert os.listdir(tmp_path) == ["mnist_rotations.tar.gz"]
    assert fetch()[0] == 0 and len(site.requests) == 1


def test_a_disk_that_is_too_small(fetch, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1_200_000}))
    code, said = fetch()
    assert code == 2 and "error: http" in said and "the disk of" in said and "make room or take another folder" in said
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert get_data.main(["rotations", "--data_path", str(tmp_path / "file" / "data")]) == 1
    assert capsys.readouterr().err.startswith("error: [Errno 20] Not a directory")


def test_ctrl_c(begun, site, tmp_path, monkeypatch, capsys):
    class Impatient(contextlib.nullcontext):
        """A progress bar whose user stops at 200,000 bytes."""

        def __init__(self, initial, **_):
            super().__init__()
            self.n = initial

        def update(self, n):
            self.n += n
            if self.n > 200_000:
                raise KeyboardInterrupt

    words = begun(50_000)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "tqdm", Impatient)
        assert get_data.main(words) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert (tmp_path / "mnist_rotations.tar.gz.part").stat().st_size > 200_000
    assert get_data.main(words) == 0


# archives


def sparse_member():
    """A tar whose only member is a sparse file of a terabyte (PAX format 1.0)."""
    info = tarfile.TarInfo("GNUSparseFile.0/mnist_rotations.pt")
    info.size = 512
    names = {"major": "1", "minor": "0", "name": "mnist_rotations.pt", "realsize": str(1 << 40)}
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in names.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"1\n0\n0\n".ljust(512, b"\0")))
    return buffer.getvalue()


def header_bomb(kind=b"x", size=100_000_000):
    """A tar whose first header says that it is followed by a long header, which is there."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(size), 1)


PT = "mnist_rotations.pt"


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: targz(("../mnist_rotations.pt", GOOD)),
            r"the path '\.\./mnist_rotations\.pt' leads out of its folder",
        ),
        (lambda: targz(("a/../../mnist_rotations.pt", GOOD)), "leads out"),
        (lambda: targz((f"/tmp/{PT}", GOOD)), "leads out"),
        (lambda: targz((f"..\\{PT}", GOOD)), "leads out"),
        (lambda: targz((PT, GOOD), ("../other", b"")), "leads out"),
        (lambda: targz(special_member(PT, tarfile.SYMTYPE, "/etc/passwd")), "'mnist_rotations.pt' is no plain file"),
        (lambda: targz(special_member(PT, tarfile.LNKTYPE, "/etc/passwd")), "is no plain file"),
        (lambda: targz((PT, GOOD), special_member("x", tarfile.SYMTYPE, "..")), "'x' is no plain file"),
        (lambda: targz(special_member(PT, tarfile.CHRTYPE)), "is no plain file"),
        (lambda: targz(special_member(PT, tarfile.FIFOTYPE)), "is no plain file"),
        (sparse_member, "is no plain file|far more than it should"),
        (lambda: targz(special_member("a", tarfile.DIRTYPE)), "does not hold mnist_rotations.pt"),
        (lambda: targz(("a/other.pt", GOOD)), "does not hold mnist_rotations.pt"),
        (lambda: targz((PT, bytes(2_000_000))), "unpacks to far more than it should"),
        (lambda: targz(("other", bytes(1_400_000)), (PT, GOOD)), "unpacks to far more than it should"),
        (lambda: targz(*[(f"{i}", b"") for i in range(2000)]), "unpacks to far more than it should"),
        (header_bomb, "unpacks to far more than it should"),
        (lambda: header_bomb(b"L"), "unpacks to far more than it should"),
        (lambda: targz((PT, GOOD))[:-4] + b"\0\0\0\0", "damaged"),
        (lambda: targz((PT, GOOD))[:-200], "damaged"),
        (lambda: targz((PT, GOOD)) + b"junk", "damaged"),
        (lambda: gzip.compress(gzip.decompress(targz((PT, GOOD))) + bytes(3_000_000)), "far more than it should"),
        (lambda: gzip.compress(gzip.decompress(targz((PT, GOOD)))[:100_000]), "damaged"),
        (lambda: gzip.compress(b"no tar" * 1000), "damaged"),
        (lambda: b"no gzip", "damaged"),
        (lambda: b"", "damaged|does not hold"),
    ],
)
def test_archives_from_strangers(tmp_path, make, message):
    (tmp_path / "archive").write_bytes(make())
    with pytest.raises(archives.Failed, match=message):
        archives.extract(tmp_path / "archive", {PT: io.BytesIO()}, 1_500_000)
    assert os.listdir(tmp_path) == ["archive"]


def test_a_bad_archive_leaves_nothing(fetch, site, tmp_path):
    site.content = targz((PT, GOOD), ("../evil", b"x"))
    code, said = fetch()
    assert code == 1 and "is refused: the path '../evil' leads out of its folder" in said
    assert os.listdir(tmp_path) == [] and not (tmp_path.parent / "evil").exists()


def test_extract_takes_what_is_wanted(tmp_path):
    members = [("cifar/train", b"1" * 99_999), ("./cifar/meta", GOOD), special_member("cifar", tarfile.DIRTYPE)]
    (tmp_path / "archive").write_bytes(targz(*members, ("cifar/test", b"2")))
    wanted = {"train": io.BytesIO(), "test": io.BytesIO()}
    archives.extract(tmp_path / "archive", wanted, 1_500_000)
    assert [file.getvalue() for file in wanted.values()] == [b"1" * 99_999, b"2"]


# CIFAR-100 and CIFAR-10

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def cifar(n, seed):
    """(images, labels): n images of each class, in disorder."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (100 * n, 3072), dtype=np.uint8), random.permutation(np.arange(100 * n) % 100)


@pytest.fixture
def cifar_site(site, monkeypatch):
    halves = {"train": cifar(2, 0), "test": cifar(1, 1)}
    members = [(f"cifar-100-python/{half}", python2_pickle(*pair)) for half, pair in halves.items()]
    site.content = targz(("cifar-100-python/meta", b"..."), *members)
    md5 = hashlib.md5(site.content).hexdigest()
    archive = replace(get_data.ARCHIVES["cifar100"], md5=md5)
    monkeypatch.setitem(get_data.ARCHIVES, "cifar100", archive)
    return halves


@pytest.mark.parametrize("words, name", [((), "cifar100.npz"), (("--format", "original"), "cifar100.pt")])
def test_cifar(cifar_site, fetch, tmp_path, words, name):
    code, _ = fetch(*words, name="cifar100")
    assert code == 0 and os.listdir(tmp_path) == [name]
    tasks = load_tasks(tmp_path, "cifar100.pt")
    assert (tasks.n_inputs, tasks.n_outputs, tasks.image_shape) == (3072, 100, (3, 32, 32))
    assert tasks.class_ranges == [(5 * t, 5 * t + 5) for t in range(20)]
    for half, (images, labels) in cifar_site.items():
        for t, task in enumerate(tasks.tasks):
            split = getattr(task, half)
            of_task = [i for i, label in enumerate(labels) if label // 5 == t]
            assert split.labels.tolist() == labels[of_task].tolist()
            assert np.array_equal(split.inputs().numpy(), images[of_task] / np.float32(255))


@pytest.mark.parametrize(
    "content, message",
    [
        (python2_pickle(cifar(1, 0)[0][:, :3000], cifar(1, 0)[1]), r"uint8 \(100, 3000\) with 100 labels"),
        (python2_pickle(cifar(1, 0)[0], np.zeros(100, dtype=int)), "its labels are not 0 to 99"),
        (python2_pickle(cifar(1, 0)[0], np.arange(100) + 1), "its labels are not 0 to 99"),
        (python2_pickle(*cifar(1, 0))[:5000], "no CIFAR|not CIFAR"),
        (b"cos\nsystem\n(S'touch executed'\ntR.", "it carries os.system, which is not run"),
        (b"cbuiltins\nexec\n(S'1'\ntR.", "it carries builtins.exec"),
        (b"}.", "not CIFAR-100"),
        (b"", "not CIFAR-100"),
    ],
)
def test_what_is_not_cifar(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(archives.Failed, match=message):
        get_data.read_cifar(io.BytesIO(content))
    assert os.listdir(tmp_path) == []


def test_cifar10(fetch, site, monkeypatch, tmp_path):
    """Five files of training images, one after another; 5 tasks of 2 classes."""
    random = np.random.default_rng(3)
    files = {
        name: (random.integers(0, 256, (20, 3072), dtype=np.uint8), random.permutation(20) % 10) for name in BATCHES
    }
    members = [(f"cifar-10-batches-py/{name}", python2_pickle(*pair, b"labels")) for name, pair in files.items()]
    site.content = targz(*members)
    archive = replace(get_data.ARCHIVES["cifar10"], md5=hashlib.md5(site.content).hexdigest())
    monkeypatch.setitem(get_data.ARCHIVES, "cifar10", archive)
    code, said = fetch(name="cifar10")
    assert code == 0 and os.listdir(tmp_path) == ["cifar10.npz"], said
    tasks = load_tasks(tmp_path, "cifar10.pt")
    assert (tasks.image_shape, tasks.class_ranges) == ((3, 32, 32), [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)])
    train = [np.concatenate(parts) for parts in zip(*list(files.values())[:5], strict=True)]
    for half, (images, labels) in {"train": train, "test": files["test_batch"]}.items():
        for t, task in enumerate(tasks.tasks):
            mine = labels // 2 == t
            assert getattr(task, half).labels.tolist() == labels[mine].tolist() and mine.any()
            assert np.array_equal(getattr(task, half).images, images[mine])


def test_another_archive_is_not_cifar(cifar_site, fetch, site, tmp_path):
    site.content += b"x"
    code, said = fetch(name="cifar100")
    assert code == 1 and "its MD5 is" in said and "from a mirror (--url)" in said
    assert os.listdir(tmp_path) == []


# generating


def test_generating(tmp_path, capsys):
    words = ["rotations", "--generate", "--data_path", str(tmp_path / "new")]
    assert get_data.main([*words, "--n_tasks", "3", "--min_angle", "10", "--max_angle", "40", "--seed", "7"]) == 0
    path = tmp_path / "new" / "mnist_rotations.npz"
    assert capsys.readouterr().out == f"{path}: {path.stat().st_size:,} bytes\n"
    tasks = load_tasks(tmp_path / "new", "mnist_rotations.pt")
    assert tasks.identity == build("mnist_rotations", 3, 10, 40, seed=7).identity
    assert [int(task.descriptor // 10) for task in tasks.tasks] == [1, 2, 3]


def test_generating_all(tmp_path):
    assert get_data.main(["all", "--generate", "--data_path", str(tmp_path)]) == 0
    sizes = {name: len(read(tmp_path / name).tasks) for name in os.listdir(tmp_path)}
    few = {"mnist_rotations.npz": 20, "mnist_permutations.npz": 20, "mnist_split.npz": 5}
    assert sizes == few | {"mnist_manypermutations.npz": 100}


def test_generating_the_originals_format(tmp_path, monkeypatch, capsys):
    few = own_tasks()
    monkeypatch.setattr(get_data.files, "build", lambda kind, **options: few)
    words = ["permutations", "--generate", "--data_path", str(tmp_path)]
    assert get_data.main([*words, "--format", "original"]) == 0
    assert equal(load_tasks(tmp_path, "mnist_permutations.pt"), few)
    assert get_data.main(words) == 0
    assert "mnist_permutations.pt is there too" in capsys.readouterr().out


@pytest.mark.parametrize("form, ending", [("compact", ".npz"), ("original", ".pt")])
def test_generating_replaces_nothing_that_may_be_somebodys(form, ending, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(get_data.files, "build", lambda kind, **options: own_tasks())
    path = tmp_path / f"mnist_permutations{ending}"
    path.write_bytes(b"fetched, or my own")
    words = ["permutations", "--generate", "--data_path", str(tmp_path), "--format", form]
    assert get_data.main(words) == 2 and "is there already" in capsys.readouterr().err
    assert path.read_bytes() == b"fetched, or my own"


@pytest.mark.parametrize(
    "words, message",
    [
        (["rotations", "--generate", "--n_tasks", "0"], "0 tasks cannot be built"),
        (["rotations", "--generate", "--max_angle", "nan"], "angles from 0.0 to nan"),
        (["cifar100", "--generate"], "cifar100 cannot be generated; fetch it"),
        (["rotations", "--seed", "1"], "--seed goes with --generate"),
        (["digits"], "invalid choice: 'digits'"),
        ([], "arguments are required: name"),
    ],
)
def test_bad_words(tmp_path, capsys, words, message):
    try:
        code = get_data.main([*words, "--data_path", str(tmp_path)])
    except SystemExit as exit:
        code = exit.code
    assert code == 2 and message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
