"""What the tests share: golden files, small tasks, learners and runs made as the program makes them."""

import argparse
import json
import os
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import main
import model
from model import networks
from model.flags import PAPER
from run import settings
from run.flags import RUN_FLAGS

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent


def pytest_configure(config):
    """Hides the GPU from all but test_cuda.py: where PyTorch sees one, none can fork after a gradient."""
    if any(Path(place.partition("::")[0]).name != "test_cuda.py" for place in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def interrupts():
    """SIGINT is heard, which tests send to their own process, even if whoever started them had it ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread():
    """Whatever a test did, the next one computes on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_streams():
    return json.loads((GOLDEN / "streams.json").read_text())


@pytest.fixture(scope="session")
def golden_data(tmp_path_factory):
    """A folder with the golden task sets in the original's file format."""
    folder = tmp_path_factory.mktemp("golden")
    for path in GOLDEN.glob("*.npz"):
        with np.load(path) as data:
            content = [
                [
                    [str(name), torch.from_numpy(x).float() / 255, torch.from_numpy(data[f"y_{part}"]).long()]
                    for name, x in zip(data["descriptor"], data[f"x_{part}"], strict=True)
                ]
                for part in ("train", "test")
            ]
        torch.save(content, folder / f"{path.stem}.pt")
    return folder


def toy_examples(n, n_inputs, n_classes, generator):
    """x (n, n_inputs) in 0..1 with many zeros, y (n,): every class has inputs of its own that are lit."""
    y = torch.from_numpy(np.arange(n) % n_classes)
    x = generator.random((n, n_inputs)) * (generator.random((n, n_inputs)) < 0.5)
    lit = (np.arange(n_inputs) % n_classes)[None] == y.numpy()[:, None]
    return torch.from_numpy(np.where(lit, 0.5 + 0.5 * x, 0.5 * x).astype(np.float32)), y


def copy_program(folder, *left_out):
    """Copies the program, less data, results, tests and what else is left out, to folder/mer; returns that."""
    ignored = shutil.ignore_patterns(".*", "results", "data", "tests", "__pycache__", *left_out)
    return shutil.copytree(ROOT, folder / "mer", ignore=ignored)


@pytest.fixture
def task_file(tmp_path):
    """task_file(name, ...) writes tasks in the original's format into tmp_path; returns (folder, name) for main.py."""

    def write(name="tiny.pt", n_tasks=3, n_train=12, n_test=10, n_inputs=12, n_classes=3, change=None):
        generator = np.random.default_rng(5)
        content = [
            [[f"task {t}", *toy_examples(n, n_inputs, n_classes, generator)] for t in range(n_tasks)]
            for n in (n_train, n_test)
        ]
        if change:
            change(content)
        torch.save(content, tmp_path / name)
        return tmp_path, name

    return write


@pytest.fixture(scope="session")
def parse():
    """parse(words): the Settings of a command line, as main.py has them; (settings.parse, reading model/ once)"""
    learners = model.load_all()
    parser = settings.make_parser(learners)

    def parse(words):
        given = vars(parser.parse_args(words))
        learner, of_network = learners[given["model"]], ()
        if settings.takes_networks(learner):
            of_network = networks.flags_of(given.get("network", "auto"))
        flags = (*RUN_FLAGS, *PAPER, *settings.flags_of(learner), *of_network)
        return settings.Settings({flag.name: flag.default for flag in flags} | given, learner, of_network)

    return parse


@pytest.fixture
def make_learner(parse):
    """make_learner(name, flags, sizes): a learner as main.py makes it, weights and draws from `seed`."""

    def make(name, flags=(), sizes=(12, 3, 3), seed=1, image_shape=None, class_ranges=None):
        texts = {True: "yes", False: "no"}
        words = ["--model", name]
        for flag, value in dict(flags).items():
            words += [f"--{flag}", texts.get(value, str(value)) if isinstance(value, bool) else str(value)]
        tasks = SimpleNamespace(image_shape=image_shape, class_ranges=class_ranges)
        args, _ = settings.resolve(parse(words), tasks)
        torch.manual_seed(seed)
        random.seed(seed)
        learner = args.learner(*sizes, settings.learner_args(args, tasks, minibatch_slots=args.batch_size))
        return learner.to("cuda") if isinstance(learner, torch.nn.Module) and args.cuda else learner

    return make


@pytest.fixture
def run_main(tmp_path, capsys):
    """run_main(*words): main.py's exit code, stdout and stderr, and the files that it left."""

    def run(*words, save_path=None):
        folder = Path(save_path or tmp_path / "results")
        before = set(folder.glob("*")) if folder.is_dir() else set()
        capsys.readouterr()
        try:
            code = main.main([*map(str, words), "--save_path", f"{folder}/"])
        except SystemExit as exit:  # argparse's way
            code = exit.code
        out, err = capsys.readouterr()
        new = sorted(set(folder.glob("*")) - before) if folder.is_dir() else []
        return SimpleNamespace(code=code, out=out, err=err, files={path.suffix: path for path in new})

    return run


@pytest.fixture
def load_result():
    """load_result(path): the tuple of a run's .pt, read without executing anything."""

    def load(path):
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, weights_only=True)

    return load
