"""Command lines and files from strangers: a clear error or a sensible run, within bounds; nothing executed."""

import argparse
import gzip
import io
import os
import pickle
import random
import shutil
import struct
import zipfile

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as some
from runs import DATA, WAYS, in_child, main_in, place, result_in, words_of

import main
import model
from disk import safe
from report.read import read_results
from run import checkpoints, settings
from run.flags import RUN_FLAGS
from tasks.files import load_tasks, write_compact

NATIVE, REFERENCE = WAYS[0], WAYS[2]


def quick_or_torture(quick, torture):
    """The same test twice: a sample of the cases, and all of them in `make torture`."""
    return pytest.mark.parametrize("n", [quick, pytest.param(torture, marks=pytest.mark.torture)])


# command lines

NUMBERS = some.one_of(
    some.integers(-3, 12),
    some.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, 10**30, "9" * 5000, -(2**63)]),
    some.floats(width=64),
    some.sampled_from(["1e400", "0x10", "1_0", "٣", "²", "+5", " 7", "", "1e-400", "nan", "20.0", "1,5", "½"]),
)
TEXTS = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=12)
YES_NO = some.sampled_from(["yes", "no", "yes", "no", "Yes", "true", "1", ""])
FILES = some.sampled_from(
    ["tiny.pt", "more.pt", "tiny.npz", "junk.pt", "nowhere.pt", "a/tiny.pt", "", ".", "..", "x" * 300]
)
SPECIAL = {
    # what is large and valid of these is only long
    "n_epochs": some.sampled_from([1, 2, 3, 10**8, 2**40, 0, -1, "x"]),
    "batches_per_example": some.sampled_from([1, 2, "3.0", 2**31, 0, 1.5]),
    "n_hiddens": some.sampled_from([1, 2, 5, 6.0, 10**9, 2**33, 0, -1, "six"]),
    "n_layers": some.sampled_from([0, 1, 2, 3, 1001, -1, 1e9]),
    "threads": some.sampled_from([0, 1, 2, 1025, 2**40, -1]),
    "checkpoint_every": some.sampled_from(["1", "7", "1s", "never", "0", "s", "1m", "²", "-1", "9" * 30 + "s"]),
    "save_path": TEXTS.map("results/{}".format),
    "data_path": some.sampled_from(["data", "data/", "nowhere", "", "data/tiny.pt", "/dev/null", "x" * 5000]),
    "data_file": FILES,
    "resume": some.sampled_from(
        ["auto", "meralg1.checkpoint", "gem.checkpoint", "data/junk.pt", "", "data", "/dev/zero", "known.pt"]
    ),
    "start_from": some.sampled_from(["known.pt", "known.state", "known", "data/tiny.pt", "", "/", "nowhere.pt"]),
    "tensorboard": TEXTS.map("board/{}".format),
    "model": some.sampled_from(
        [*model.candidates(), *model.candidates(), "", "learner", "__init__", "../main", "single"]
    ),
    "engine": some.sampled_from(["native", "reference", "auto", "gpu"]),
    "draws": some.sampled_from(["uniform", "shuffle", "auto", ""]),
    "progress": some.sampled_from(["yes", "no", "auto", "maybe"]),
}


def a_flag(name, default):
    if name in SPECIAL:
        return SPECIAL[name]
    return YES_NO if isinstance(default, bool) else NUMBERS


def defaults():
    flags = [flag for flag, _ in settings.hyperparameters(model.load_all()).values()]
    return {flag.name: flag.default for flag in (*RUN_FLAGS, *flags)}


FLAGS = {name: a_flag(name, default) for name, default in defaults().items()}
ONE_FLAG = some.one_of([some.tuples(some.just(f"--{name}"), values.map(str)) for name, values in FLAGS.items()])
GARBAGE = some.sampled_from([("--help",), ("-h",), ("--lr",), ("--", "x"), ("--n_hidden", "5"), ("--seed=3",), ("x",)])
COMMAND_LINES = some.lists(
    some.one_of(ONE_FLAG, ONE_FLAG, ONE_FLAG, ONE_FLAG, TEXTS.map(lambda text: (text,)), GARBAGE), max_size=7
)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with tasks of three formats, a checkpoint and a finished run of each kind that the tests spoil."""
    folder = place(tmp_path_factory.mktemp("room"))
    data = folder / "data"
    write_compact(load_tasks(data, "tiny.pt"), data / "tiny.npz")
    tasks = torch.load(data / "tiny.pt", weights_only=True)
    torch.save([half[:2] for half in tasks], data / "more.pt")
    torch.save(tasks, data / "old.pt", _use_new_zipfile_serialization=False)
    (data / "junk.pt").write_bytes(random.Random(0).randbytes(500))
    found = in_child(main_in(folder, words_of("meralg1", NATIVE)))
    assert found.code == 0, found.text
    for path in folder.glob("results/*"):
        shutil.copy(path, folder / f"known{path.suffix}")
    for name, way in CHECKPOINTS.items():
        (folder / f"{name}.checkpoint").write_bytes(checkpoint_of(folder, words_of(name, way)))
    return folder


# of learners that keep different things
CHECKPOINTS = {"meralg1": NATIVE, "gem": WAYS[3], "ewc": NATIVE, "independent": REFERENCE, "taskinput": WAYS[1]}
CHECKPOINTS |= {"agem": WAYS[3], "der": NATIVE, "er_ace": NATIVE, "mir": REFERENCE}


def checkpoint_of(folder, words):
    """A checkpoint of a run, taken in its middle."""
    kept = folder / "kept.checkpoint"
    save = checkpoints.Journal.save_checkpoint

    def save_and_keep(self, *them):
        save(self, *them)
        shutil.copy(self.checkpoints[-1], kept)

    def run():
        checkpoints.Journal.save_checkpoint = save_and_keep
        return main_in(folder, [*words, "--checkpoint_every", 13, "--save_path", "results/"])()

    found = in_child(run)
    assert found.code == 0, found.text
    return kept.read_bytes()


@quick_or_torture(200, 2000)
def test_command_lines(n, room, tmp_path, monkeypatch, capsys):
    """0 with results, 1 with a divergence, 2 with an error: never a traceback."""
    folder = tmp_path / "run"
    shutil.copytree(room, folder, ignore=shutil.ignore_patterns("results"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr("run.provenance.commit", lambda: {"commit": None, "dirty": None})
    seen = {}

    @hypothesis.settings(
        max_examples=n,
        deadline=20_000,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(COMMAND_LINES, some.booleans())
    def check(flags, sensible):
        shutil.rmtree(folder / "results", ignore_errors=True)
        for path in room.glob("*.checkpoint"):  # a run that went on from it to its end has deleted it
            shutil.copy(path, folder)
        words = [*(words_of("online", NATIVE) if sensible else DATA), *(word for flag in flags for word in flag)]
        capsys.readouterr()
        try:
            code = main.main(words)
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        seen[code] = seen.get(code, 0) + 1
        new = len(list(folder.glob("results/**/*.json")))
        assert "Traceback" not in out + err
        if code == 0:
            assert new == 1 or "-h" in words or "--help" in words
        elif code == 1:
            assert "error: " in err and "diverged" in err and new == 1
        else:
            assert code == 2 and "error: " in err and not new and not out

    check()
    assert seen[0] > n / 20 and seen[2] > n / 5, seen


# files with random damage


def flip(chance, data, other):
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def truncate(chance, data, other):
    del data[chance.randrange(len(data)) :]


def splice(chance, data, other):
    length, start = chance.randint(1, 200), chance.randrange(len(other))
    data[chance.randrange(len(data)) :][:length] = b""
    place = chance.randrange(len(data))
    data[place : place + length * chance.randint(0, 1)] = other[start : start + length]


def blank(chance, data, other):
    place, length = chance.randrange(len(data)), chance.randint(1, 64)
    data[place : place + length] = chance.choice([b"\0", b"\xff"]) * len(data[place : place + length])


def enlarge(chance, data, other):
    """A number that says how many, or where, becomes another."""
    place = chance.randrange(max(1, len(data) - 8))
    data[place : place + 4] = struct.pack("<I", chance.choice([2**31 - 1, 2**31, 2**32 - 1, 10**6, 0]))


def append(chance, data, other):
    data += other[: chance.randrange(len(other))]


DAMAGES = (flip, truncate, splice, blank, enlarge, append)


MOST_MEMORY = 1 << 30  # more than this process has, for a file of a few kilobytes


def damaged(chance, whole, other):
    data = bytearray(whole)
    chance.choice(DAMAGES)(chance, data, other)
    return bytes(data)


def read_it(folder, words, spoiled):
    """Runs main.py on a spoiled file, in a child of its own; returns its exit code."""
    shutil.rmtree(folder / "results", ignore_errors=True)
    found = in_child(main_in(folder, words))
    assert found.peak < MOST_MEMORY, f"{spoiled}: {found.peak:,} bytes"
    assert found.code in (0, 1, 2) and "Traceback" not in found.text, f"{spoiled}: {found.code}\n{found.text}"
    if found.code:
        assert "error: " in found.text, found.text
    return found.code


KINDS = {
    "tiny.pt": ("--data_file", "tiny.pt"),
    "old.pt": ("--data_file", "old.pt"),
    "tiny.npz": ("--data_file", "tiny.npz"),
}


@quick_or_torture(10, 100)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_data(kind, n, room, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(room, folder)
    path, other = folder / "data" / kind, (room / "known.json").read_bytes()
    whole, codes = path.read_bytes(), []
    for i in range(n):
        path.write_bytes(damaged(random.Random(f"{kind} {i}"), whole, other))
        codes.append(read_it(folder, [*words_of("online", NATIVE), *KINDS[kind]], i))
    assert 2 in codes


def spoil_inside(chance, whole, other):
    """Damage within the gzip, whose checksum then says nothing."""
    return gzip.compress(damaged(chance, gzip.decompress(whole), other), compresslevel=1)


ODD_VALUES = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        2**100,
        -(2**70),
        0.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        "../x",
        [],
        {},
        (),
        [[]],
    ),
    *(
        torch.zeros(0),
        torch.zeros(1),
        torch.full((3, 2), float("nan")),
        torch.zeros(2, 2, dtype=torch.long),
        torch.tensor(7),
    ),
)


def leaves(content, path=()):
    """Paths to all values in nested dictionaries, lists and tuples."""
    yield path
    parts = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list | tuple)
        else ()
    )
    for key, value in parts:
        yield from leaves(value, (*path, key))


def replaced(content, path, value):
    if not path:
        return value
    key, *rest = path
    if isinstance(content, dict):
        return content | {key: replaced(content[key], rest, value)}
    parts = list(content)
    parts[key] = replaced(parts[key], rest, value)
    return type(content)(parts)


def spoil_a_value(chance, whole, other):
    """A well-formed file, one of whose values is of another kind, size or range, or missing."""
    content = torch.load(io.BytesIO(gzip.decompress(whole)), weights_only=True)
    paths = [path for path in leaves(content) if path and "random" not in path and "draws" not in path] + [
        ("experience", "random")
    ]
    path = chance.choice(
        [path for path in paths if path[0] in content and all(isinstance(key, str | int) for key in path)]
    )
    value = chance.choice(ODD_VALUES)
    try:
        return safe.dump(replaced(content, path, value))
    except KeyError:
        return safe.dump(content)


SPOILS = (damaged, spoil_inside, spoil_a_value)


@quick_or_torture(3, 60)
@pytest.mark.parametrize("spoil", SPOILS)
def test_damaged_checkpoints(spoil, n, room, tmp_path):
    """What is accepted although the checksum was spoiled ends as if whole: it was, but for what nobody reads."""
    folder = tmp_path / "run"
    shutil.copytree(room, folder)
    other, codes = (room / "data" / "tiny.npz").read_bytes(), []
    for name in CHECKPOINTS:
        path = f"{name}.checkpoint"
        whole = (room / path).read_bytes()
        assert read_it(folder, ["--resume", path], path) == 0 and not (folder / path).exists()
        wanted = result_in(folder).files
        for i in range(n):
            (folder / path).write_bytes(spoil(random.Random(f"{name} {i}"), whole, other))
            codes.append(read_it(folder, ["--resume", path], f"{path} {i}"))
            if spoil is damaged and codes[-1] == 0:
                assert result_in(folder).files == wanted, i
    assert codes.count(2) > len(codes) / 3


@quick_or_torture(10, 100)
@pytest.mark.parametrize("spoil", SPOILS)
def test_damaged_states(spoil, n, room, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(room, folder)
    path, other, codes = folder / "known.state", (room / "data" / "tiny.npz").read_bytes(), []
    whole, words = path.read_bytes(), words_of("meralg1", NATIVE, "--start_from", "known.pt")
    assert read_it(folder, words, "whole") == 0
    wanted = result_in(folder).files
    for i in range(n):
        path.write_bytes(spoil(random.Random(i), whole, other))
        codes.append(read_it(folder, words, i))
        if spoil is damaged and codes[-1] == 0:
            assert result_in(folder).files == wanted, i
    assert codes.count(2) > n / 3


@quick_or_torture(40, 400)
def test_damaged_results(n, room, tmp_path):
    """The report's reader: each file is a run or is skipped with a reason."""
    whole = {ending: (room / f"known{ending}").read_bytes() for ending in (".json", ".pt", ".txt")}
    stem = (
        next(room.glob("results/*.json")).stem
        if list(room.glob("results/*.json"))
        else "online_tiny.pt_2026_01_01_00_00_00_" + "0" * 32
    )
    for i in range(n):
        chance = random.Random(i)
        ending = chance.choice(list(whole))
        (tmp_path / f"{stem[:-4]}{i:04}{ending}").write_bytes(damaged(chance, whole[ending], whole[".pt"]))
    for i, content in enumerate(JUNK):
        (tmp_path / f"junk{i}.json").write_bytes(content)
        (tmp_path / f"junk{i}.pt").write_bytes(content)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "zero.pt").symlink_to("/dev/zero")

    def read():
        runs, skipped = read_results(tmp_path)
        print(len(runs), len(skipped))
        return 0

    found = in_child(read)
    assert found.code == 0, found.text
    runs, skipped = map(int, found.text.split()[-2:])
    assert runs + skipped >= n and skipped > n / 2


JUNK = (
    b"",
    b"\0" * 1000,
    b"[" * 100_000,
    b'{"format": "mer-result/1"}',
    b'{"format": "mer-result/1", "stats": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"format": "mer-result/1", "args": {}, "stats": {"RA": 1e999, "LA": NaN, "BTI": null, "FWT": []}}',
    b'{"format": "mer-result/1", "seed": ' + b"9" * 5000 + b"}",
    b"PK\x03\x04" + b"\0" * 100,
    pickle.dumps([1, 2]),
    gzip.compress(b"text"),
)


# files that were made to harm


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Call:
    """Calls any function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def saved(content, **more):
    file = io.BytesIO()
    torch.save(content, file, **more)
    return file.getvalue()


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def tasks_of(x, y):
    return [[["a", x, y]]] * 2


X, Y = torch.rand(4, 3), torch.zeros(4, dtype=torch.long)
# by name: a file that runs a command, or wants far more memory than it has bytes
BOMBS = {
    "code": lambda code: saved({"format": code}),
    "code, old": lambda code: saved({"format": code}, _use_new_zipfile_serialization=False),
    "code, bare": lambda code: pickle.dumps({"format": code}),
    "code, bare, 2": lambda code: pickle.dumps({"format": code}, protocol=2),
    "code, tasks": lambda code: saved([[[code, X, Y]], [[code, X, Y]]]),
    "code, npz": lambda code: npz(about=np.array([code], dtype=object)),
    "an array of bytes": lambda code: saved(tasks_of(Call(bytearray, 1 << 31), Y)),
    "an array of bytes, old": lambda code: saved(
        tasks_of(Call(bytearray, 1 << 31), Y), _use_new_zipfile_serialization=False
    ),
    "an empty tensor": lambda code: saved(tasks_of(Call(torch.FloatTensor, 1 << 38), Y)),
    "stretched": lambda code: saved(
        tasks_of(torch.zeros(1).expand(1 << 20, 1 << 20), torch.zeros(1).long().expand(1 << 20))
    ),
    "stretched result": lambda code: saved(
        (torch.zeros(1).expand(1 << 28), torch.zeros(1).expand(1 << 28, 2), {}, [], "", argparse.Namespace(seed=0))
    ),
    "many tasks": lambda code: saved([[["a", X, Y]] * 20_000] * 2),
    "zip": lambda code: zipped({"archive/data.pkl": bytes(1 << 28)}),
    "zip, npz": lambda code: zipped({"about.npy": bytes(1 << 28)}),
    "npz": lambda code: npz(about=np.zeros(1 << 28, dtype=np.uint8)),
    "gzip": lambda code: gzip.compress(bytes(1 << 26), compresslevel=9) * 30,
    "gzip of zip": lambda code: gzip.compress(
        zipped({f"archive/data{n}": bytes(1 << 26) for n in (".pkl", "/0", "/1", "/2")})
    ),
    "nested": lambda code: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name, room, tmp_path):
    """As data of both endings, as a checkpoint, a state (packed and bare), and among results."""
    folder, marker = tmp_path / "run", tmp_path / "was_run"
    shutil.copytree(room, folder)
    content = BOMBS[name](Command(f"touch {marker}"))
    words = words_of("online", NATIVE)
    for path, more in [
        ("data/bomb.pt", ["--data_file", "bomb.pt"]),
        ("data/bomb.npz", ["--data_file", "bomb.npz"]),
        ("bomb.checkpoint", ["--resume", "bomb.checkpoint"]),
        ("bomb.state", ["--start_from", "bomb.pt"]),
    ]:
        for data in [content] if path.startswith("data") else [content, gzip.compress(content, compresslevel=1)]:
            (folder / path).write_bytes(data)
            assert read_it(folder, [*words, *more], path) == 2
        (folder / path).unlink()
    reports = folder / "reports"
    reports.mkdir()
    for ending in (".pt", ".json", ".txt"):
        (reports / f"online_tiny.pt_2026_01_01_00_00_00_{'0' * 32}{ending}").write_bytes(content)
        found = in_child(lambda: len(read_results(reports)[0]))
        assert found.code == 0 and not found.text and found.peak < MOST_MEMORY, found.text
    assert not marker.exists()
