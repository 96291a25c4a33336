"""Task files: finds and reads them, or builds their tasks from the shipped MNIST.

Two formats, told apart by content, not by name: the original's (original_format.py) and ours (compact_format.py).
"""

import codecs
import os
import pickle
import re
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch

from disk.names import said
from disk.safe import DAMAGED, OtherProtocol
from errors import UserError
from tasks import mnist, omniglot
from tasks.compact_format import read_compact, write_compact
from tasks.original_format import read_original, refuse_odd_zip, write_original
from tasks.taskset import MOST_TASKS, TaskSet, permutations, rotations, split

__all__ = ["N_TASKS", "build", "load_tasks", "read", "write_compact", "write_original"]

DEFAULT_FOLDER = "data/"
ROTATIONS = "mnist_rotations"
SPLIT = "mnist_split"
# what can be built, with the paper's sizes; SPLIT: tasks of two classes
N_TASKS = {ROTATIONS: 20, "mnist_permutations": 20, "mnist_manypermutations": 100, SPLIT: None}
OMNIGLOT = "omniglot_small"  # so can this, from the shipped drawings
MOST_DEGREES = 3600
GUIDE = "see docs/your_data.md"
ZIP = b"PK\x03\x04"
NPY = b"\x93NUMPY"
PRINTED = bytes({*b"\t\n\r\f", *range(32, 256)} - {127})  # what texts are of, in whatever encoding but UTF-16
MUCH = 4096  # bytes, of which no file but a text has only such


def load_tasks(data_path, data_file, data_seed=0, mnist_path=None):
    """The TaskSet called `data_file`: the file of that name in `data_path`, or else built in memory from shipped MNIST.

    With mnist_path, a folder of four IDX files, it is always built, from those. (mnist.read_like)

    A folder that is given must be there; only DEFAULT_FOLDER, which None stands for, may be missing.
    For name.pt that is not there, name.npz is taken. mnist_rotations, mnist_permutations (20 tasks each) and
    mnist_manypermutations (100) can be built, deterministically in data_seed, which matters to nothing else; and
    mnist_split (5 tasks of two digits). omniglot_small (8 alphabets) is built from the shipped drawings.
    Uses none of the global random streams. Raises UserError where there is no such file, or none that can be used.
    """
    data_path = DEFAULT_FOLDER if data_path is None else data_path
    check_folder(data_path)
    path = Path(data_path) / data_file
    stem, ending = os.path.splitext(data_file)
    kind = stem if ending in (".pt", ".npz") else data_file
    if mnist_path is not None:
        if kind not in N_TASKS:
            known = ", ".join(f"{name}.pt" for name in N_TASKS)
            raise UserError(f"--mnist {mnist_path} goes with --data_file {known}; {data_file} is none of them")
        return build(kind, seed=data_seed, name=data_file, mnist_path=mnist_path)
    if os.path.exists(path):
        return read(path, data_file)
    if ending == ".pt" and os.path.exists(path.with_suffix(".npz")):
        return read(path.with_suffix(".npz"), data_file, f" (there is no {data_file})")
    if kind in N_TASKS:
        return build(kind, seed=data_seed, name=data_file)
    if kind == OMNIGLOT:
        return omniglot.build_small(data_file)
    known = f"without a file there are {', '.join(f'{name}.pt' for name in (*N_TASKS, OMNIGLOT))}"
    raise UserError(f"no data file {path}; {data_path} has {_task_files(data_path)}; {known}; see get_data.py --help")


def check_data_seed(tasks, data_seed):
    """Raises UserError where a data seed was asked for (0 is none) of which these tasks know nothing."""
    if data_seed and f"data seed {data_seed})" not in tasks.origin:
        raise UserError(
            f"--data_seed {data_seed} matters to tasks that are built in memory by chance alone, and {tasks.name} is "
            f"{tasks.origin}; leave --data_seed out, or choose another --data_file or --data_path"
        )


def check_folder(folder):
    """Raises UserError where a folder of data was given that is none."""
    try:
        there = bool(str(folder)) and os.path.exists(folder)
    except ValueError:  # a null byte
        there = False
    if not there and str(folder) and Path(folder) == Path(DEFAULT_FOLDER):
        return
    if not there or not os.path.isdir(folder):
        what = "is no folder" if there else "is not there"
        raise UserError(f"--data_path {str(folder)!r:.200} {what}; give the folder of the data files, or leave it out")


def _task_files(folder):
    """The names of (20 of) the folder's task files, for the user."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith((".pt", ".npz")))
    except OSError as error:
        return f"no files to see ({error.strerror})"
    return ", ".join(names[:20]) or "no .pt or .npz file"


def build(kind, n_tasks=None, min_angle=0.0, max_angle=180.0, seed=0, name=None, mnist_path=None):
    """The TaskSet of a kind in N_TASKS, from the shipped MNIST. Raises UserError on numbers outside their range.

    n_tasks     None: the paper's number; of the split: tasks of two classes
    angles      degrees, of the rotations only: see `rotations`
    mnist_path  None, or the folder of four IDX files that stand in for the shipped ones
    """
    n_tasks = N_TASKS[kind] if n_tasks is None else n_tasks
    if n_tasks is not None and not 1 <= n_tasks <= MOST_TASKS:
        raise UserError(f"{n_tasks} tasks cannot be built; 1 to {MOST_TASKS:,} can")
    if not 0 <= seed < 1 << 63:
        raise UserError(f"the data seed {seed} is outside 0 to 2^63 - 1")
    if not -MOST_DEGREES <= min_angle <= max_angle <= MOST_DEGREES:  # nor are NaNs
        rule = f"-{MOST_DEGREES} <= min_angle <= max_angle <= {MOST_DEGREES}"
        raise UserError(f"angles from {min_angle} to {max_angle} degrees cannot be built; {rule} can")
    images = mnist.read() if mnist_path is None else mnist.read_like(mnist_path)
    origin = f"built in memory from {images.of}"
    if kind == SPLIT:
        tasks, ranges = split(images, n_tasks)
        what = f"{len(tasks)} tasks of {ranges[0][1]} classes"
        return TaskSet(tasks, name or kind, f"{origin} ({what})", class_ranges=ranges)
    if kind == ROTATIONS:
        tasks = rotations(images, n_tasks, min_angle, max_angle, seed)
        what = f"{n_tasks} rotations by {min_angle:g} to {max_angle:g} degrees"
    else:
        tasks, what = permutations(images, n_tasks, seed), f"{n_tasks} random permutations of the pixels"
    source = "mnist" if mnist_path is None else None
    return TaskSet(tasks, name or kind, f"{origin} ({what}, data seed {seed})", source=source)


def read(path, name=None, remark=""):
    """The TaskSet in a file of either format, called `name`. Executes nothing that it may carry. Raises UserError."""
    path, name = Path(path), name or Path(path).name
    origin = f"read from {path}{remark}"
    with reading(path, _remedy(path)) as file:
        begin = file.read(6)
        if begin == NPY:
            raise UserError(f"{path} holds one array; save x and y with numpy.savez, and pack them: {GUIDE}")
        if begin[:4] != ZIP:
            return read_original(path, name, f"{origin}, in the format before PyTorch 1.6", mapped=False)
        with zipfile.ZipFile(file) as archive:
            if "about.npy" in archive.namelist():
                return read_compact(path, archive, name, origin)
            if any(member.endswith(".npy") for member in archive.namelist()):
                raise UserError(
                    f"{path} is a zip file, but no task file; pack its arrays (python get_data.py pack): {GUIDE}"
                )
            refuse_odd_zip(path, archive)
        return read_original(path, name, f"{origin}, memory-mapped", mapped=True)


@contextmanager
def reading(path, remedy):
    """The file, open. What goes wrong with it in the block is a UserError, with the remedy."""
    if path.is_dir():
        remedy = "read its images into arrays (with PIL), save those with numpy.savez, and pack them"
        raise UserError(f"{path} is no file but a folder; {remedy}: {GUIDE}")
    if not path.is_file():
        raise UserError(f"{path} is no file; a data file in .pt or .npz format is needed")
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore", UserWarning)  # of torch and numpy, on odd files: those are refused, or fine
            yield file
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); change its permissions") from error
    except OtherProtocol as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, *DAMAGED) as error:
        carried = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and carried and (kind := _odd_kind(carried[1])):
            what = f"has {kind} tensors, which are not read"
            remedy = "save others: .to(torch.int64) for integers, .float() for others, .dequantize() for quantized ones"
        elif isinstance(error, pickle.UnpicklingError) and carried:
            what = f"carries code or objects of its own ({carried[1]}), which is never run"
        elif _is_text(path):
            what = "is text, and no .npz or .pt"
            remedy = f"load it with numpy.loadtxt, save its arrays with numpy.savez, and pack them: {GUIDE}"
        else:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            what = f"is damaged, or no data file ({reason})"
        raise UserError(f"{path} {what}; {remedy}") from error


def _is_text(path):
    """Whether a file is a text, such as a .csv, as far as its beginning tells."""
    try:
        with open(path, "rb") as file:
            begin = file.read(MUCH)
    except OSError:
        return False
    is_utf16 = begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return is_utf16 or (begin != ZIP[: len(begin)] and not begin.translate(None, PRINTED))


def _odd_kind(name):
    """What tensors are that a pickle needs this name for, in a word; None where no tensor does."""
    if name.startswith(("torch.Q", "torch._utils._rebuild_qtensor")):
        return "quantized"
    return name if isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype) else None


def _remedy(path):
    """How to get a data file that can be read."""
    kind = said(path.name)
    if path.stem in (*N_TASKS, "cifar100", "cifar10", "omniglot"):
        return f"get it again: delete it, and python get_data.py {kind}"
    return "save it again, with plain tensors only: [train, test], lists of one [descriptor, x, y] per task"
