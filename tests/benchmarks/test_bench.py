"""benchmarks/bench.py: what it measures is what it says, against which commit; what it prints, writes and refuses."""

import contextlib
import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, copy_program

import model
from model.memory import Reservoir
from tasks import mnist

pytest.importorskip("model.engine._compiled", reason="no kernels here", exc_type=ImportError)
from benchmarks import bench, experiences, works  # noqa: E402

N_TRAIN, N_TEST = 60, 40


@pytest.fixture
def few_images(monkeypatch):
    """MNIST has a few images only."""
    images = mnist.read()
    few = {name: getattr(images, name)[: N_TRAIN if "train" in name else N_TEST] for name in images._fields}
    monkeypatch.setattr(mnist, "read", lambda *_: images._replace(**few))


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """main(*words): bench.py's exit code, stdout, stderr and the .json that it wrote, in tmp_path or another folder."""

    def main(*words, root=tmp_path):
        monkeypatch.setattr(bench, "ROOT", root)
        monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, words)])
        (root / "data").mkdir(exist_ok=True)
        code = 0
        try:
            bench.main()
        except SystemExit as exit:
            code = exit.code
        written = [json.loads(path.read_text()) for path in root.glob("results/bench/*.json")]
        assert len(written) == (code == 0)
        return SimpleNamespace(code=code, json=written[0] if written else None, **capsys.readouterr()._asdict())

    return main


# what is refused


@pytest.mark.parametrize(
    "words, said",
    [
        (["stepps"], r"error: no such part: stepps; choose from kernels, suite, peers, "),
        (["steps", "nothing", "runs", "all"], "error: no such part: nothing, all; choose from "),
        (["--against"], "error: argument --against: expected one argument"),
        (["suite", "--against", "nowhere"], "error: --against nowhere: no such commit or folder (git "),
        (["kernels", "--against", "--all"], "expected one argument"),
        (["hits", "kernels", "--against", str(ROOT / "tests")], "that folder is no checkout of this program"),
    ],
)
def test_what_is_refused_is_so_before_anything_is_measured(words, said, main):
    found = main(*words)
    assert found.code == 2 and said in found.err and "Traceback" not in found.err and not found.out


def test_without_kernels_it_says_so(tmp_path):
    program = copy_program(tmp_path, "build", "*.so")
    words = [sys.executable, "benchmarks/bench.py", "steps"]
    found = subprocess.run(words, cwd=program, capture_output=True, text=True, timeout=100)
    assert found.returncode == 2 and "Traceback" not in found.stderr and not found.stdout
    assert found.stderr.startswith("error: nothing to measure: ")
    assert "is not built; run python setup.py build_ext --inplace" in found.stderr


# what is measured


def rows_of(found, engine="reference"):
    """{what: (native, the other)} of the .json, which the printed table has too."""
    for row in found.json["rows"]:
        native, other = row["native"], row[engine]
        assert 0 < native < math.inf and 0 < other < math.inf and row["ratio"] == other / native
        lines = [line for line in found.out.splitlines() if line.startswith(f"{row['what']} [{row['unit']}] ")]
        shown = [f"{native:.4g}", f"{other:.4g}", f"{other / native:.2f}x"]
        assert shown in [line[58:].split()[:3] for line in lines]
    return {row["what"]: (row["native"], row[engine]) for row in found.json["rows"]}


def test_the_parts_against_the_reference_engine(few_images, main, monkeypatch):
    """Each part has a row for all that it names; learners are timed at a task, and with a full memory, as it says."""
    asked = []

    def measured(experience, t):
        asked.append((experience, t))
        return experiences.seconds_per_example(experience, t, budget=0.002, stretches=2)

    monkeypatch.setattr(bench, "seconds_per_example", measured)
    chosen = [it for it in bench.experiments() if it["data_file"] == bench.ROTATIONS and it.get("memories", 200) == 200]
    chosen = [it for it in chosen if it["model"] not in ("gem", "ewc")]  # of the part "tasks"
    monkeypatch.setattr(bench, "experiments", lambda: chosen)
    found = main("steps", "successors", "evaluation", "split")
    rows, parts = rows_of(found), found.json["parts"]
    assert parts == ["steps", "successors", "evaluation", "split"]
    assert found.json["machine"]["kernels"] and found.json["machine"]["versions"].keys() >= {"python", "torch", "numpy"}
    for it in chosen:
        name = [it["model"], *(str(it[flag]) for flag in ("memories", "replay_batch_size") if flag in it)]
        assert any(what.startswith(" ".join(name)) and what.endswith(": example") for what in rows), name
    for name in ("agem", "der", "derpp", "mir", "er_ace", "lamaml", "clser", "gss", "eralg4"):
        assert f"{name} 200 10: example" in rows and name in model.candidates()
    assert {f"{name}: test image" for name in (bench.ROTATIONS, bench.MANY)} <= rows.keys()
    assert sum(what.startswith("split, ") for what in rows) == 6
    assert len(asked) >= 2 * 2 * len(chosen), "both engines, twice"
    for experience, t in asked:
        assert t == len(experience.tasks) - 1
        if isinstance(memory := getattr(experience.learner, "memory", None), Reservoir):
            assert memory.size == memory.capacity


def test_engines_take_turns_and_have_the_better_of_two_rounds():
    calls, times = [], {"native": [3.0, 2.0], "reference": [7.0, 9.0]}

    def measure(made):
        calls.append(made)
        return times[made.removesuffix(" made")].pop(0)

    assert bench.paired(lambda engine: f"{engine} made", measure) == {"native": 2.0, "reference": 7.0}
    assert calls == ["native made", "reference made"] * 2


def test_seconds_per_example(few_images, monkeypatch):
    """The median of its stretches, of as many examples as fit; each the next of the task's first images."""
    tasks = bench.load_tasks(str(ROOT / "data"), bench.ROTATIONS)
    experience = experiences.make_experience(tasks, "--model online --lr 0.1", "native")
    clock, seen, costs = [0.0], [], iter([2.0, 1.0, 9.0, 3.0])  # the first stretch is but to find out how many fit

    def observe(x, t, y):
        if len(seen) % 2 == 0:
            clock[0] += next(costs)
        seen.append((x.numpy(), t, y.item()))

    monkeypatch.setattr(experience.learner, "observe", observe)
    monkeypatch.setattr(experiences, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert experiences.seconds_per_example(experience, 3, budget=6, stretches=3) == 3.0 / 2
    train = tasks.tasks[3].train
    assert len(seen) == 8 and [label for _, _, label in seen] == train.labels[:8].tolist()
    assert all(t == 3 and (x == train.inputs([i]).numpy()).all() for i, (x, t, _) in enumerate(seen))
    again = [y.item() for _, _, y in experiences.examples(experience, 0, 2 * N_TRAIN)]
    assert again == 2 * tasks.tasks[0].train.labels.tolist(), "from the first again"


def test_hits_are_counted_until_there_are_enough():
    table = bench.Table("")
    bench.bench_hits(table, wanted=1)
    (row,) = table.rows
    assert row["native"] == 8 * 10_000 and row["unit"] == "pairs", "a net in 8 stages on all test images"
    differ = int(row["note"].split()[0])
    assert differ == 0, "fixed point is what the float kernel finds (tests/model/engine/test_fixed_point.py)"


def test_no_hits_are_counted_by_kernels_without_fixed_point(monkeypatch, capsys):
    class InFloat:
        def __init__(self, images, make=bench._compiled.TestImages):
            self.made = make(images)

        def count(self, *arguments):
            return self.made.count(*arguments, False)

        def correct(self, *arguments):
            return self.made.correct(*arguments)

    monkeypatch.setattr(bench._compiled, "TestImages", InFloat)
    table = bench.Table(None)
    bench.bench_hits(table)
    assert table.rows == [] and "in float alone" in capsys.readouterr().out


# against a commit


@contextlib.contextmanager
def scripted(times):
    """Workers that answer with these seconds, in their order."""
    answers = [iter(column) for column in times]
    yield [SimpleNamespace(ask=lambda *question, column=column: next(column)) for column in answers]


def test_the_best_of_the_rounds_counts(monkeypatch):
    monkeypatch.setattr(bench, "both", lambda before: scripted([[5, 4, 6, 7, 8], [9, 9, 8, 10, 9]]))
    monkeypatch.setattr(works, "WORKS", {"a piece of work": None})
    table = bench.Table("abc")
    bench.bench_kernels(table)
    (row,) = table.rows
    assert (row["native"], row["abc"], row["ratio"], row["unit"]) == (4e6, 8e6, 2.0, "us")


def test_the_suite_is_the_sum_of_its_runs(monkeypatch):
    """Of each run's best learning and best evaluation; and the sums of each learner are that of all."""
    runs = [{"model": "gem", "cuda": False}, {"model": "online", "lr": 0.1}, {"model": "gem", "cuda": True}]
    monkeypatch.setattr(bench, "experiments", lambda: runs)
    asked, rng = [], np.random.default_rng(0)
    drawn = rng.integers(1, 1000, (3, 2, 2, 2))  # runs, rounds, workers, (learning, evaluation)

    class Worker:
        def __init__(self, place):
            self.answers = iter(drawn[:, :, place].reshape(-1, 2).tolist())

        def ask(self, what, flags):
            asked.append((what, flags))
            return next(self.answers)

    monkeypatch.setattr(bench, "both", lambda before: contextlib.nullcontext((Worker(0), Worker(1))))
    table = bench.Table("abc")
    bench.bench_suite(table)
    found = {row["what"]: [row["native"], row["abc"]] for row in table.rows}
    best = drawn.min(axis=1)
    all_runs = "3 runs of mer_examples.sh: "
    assert found[all_runs + "learning"] == best[:, :, 0].sum(0).tolist()
    assert found[all_runs + "evaluation"] == best[:, :, 1].sum(0).tolist()
    assert found[all_runs + "all"] == best.sum((0, 2)).tolist()
    assert found["of these gem"] == best[[0, 2]].sum((0, 2)).tolist()
    assert found["of these online"] == best[1].sum(1).tolist()
    assert {flags for _, flags in asked} == {
        "--model gem --cuda no",
        "--model online --lr 0.1",
        "--model gem --cuda yes",
    }


def test_every_piece_of_work_of_a_peer_is_ours_too():
    assert works.PEERS.keys() <= works.WORKS.keys() and all(works.PEERS.values())


RUN = {"model": "online", "data_file": bench.ROTATIONS, "samples_per_task": 10, "lr": 0.1, "log_every": 100}
BEFORE = '''
"""As it was: what makes learners stands here. An example takes an hour."""
{made_by}

if not (Path(__file__).parent.parent / "built").exists():
    raise ImportError("the kernels are not built")


def seconds_per_example(experience, t, budget, stretches):
    return 3600.0
'''


@pytest.fixture
def history(tmp_path):
    """(a checkout of the program, an earlier commit of it, one before that whose kernels cannot be built)."""
    if not shutil.which("git"):
        pytest.skip("no git here")
    program = copy_program(tmp_path, "build", "*.c")
    now = {name: (program / name).read_text() for name in ("setup.py", "benchmarks/bench.py")}
    made_by = (program / "benchmarks" / "experiences.py").read_text()
    (program / "benchmarks" / "experiences.py").rename(tmp_path / "experiences.py")
    before = BEFORE.format(made_by=made_by.replace("import time\n", "import time\nfrom pathlib import Path\n"))
    (program / "benchmarks" / "bench.py").write_text(before)

    def git(*words):
        words = ["git", "-c", "user.name=nobody", "-c", "user.email=nobody", "-c", "commit.gpgsign=false", *words]
        return subprocess.run(words, cwd=program, check=True, capture_output=True, text=True).stdout.strip()

    (program / "data").symlink_to(ROOT / "data")
    git("init", "--quiet")
    commits = []
    for setup in ("print('not built: no compiler')", "open('built', 'w').write('kernels')"):
        (program / "setup.py").write_text(setup)
        git("add", "--force", "--all")
        git("commit", "--quiet", "--message", "as it was")
        commits.append(git("rev-parse", "HEAD"))
    for name, text in now.items():
        (program / name).write_text(text)
    (tmp_path / "experiences.py").rename(program / "benchmarks" / "experiences.py")
    return program, *reversed(commits), git


def test_against_an_earlier_commit(history, main, monkeypatch):
    """It is checked out, built and measured as it was, and leaves nothing behind."""
    program, before, _, git = history
    monkeypatch.setattr(bench, "experiments", lambda: [RUN])
    monkeypatch.setattr(works, "__file__", str(program / "benchmarks" / "works.py"))
    found = main("suite", "--against", before[:12], root=program)
    assert found.code == 0, found.err
    rows = rows_of(found, engine=before[:12])
    now, then = rows["1 runs of mer_examples.sh: learning"]
    assert then == 20 * 10 * 3600.0 and now < 60
    assert rows["1 runs of mer_examples.sh: all"] == rows["of these online"]
    assert f"against {before[:12]}" in found.out and found.json["parts"] == ["suite"]
    assert git("worktree", "list").count("\n") == 0 and not (program / "built").exists()


def test_a_commit_that_cannot_be_built(history, main, monkeypatch):
    program, _, before, git = history
    monkeypatch.setattr(bench, "experiments", lambda: [RUN])
    monkeypatch.setattr(works, "__file__", str(program / "benchmarks" / "works.py"))
    found = main("suite", "--against", before, root=program)
    assert found.code == 2 and "cannot be measured" in found.err and "Traceback" not in found.err
    assert git("worktree", "list").count("\n") == 0
