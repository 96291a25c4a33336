"""What the compiled kernels are made of; and whether those that lie here are made of it.

setup.py compiles `identity()` into each of them. Kernels of other sources or other flags would compute something else
than what is read here, so they are not loaded. Needs nothing but the standard library: setup.py runs this file alone.
"""

import hashlib
import importlib
import platform
from pathlib import Path

BUILD = "python setup.py build_ext --inplace"
FOLDER = Path(__file__).resolve().parent

# Nothing here lets a compiler change a number: no sum is reordered, no multiplication is joined with an addition.
FLAGS = [
    "-O3",
    "-g0",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    # A row is a few lines: a call of memset or memcpy, which GCC would make of its loop, takes longer than they do.
    "-fno-tree-loop-distribute-patterns",
]
VARIANTS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    VARIANTS["avx2"] = ["-mavx2"]
    VARIANTS["avx512"] = [
        "-mavx512f",
        "-mavx512dq",
        "-mavx512bw",
        "-mavx512vl",
        "-mprefer-vector-width=512",
    ]


def sources():
    """The files that are compiled, or included where that is done; none where only compiled kernels were installed."""
    return sorted(path for suffix in ("pyx", "pxi", "h") for path in FOLDER.glob(f"_*.{suffix}"))


def identity():
    """A hash of the sources and the flags."""
    found = hashlib.sha256(repr((FLAGS, VARIANTS)).encode())
    for path in sources():
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


class Stale(ImportError):
    """Compiled kernels that are not of the sources and flags that lie here."""


def load(name):
    """The extension model.engine.`name`; ImportError where it isn't built, Stale where it is of other sources."""
    try:
        module = importlib.import_module(f"model.engine.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} is not built") from error
    if sources() and getattr(module, "identity", None) != identity():
        raise Stale(f"{name} was built of other sources or with other compiler flags than those that are here")
    return module
