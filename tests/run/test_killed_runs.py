"""SIGKILL in the middle of learning, after a checkpoint: `--resume auto` ends as if nothing had happened.

(`make torture` shoots at every learner, again and again; a sweep is shot at in tests/sweep/test_sweep_kills.py.)
"""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, copy_program
from runs import WAYS, after, in_child, main_in, place, result_in, start_child, words_of
from strangers import a_learner

NATIVE, REFERENCE = WAYS[0], WAYS[2]
LAST = {"native": 1500, "reference": 300}  # minibatches of a run; ten times it writes a checkpoint


def long(name, way):
    return words_of(name, way, "--checkpoint_every", LAST[way[0]] // 10, "--log_every", 100)


def long_places(folder, way):
    """Where the run is left alone, and where it is shot at."""
    return [place(folder / name, n_train=LAST[way[0]] // 3) for name in ("whole", "parts")]


def kill_after_a_checkpoint(folder, pid):
    """Shoots a run dead as soon as a checkpoint of it is seen, wherever it is then; returns the checkpoint's path."""
    deadline = time.monotonic() + 240
    while not (found := list(folder.glob("results/*.checkpoint"))):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return found[0]


def assert_went_on(said, path, way, whole, parts):
    """It began at a checkpoint, not at the start and not at the end; what it left is what the undisturbed run left."""
    found, wanted, last = result_in(parts), result_in(whole), LAST[way[0]]
    n_before = int(re.search(rf"goes on after ([\d,]+) examples, from \S*{path.name}$", said, re.M)[1].replace(",", ""))
    assert last // 10 <= n_before < last and n_before % (last // 10) == 0
    assert found.files == wanted.files and found.name == path.stem
    assert len([name for name in found.folder if not name.startswith(".")]) == 4, "a finished run leaves no checkpoint"


@pytest.mark.parametrize(
    "name,way",
    [("meralg1", NATIVE), ("gem", NATIVE), ("meralg6", REFERENCE), ("derpp", NATIVE), ("clser", REFERENCE)],
    ids=lambda it: it if isinstance(it, str) else it[0],
)
def test_a_killed_run_goes_on(name, way, tmp_path):
    words, (whole, parts) = long(name, way), long_places(tmp_path, way)
    assert in_child(main_in(whole, words)).code == 0

    def run():
        with after(LAST[way[0]] - 1, signal.pause):  # so that the shot is never too late
            return main_in(parts, words)()

    child = start_child(run, tmp_path / "output")
    path = kill_after_a_checkpoint(parts, child)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not list(parts.glob("results/*.json"))
    again = in_child(main_in(parts, [*words, "--resume", "auto"]))
    assert again.code == 0, again.text
    assert_went_on(again.text, path, way, whole, parts)


# a learner of strangers that keeps examples, momentum and draws of its own
STRANGER = a_learner(
    top="import random",
    init="self.opt = torch.optim.SGD(self.net.parameters(), lr=args.lr, momentum=0.5)\nself.kept = []",
    observe="""
        if self.kept:
            old, t_old, y_old = random.choice(self.kept)
            x, y = torch.cat([x, old + 0.01 * torch.randn_like(old)]), torch.cat([y, y_old])
        self.kept = (self.kept + [(x[:1], t, y[:1])])[-20:]
    """,
)
RUN = """
import os, signal, sys
sys.path.append(os.environ["TESTS"])
from runs import after, main
whole, parts, n, *words = sys.argv[1:]
os.chdir(whole)
assert main.main(words) == 0
os.chdir(parts)
with after(int(n), signal.pause):
    main.main(words)
"""


def test_a_killed_run_of_a_strangers_learner_goes_on(tmp_path):
    """In a copy of the program that has its file; what goes on is a program of its own."""
    program = copy_program(tmp_path, "build", "benchmarks", "*.c")
    (program / "model" / "stranger.py").write_text(STRANGER)
    words, (whole, parts) = long("stranger", REFERENCE), long_places(tmp_path, REFERENCE)
    more = {"env": {**os.environ, "TESTS": str(ROOT / "tests"), "PYTHONPATH": str(program)}, "text": True}
    more |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    both = [sys.executable, "-c", RUN, whole, parts, str(LAST["reference"] - 1), *words]
    with subprocess.Popen(both, cwd=program, **more) as process:
        path = kill_after_a_checkpoint(parts, process.pid)
        said = process.stdout.read()
    assert process.returncode == -signal.SIGKILL and not list(parts.glob("results/*.json")), said
    resume = [sys.executable, program / "main.py", *words, "--resume", "auto"]
    again = subprocess.run(resume, cwd=parts, timeout=200, **more)
    assert again.returncode == 0, again.stdout
    assert_went_on(again.stdout, path, REFERENCE, whole, parts)
