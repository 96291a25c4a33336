"""Runs of main.py for the tests of stopping, resuming and failing: tiny tasks, quick flags, all that a run leaves."""

import faulthandler
import glob
import gzip
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import toy_examples

import main
import model
from model.learner import Learner
from run import provenance
from run.experience import Experience

# engine, draws
WAYS = (("native", "uniform"), ("native", "shuffle"), ("reference", "shuffle"), ("reference", "uniform"))
# what a learner needs beyond QUICK to do all that it can; of any other the flags' defaults do
FLAGS = {
    "independent": ("--n_hiddens", 9),
    "ewc": ("--n_memories", 3, "--memory_strength", 2),
    "gem": ("--n_memories", 4, "--memory_strength", 0.1),
    "meralg1": ("--beta", 0.5, "--gamma", 0.7, "--batches_per_example", 2),
    "meralg6": ("--gamma", 0.7, "--batches_per_example", 2),
    "meralg7": ("--gamma", 0.7, "--s", 3),
    "agem": ("--task_memories", 3),
    "mir": ("--subsample", 4, "--compare_to_old_logits", "yes"),
}
QUICK = ("--n_hiddens", 6, "--lr", 0.1, "--memories", 7, "--replay_batch_size", 3, "--log_every", 4, "--threads", 1)
DATA = ("--data_path", "data", "--data_file", "tiny.pt")
# what differs between a run and the same run in parts
TIMES = ("seconds", "started", "finished", "name", "peak_memory_bytes", "resumed", "commit", "dirty")


def learners():
    return [name for name, learner in model.load_all().items() if issubclass(learner, Learner)]


def place(folder, n_tasks=3, n_train=8, n_test=5, n_inputs=12, n_classes=3):
    """Makes a folder to run in, with tasks as data/tiny.pt; returns it."""
    generator = np.random.default_rng(5)
    content = [
        [[f"task {t}", *toy_examples(n, n_inputs, n_classes, generator)] for t in range(n_tasks)]
        for n in (n_train, n_test)
    ]
    (folder / "data").mkdir(parents=True)
    torch.save(content, folder / "data" / "tiny.pt")
    return folder


def words_of(name, way, *more):
    """The command line of a learner on an engine with draws."""
    engine, draws = way
    words = ("--model", name, "--engine", engine, "--draws", draws, *QUICK, *FLAGS.get(name, ()), *DATA, *more)
    return [str(word) for word in words]


def result_in(folder, name="results"):
    """Of the only finished run in folder/results: name; files {ending: content, less times}; folder, all names."""
    folder = Path(folder) / name
    (described,) = folder.glob("*.json")
    about = json.loads(described.read_text())
    paths = folder.glob(f"{glob.escape(described.stem)}.*")
    files = {path.suffix: path.read_bytes() for path in paths if path.suffix != ".checkpoint"}
    files[".json"] = {key: value for key, value in about.items() if key not in TIMES}
    files[".state"] = gzip.decompress(files[".state"])
    assert about["name"] == described.stem
    return SimpleNamespace(files=files, name=described.stem, folder=sorted(path.name for path in folder.iterdir()))


@pytest.fixture(name="go")
def go_fixture(monkeypatch, capsys):
    """go(folder, *words): main.py's exit code, stdout and stderr, run in that folder, in this process."""
    monkeypatch.setattr("run.provenance.commit", lambda: {"commit": None, "dirty": None})  # asks git, slowly

    def run(folder, *words):
        """Its exit code, stdout and stderr."""
        monkeypatch.chdir(folder)
        capsys.readouterr()
        try:
            code = main.main([str(word) for word in words])
        except SystemExit as exit:  # argparse's way
            code = exit.code
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@contextmanager
def after_each(look):
    """Within it, look(batch) is called after each minibatch that is learned."""
    learn = Experience.learn

    def watched(self):
        for batch in learn(self):
            look(batch)
            yield batch

    Experience.learn = watched
    try:
        yield
    finally:
        Experience.learn = learn


def after(n_minibatches, do):
    """Within it, do() is called when so many minibatches have been learned."""
    left = iter(range(n_minibatches - 1, -1, -1))
    return after_each(lambda batch: next(left, None) == 0 and do())


def a_signal(number):
    """A function that sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def start_child(function, output, seconds=120, more_memory=1 << 33):
    """Calls the function in a process of its own, with so much more memory than this one has, for so long.

    It ends with the code that the function or SystemExit gives. Its output goes to a file. Returns its number.
    """
    provenance.code_identity("online")  # reads what each child would read anew
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork among threads: idle ones, of numpy
        child = os.fork()
    if not child:
        _be_child(function, output, seconds, more_memory)
    return child


def in_child(function, more_memory=1 << 33, seconds=120):
    """start_child, and waits for it: its code (-signal where it died of one), all its output, and its memory.

    peak   the most memory that it had more than this process, in bytes
    """
    with tempfile.NamedTemporaryFile() as output:
        before = memory_of_this_process()[1]
        child = start_child(function, output.name, seconds, more_memory)
        _, status, usage = os.wait4(child, 0)
        text = output.read().decode(errors="replace")
    assert "Timeout (" not in text, text  # and where it hung
    peak = usage.ru_maxrss * 1024 - before
    return SimpleNamespace(code=os.waitstatus_to_exitcode(status), text=text, peak=peak)


def become(program):
    """Makes a child a process of another copy of the program, as if started there, but that torch is imported.

    None of our modules is loaded any more; kernels stay where it is this very copy, since they cannot be loaded twice.
    """
    ours = {path.stem for path in Path(program).iterdir() if path.suffix == ".py" or path.is_dir()} - {"tests"}
    for name, module in list(sys.modules.items()):
        file = str(getattr(module, "__file__", None))
        is_kernel_here = file.endswith(tuple(EXTENSION_SUFFIXES)) and Path(file).is_relative_to(program)
        if name.partition(".")[0] in ours and not is_kernel_here:
            del sys.modules[name]
    sys.path.insert(0, str(program))
    warnings.resetwarnings()
    os.chdir(program)


def memory_of_this_process():
    """Its size and what of it is in memory, bytes."""
    return [int(pages) * resource.getpagesize() for pages in Path("/proc/self/statm").read_text().split()[:2]]


def _be_child(function, output, seconds, more_memory):
    code = 99
    try:
        os.setsid()
        output = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.dump_traceback_later(seconds, exit=True)
        torch.set_num_threads(1)
        torch.set_num_threads = lambda n: None  # the threads of OpenMP, if there are any, do not outlive a fork
        resource.setrlimit(resource.RLIMIT_AS, (memory_of_this_process()[0] + more_memory,) * 2)
        code = function()
    except SystemExit as exit:
        code = exit.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main_in(folder, words):
    """A function that runs main.py in a folder."""

    def run():
        os.chdir(folder)
        provenance.commit = lambda: {"commit": None, "dirty": None}  # asks git, slowly
        return main.main([str(word) for word in words])

    return run
