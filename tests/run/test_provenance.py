"""Where a result comes from: told as it was when the run began, and by what changes numbers alone."""

import json
import shutil
import subprocess
import sys

from conftest import copy_program
from runs import WAYS, after, go_fixture, place, words_of  # noqa: F401

from run import checkpoints, provenance

NATIVE, REFERENCE = WAYS[0], WAYS[2]
PROBE = "from run import provenance; print(provenance.code_identity('meralg1', 'reference'))"


def test_a_commit_made_while_a_run_learns_is_not_credited_with_it(go, tmp_path, monkeypatch):
    at = {"commit": "a" * 40, "dirty": False}
    monkeypatch.setattr(provenance, "commit", lambda: dict(at))
    folder = place(tmp_path / "run")
    with after(3, lambda: at.update(commit="b" * 40, dirty=True)):
        assert go(folder, *words_of("online", NATIVE)).code == 0
    (path,) = folder.glob("results/*.json")
    saved = json.loads(path.read_text())
    assert (saved["commit"], saved["dirty"]) == ("a" * 40, False) and saved["resumed"] == []


def test_each_part_of_a_run_says_what_made_it(go, tmp_path, monkeypatch):
    at = {"commit": "a" * 40, "dirty": False}
    monkeypatch.setattr(provenance, "commit", lambda: dict(at))
    folder = place(tmp_path / "run")
    with after(4, lambda: (_ for _ in ()).throw(KeyboardInterrupt)):
        assert go(folder, *words_of("eralg4", NATIVE, "--checkpoint_every", 2)).code == 130
    at["commit"] = "b" * 40
    (path,) = folder.glob("results/*.checkpoint")
    assert checkpoints.load(path)["made_by"][0]["commit"] == "a" * 40
    assert go(folder, "--resume", path).code == 0
    (path,) = folder.glob("results/*.json")
    saved = json.loads(path.read_text())
    assert saved["commit"] == "a" * 40 and [part["commit"] for part in saved["resumed"]] == ["b" * 40]


def test_only_what_changes_numbers_changes_the_identity(tmp_path):
    program = copy_program(tmp_path)

    def identity():
        shutil.rmtree(program / "run" / "__pycache__", ignore_errors=True)
        done = subprocess.run([sys.executable, "-c", PROBE], cwd=program, capture_output=True, text=True, check=True)
        return done.stdout

    def edit(name, change):
        path = program / name
        path.write_text(change(path.read_text()))

    first = identity()
    for name in ("main.py", "get_data.py", "tasks/archives.py", "run/saving.py", "report/tables.py", "model/gem.py"):
        edit(name, lambda text: text + "\nANOTHER = 1\n")
    for name in ("model/meralg1.py", "model/memory.py", "run/stream.py", "tasks/taskset.py"):
        edit(name, lambda text: text.replace('"""', '"""Said in other words. ', 1) + "\n# and a remark\n")
    assert identity() == first
    seen = {first}
    for name in (
        *(
            "model/meralg1.py",
            "model/learner.py",
            "model/memory.py",
            "model/networks/mlp.py",
            "model/engine/reference.py",
        ),
        *("run/experience.py", "run/stream.py", "run/evaluation.py", "tasks/taskset.py", "metrics/__init__.py"),
    ):
        edit(name, lambda text: text + "\nANOTHER = 1\n")
        seen.add(found := identity())
        assert found != first, name
    assert len(seen) == 11


def test_the_native_engine_is_known_by_its_kernels(monkeypatch):
    from model.engine import _compiled

    provenance.code_identity.cache_clear()
    first = provenance.code_identity("meralg1", "native"), provenance.code_identity("meralg1", "reference")
    monkeypatch.setattr(_compiled, "identity", "of other sources")
    provenance.code_identity.cache_clear()
    assert provenance.code_identity("meralg1", "native") != first[0]
    assert provenance.code_identity("meralg1", "reference") == first[1]
    provenance.code_identity.cache_clear()
