"""setup.py where something is missing: it says so in one line, leaves no stale kernels, and the program runs."""

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest
from conftest import copy_program

BUILD = ["--quiet", "build_ext", "--inplace"]
NO_CYTHON = f"import runpy, sys; sys.modules['Cython'] = None; sys.argv[1:] = {BUILD}; runpy.run_path('setup.py')"


def python(folder, *words, **environment):
    """What became of `python words` in that folder."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A copy of the program without compiled kernels; what Cython made is there, to save time."""
    return copy_program(tmp_path_factory.mktemp("copy"), "lib.*", "temp.*", "*.so")


@pytest.mark.parametrize(
    "missing,words,environment",
    [
        ("No such file or directory: '/no/compiler'", ["setup.py", *BUILD], {"CC": "/no/compiler"}),
        ("Cython is missing", ["-c", NO_CYTHON], {}),
    ],
    ids=["compiler", "cython"],
)
def test_what_is_missing_is_said_and_is_no_error(missing, words, environment, program):
    found = python(program, *words, **environment)
    assert found.returncode == 0, found.stderr
    said = [line for line in found.stderr.splitlines() if line.startswith("not built: ")]
    assert len(said) == 1 and missing in said[0] and "the reference engine is used" in said[0]


def test_runs_without_kernels(program, task_file):
    stale = program / "model" / "engine" / f"_mlp_baseline{EXTENSION_SUFFIXES[0]}"
    stale.write_bytes(b"of an earlier build")
    assert python(program, "setup.py", *BUILD, CC="/no/compiler").returncode == 0
    assert not stale.exists()
    folder, name = task_file()
    words = ["main.py", "--model", "meralg1", "--data_path", f"{folder}/", "--data_file", name, "--log_every", 10]
    found = python(program, *words)
    assert found.returncode == 0, found.stderr
    assert "engine: reference" in found.stderr and "python setup.py build_ext --inplace" in found.stderr
    found = python(program, *words, "--engine", "native")
    assert found.returncode == 2 and "not built" in found.stderr and "Traceback" not in found.stderr
