"""Sweeps that are shot at: afterwards every experiment has exactly one complete result, and the report is as if nothing
had happened."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from report import tables
from report.read import read_results

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture
def commands(task_file, tmp_path):
    """commands(models, n): a file of commands; each run computes for a second or so, with many checkpoints."""

    def write(models=("meralg1", "meralg6"), n=40):
        folder, name = task_file(n_tasks=2, n_train=n)
        shared = (
            f"--data_path {folder} --data_file {name} --engine reference --memories 50 --n_hiddens 16 --log_every 10"
        )
        path = tmp_path / "commands.txt"
        path.write_text("\n".join(f"python main.py --model {m} {shared} --checkpoint_every 10" for m in models))
        return path

    return write


@pytest.fixture
def start():
    """start(commands, folder, ...): a sweep of the commands into the folder, as a process of its own."""
    started = []

    def start(commands, folder, *words, seeds=("1",)):
        line = [sys.executable, "-m", "sweep", *seeds, "--commands", commands, "--save_path", folder, *words]
        sweep = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(sweep)
        return sweep

    yield start
    for sweep in started:
        sweep.kill()
        sweep.wait()
        sweep.stdout.close()


def end(sweep, code=0):
    """Waits for a sweep; returns what it said."""
    text, _ = sweep.communicate(timeout=200)
    assert sweep.returncode == code, text
    return text


def descendants(pid):
    """{pid: command line} of the processes below one."""
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                lines[int(entry.name)] = command_of(entry.name)
            except OSError:  # gone meanwhile
                continue
    found, new = {}, [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found |= {child: lines[child] for child in new if child in lines}
    return found


def command_of(pid):
    """A process's command line, empty where there is none any more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def runs_of(sweep):
    return [pid for pid, line in descendants(sweep.pid).items() if "main.py" in line]


def wait_for(condition, sweep=None):
    """The condition's value, as soon as there is one, while the sweep is alive."""
    deadline = time.monotonic() + 240  # on a machine that is busy with other things
    while time.monotonic() < deadline and (sweep is None or sweep.poll() is None):
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain: {sweep and sweep.poll() is not None and sweep.stdout.read()}")


def checkpoints_in(folder):
    return list(folder.glob(".sweep/*/*.checkpoint"))


def results_in(folder):
    """{(model, seed): numbers} of the results, complete and one for each; and what the report makes of them."""
    found = {}
    for path in folder.glob("*.json"):
        saved = json.loads(path.read_text())
        who = saved["model"], saved["seed"]
        assert saved["status"] == "complete" and who not in found
        assert path.with_suffix(".pt").exists() and path.with_suffix(".txt").exists()
        found[who] = {name: saved[name] for name in ("stats", "accuracy_matrix", "result_a", "examples_seen")}
    assert not list(folder.glob(".sweep/*/*")), "private folders are left"
    assert len(list(folder.glob("*.pt"))) == len(found)
    return found, report_of(folder)


def report_of(folder):
    """The lines of its report's table, but for the seconds."""
    runs, skipped = read_results(folder)
    experiments, superseded = tables.experiments(runs)
    assert not skipped and not superseded
    lines = csv.DictReader(io.StringIO(tables.as_csv(experiments)))
    return [{name: cell for name, cell in line.items() if not name.startswith("seconds")} for line in lines]


def logs_of(folder):
    return "\n".join(path.read_text() for path in (folder / "logs").iterdir())


@pytest.fixture
def undisturbed(run_main, tmp_path):
    """undisturbed(commands, seeds): the numbers that main.py alone gives."""

    def run(commands, seeds=("1",)):
        folder = tmp_path / "undisturbed"
        for line in commands.read_text().splitlines():
            for seed in seeds:
                assert run_main(*line.split()[2:], "--seed", seed, "--threads", "1", save_path=folder).code == 0
        return results_in(folder)

    return run


def test_a_killed_run_is_run_again_from_its_checkpoint(start, commands, undisturbed, tmp_path):
    commands, folder = commands(), tmp_path / "sweep"
    sweep = start(commands, folder)
    wait_for(lambda: checkpoints_in(folder), sweep)
    for pid in wait_for(lambda: runs_of(sweep), sweep):
        os.kill(pid, signal.SIGKILL)
    said = end(sweep)
    assert "2 done, 0 skipped (finished before), 0 failed" in said
    assert results_in(folder) == undisturbed(commands)
    assert "try 2" in logs_of(folder) and "goes on after" in logs_of(folder)


def test_a_run_that_always_dies_is_given_up(start, commands, tmp_path):
    folder = tmp_path / "sweep"
    sweep = start(commands(["meralg1"]), folder, "--tries", "2")
    for _ in range(2):
        (pid,) = wait_for(lambda: runs_of(sweep), sweep)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pid not in runs_of(sweep), sweep)  # noqa: B023
    said = end(sweep, code=1)
    assert "died 2 times, lastly by SIGKILL" in said and "python main.py --model meralg1" in said
    assert not list(folder.glob("*.json"))


def test_a_killed_sweep_leaves_no_process_and_goes_on(start, commands, undisturbed, tmp_path):
    commands, folder = commands(), tmp_path / "sweep"
    sweep = start(commands, folder)
    wait_for(lambda: checkpoints_in(folder), sweep)
    runs = runs_of(sweep)
    sweep.kill()
    sweep.wait()
    wait_for(lambda: not any(map(command_of, runs)))
    n_before = len(list(folder.glob("*.json")))
    assert f"{2 - n_before} done, {n_before} skipped" in end(start(commands, folder))
    assert results_in(folder) == undisturbed(commands)
    assert "goes on after" in logs_of(folder)


def test_two_sweeps_at_once_run_nothing_twice(start, commands, undisturbed, tmp_path):
    commands, folder = commands(["meralg1", "online"]), tmp_path / "sweep"
    sweeps = [start(commands, folder), start(commands, folder)]
    said = [end(sweep) for sweep in sweeps]
    assert sum(int(text.split(" done, ")[0].split()[-1]) for text in said) == 2
    assert logs_of(folder).count("try 1") == 2
    assert results_in(folder) == undisturbed(commands)


def test_a_signal_ends_it_cleanly(start, commands, tmp_path):
    commands, folder = commands(["meralg1"], n=2000), tmp_path / "sweep"
    sweep = start(commands, folder)
    wait_for(lambda: checkpoints_in(folder), sweep)
    runs = runs_of(sweep)
    sweep.send_signal(signal.SIGTERM)
    said = end(sweep, code=143)
    assert "0 done, 0 skipped (finished before), 0 failed, 1 left: start again to go on" in said
    assert runs and not any(map(command_of, runs))
    assert checkpoints_in(folder) and "stopped by SIGTERM" in logs_of(folder)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_many_shots_at_two_sweeps(start, commands, undisturbed, tmp_path):
    """Runs and sweeps are shot at random, until all is finished."""
    commands, folder, dice = (
        commands(["meralg1", "meralg6", "meralg7", "eralg4"], n=120),
        tmp_path / "sweep",
        random.Random(1),
    )
    seeds = ("1", "2", "3")
    sweeps = [None, None]
    for _ in range(60):
        for i in range(2):
            if sweeps[i] is None or sweeps[i].poll() is not None:
                sweeps[i] = start(commands, folder, "--tries", "100", seeds=seeds)
        time.sleep(dice.uniform(0.5, 6))
        victim = dice.choice(sweeps)
        targets = runs_of(victim) + [victim.pid]
        try:
            os.kill(dice.choice(targets), signal.SIGKILL)
        except ProcessLookupError:
            pass
    for sweep in sweeps:
        sweep.wait()
    end(start(commands, folder, seeds=seeds))
    assert results_in(folder) == undisturbed(commands, seeds)


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster of two nodes on this machine, with a core each: its address, and the pid of the second node."""
    utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    yield cluster.address, node.all_processes["raylet"][0].process.pid
    cluster.shutdown()


@pytest.mark.parametrize("whole", [True, False], ids=["the node", "only its runs"])
def test_a_killed_node_of_a_cluster_costs_nothing(whole, cluster, start, commands, undisturbed, tmp_path):
    commands, folder, (address, node) = commands(n=100), tmp_path / "sweep", cluster
    sweep = start(commands, folder, "--ray", address)
    wait_for(lambda: len(checkpoints_in(folder)) == 2, sweep)
    below = descendants(node)
    runs = [pid for pid, line in below.items() if "main.py" in line]
    assert len(runs) == 1
    for pid in [node, *below] if whole else runs:  # all that a machine that is switched off loses
        os.kill(pid, signal.SIGKILL)
    assert "2 done, 0 skipped (finished before), 0 failed" in end(sweep)
    assert results_in(folder) == undisturbed(commands)
    assert logs_of(folder).count("goes on after") == 1


def test_a_signal_ends_a_sweep_on_a_cluster_cleanly(cluster, start, commands, tmp_path):
    commands, folder, (address, _) = commands(n=1000), tmp_path / "sweep", cluster
    sweep = start(commands, folder, "--ray", address)
    wait_for(lambda: len(checkpoints_in(folder)) == 2, sweep)
    sweep.send_signal(signal.SIGINT)
    assert "0 done, 0 skipped (finished before), 0 failed, 2 left" in end(sweep, code=130)
    assert logs_of(folder).count("stopped by SIGTERM") == 2


def test_a_killed_sweep_on_a_cluster_goes_on(cluster, start, commands, undisturbed, tmp_path):
    commands, folder, (address, _) = commands(n=100), tmp_path / "sweep", cluster
    sweep = start(commands, folder, "--ray", address)
    wait_for(lambda: len(checkpoints_in(folder)) == 2, sweep)
    sweep.kill()
    assert "0 failed" in end(start(commands, folder, "--ray", address))
    assert results_in(folder) == undisturbed(commands)
