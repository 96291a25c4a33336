"""Omniglot: drawings of characters, one alphabet a task. (Lake, Salakhutdinov & Tenenbaum, Science 2015)

Each character was drawn by 20 people, on 105x105 pixels in black on white. Here: 28x28, ink is 255; each character is a
class, each alphabet a task with classes of its own.
"""

import hashlib
import io
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from errors import UserError
from tasks.archives import Failed
from tasks.compact_format import read_member, write_member
from tasks.mnist import SIDE
from tasks.taskset import Split, Task, TaskSet

FOLDER = Path(__file__).resolve().parent.parent / "data" / "omniglot"
SHIPPED = FOLDER / "drawings.npz"
CHECKSUMS = "SHA256SUMS"
REMEDY = "restore data/omniglot from the project's repository (git checkout -- data/omniglot)"
DRAWN_SIDE, N_DRAWERS = 105, 20
TRAIN_DRAWINGS, TEST_DRAWINGS = 15, 5  # of each character
MOST_DRAWINGS, MOST_BYTES = 40_000, 1 << 16  # in an archive, and of a drawing there
A_DRAWING = re.compile(r"[^/]+/([^/]+)/character(\d+)/\d+_(\d+)\.png")


class Drawings(NamedTuple):
    """N drawings in order of alphabet, character, drawer: images uint8 (N, 784); alphabets {name: its characters}."""

    images: np.ndarray
    alphabets: dict


def read_archives(paths):
    """The Drawings in the authors' zip files, the archives' alphabets in order. Raises Failed."""
    found, alphabets = {}, {}
    for path in paths:  # the small ones share two alphabets
        found |= _read_archive(path)
    for (alphabet, _), drawn in found.items():
        if sorted(drawn) != list(range(1, N_DRAWERS + 1)):
            raise Failed(f"{paths[0]} is refused: a character of {alphabet} has not {N_DRAWERS} drawings")
        alphabets[alphabet] = alphabets.get(alphabet, 0) + 1
    characters = [found[key] for alphabet in alphabets for key in sorted(found) if key[0] == alphabet]
    return Drawings(np.stack([drawn[drawer] for drawn in characters for drawer in sorted(drawn)]), alphabets)


def _read_archive(path):
    """{(alphabet, character): {drawer: (784,) uint8}}; nothing of the archive is written anywhere."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [(info, A_DRAWING.fullmatch(info.filename)) for info in archive.infolist()]
            drawings = [(info, match) for info, match in names if match]
            if not 1 <= len(drawings) <= MOST_DRAWINGS or max(info.file_size for info, _ in drawings) > MOST_BYTES:
                raise Failed(f"{path} is refused: it does not hold what Omniglot's archives do")
            for info, match in drawings:
                with archive.open(info) as file:
                    image = small(file.read(MOST_BYTES))
                found.setdefault((match[1], int(match[2])), {})[int(match[3])] = image
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, SyntaxError) as error:
        raise Failed(f"{path} is damaged: {error}") from error
    return dict(sorted(found.items()))


def small(png):
    """(784,) uint8 of a PNG's bytes: ink is 255; each pixel the mean of those of the drawing in its place."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as drawing:
        if drawing.size != (DRAWN_SIDE, DRAWN_SIDE):
            raise ValueError(f"a drawing has {drawing.size} pixels, not {DRAWN_SIDE}x{DRAWN_SIDE}")
        shrunk = drawing.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return 255 - np.asarray(shrunk, dtype=np.uint8).reshape(-1)


def check_drawings(train_drawings=TRAIN_DRAWINGS, test_drawings=TEST_DRAWINGS):
    """Raises UserError where there are not so many drawers."""
    if train_drawings < 1 or test_drawings < 1 or train_drawings + test_drawings > N_DRAWERS:
        raise UserError(
            f"{train_drawings} drawings to train and {test_drawings} to test: give 1 or more of each, and together "
            f"{N_DRAWERS} or less"
        )


def make_tasks(drawn, name, origin, train_drawings=TRAIN_DRAWINGS, test_drawings=TEST_DRAWINGS):
    """The TaskSet of one alphabet a task: of a character the first drawers' drawings to learn, the next ones' to test.

    Raises UserError where there are not so many drawers.
    """
    check_drawings(train_drawings, test_drawings)
    drawers = np.arange(len(drawn.images)) % N_DRAWERS
    labels = (np.arange(len(drawn.images)) // N_DRAWERS).astype(np.int64)
    halves = drawers < train_drawings, (train_drawings <= drawers) & (drawers < train_drawings + test_drawings)
    tasks, ranges, start = [], [], 0
    for alphabet, n_characters in drawn.alphabets.items():
        stop = start + n_characters
        mine = (start <= labels) & (labels < stop)
        tasks.append(Task(alphabet, *(Split(drawn.images[mine & half], labels[mine & half]) for half in halves)))
        ranges.append((start, stop))
        start = stop
    return TaskSet(tasks, name, origin, (1, SIDE, SIDE), ranges)


def build_small(name="omniglot_small", path=SHIPPED, **drawings):
    """The TaskSet of the authors' two small sets, as shipped: 8 alphabets, 242 characters. drawings: of `make_tasks`.

    Raises UserError where the shipped file is missing, damaged or another.
    """
    shipped = read_shipped(path)
    origin = f"built in memory from the shipped Omniglot ({len(shipped.alphabets)} alphabets)"
    return make_tasks(shipped, name, origin, **drawings)


def read_shipped(path=SHIPPED):
    """The Drawings of the shipped file, verified. Raises UserError."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.with_name(CHECKSUMS).read_text().split()[0]:
            raise UserError(f"{path} is damaged (its sha256 is not the one in {CHECKSUMS}); {REMEDY}")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            alphabets = json.loads(read_member(archive, "alphabets", 1, "uint8").tobytes())
            return Drawings(read_member(archive, "images", 2, "uint8"), alphabets)
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"cannot read {path} ({error}); {REMEDY}") from error


def write_shipped(drawings, path=SHIPPED):
    """Writes the file that is shipped, and its checksum."""
    with zipfile.ZipFile(path, "w") as archive:
        write_member(archive, "alphabets", np.frombuffer(json.dumps(drawings.alphabets).encode(), dtype=np.uint8))
        write_member(archive, "images", drawings.images)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(CHECKSUMS).write_text(f"{digest}  {path.name}\n")
