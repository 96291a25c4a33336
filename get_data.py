"""Fetches task files, or writes generated ones, or makes one of your arrays.

python get_data.py rotations               the authors' MNIST Rotations: fetched, verified, unpacked into data/ (4.4 GB)
python get_data.py rotations --generate    the like from the shipped MNIST (30 kB), with options
python get_data.py cifar100                CIFAR-100 as 20 tasks of 5 classes (160 MB); cifar10: 5 tasks of 2 (170 MB)
python get_data.py omniglot                Omniglot, one alphabet a task: 50 tasks (16 MB)
python get_data.py pack OUT.npz --train a.npz b.npz --test c.npz d.npz     your own, one pair of arrays (x, y) a task

main.py needs none of it for MNIST: where there is no file, it builds the tasks in memory.
"""

import argparse
import os
import pickle
import shlex
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tasks
from disk.atomic import writing
from disk.resources import check_room
from errors import UserError
from tasks import files, omniglot, pack, sources
from tasks.archives import Failed, download, extract, verify_md5
from tasks.compact_format import check_replaceable
from tasks.files import load_tasks
from tasks.taskset import IMAGE_SHAPE, Split, Task, TaskSet

__all__ = ["load_tasks", "fetch", "generate", "main"]

BYTES_PER_TASK = 70_000 * (784 * 4 + 8)  # of MNIST in the original's format
CIFAR = {"cifar100": (20, 100), "cifar10": (5, 10)}  # tasks, classes
GENERATED = tuple(kind.removeprefix("mnist_") for kind in files.N_TASKS)
FETCHED = tuple(name for name in GENERATED if files.N_TASKS[f"mnist_{name}"])


@dataclass(frozen=True)
class Archive:
    """A .tar.gz and what is wanted of it. unpacked: about the bytes that it holds; half as many again are refused."""

    base: str
    name: str
    members: tuple
    unpacked: int
    md5: str = None

    @property
    def most_bytes(self):
        return self.unpacked * 3 // 2


ARCHIVES = {
    name: Archive(
        base="https://nlp.stanford.edu/data/mer/",
        name=f"mnist_{name}.tar.gz",
        members=(f"mnist_{name}.pt",),
        unpacked=files.N_TASKS[f"mnist_{name}"] * BYTES_PER_TASK,
    )
    for name in FETCHED
} | {
    "cifar100": Archive(
        base="https://www.cs.toronto.edu/~kriz/",
        name="cifar-100-python.tar.gz",
        members=("train", "test"),
        unpacked=187_000_000,
        md5="eb9058c3a382ffc7106e4002c42a8d85",
    ),
    "cifar10": Archive(
        base="https://www.cs.toronto.edu/~kriz/",
        name="cifar-10-python.tar.gz",
        members=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
        unpacked=187_000_000,
        md5="c58f30108f718f92721af3b95e74349a",
    ),
}
OMNIGLOT = tuple(
    Archive("https://raw.githubusercontent.com/brendenlake/omniglot/master/python/", name, (), 12_000_000, md5)
    for name, md5 in (
        ("images_background.zip", "68d2efa1b9178cc56df9314c21c6e718"),
        ("images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811"),
    )
)
WRITERS = {"compact": (".npz", files.write_compact), "original": (".pt", files.write_original)}
DRAWINGS = {  # of omniglot.make_tasks
    "train_drawings": (int, "drawings of each character to train with (15)"),
    "test_drawings": (int, "to test with (5)"),
}
OPTIONS = {  # of files.build
    "n_tasks": (int, "number of tasks (20; manypermutations: 100; split: of two classes each)"),
    "min_angle": (float, "degrees, of rotations (0)"),
    "max_angle": (float, "degrees, of rotations (180)"),
    "seed": (int, "of angles and permutations (0)"),
    "mnist": (Path, "folder of four IDX files to generate them from, instead of the shipped MNIST"),
}


def fetch(name, folder, url=None, form="compact"):
    """Makes the task file of a name in ARCHIVES, fetching its archive unless that is in the folder; returns the path.

    url    the folder that has the archive, instead of its home
    form   of CIFAR's file; the others are the authors'

    Raises Failed, UserError, OSError; a part of the archive, or the archive, is then kept.
    """
    wanted, is_cifar = ARCHIVES[name], name in CIFAR
    path = folder / (f"{name}{WRITERS[form][0]}" if is_cifar else wanted.members[0])
    if path.exists():
        print(f"{path} is there already; delete it to have it made anew")
        return path
    archive = folder / wanted.name
    with _archives(folder, [wanted], url):
        if is_cifar:
            WRITERS[form][1](_unpack_cifar(name, archive, wanted), path)
        else:
            with writing(path) as file:
                extract(archive, {path.name: file}, wanted.most_bytes)
    return path


def fetch_omniglot(folder, url=None, form="compact", **drawings):
    """Makes omniglot.npz, as `fetch` makes other files. drawings: of omniglot.make_tasks."""
    path = folder / f"omniglot{WRITERS[form][0]}"
    if path.exists():
        print(f"{path} is there already; delete it to have it made anew")
        return path
    omniglot.check_drawings(**drawings)  # before megabytes are fetched
    with _archives(folder, OMNIGLOT, url):
        read = omniglot.read_archives([folder / wanted.name for wanted in OMNIGLOT])
        WRITERS[form][1](omniglot.make_tasks(read, "omniglot", "Omniglot", **drawings), path)
    return path


@contextmanager
def _archives(folder, archives, url):
    """Within it the verified archives are in the folder, fetched unless they were; after it they are gone.

    One that is bad is deleted if it was fetched; else that is for the user to do.
    """
    fetched = []
    for wanted in archives:
        archive = folder / wanted.name
        if not archive.exists():
            download((url or wanted.base).rstrip("/") + f"/{wanted.name}", archive, wanted.most_bytes, wanted.unpacked)
            fetched.append(archive)
        check_room(folder, wanted.unpacked, f"{archive}, unpacked,")
    try:
        for wanted in archives:
            if wanted.md5:
                verify_md5(folder / wanted.name, wanted.md5)
        yield
    except Failed:
        for archive in fetched:
            archive.unlink()
        raise
    for wanted in archives:
        (folder / wanted.name).unlink()


def _unpack_cifar(name, archive, wanted):
    with ExitStack() as stack:
        opened = {m: stack.enter_context(tempfile.TemporaryFile(dir=archive.parent)) for m in wanted.members}
        extract(archive, opened, wanted.most_bytes)
        *train, test = (read_cifar(file, name) for file in opened.values())
        return cifar_tasks(tuple(map(np.concatenate, zip(*train, strict=True))), test, name)


class _PlainUnpickler(pickle.Unpickler):
    """Loads numpy arrays and plain values, and nothing that could run code."""

    allowed = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it carries {module}.{name}, which is not run")
        return self.allowed[module, name]


def read_cifar(file, name="cifar100"):
    """(images, labels) of a file of CIFAR: uint8 (N, 3072), int64 (N,) the labels, fine ones. Raises Failed."""
    (_, n_classes), title = CIFAR[name], _title(name)
    file.seek(0)
    try:
        content = _PlainUnpickler(file, encoding="bytes").load()
        key = b"fine_labels" if name == "cifar100" else b"labels"
        images, labels = content[b"data"], np.array(content[key], dtype=np.int64)
        if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
            raise ValueError(f"{images.dtype} {images.shape} with {len(labels)} labels")
        if set(labels.tolist()) != set(range(n_classes)):
            raise ValueError(f"its labels are not 0 to {n_classes - 1}")
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, MemoryError) as error:
        raise Failed(f"what the archive holds is not {title}: {error}") from error
    return images, labels


def cifar_tasks(train, test, name="cifar100"):
    """The TaskSet of equally many classes for each task, in order: 20 times 5 (GEM's protocol), or 5 times 2.

    train, test: (images, labels). A task's examples are in the order of CIFAR's files.
    """
    n_tasks, n_classes = CIFAR[name]
    per_task = n_classes // n_tasks
    ranges = [(start, start + per_task) for start in range(0, n_classes, per_task)]
    halves = []
    for images, labels in (train, test):
        rows = [np.flatnonzero((start <= labels) & (labels < stop)) for start, stop in ranges]
        halves.append([Split(images[of_task], labels[of_task]) for of_task in rows])
    names = [f"classes {start} to {stop - 1}" for start, stop in ranges]
    tasks = [Task(*parts) for parts in zip(names, *halves, strict=True)]
    return TaskSet(tasks, name, _title(name), IMAGE_SHAPE, ranges)


def _title(name):
    return name.upper().replace("CIFAR", "CIFAR-")


def generate(name, folder, form, **options):
    """Writes the task file of a name in ARCHIVES from the shipped MNIST; returns its path. options: of files.build."""
    if name not in GENERATED:
        raise UserError(f"{name} cannot be generated; fetch it: python get_data.py {name}")
    ending, write = WRITERS[form]
    if "mnist" in options:
        options["mnist_path"] = options.pop("mnist")
    path = folder / f"mnist_{name}{ending}"
    check_replaceable(path)
    write(files.build(f"mnist_{name}", **options), path)
    other = path.with_suffix(".pt")
    if other != path and other.exists():
        print(f"note: {other} is there too, and is what --data_file {other.name} means; say --data_file {path.name}")
    return path


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(*dict.fromkeys((*ARCHIVES, *GENERATED)), "omniglot", "all"))
    parser.add_argument("--data_path", type=Path, default=Path("data"), help="folder to write to (data/)")
    parser.add_argument("--url", help="address of a folder that has the archive, instead of its home")
    parser.add_argument("--generate", action="store_true", help="write the tasks from the shipped MNIST, fetch nothing")
    parser.add_argument("--format", choices=tuple(WRITERS), default="compact", help="of generated files and CIFAR's")
    group = parser.add_argument_group("with --generate")
    for flag, (kind, text) in OPTIONS.items():
        group.add_argument(f"--{flag}", type=kind, default=argparse.SUPPRESS, help=text)
    group = parser.add_argument_group("with omniglot")
    for flag, (kind, text) in DRAWINGS.items():
        group.add_argument(f"--{flag}", type=kind, default=argparse.SUPPRESS, help=text)
    args = parser.parse_args(arguments)
    args.options = {flag: value for flag, value in vars(args).items() if flag in OPTIONS}
    args.drawings = {flag: value for flag, value in vars(args).items() if flag in DRAWINGS}
    if args.drawings and args.name != "omniglot":
        parser.error(f"--{min(args.drawings)} goes with omniglot")
    args.generate |= args.name in GENERATED and args.name not in ARCHIVES  # nobody has it to fetch
    if args.options and not args.generate:
        parser.error(f"--{min(args.options)} goes with --generate: what is fetched is as it is")
    return args


def run(args, name):
    """One task file; returns 0, or 1 where it could not be fetched."""
    try:
        if name == "omniglot" and not args.generate:
            path = fetch_omniglot(args.data_path, args.url, args.format, **args.drawings)
        elif args.generate:
            path = generate(name, args.data_path, args.format, **args.options)
        else:
            path = fetch(name, args.data_path, args.url, args.format)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        if name in GENERATED:
            print(f"main.py needs no file for it; or write one: python get_data.py {name} --generate", file=sys.stderr)
        else:
            print("try again later, or from a mirror (--url)", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def parse_pack(words):
    parser = argparse.ArgumentParser(
        prog="get_data.py pack",
        description="Makes a task file of arrays that NumPy or PyTorch saved. " + sources.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="the task file, OUT.npz")
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="files of the tasks, in their order")
    parser.add_argument("--test", type=Path, nargs="+", help="the same to test on; not for files that hold both")
    parser.add_argument("--image_shape", type=int, nargs=3, metavar=("C", "H", "W"), help="for networks on images")
    parser.add_argument(
        "--class_ranges",
        type=_class_range,
        nargs="+",
        metavar="START:STOP",
        help="labels START to STOP - 1 of each task; or none: all classes belong to all tasks; "
        "otherwise found where no label is in two tasks",
    )
    args = parser.parse_args(words)
    if args.class_ranges and None in args.class_ranges:
        if len(args.class_ranges) > 1:
            parser.error("--class_ranges is either none, or START:STOP for each task")
        args.class_ranges = ()
    return args


def _class_range(word):
    try:
        start, stop = (int(number) for number in word.split(":"))
    except ValueError:
        if word == "none":
            return None
        raise argparse.ArgumentTypeError(f"{word!r} is not START:STOP, two whole numbers") from None
    return start, stop


def run_pack(args):
    """Packs; returns 0."""
    for path in (*args.train, *(args.test or ())):
        if args.out.exists() and path.exists() and args.out.samefile(path):
            raise UserError(
                f"{args.out} is to be read ({path}), and would be replaced; take another name for the task file"
            )
    pack.check_place(args.out)
    train, test = sources.gather(args.train, args.test)
    packed = tasks.save(args.out, train, test, args.image_shape, args.class_ranges)
    for line in pack.describe(packed):
        print(line)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    place = {"data_path": str(args.out.parent), "data_file": args.out.name}
    print(f"learn it: python main.py {' '.join(_typed(*flag) for flag in place.items())}")
    return 0


def _typed(flag, value):
    """What one types in a shell to give a flag of main.py this value."""
    return f"--{flag}{'=' if value.startswith('-') else ' '}{shlex.quote(value)}"


def main(arguments=None):
    """Runs the command line; returns the exit code: 0, 1 (a fetch failed), 2 (bad input, no room), 130 (Ctrl-C)."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["pack"]:
        return reporting(lambda: run_pack(parse_pack(words[1:])))
    args = parse(words)
    names = (args.name,)
    if args.name == "all":
        names = GENERATED if args.generate else (*ARCHIVES, "omniglot")

    def make_all():
        os.makedirs(args.data_path, exist_ok=True)
        return max([run(args, name) for name in names])

    return reporting(make_all, "what has been fetched is kept, and the same command goes on from there")


def reporting(work, kept="nothing is written"):
    """The exit code of some work; says what ended it, and what is kept."""
    try:
        return work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; {kept}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; {kept}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files that it cannot show
    sys.exit(main())
