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


EDITS = {
    "source": ("_rows.h", "#include <stddef.h>", "#include <stddef.h>\n"),
    "included source": ("_batch.pxi", "OUT = -1000000000", "OUT = -1000000001"),
    "draws": ("_draws.pyx", "M = 397", "M = 398"),
    "flag": ("_build.py", '"-O3"', '"-O2"'),
    "flag of a variant": ("_build.py", "VARIANTS = {", 'VARIANTS = {"another": ["-O1"], '),
}


LOADED = """
import types
from model import engine
try:
    from model.engine import _compiled
except ImportError as error:
    print(error)
print(type(engine.make_draws(types.SimpleNamespace(draws="shuffle"))).__module__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the program with its compiled kernels."""
    return copy_program(tmp_path_factory.mktemp("built"), "build")


@pytest.fixture(params=EDITS)
def edited(request, built):
    """That copy after an edit or a pull without a rebuild; mended afterwards."""
    file, old, new = EDITS[request.param]
    path = built / "model" / "engine" / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    yield built
    path.write_text(text)


def test_kernels_of_other_sources_or_flags_are_not_loaded(edited):
    said, draws = python(edited, "-c", LOADED).stdout.splitlines()
    assert "was built of other sources or with other compiler flags" in said and draws == "model.memory"


def test_kernels_of_these_sources_are_loaded(built):
    assert python(built, "-c", LOADED).stdout == "model.engine._draws\n"


@pytest.mark.parametrize("edited", ["source"], indirect=True)
def test_runs_beside_stale_kernels(edited, task_file):
    folder, name = task_file()
    words = ["main.py", "--model", "online", "--data_path", f"{folder}/", "--data_file", name, "--log_every", 10]
    found = python(edited, *words)
    assert found.returncode == 0 and "engine: reference" in found.stderr, found.stderr
    assert "built of other sources" in found.stderr and "python setup.py build_ext --inplace" in found.stderr
    found = python(edited, *words, "--engine", "native")
    assert found.returncode == 2 and "built of other sources" in found.stderr and "Traceback" not in found.stderr


def test_a_changed_flag_is_a_rebuild(tmp_path):
    """And what is built is then of these sources and flags."""
    program = copy_program(tmp_path, "build")
    build = program / "model" / "engine" / "_build.py"
    build.write_text(build.read_text().replace('"-O3"', '"-O0"') + "\nVARIANTS = {'baseline': []}\n")
    for kernels in (program / "model" / "engine").glob("_mlp_avx*.so"):
        kernels.unlink()
    identity = ["-c", "from model.engine import _build, _compiled; print(_compiled.identity == _build.identity())"]
    assert "built of other sources" in python(program, *identity).stderr
    found = python(program, "setup.py", *BUILD)
    assert found.returncode == 0 and "not built" not in found.stderr
    assert python(program, *identity).stdout == "True\n"


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
    assert found.returncode == 2 and "is not built" in found.stderr and "Traceback" not in found.stderr
