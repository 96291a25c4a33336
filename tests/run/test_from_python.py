"""Runs from Python: the command line's numbers, files and refusals, and nothing left behind in the process."""

import json
import random
import re
import signal
import sys
import threading

import numpy as np
import pytest
import torch
from runs import (  # noqa: F401
    TIMES,
    WAYS,
    a_signal,
    after,
    go_fixture,
    learners,
    place,
    result_in,
    words_of,
)

import metrics
from errors import UserError
from run import checkpoints, experiment, load_results
from run.evaluation import hits, n_scored
from tasks.files import load_tasks

NATIVE = WAYS[0]


def flags_of(words):
    """A command line's flags as one writes them in Python."""
    pairs = zip(words[::2], words[1::2], strict=True)
    return {name.removeprefix("--"): as_python(text) for name, text in pairs}


def as_python(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"yes": True, "no": False}.get(text, text)


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with tasks, which is the current one."""
    folder = place(tmp_path / "run")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("run.provenance.commit", lambda: {"commit": None, "dirty": None})  # asks git, slowly
    return folder


QUICK = flags_of(words_of("online", NATIVE))


# the numbers and the files of the command line


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("name", learners())
def test_numbers_of_the_command_line(name, way, go, here, load_result):
    """Equal to the bit, whatever this process did before, which it finds again as it left it."""
    words = words_of(name, way, "--seed", 3, "--shuffle_tasks", "yes")
    assert go(here, *words).code == 0
    files = result_in(here).files
    (path,) = here.glob("results/*.pt")

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            before = world()
            result = experiment(**flags_of(words))
            assert world() == before
    finally:
        torch.set_default_dtype(torch.float32)
    assert {key: value for key, value in result.about.items() if key not in TIMES} == files[".json"]
    assert (result.result_a == np.array(files[".json"]["result_a"])).all() and result.result_a.shape[1] == 3
    result_t, result_a, weights, stats, _, args = load_result(path)
    assert result.result_t.tolist() == result_t.tolist() and same_weights(result.learner.state_dict(), weights)
    assert (result.result_a.astype(np.float32) == result_a.numpy()).all()
    assert [result.RA, result.BTI, result.FWT] == [float(value) for value in stats] and result.args == json.loads(
        json.dumps(vars(args))
    )
    assert len(list(here.glob("results/*"))) == len(files), "nothing is saved that was not asked for"


def world():
    """What of this process a run could change."""
    kind, keys, *rest = np.random.get_state()
    return (
        (torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()),
        (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        ),
        (torch.get_default_device(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        (sys.argv[:], sys.path[:], sys.stdout, sys.stderr, np.geterr()),
    )


def test_two_runs_in_a_row_are_two_runs_alone(here):
    one, other = (dict(QUICK, model="meralg1", seed=seed, threads=2) for seed in (1, 2))
    alone = experiment(**other)
    experiment(**one)
    again = experiment(**other)
    assert (again.result_a == alone.result_a).all()
    assert same_weights(again.learner.state_dict(), alone.learner.state_dict())


def test_runs_in_threads_wait_for_each_other(here):
    """The random streams are the process's; signals, which only the main thread hears, are not listened for."""
    wanted = {seed: experiment(**QUICK, seed=seed) for seed in range(4)}
    found = {}

    def work(seed):
        found[seed] = experiment(**QUICK, seed=seed, save_path="saved")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, result in wanted.items():
        assert same_weights(found[seed].learner.state_dict(), result.learner.state_dict())


def test_save_path_saves_what_the_command_line_saves(go, here):
    words = words_of("meralg6", NATIVE, "--save_path", "results")
    go(here, *words)
    wanted = result_in(here)
    for path in here.glob("results/*"):
        path.unlink()
    result = experiment(**flags_of(words))
    found = result_in(here)
    assert found.files == wanted.files and str(result.path) == f"results/{found.name}"


def test_the_learner_is_the_trained_one(here):
    result = experiment(**QUICK)
    tasks = load_tasks("data", "tiny.pt", 0).tasks
    accuracies = [hits(result.learner, task.test, t) / len(task.test) for t, task in enumerate(tasks)]
    assert accuracies == result.result_a[-1].tolist() and n_scored(5) == 4


def test_values_of_many_kinds(here):
    wanted = experiment(**QUICK, seed=3, shuffle_tasks=True)
    texts = {name: "no" if value is False else str(value) for name, value in QUICK.items()} | {
        "seed": "3",
        "shuffle_tasks": "yes",
    }
    numbers = QUICK | {"seed": np.int64(3), "lr": np.float64(0.1), "memories": 7.0, "shuffle_tasks": np.bool_(True)}
    for flags in (texts, numbers, QUICK | {"seed": torch.tensor(3), "shuffle_tasks": True, "start_from": None}):
        result = experiment(**flags)
        assert result.args == wanted.args and (result.result_a == wanted.result_a).all()


def test_remarks_are_said(here, capsys):
    experiment(**QUICK | {"engine": "reference"}, n_memories=5)
    found = capsys.readouterr()
    assert "note: online does not read --n_memories\n" in found.err and not found.out


def test_a_progress_bar_on_a_terminal_in_a_notebook_or_when_asked(here, capsys, monkeypatch):
    experiment(**QUICK)
    assert "24/24" not in capsys.readouterr().err
    experiment(**QUICK, progress=True)
    assert "24/24" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ipykernel", json)
    experiment(**QUICK)
    assert "24/24" in capsys.readouterr().err


# refusals


@pytest.mark.parametrize(
    "flags,message",
    [
        ({"memoris": 200}, r"--memoris=200 \(did you mean --memories\?\)"),
        ({"data": "x", "sed": 1}, r"--data=x --sed=1.*\(did you mean --seed\?\)"),
        ({"model": "meralg"}, r"unknown model 'meralg' \(did you mean meralg\d\?\); choose from .*eralg4"),
        ({"lr": "fast"}, "--lr: 'fast' is not a number"),
        ({"lr": float("nan")}, "--lr: 'nan' is not a finite number"),
        ({"lr": [0.1, 0.2]}, r"--lr: '\[0.1, 0.2\]' is not a number"),
        ({"lr": True}, "--lr: 'yes' is not a number"),
        ({"memories": 2.5}, "--memories: '2.5' is not a whole number"),
        ({"memories": 0}, "--memories: 0 is too small: it must be 1 or more"),
        ({"shuffle_tasks": 1}, "--shuffle_tasks: '1' is neither 'yes' nor 'no'"),
        ({"engine": "turbo"}, "--engine: invalid choice: 'turbo'"),
        ({"model": "gem"}, "--n_memories 0: gem keeps"),
        ({"help": True}, "--?help"),
        ({"data_file": "nowhere.pt"}, r"nowhere\.pt.*mnist_rotations\.pt"),
        ({"resume": "nothing.checkpoint"}, r"--resume nothing\.checkpoint: no such file"),
        ({"learner_flag": {"x": 1}}, "--learner_flag x=1: online reads no such flag"),
        ({"learner_flag": "x=1"}, "learner_flag='x=1': give a dictionary"),
        ({"learner_flag": 3}, "learner_flag=3: give a dictionary"),
        ({"help": True}, "help is no flag of a run; python main.py --help lists them"),
        ({"save_path": "data/tiny.pt"}, r"--save_path data/tiny\.pt cannot be written"),
    ],
)
def test_bad_flags_are_refused_as_on_the_command_line(flags, message, here):
    before = world()
    with pytest.raises(UserError, match=message):
        experiment(**QUICK | flags)
    assert world() == before and not (here / "results").exists()


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_run_that_diverges_gives_what_came_before(kind, here, capsys):
    before = world()
    result = experiment(**QUICK | {"engine": kind, "draws": "auto", "lr": 1e30, "log_every": 1})
    assert world() == before
    assert result.status == "diverged" and "loss is not finite" in result.about["failure"]
    assert 1 <= len(result.result_a) < 24 and re.search("^error: online diverged: ", capsys.readouterr().err, re.M)


# interruptions


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_saves_is_stopped_and_goes_on(by, here, capsys):
    flags = flags_of(words_of("meralg1", NATIVE))
    wanted = experiment(**flags)
    terminated = []
    handler = signal.signal(signal.SIGTERM, lambda *_: terminated.append(1))
    try:
        before = world()
        with pytest.raises(KeyboardInterrupt if by == signal.SIGINT else checkpoints.Stopped):
            with after(9, a_signal(by)):
                experiment(**flags, save_path="results")
        assert world() == before and terminated == [1] * (by == signal.SIGTERM)
        said = capsys.readouterr().err
        path = re.search(r"^go on with: experiment\(resume='(\S+)'\)$", said, re.MULTILINE)[1]
        assert f"stopped by {by.name}" in said and path.startswith("results/meralg1")
        result = experiment(resume=path)
        assert world() == before
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert (result.result_a == wanted.result_a).all() and "goes on after 9 examples" in capsys.readouterr().err
    assert same_weights(result.learner.state_dict(), wanted.learner.state_dict())
    assert str(result.path) == path.removesuffix(".checkpoint") and not list(here.glob("results/*.checkpoint"))


def test_a_run_that_does_not_save_is_interrupted_like_any_code(here):
    before, n_threads = world(), threading.active_count()
    with pytest.raises(KeyboardInterrupt), after(9, a_signal(signal.SIGINT)):
        experiment(**QUICK | {"threads": 3})
    assert world() == before and not (here / "results").exists()
    assert threading.active_count() <= n_threads + 1, "and no pool of threads goes on (tqdm has one thread)"
    assert len(experiment(**QUICK).result_a) == 7, "the next run is not disturbed"


# what is in a folder


def test_load_results(here):
    experiments = [experiment(**QUICK, seed=seed, save_path=f"out/{seed}") for seed in range(3)]
    (here / "out" / "tuning.json").write_text('{"format": "something else"}')
    (here / "out" / "list.json").write_text("[1, 2]")
    found = load_results("out")
    assert [it.args["seed"] for it in found] == [0, 1, 2]
    for result, wanted in zip(found, experiments, strict=True):
        assert (result.result_a == wanted.result_a).all() and (result.result_t == wanted.result_t).all()
        assert all(getattr(result, name) == getattr(wanted, name) for name in metrics.NAMES)
        assert result.seconds > 0 and result.learner is None and result.path == wanted.path
        assert result.examples_seen.tolist() == [0, 4, 8, 12, 16, 20, 24]
        assert repr(result) == re.sub(r"[\d.]+ s>", f"{result.seconds:.1f} s>", repr(wanted))
    (here / "empty").mkdir()
    assert load_results("empty") == []
    with pytest.raises(UserError, match="nowhere is no folder; give one that main.py"):
        load_results("nowhere")


def _change(path, value):
    *way, last = path

    def change(about):
        at = about
        for key in way:
            at = at[key]
        at[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _change(["result_a", 0, 0], 1.5),
        _change(["result_a", 0, 0], float("nan")),
        _change(["result_a", 0, 0], "x"),
        _change(["result_a", 1], [0.5]),
        _change(["result_a"], []),
        _change(["result_t", 0], 0.5),
        _change(["result_t", 0], 10**400),
        _change(["result_t"], [0, 1, 0, 1, 0, 1, 0]),
        _change(["result_t"], None),
        _change(["examples_seen"], [1]),
        _change(["format"], "mer-result/9"),
        _change(["args"], 3),
        _change(["seconds"], {}),
        lambda about: about.pop("name"),
    ],
)
def test_a_damaged_result_is_left_out_with_a_warning(change, here):
    experiment(**QUICK, save_path="out")
    (path,) = here.glob("out/*.json")
    about = json.loads(path.read_text())
    change(about)
    (here / "out" / "damaged.json").write_text(json.dumps(about))
    with pytest.warns(UserWarning, match="out/damaged.json is left out: "):
        assert len(load_results("out")) == 1


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "half", "no text", "deep"])
def test_what_is_no_json_is_left_out_with_a_warning(text, here):
    (here / "bad.json").write_bytes(text)
    with pytest.warns(UserWarning, match="bad.json is left out: "):
        assert load_results(".") == []


def test_tables(here):
    pandas = pytest.importorskip("pandas")
    for name in ("online", "eralg4"):
        for seed in (1, 2):
            experiment(**QUICK | {"model": name}, seed=seed, save_path="out")
    found = load_results("out")
    frame, curves = found.frame(), found.curves()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 4 and len(curves) == 4 * 7 * 3
    means = frame.groupby("model").RA.mean()
    for name in ("online", "eralg4"):
        mine = [it for it in found if it.args["model"] == name]
        assert means[name] == pytest.approx(np.mean([it.RA for it in mine]))
        last = curves[(curves.model == name) & (curves.examples_seen == 24)]
        assert last.groupby("seed").accuracy.mean().tolist() == pytest.approx(
            [it.result_a[-1].mean() for it in sorted(mine, key=lambda it: it.args["seed"])]
        )
    row = curves[(curves.name == found[2].name) & (curves.examples_seen == 8) & (curves.task == 1)]
    assert row.accuracy.item() == found[2].result_a[2, 1] and row.learning.item() == found[2].result_t[2]
    assert load_results(here / "data").frame().empty and load_results(here / "data").curves().empty


def test_tables_without_pandas(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for table in (load_results(".").frame, load_results(".").curves):
        with pytest.raises(UserError, match="pip install pandas"):
            table()
