"""MNIST as shipped in data/mnist: four gzip-compressed IDX files, verified against their checksums when read."""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from errors import UserError

FOLDER = Path(__file__).resolve().parent.parent / "data" / "mnist"
SIDE = 28
CHECKSUMS = "SHA256SUMS"
REMEDY = "restore data/mnist from the project's repository (git checkout -- data/mnist)"


class Mnist(NamedTuple):
    """The 60,000 training and 10,000 test images: uint8 (N, 784) row by row, and their labels, int64 (N,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


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
