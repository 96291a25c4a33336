"""MNIST as shipped in data/mnist: four gzip-compressed IDX files, verified against their checksums when read.

Any other folder with four IDX files of 28×28 images stands in for it: Fashion-MNIST, Kuzushiji-MNIST, EMNIST, ….
"""

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from disk.resources import available_memory
from disk.safe import most_unpacked
from errors import UserError

FOLDER = Path(__file__).resolve().parent.parent / "data" / "mnist"
SIDE = 28
CHECKSUMS = "SHA256SUMS"
REMEDY = "restore data/mnist from the project's repository (git checkout -- data/mnist)"


class Mnist(NamedTuple):
    """The training and test images (60,000 and 10,000): uint8 (N, 784) row by row, and their labels, int64 (N,).

    of   one phrase for the user: where they come from
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    of: str = "the shipped MNIST"


def read(folder=FOLDER):
    """Reads and verifies the four files. Raises UserError where one is missing, damaged or another."""
    folder = Path(folder)
    checksums = _checksums(folder)

    def file(name, shape):
        return _read_idx(folder / name, checksums.get(name), shape)

    return Mnist(
        file("train-images-idx3-ubyte.gz", (60_000, SIDE, SIDE)).reshape(-1, SIDE * SIDE),
        file("train-labels-idx1-ubyte.gz", (60_000,)).astype(np.int64),
        file("t10k-images-idx3-ubyte.gz", (10_000, SIDE, SIDE)).reshape(-1, SIDE * SIDE),
        file("t10k-labels-idx1-ubyte.gz", (10_000,)).astype(np.int64),
    )


def read_like(folder):
    """The Mnist of any folder with four IDX files, compressed or not, told apart by their names.

    Labels that are not 0, 1, 2, … are numbered so, in order. Raises UserError, with what is there and what is wanted.
    """
    folder = Path(folder)
    try:
        names = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or "no name of a folder"
        raise UserError(f"--mnist {str(folder)!r:.200}: {reason}; give a folder with four IDX files") from error
    halves = {}
    for half, words in (("train", ("train",)), ("test", ("t10k", "test"))):
        pair = []
        for kind, ending in (("images", "idx3"), ("labels", "idx1")):
            fitting = [
                name
                for name in names
                if kind in name.lower() and ending in name.lower() and any(word in name.lower() for word in words)
            ]
            if len(fitting) != 1:
                found = f"{len(fitting)} files of {half} {kind} ({', '.join(fitting or names)[:200] or 'none'})"
                wanted = f"one each of {words[-1]}…images…idx3… and {words[-1]}…labels…idx1…"
                raise UserError(f"--mnist {folder} has {found}; {wanted}, as those of MNIST, are needed")
            pair.append(_read_any_idx(folder / fitting[0]))
        halves[half] = _checked(folder, half, *pair)
    (images, labels), (test_images, test_labels) = halves["train"], halves["test"]
    classes = np.unique(np.concatenate([labels, test_labels]))
    of = str(folder)
    if len(classes) <= classes[-1]:
        of += f", its labels {classes[0]} to {classes[-1]} as classes 0 to {len(classes) - 1}"
        labels, test_labels = (np.searchsorted(classes, one).astype(np.int64) for one in (labels, test_labels))
    return Mnist(images, labels, test_images, test_labels, of)


def _checked(folder, half, images, labels):
    """(images (N, 784), labels (N,) int64) of one half."""
    if images.ndim != 3 or labels.ndim != 1 or images.shape[1:] != (SIDE, SIDE) or not len(images):
        found = f"{half} images {images.shape} with labels {labels.shape}"
        raise UserError(f"--mnist {folder} has {found}; images (N, {SIDE}, {SIDE}) with N labels are needed")
    if len(images) != len(labels):
        raise UserError(f"--mnist {folder} has {len(images)} {half} images with {len(labels)} labels; give each one")
    return images.reshape(len(images), -1), labels.astype(np.int64)


def _read_any_idx(path):
    """The uint8 array of an IDX file of any shape, compressed or not. Raises UserError."""
    remedy = "fetch it again"
    try:
        with open(path, "rb") as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
        size = path.stat().st_size
        with gzip.open(path) if is_compressed else open(path, "rb") as content:
            magic = np.frombuffer(content.read(4), dtype=np.uint8)
            if len(magic) < 4 or tuple(magic[:3]) != (0, 0, 8) or not 1 <= magic[3] <= 4:
                raise UserError(f"{path} is no IDX file of bytes; {remedy}")
            shape = tuple(np.frombuffer(content.read(4 * int(magic[3])), dtype=">u4").tolist())
            n_bytes = math.prod(shape)
            if n_bytes > most_unpacked(size) or n_bytes > available_memory():
                raise UserError(f"{path} announces {n_bytes:,} bytes, more than it should or than the free memory")
            values = content.read(n_bytes + 1)
        if len(shape) != magic[3] or len(values) != n_bytes:
            raise UserError(f"{path} does not hold the {n_bytes:,} values that it announces; {remedy}")
    except UserError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); {remedy}") from error
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def checksum(folder=FOLDER):
    """One hex sha256 that stands for the four files, as task files that refer to them record it."""
    sums = _checksums(Path(folder))
    return hashlib.sha256("".join(f"{name} {sums[name]}\n" for name in sorted(sums)).encode()).hexdigest()


def _checksums(folder):
    """{file name: hex sha256} of the folder's SHA256SUMS."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="ascii").splitlines()
        return {name: value for value, name in (line.split() for line in lines)}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / CHECKSUMS} ({error}); {REMEDY}") from error


def _read_idx(path, expected_sha256, shape):
    """The uint8 array of a gzip-compressed IDX file, which must have this very shape and checksum."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            if digest.hexdigest() != expected_sha256:
                raise UserError(f"{path} is damaged (its sha256 is not the one in {CHECKSUMS}); {REMEDY}")
            file.seek(0)
            with gzip.open(file) as content:
                header = np.frombuffer(content.read(4 + 4 * len(shape)), dtype=">u4")
                magic = 0x0800 | len(shape)  # IDX: two zero bytes, 8 for unsigned bytes, the number of dimensions
                if tuple(header) != (magic, *shape):
                    raise UserError(f"{path} is no IDX file of {shape} bytes; {REMEDY}")
                array = np.empty(shape, dtype=np.uint8)
                if content.readinto(array.reshape(-1)) != array.size or content.read(1):
                    raise UserError(f"{path} does not hold the {array.size:,} values that it announces; {REMEDY}")
    except UserError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); {REMEDY}") from error
    return array
