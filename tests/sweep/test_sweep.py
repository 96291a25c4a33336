"""The list of the paper's experiments, how a finished one is recognised, and what a sweep says and refuses."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import torch

import model
from disk import locks
from errors import UserError
from model.declared import Declared
from model.flags import Flag, yes_no
from report import pack
from run import provenance, settings
from run.flags import RUN_FLAGS
from sweep import __main__ as command_line
from sweep import commands, conduct, job, tuning, work
from sweep.commands import Command
from sweep.work import Outcome, Site

ROOT = Path(__file__).parent.parent.parent
SHARED = {"n_layers": 2, "n_hiddens": 100, "batch_size": 1, "log_every": 100, "cuda": False}
DATA = {"rotations": 1000, "permutations": 1000, "manypermutations": 200}
# The paper's hyperparameters (its appendix): learner, memories; flags; their values on the three data sets.
PAPER = """
online      -    | lr | .0003 | .003 | .003
independent -    | lr | .01 | .01 | .01
taskinput   -    | lr | .01 | .01 | .01
ewc         -    | n_memories lr memory_strength | 10 .001 100 | 10 .01 10 | 10 .003 1
gem         5120 | lr n_memories memory_strength | .01 256 1 | .01 256 1 | .01 51 0
gem         500  | lr n_memories memory_strength | .01 25 0 | .01 25 1 | .003 5 .1
gem         200  | lr n_memories memory_strength | .01 10 0 | .01 10 0 | -
eralg4      5120 | lr replay_batch_size | .1 25 | .1 25 | .1 25
eralg4      500  | lr replay_batch_size | .1 5 | .1 10 | .1 25
eralg4      200  | lr replay_batch_size | .1 10 | .1 10 | -
eralg5      5120 | lr replay_batch_size | .03 100 | .01 25 | .003 10
eralg5      500  | lr replay_batch_size | .01 100 | .01 25 | .01 5
eralg5      200  | lr replay_batch_size | .01 50 | .01 10 | -
meralg1 5120 | lr beta gamma replay_batch_size batches_per_example | .03 .03 1 100 10 | .03 .03 1 100 10 | .1 .01 1 5 10
meralg1 500 | lr beta gamma replay_batch_size batches_per_example | .1 .01 1 10 10 | .03 .03 1 25 10 | .03 .03 1 5 10
meralg1 200 | lr beta gamma replay_batch_size batches_per_example | .1 .01 1 10 5 | .03 .03 1 10 10 | -
meralg6     5120 | lr gamma replay_batch_size | .03 .1 100 | .03 .1 50 | .03 .1 25
meralg6     500  | lr gamma replay_batch_size | .1 .03 10 | .03 .3 10 | .1 .03 5
meralg6     200  | lr gamma replay_batch_size | .1 .03 25 | .1 .03 5 | -
meralg7     5120 | lr gamma replay_batch_size s | .03 .03 100 5 | .01 .1 100 10 | .03 .03 100 10
meralg7     500  | lr gamma replay_batch_size s | .03 .03 50 5 | .01 .1 25 10 | .03 .03 5 10
meralg7     200  | lr gamma replay_batch_size s | .03 .03 50 5 | .03 .1 5 2 | -
"""


def papers_experiments():
    for line in PAPER.strip().splitlines():
        who, names, *values = (part.split() for part in line.split("|"))
        for (data, n), texts in zip(DATA.items(), values, strict=True):
            if texts != ["-"]:
                flags = dict(zip(names, map(float, texts), strict=True))
                if who[0].startswith(("er", "mer")):
                    flags["memories"] = int(who[1])
                yield {"model": who[0], "data_file": f"mnist_{data}.pt", "samples_per_task": n, **SHARED, **flags}


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """The script's list, as a file of commands."""
    path = tmp_path_factory.mktemp("list") / "commands.txt"
    path.write_bytes(subprocess.run(["bash", ROOT / "mer_examples.sh", "--experiments"], capture_output=True).stdout)
    return path


@pytest.fixture
def run_sweep(capsys, tmp_path):
    """run_sweep(*words): the exit code, stdout and stderr of a sweep into tmp_path/sweep."""

    def run(*words, save_path=tmp_path / "sweep"):
        code = command_line.main([str(word) for word in (*words, "--save_path", save_path)])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def write(tmp_path, task_file):
    """write(*lines): a file with a command for each line of flags, on tiny data."""

    def write(*lines):
        folder, name = task_file(n_tasks=2)
        path = tmp_path / "commands.txt"
        shared = f"--data_path {folder} --data_file {name} --n_hiddens 8"
        path.write_text("".join(f"python main.py {shared} {line}\n" for line in lines))
        return path

    return write


@pytest.fixture(autouse=True)
def keep_signals():
    """Those of the tests' own process, in which sweeps run here."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# the list


def test_the_list_is_the_papers():
    found = commands.experiments()
    assert Counter(it["data_file"] for it in found) == {
        "mnist_rotations.pt": 22,
        "mnist_permutations.pt": 22,
        "mnist_manypermutations.pt": 16,
    }
    assert sorted(map(sorted, map(dict.items, found))) == sorted(map(sorted, map(dict.items, papers_experiments())))


def test_the_script_lists_commands_that_can_be_copied():
    environment = os.environ | {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    line = ["./mer_examples.sh", "--list", "0 1", "--learner", "meralg7,online", "--data", "manypermutations"]
    listing = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert listing.returncode == 0, listing.stderr
    lines = listing.stdout.splitlines()
    assert len(lines) == 2 * 3 and "$" not in listing.stdout
    assert lines[0].startswith("python main.py --model online --data_file mnist_manypermutations.pt ")
    assert [line.split()[-2:] for line in lines] == 3 * [["--seed", "0"]] + 3 * [["--seed", "1"]]
    assert all(Command.of(shlex.split(line)[2:]).args.samples_per_task == 200 for line in lines)


@pytest.mark.parametrize(
    "words, n",
    [
        ([], 60),
        (["--learner", "gem"], 8),
        (["--learner", "gem,ewc", "--learner", "online"], 14),
        (["--data", "permutations"], 22),
        (["--memories", "5120"], 18),
        (["--memories", "200", "--memories", "500"], 30),
        (["--memories", "500", "--learner", "gem", "--data", "rotations,manypermutations"], 2),
    ],
)
def test_filters(words, n, listed, run_sweep):
    code, out, _ = run_sweep("--list", "--commands", listed, *words)
    assert code == 0 and len(out.splitlines()) == n


# commands


@pytest.mark.parametrize(
    "line",
    [
        "--model online --shuffle_tasks --lr 0.1",
        "--model online --keep_state --shuffle_tasks",
        "--model=online --lr=0.1 --samples_per_task -1 --finetune",
        "--model online --data_file=-x.pt --data_path d --n_epochs 1 --n_epochs 2",
        "--model plain --learner_flag a=1 --learner_flag b=x=y --seed=3",
    ],
)
def test_a_command_means_what_it_does_on_the_command_line(line, monkeypatch):
    """Flags without a word, and --learner_flag, which may come again."""
    load, known = model.load, model.read_all()
    monkeypatch.setattr(model, "load", lambda name: torch.nn.Module if name == "plain" else load(name))
    monkeypatch.setattr(model, "read_all", lambda: known | {"plain": Declared("common")})
    words = line.split()
    command = Command.of(words)
    assert settings.parse(shlex.split(str(command))[2:]).as_dict() == settings.parse(words).as_dict()
    assert command.reads("lr") and command.reads("gamma") == (command.args.model == "plain"), (
        "which may read what it likes"
    )


def with_bare_flags():
    own = {name: settings.flags_of(learner) for name, learner in model.read_all().items()}
    return [(name, flag) for name in ("online", *own) for flag in own[name] if flag.bare is not None] + [
        ("online", flag) for flag in RUN_FLAGS if flag.bare is not None and flag.name not in (*commands.PLACES, "cuda")
    ]


@pytest.mark.parametrize("then", [[], ["--seed=3"], ["--n_epochs", "2"]], ids=" ".join)
@pytest.mark.parametrize("name, flag", with_bare_flags(), ids=lambda it: getattr(it, "name", it))
def test_every_flag_may_be_bare_that_main_takes_bare(name, flag, then):
    words = ["--model", name, f"--{flag.name}", *then]
    command = Command.of(words)
    assert settings.parse(commands.words(command.flags)).as_dict() == settings.parse(words).as_dict()
    assert command.flags[flag.name] == settings.as_text(flag.bare) and command.has_seed == ("--seed=3" in then)


@pytest.mark.parametrize("bare, parse", [(True, yes_no), (7.0, float), ("-7", str)])
def test_a_stranger_s_own_flag_may_be_bare(bare, parse, monkeypatch):
    load, known = model.load, model.read_all()
    net = type("Net", (torch.nn.Module,), {"flags": (Flag("loud", parse, bare, "", bare=bare),)})
    monkeypatch.setattr(model, "load", lambda name: net if name == "plain" else load(name))
    monkeypatch.setattr(model, "read_all", lambda: known | {"plain": Declared("common")})
    words = ["--model", "plain", "--loud", "--seed=3"]
    command = Command.of(words)
    assert command.flags == {"model": "plain", "loud": settings.as_text(bare), "seed": "3"} and command.has_seed
    assert settings.parse(commands.words(command.flags)).as_dict() == settings.parse(words).as_dict()


@pytest.mark.parametrize(
    "lines, n",
    [
        (["python main.py --model online \\", "  --lr 0.1 \\", "  --n_epochs 2"], 1),
        (["python main.py --model online --lr 0.1 --n_epochs 2 \\"], 1),
        (["python main.py --model online --lr 0.\\", "1 --n_epochs 2 # so \\", "python main.py --model gem"], 2),
        (["# so \\", "python main.py --model online --lr 0.1 --n_epochs 2", "python main.py --model gem"], 2),
    ],
)
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_line_that_ends_in_a_backslash_goes_on(lines, n, end):
    first, *rest = commands.read([line + end for line in lines], "it")
    assert first.flags == {"model": "online", "lr": "0.1", "n_epochs": "2"} and len(rest) == n - 1
    with pytest.raises(UserError, match=f"it, line {len(lines) + 1}: argument --lr"):
        commands.read([*lines[:-1], "", "python main.py --lr \\", " x \\"], "it")


# what an experiment is


def test_only_what_matters_makes_another_experiment(write, monkeypatch):
    path = write("--model online --engine reference")
    (command,) = commands.read(path.read_text().splitlines(), path)
    key = job.prepare(command).key

    def key_with(flags):
        return job.prepare(command.plus(flags)).key

    for flags in ({"threads": "2"}, {"checkpoint_every": "never"}, {"lr": "1e-3"}, {"draws": "shuffle"}):
        assert key_with(flags) == key
    for flags in ({"lr": "0.01"}, {"seed": "1"}, {"draws": "uniform"}, {"log_every": "7"}):
        assert key_with(flags) != key
    monkeypatch.setattr(provenance, "code_identity", lambda *of: "another version")
    assert key_with({}) != key


def test_a_finished_run_is_known_whatever_its_file_is_called(write, run_sweep, run_main, tmp_path):
    path = write("--model online", "--model online --lr 0.5")
    words = path.read_text().splitlines()[0].split()[2:]
    by_hand = run_main(*words, "--seed", 3, "--threads", 1, save_path=tmp_path / "sweep").files[".json"]
    by_hand.rename(by_hand.with_name("renamed.json"))
    (tmp_path / "sweep" / "half.json").write_text(by_hand.with_name("renamed.json").read_text()[:500])
    (tmp_path / "sweep" / "foreign.json").write_text('["mer-result/1"]')
    code, out, err = run_sweep(3, "--commands", path)
    assert code == 0 and "1 done, 1 skipped (finished before), 0 failed" in out, err
    assert "1 done" not in run_sweep(3, "--commands", path)[1]


def test_a_run_in_a_pack_is_finished(write, run_sweep, run_main, tmp_path):
    path = write("--model online", "--model online --lr 0.5")
    words = path.read_text().splitlines()[0].split()[2:]
    run_main(*words, "--seed", 3, "--threads", 1, save_path=tmp_path / "elsewhere")
    (tmp_path / "sweep").mkdir()
    pack.pack([tmp_path / "elsewhere"], tmp_path / "sweep" / "all.jsonl.gz")
    (tmp_path / "sweep" / "half.jsonl.gz").write_bytes((tmp_path / "sweep" / "all.jsonl.gz").read_bytes()[:-9])
    code, out, err = run_sweep(3, "--commands", path)
    assert code == 0 and "1 done, 1 skipped (finished before), 0 failed" in out, err


def test_a_run_that_finished_while_its_sweep_died_is_kept(write, run_sweep, run_main, tmp_path):
    path = write("--model online")
    (command,) = commands.read(path.read_text().splitlines(), path)
    made = job.prepare(command.with_seed(3))
    private = job.private_folder(tmp_path / "sweep", made.key)
    left = run_main(*commands.words(made.flags), save_path=private).files[".json"]
    code, out, err = run_sweep(3, "--commands", path)
    assert code == 0 and "0 done, 1 skipped" in out, err
    assert (tmp_path / "sweep" / left.name).exists() and not private.exists()


def test_what_other_versions_of_the_program_began_is_removed(write, run_sweep, tmp_path):
    path, folder = write("--model online"), tmp_path / "sweep"
    (command,) = commands.read(path.read_text().splitlines(), path)
    mine, other_seed = (job.prepare(command.with_seed(seed)).key for seed in (3, 4))
    run = mine.partition("-")[0]
    left = [f"{run}-{'0' * 32}", f"{run}-{'1' * 32}", f"{other_seed.partition('-')[0]}-{'0' * 32}"]
    for key in left:
        job.private_folder(folder, key).mkdir(parents=True)
        (job.private_folder(folder, key) / "half.checkpoint").write_bytes(b"x")
        job.lock_path(folder, key).touch()
    with closing(locks.claim(job.lock_path(folder, left[1]))):  # another checkout's sweep is at it
        assert run_sweep(3, "--commands", path)[0] == 0
    there = sorted(entry.name for entry in (folder / ".sweep").iterdir())
    assert there == sorted([f"{mine}.lock", *left[1:], *(f"{key}.lock" for key in left[1:])])


@pytest.mark.parametrize("fault", ["vanished", "full"])
def test_a_run_is_what_it_is_whatever_becomes_of_its_log(fault, write, run_sweep, monkeypatch):
    def tidy(log, tidy=work._tidy):
        if fault == "vanished":
            log.unlink()
            tidy(log)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(work, "_tidy", tidy)
    code, out, err = run_sweep("--commands", write("--model online"), 0)
    assert code == 0 and "1 done, 0 skipped (finished before), 0 failed" in out, (out, err)


# what a sweep says and refuses


def test_a_failing_run_does_not_stop_the_rest(write, run_sweep, tmp_path):
    path = write("--model gem", "--model online --lr 1e30", "--model online")
    code, out, err = run_sweep(3, "--commands", path, "--jobs", 1)
    assert code == 1 and "1 done, 0 skipped (finished before), 2 failed" in out
    assert "failed: gem 0 tiny seed 3: exit code 2" in out and "python main.py --model gem" not in err
    assert "error: --n_memories 0: gem keeps examples" in out  # from its log
    assert "diverged: the training loss is not finite" in out
    assert "[3/3] done: online tiny seed 3: RA 0." in err
    code, out, _ = run_sweep(3, "--commands", path)
    assert code == 1 and "0 done, 1 skipped (finished before), 2 failed" in out
    logs = [path.read_text() for path in (tmp_path / "sweep" / "logs").iterdir()]
    assert sorted(text.count("try 1") for text in logs) == [1, 1, 2]  # what diverged is not run again


def test_tuning(write, run_sweep, tmp_path):
    path, folder = write("--model online --lr 0.5 --n_epochs 3"), tmp_path / "sweep"
    grid = ("--grid", "lr=0.0001,0.1", "--grid", "batch_size=1", "--tuning_seeds", 8, 9)
    code, out, err = run_sweep(3, "--commands", path, *grid)
    assert code == 0, out + err
    (record,) = (folder / "tuning").glob("*.json")
    saved = json.loads(record.read_text())
    (entry,) = saved["experiments"]
    assert saved["tuning_seeds"] == [8, 9] and saved["reported_seeds"] == [3] and entry["code"] and saved["date"]
    runs = [json.loads(path.read_text()) for path in (folder / "tuning" / "runs").glob("*.json")]
    RAs = {(str(run["args"]["lr"]), str(run["seed"])): run["stats"]["RA"] for run in runs}
    assert len(RAs) == len(runs) == 4
    for point in entry["points"]:
        values = {seed: RAs[point["flags"]["lr"], seed] for seed in ("8", "9")}
        assert point["RA"] == values and point["mean"] == pytest.approx(sum(values.values()) / 2)
    assert entry["choice"] == {"lr": "0.1", "batch_size": "1"} and "--lr 0.1 " in entry["chosen_command"]
    (reported,) = (json.loads(path.read_text()) for path in folder.glob("*.json"))
    assert reported["seed"] == 3 and reported["args"]["lr"] == 0.1
    assert reported["data"]["identity"] == entry["data"]["identity"]
    assert run_sweep(3, "--commands", path, *grid)[0] == 0
    assert list((folder / "tuning").glob("*.json")) == [record]  # the same once more: no second record
    code, _, err = run_sweep(9, "--commands", path)
    assert code == 2 and "seed 9 serves for tuning (the record" in err and "choose other seeds" in err


def test_lines_as_the_points_of_a_grid(write, run_sweep, tmp_path):
    path = write(
        "--model online --lr 0.0001,0.1 --n_epochs 2",
        "--model eralg4 --memories 4 --lr 0.01",
        "--model eralg4 --memories 9 --lr 0.01 --replay_batch_size 2",
        "--model online --lr 0.001 --n_epochs 1",
        "--model online --lr 0.1 --n_epochs 2",  # once more
    )
    code, out, err = run_sweep("--commands", path, "--tune", "--tuning_seeds", 8, 9)
    assert code == 0 and "10 done" in out, out + err
    (record,) = (tmp_path / "sweep" / "tuning").glob("*.json")
    online, *er = json.loads(record.read_text())["experiments"]
    assert [point["flags"] for point in online["points"]] == [
        {"lr": "0.0001", "n_epochs": "2"},
        {"lr": "0.1", "n_epochs": "2"},
        {"lr": "0.001", "n_epochs": "1"},
    ]
    assert not {"--lr", "--n_epochs"} & set(online["command"].split())
    means = [point["mean"] for point in online["points"]]
    runs = [json.loads(path.read_text()) for path in (tmp_path / "sweep" / "tuning" / "runs").glob("*.json")]
    for point, mean in zip(online["points"], means, strict=True):
        alike = {name: float(text) for name, text in point["flags"].items()}
        mine = [run for run in runs if run["model"] == "online" and run["args"] == run["args"] | alike]
        assert len(mine) == 2 and mean == pytest.approx(sum(run["stats"]["RA"] for run in mine) / 2)
    assert online["choice"] == online["points"][means.index(max(means))]["flags"]
    assert [len(entry["points"]) for entry in er] == [1, 1]  # memories of two sizes are two experiments
    assert [entry["choice"] for entry in er] == [{}, {}] and all(entry["chosen_command"] for entry in er)
    assert "10 skipped" in run_sweep("--commands", path, "--tune", "--tuning_seeds", 8, 9)[1]


def record_of(path, date, *choices):
    """Writes a record of a tuning; choices: (the points' common flags, the chosen point's, or None)."""
    entries = [
        {
            "command": f"python main.py {shared}",
            "points": [{"flags": {}, "command": f"python main.py {shared} --lr 0.5"}],
            "chosen_command": None if point is None else f"python main.py {shared} {point}".strip(),
        }
        for shared, point in choices
    ]
    path.write_text(json.dumps({"tuning_seeds": [100], "date": date, "experiments": entries}))
    return path


def test_of_an_experiment_the_newest_choice_counts(tmp_path, capsys):
    online, er = "--model online --cuda no", "--model eralg4 --memories 200 --cuda no"
    new = record_of(tmp_path / "a.json", "2026-11-02", (online, "--lr 0.1"))
    old = record_of(tmp_path / "b.json", "2026-11-01", (er, "--lr 0.2"), (f"{online} --n_epochs 1", "--lr 0.3"))
    assert command_line.main(["chosen", str(new), str(old)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"python main.py {er} --lr 0.2",
        f"python main.py {online} --lr 0.1",
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "is no record of a tuning"),
        ('{"tuning_seeds": [1], "date": 3, "experiments": []}', "is no record of a tuning"),
        ('{"tuning_seeds": [1], "date": "3", "experiments": [{"points": []}]}', "is no record of a tuning"),
        *(
            (json.dumps({"tuning_seeds": [1], "date": "3", "experiments": [entry]}), "is no record of a tuning")
            for entry in (
                {"chosen_command": 5, "command": "python main.py", "points": [{"command": "python main.py"}]},
                {"chosen_command": None, "command": [], "points": [{"command": "python main.py"}]},
                {"chosen_command": "python main.py", "command": "python main.py", "points": [{"command": None}]},
                {"chosen_command": "python main.py", "command": "python main.py", "points": 5},
                5,
            )
        ),
        (None, "chose nothing for python main.py --model online: a run failed, or all diverged; tune it again"),
    ],
)
def test_records_that_choose_nothing_are_named(content, message, tmp_path, capsys):
    path = record_of(tmp_path / "a.json", "2026-11-02", ("--model online", None))
    if content:
        path.write_text(content)
    assert command_line.main(["chosen", str(path)]) == 2
    out, err = capsys.readouterr()
    assert message in err and "a.json" in err and not out


STRANGE = {
    "deep": "[" * 100_000,
    "deep within": '{"format": "mer-result/1", "tuning_seeds": ' + "[" * 100_000,
    "no object": '["mer-result/1"]',
    "bytes": b"\xff\xfe\x00",
    "endless number": '{"format": "mer-result/1", "date": ' + "1" * 10_000 + "}",
    "seeds": '{"tuning_seeds": [[1]], "date": "3", "experiments": []}',
    "one seed": '{"tuning_seeds": "12", "date": "3", "experiments": []}',
    "experiments": '{"tuning_seeds": [1], "date": "3", "experiments": 3}',
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_strange_json_ends_no_sweep_in_a_traceback(content, write, run_sweep, tmp_path, capsys):
    """Among the results it is passed over; as a record it is named."""
    folder = tmp_path / "sweep"
    (folder / "tuning").mkdir(parents=True)
    content = content if isinstance(content, bytes) else content.encode()
    for path in (folder / "a.json", folder / "tuning" / "t.json"):
        path.write_bytes(content)
    assert job.finished(folder) == {}
    code, out, err = run_sweep(3, "--commands", write("--model online"))
    assert code == 2 and "t.json is no record of a tuning" in err and not out
    assert command_line.main(["chosen", str(folder / "a.json")]) == 2
    assert "a.json is no record of a tuning" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), math.nan, math.inf, "x", None, [], {}, True], ids=lambda it: str(it)[:9]
)
@pytest.mark.parametrize(
    "where", [("stats", "RA"), ("seconds", "total"), ("stats",), ("science", "lr"), ("failure",), ("code",)]
)
def test_an_odd_number_in_a_result_ends_no_sweep(value, where, tmp_path):
    saved = {
        **{"format": "mer-result/1", "status": "complete", "failure": None, "science": {"lr": 1}, "code": "c"},
        **{"data": {"identity": "d"}, "stats": {"RA": 0.5}, "seconds": {"total": 1.0}},
    }
    (tmp_path / "good.json").write_text(json.dumps(saved | {"code": "other"}))
    at = saved
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = value
    (tmp_path / "odd.json").write_text(json.dumps(saved))
    found = job.finished(tmp_path)
    assert {Path(it.path).name for it in found.values()} >= {"good.json"}
    assert all(math.isfinite(it.RA) and math.isfinite(it.seconds) for it in found.values())


def run_script(*words):
    environment = os.environ | {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    line = ["./successor_examples.sh", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)


def script(*words):
    """The commands that it lists."""
    done = run_script(*words)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line and not line.startswith("#")]


def test_successors_are_listed_on_all_streams_with_all_memories():
    found = commands.read(script("--experiments"), "the list")
    successors = {"agem", "der", "derpp", "mir", "er_ace", "lamaml", "clser", "gss"}
    wanted = {
        (name, data, size)
        for name in successors | {"eralg4", "meralg6", "meralg7"}
        for data in DATA
        for size in ((5120, 500) if data == "manypermutations" else (5120, 500, 200))
    } | {("joint", data, None) for data in DATA}
    assert Counter((it.args.model, it.data, it.n_memories) for it in found) == Counter(wanted)
    for it in found:
        shared = {**SHARED, "log_every": 500, "samples_per_task": DATA[it.data]}
        assert {name: getattr(it.args, name) for name in shared} == shared
        assert all(it.reads(flag) for flag in it.flags)


def test_the_grids_are_small_and_hold_the_list_s_experiments():
    grids = tuning.grouped(commands.read(script("--tune", "--experiments"), "the grids", several=True))
    wanted = {(it.args.model, it.data, it.n_memories) for it in commands.read(script("--experiments"), "the list")}
    wanted = {(name, data, size) for name, data, size in wanted if data != "manypermutations" and size != 500}
    assert Counter((it.args.model, it.data, it.n_memories) for it in grids) == Counter(wanted)
    for grid in grids.values():
        assert 1 < len(grid) <= 24
        assert all(trial.args.log_every >= 20_000 and trial.args.samples_per_task == 1000 for _, trial in grid)


@pytest.mark.parametrize("words", ["--tune --list --learner agem", "--alignment --list 0", "--tune --experiments"])
def test_the_words_of_the_script_come_in_any_order(words):
    words = words.split()
    assert script(*words) == script(*words[1:], words[0])
    for other in ("successor_examples.sh", "mer_examples.sh"):
        said = subprocess.run([ROOT / other, "0", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
        assert f"./{other} 0 1 2 3 4" in said and "--tuning_seeds" in said


def test_the_list_is_printed_from_what_was_chosen(tmp_path):
    """All sizes and streams of each choice, and the flags of the reported runs."""
    points = commands.read(script("--tune", "--experiments"), "the grids", several=True)
    choices = {}
    for it in points:
        if it.args.model in ("agem", "joint"):
            choices[it.args.model, it.data, it.n_memories] = it  # the last point of each grid
    entries = [(commands.as_text(it.flags).split(" ", 2)[2], "") for it in choices.values()]
    lines = script("--chosen", record_of(tmp_path / "a.json", "2026-11-02", *entries))
    done = run_script("--chosen", record_of(tmp_path / "b.json", "2026-11-02", ("--model online", "")))
    assert done.returncode == 2 and "online is not of these grids" in done.stderr and not done.stdout
    assert all(re.match(r"python main.py --model \w+ +\$(rotations|permutations|many) --", line) for line in lines)
    values = dict(
        re.findall(r'^(rotations|permutations|many)="(.*)"$', (ROOT / "successor_examples.sh").read_text(), re.M)
    )
    found = commands.read(
        [re.sub(r"\$(\w+)", lambda it: values[it[1]].replace(" $shared", ""), line) for line in lines], "it"
    )
    assert len(found) == 2 * 3 + 2 + 3
    for it in found:
        data = it.data.replace("many", "")
        size = {500: 200}.get(it.n_memories, it.n_memories)
        chosen = choices[it.args.model, data, size]
        assert it.args.samples_per_task == DATA[it.data]
        own = chosen.flags.keys() - {*SHARED, "keep_state", "data_file", "samples_per_task", "memories"}
        assert chosen.args.keep_state is False and it.args.keep_state is True
        assert {name: it.flags[name] for name in own} == {name: chosen.flags[name] for name in own}


def test_the_list_is_what_the_tuning_in_the_records_chose():
    (record,) = ROOT.glob("results/records/*/successors/tuning.json")
    text = (ROOT / "successor_examples.sh").read_text()
    listed = text.partition("experiments() {\n  cat <<LIST\n")[2].partition("LIST\n}")[0]
    assert [line for line in listed.splitlines() if line.startswith("python ")] == script("--chosen", record)
    grids = commands.read(script("--tune", "--experiments"), "the grids", several=True)
    tried = [point["command"] for entry in json.loads(record.read_text())["experiments"] for point in entry["points"]]
    assert sorted(commands.as_text(it.flags) for it in grids) == sorted(tried)


def test_gradients_are_compared_for_six_learners_at_200_memories():
    found = commands.read(script("--alignment", "--experiments"), "the list")
    names = ("online", "eralg4", "gem", "meralg1", "meralg6", "lamaml")
    wanted = [(name, data) for name in names for data in ("rotations", "permutations")]
    assert Counter((it.args.model, it.data) for it in found) == Counter(wanted)
    assert {it.n_memories for it in found} == {None, 200}
    assert {(it.args.alignment, it.args.log_every) for it in found} == {(10, 1000)}


@pytest.mark.parametrize(
    "of_seeds, choice",
    [
        ({"0.1": (0.5, 0.6), "0.2": (0.8, 0.4)}, "0.2"),
        ({"0.1": (0.5, 0.6), "0.2": (0.9, "diverged")}, "0.1"),
        ({"0.1": ("diverged", 0.6), "0.2": (0.9, "diverged")}, None),
        ({"0.1": (0.5, 0.6), "0.2": (0.9, "failed")}, None),  # it might have been the best
    ],
)
def test_the_choice(of_seeds, choice, write):
    path = write("--model online")
    commands_ = commands.read(path.read_text().splitlines(), path)
    trials = tuning.Tuning(tuning.crossed(commands_, [{"lr": lr} for lr in of_seeds]), [8, 9])
    made = [job.prepare(command) for command in trials.commands()]
    outcomes = {}
    for it, value in zip(made, (value for values in of_seeds.values() for value in values), strict=True):
        outcome = Outcome("done", value) if isinstance(value, float) else Outcome(value, failure="so it is")
        outcomes[it.key] = outcome
    entry = trials.judge(commands_[0], outcomes)
    assert entry["choice"] == (choice and {"lr": choice})
    assert [list(point["RA"].values()) for point in entry["points"]] == [
        [value if isinstance(value, float) else None for value in values] for values in of_seeds.values()
    ]


@pytest.mark.parametrize(
    "line, words, message",
    [
        ("--model online", (), "which seeds? Give some"),
        ("--model online --seed 2", ("1",), "a command has a --seed of its own"),
        ("--model nothing", ("1",), "line 1: unknown model 'nothing'"),
        ("--model online --lr x", ("1",), "line 1: argument --lr: 'x' is not a number"),
        ("--model online --resume auto", ("1",), "--resume auto: the sweep decides that"),
        ("--model online", ("1", "--learner", "gem"), "--learner gem: no command has it; choose from online"),
        ("--model online", ("1", "--memories", "100"), "no command is left"),
        ("--model online", ("1", "--grid", "gamma=1"), "--grid gamma: online does not read --gamma"),
        ("--model online", ("1", "--grid", "lr"), "--grid lr: write --grid FLAG=VALUE"),
        ("--model online", ("1", "--grid", "seed=1,2"), "seed is nothing to tune"),
        ("--model online", ("1", "--grid", "lr=1,-1"), "argument --lr: -1.0 is too small"),
        ("--model online --gamma 1,2", ("--tune",), "--tune gamma: online does not read --gamma"),
        ("--model online --lr 1,x", ("--tune",), "line 1: argument --lr: 'x' is not a number"),
        ("--model online --lr 1,2", ("1",), "line 1: argument --lr: '1,2' is not a number"),
        ("--model online --lr 1,2", ("100", "--tune"), "seed 100 serves for tuning (--tuning_seeds)"),
        ("--model online --seed 1,2", ("--tune",), "a command has a --seed of its own"),
        ("--model online", ("101", "--grid", "lr=1"), "seed 101 serves for tuning (--tuning_seeds)"),
        ("--model online --data_file no.pt", ("1",), "no data file"),
    ],
)
def test_refusals(line, words, message, write, run_sweep):
    code, out, err = run_sweep(*words, "--commands", write(line))
    assert code == 2 and message in err and not out
    assert "Traceback" not in err


@pytest.mark.parametrize("value", ["", " ", ","])
@pytest.mark.parametrize(
    "words",
    [
        ("--learner",),
        ("--data",),
        ("--memories",),
        ("--grid", "lr=1,2", "--tuning_seeds"),
        ("--save_path",),
        ("--ray",),
        (),
    ],
    ids=" ".join,
)
def test_empty_words_are_refused(words, value, write, capsys):
    """They would select everything, silently."""
    if words and words[-1] in ("--save_path", "--ray"):
        value = ""
    with pytest.raises(SystemExit) as stop:
        command_line.main(["0", "--list", "--commands", str(write("--model online")), *words, value])
    assert stop.value.code == 2 and re.search(r"error: .*(has no value|is empty); give", capsys.readouterr().err)


def test_refused_files_and_folders(write, run_sweep, tmp_path):
    assert "--commands nowhere cannot be read" in run_sweep(1, "--commands", "nowhere")[2]
    (tmp_path / "file").write_text("python other.py\n")
    assert (
        "file, line 1: 'python other.py' is no command of main.py" in run_sweep(1, "--commands", tmp_path / "file")[2]
    )
    code, _, err = run_sweep(1, "--commands", write("--model online"), save_path=tmp_path / "file" / "below")
    assert code == 2 and "cannot be written: Not a directory; choose another --save_path" in err


@pytest.mark.parametrize("label", ["x" * 300, "я" * 300, "😀" * 300, "start_from a/b.pt", "..", "a\x00b"], ids=ascii)
def test_a_log_has_a_name_whatever_its_run_is_called(label, tmp_path):
    one, other = (job.Job({}, label, key * 64, "", 1, False) for key in "01")
    assert one.log_name != other.log_name
    (tmp_path / one.log_name).write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [one.log_name]


def test_without_ray(write, run_sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = run_sweep(1, "--commands", write("--model online"), "--ray", "auto")
    assert code == 2 and "pip install -r requirements-cluster.txt" in err


def test_what_a_log_tells_of_the_progress(tmp_path):
    log = tmp_path / "run.log"
    assert work.progress(log, 0) is None
    log.write_text("--- then, try 1: python main.py --model online\n")
    assert work.progress(log, 0) == (0.0, "starting")
    with open(log, "a") as file:
        file.write("\r  0%|   | 0/200 [00:00<?, ?ex/s]\r 25%|██ | 50/200 [00:10<00:30, 5.00ex/s, task 0: 0.9]")
    assert work.progress(log, 0) == (0.25, "00:10<00:30, 5.00ex/s, task 0: 0.9")
    assert work.progress(log, log.stat().st_mtime + 1) is None


def test_lines_without_a_terminal(tmp_path, monkeypatch, capsys):
    site, made = (
        Site(str(tmp_path), str(tmp_path), 1),
        job.Job({}, "online seed 1", "0" * 64, "", 1, False),
    )
    site.make()
    monkeypatch.setattr(conduct, "QUIET", -1)
    display = conduct.Display(total=3, n_before=1, site=site, n_lines=2)
    display.begin -= 50
    site.log(made).write_text("\r 50%|██ | 1/2 [00:10<00:10, 5.00ex/s]")
    display.show([made])
    text, line = capsys.readouterr().err.splitlines()
    assert text == "1.5 of 3 runs, about 02:30 left" and line == "  online seed 1:  50% 00:10<00:10, 5.00ex/s"
    display.tell(made, Outcome("done", 0.5, 60.0))
    assert capsys.readouterr().err == "[2/3] done: online seed 1: RA 0.500 (60 s)\n"
