"""The command line: what it says, what it writes, and how it refuses bad input."""

import argparse
import itertools
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import literal
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import main
import metrics
import model
from errors import UserError
from model import engine
from model.flags import PAPER
from run import settings
from run.experience import seed_everything
from run.flags import RUN_FLAGS, text
from run.stream import Stream

ROOT = Path(main.__file__).parent
NO_INTERVALS = ("soon", "0", "0s", "-1", "1.5", "²", "²s", "9" * 5000)
QUICK = ["--model", "online", "--n_hiddens", 6, "--n_layers", 1, "--log_every", 5, "--lr", 0.1, "--threads", 1]


def data(place):
    """Flags that name a task file."""
    folder, name = place
    return ["--data_path", f"{folder}/", "--data_file", name]


def no_traceback(found):
    return "Traceback" not in found.err + found.out


# what a run leaves


@pytest.mark.parametrize("kind", engine.ENGINES)
def test_outputs(kind, task_file, run_main, load_result, tmp_path):
    words = [*QUICK, *data(task_file()), "--engine", kind, "--seed", 3, "--shuffle_tasks", "yes"]
    found = run_main(*words)
    assert found.code == 0 and {".pt", ".txt", ".json"} <= set(found.files)

    # one line on stdout: <name>: <args> # RA BTI FWT # seconds
    name = re.escape(f"{tmp_path}/results/online_tiny.pt_") + r"\d{4}(_\d\d){5}_[0-9a-f]{32}"
    number = r"(-?\d\.\d{3})"
    line = re.fullmatch(rf"{name}: (\{{.*\}} # {number} {number} {number}) # \d+\.\d+\n", found.out)
    assert line
    assert {str(path) for path in found.files.values()} == {found.out.split(": ")[0] + end for end in found.files}

    # .pt: the original's tuple
    result = load_result(found.files[".pt"])
    assert type(result) is tuple and len(result) == 6
    result_t, result_a, weights, stats, one_liner, args = result
    assert result_t.dtype == torch.float32 and result_a.dtype == torch.float32
    assert result_a.shape == (len(result_t), 3)
    assert list(weights) == ["net.net.0.weight", "net.net.0.bias", "net.net.2.weight", "net.net.2.bias"]
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert isinstance(stats, list) and len(stats) == 3 and all(value.ndim == 0 for value in stats)
    assert isinstance(args, argparse.Namespace) and one_liner == line[2]
    assert (args.model, args.n_hiddens, args.lr, args.seed, args.data_file) == ("online", 6, 0.1, 3, "tiny.pt")
    assert one_liner.startswith(str(vars(args)))
    assert [f"{value:.3f}" for value in stats] == list(line.groups()[2:])
    summary = metrics.summarise(result_t, result_a)
    assert stats == summary.stats and found.files[".txt"].read_text() == summary.as_text()

    # .json: where it all comes from
    about = json.loads(found.files[".json"].read_text())
    assert about["format"] == "mer-result/1" and about["name"] == found.files[".json"].stem
    assert (about["model"], about["seed"], about["engine"], about["threads"]) == ("online", 3, kind, 1)
    assert about["draws"] == ("shuffle" if kind == "reference" else "uniform")
    assert about["args"].keys() == vars(args).keys() and about["args"]["lr"] == 0.1
    assert about["result_t"] == result_t.tolist() and len(about["result_a"]) == len(result_t)
    assert torch.equal(torch.tensor(about["result_a"]), result_a)
    order = summary.order
    assert order != sorted(order), "the seed was to shuffle them"
    where = {"file": "tiny.pt", "n_tasks": 3, "n_inputs": 12, "n_outputs": 3, "task_order": order}
    assert where.items() <= about["data"].items()
    assert re.fullmatch("[0-9a-f]{64}", about["data"]["identity"]) and about["data"]["origin"]
    assert about["stats"] == {key: float(getattr(summary, key)) for key in ("RA", "LA", "BTI", "FWT")}
    np.testing.assert_allclose(about["accuracy_matrix"], summary.matrix, atol=1e-6)
    np.testing.assert_allclose(about["baseline"], summary.baseline, atol=1e-6)
    # 12 minibatches a task: every fifth, where the task changes, and the end
    assert about["examples_seen"] == [0, 5, 10, 12, 15, 20, 24, 25, 30, 35, 36]
    assert about["result_t"] == [order[i] for i in (0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2)]
    assert about["seconds"].keys() == {"data", "training", "evaluation", "total"}
    assert 0 <= about["seconds"]["training"] <= about["seconds"]["total"] < 60
    assert about["peak_memory_bytes"] > 10_000_000
    assert re.fullmatch(re.escape(about["versions"]["torch"]) + r"(\+\w+)?", torch.__version__)  # a wheel may say less
    assert {"python", "torch", "numpy", "quadprog"} <= about["versions"].keys()
    assert about["host"]["cores"] >= 1 and about["host"]["name"] and about["host"]["cpu"]
    assert re.fullmatch("[0-9a-f]{40}", about["commit"] or "0" * 40) and "dirty" in about
    assert about["started"] <= about["finished"] and about["started"].endswith("+00:00")
    assert about["notes"] == {}


def test_announces_what_it_does_on_stderr(task_file, run_main):
    found = run_main(*QUICK, *data(task_file()), "--engine", "reference", "--samples_per_task", 7)
    lines = found.err.splitlines()
    assert lines[0].startswith("online on tiny.pt: ") and "tiny.pt" in lines[0]
    assert lines[1] == "3 tasks; 21 examples to learn in 21 minibatches; 8 evaluations on 30 test examples"
    assert lines[2] == "engine: reference (draws: shuffle; threads: 1); seed: 0"
    assert lines[3] == "network: mlp (99 weights), the default for vectors of 12 inputs"
    assert len(lines) == 4 and "\r" not in found.err, "no progress bar where there is no terminal"


def test_progress_when_asked(task_file, run_main):
    found = run_main(*QUICK, *data(task_file()), "--progress", "yes")
    assert found.code == 0 and re.search(r"100%.*36/36", found.err)
    assert found.out.count("\n") == 1 and "%" not in found.out


def test_no_flag_at_all(run_main, monkeypatch, tmp_path, capsys):
    """meralg1 on permutations of the shipped MNIST, made in memory; here stopped after three minibatches."""
    everything = Stream.minibatches
    monkeypatch.setattr(Stream, "minibatches", lambda self, start=0: itertools.islice(everything(self, start), 3))
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.chdir(tmp_path)
    assert main.main() == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert lines[0].startswith("meralg1 on mnist_permutations.pt: ")
    assert lines[1].startswith("20 tasks; 1,200,000 examples to learn in 1,200,000 minibatches; 12,001 evaluations on ")
    assert lines[2].startswith("engine: native (draws: uniform; threads: ")
    assert out.startswith("results/meralg1_mnist_permutations.pt_") and out.count("\n") == 1
    assert {".json", ".pt", ".txt"} <= {path.suffix for path in (tmp_path / "results").iterdir()}


# name: (default, another value as typed, as read)
SPEC_FLAGS = {
    "n_hiddens": (100, "7", 7),
    "n_layers": (2, "0", 0),
    "finetune": (True, "no", False),
    "n_epochs": (1, "2", 2),
    "batch_size": (1, "10", 10),
    "lr": (1e-3, "0", 0.0),
    "n_memories": (0, "256", 256),
    "memory_strength": (0, "0.5", 0.5),
    "memories": (5120, "1", 1),
    "gamma": (1.0, ".3", 0.3),
    "beta": (1.0, "0", 0.0),
    "batches_per_example": (1, "10.0", 10),
    "replay_batch_size": (20, "25.0", 25),
    "s": (1, "5", 5.0),
    "cuda": (False, "no", False),
    "seed": (0, "4294967295", 2**32 - 1),
    "log_every": (100, "1", 1),
    "save_path": ("results/", "x y/", "x y/"),
    "data_path": ("data/", "elsewhere/", "elsewhere/"),
    "data_file": ("mnist_permutations.pt", "a.pt", "a.pt"),
    "samples_per_task": (-1, "0", 0),
    "shuffle_tasks": (False, "yes", True),
}


def test_flags_are_the_original_ones():
    args = settings.parse([])
    assert args.model == "meralg1"
    assert {name: getattr(args, name) for name in SPEC_FLAGS} == {name: value[0] for name, value in SPEC_FLAGS.items()}
    typed = [word for name, (_, text, _) in SPEC_FLAGS.items() for word in (f"--{name}", text)]
    args = settings.parse([*typed, "--model", "gem"])
    found = {name: getattr(args, name) for name in SPEC_FLAGS}
    assert found == {name: value[2] for name, value in SPEC_FLAGS.items()}
    assert all(type(found[name]) is type(value[2]) for name, value in SPEC_FLAGS.items())


def test_help_says_of_each_flag_what_it_means_and_who_reads_it(run_main):
    found = run_main("--help")
    text = " ".join(found.out.split("options:")[1].split())
    assert found.code == 0
    for name, (default, _, _) in SPEC_FLAGS.items():
        shown = {True: "yes", False: "no"}[default] if isinstance(default, bool) else default
        entry = re.search(rf"--{name} .*?(?= --|$)", text)
        assert entry and re.search(rf"default {re.escape(str(shown))}(\.0)?", entry[0]), entry
    assert re.search(r"--beta [^-]*read by derpp, meralg1;", text)
    assert re.search(r"--memory_strength .*?read by ewc, gem;", text)
    assert all(name in text for name in model.candidates())


@pytest.mark.parametrize("name", [flag.name for flag in (*RUN_FLAGS, *PAPER) if flag.parse is not text])
def test_no_flag_has_an_empty_value(name):
    with pytest.raises(UserError, match=f"argument --{name}: "):
        settings.parse([f"--{name}="])


# one seed, one result


@pytest.mark.parametrize("name", ["online", "meralg1", "ewc", "gem"])
def test_the_same_whatever_the_number_of_threads(name, task_file, run_main, load_result):
    n_train, n_memories = (90, 80) if name == "gem" else (12, 3)  # gem shares out its work where there is enough
    place = task_file(n_train=n_train)
    words = [*QUICK[2:-2], *data(place), "--model", name, "--engine", "native", "--n_memories", n_memories]
    results = [load_result(run_main(*words, "--threads", n).files[".pt"]) for n in (1, 2, 3)]
    for other in results[1:]:
        assert torch.equal(other[1], results[0][1])
        assert all(torch.equal(other[2][key], value) for key, value in results[0][2].items())


def test_a_table_of_one_task(task_file, run_main):
    """The smallest run there is: one task, one training and one test example, one class."""
    place = task_file(n_tasks=1, n_train=1, n_test=1, n_inputs=1, n_classes=1)
    for name in model.load_all():
        found = run_main("--model", name, *data(place), "--n_memories", 1, "--n_hiddens", 1)
        assert found.code == 0, found.err
        assert json.loads(found.files[".json"].read_text())["stats"] == {"RA": 1.0, "LA": 1.0, "BTI": 0.0, "FWT": 0.0}


# bad input


@pytest.mark.parametrize(
    "words,text",
    [
        (
            "--model meralg2",
            r"unknown model 'meralg2' \(did you mean meralg\d\?\); choose from .*online, taskinput",
        ),
        ("--model ../main", r"unknown model '../main'"),
        ("--model learner", r"unknown model 'learner'"),
        ("--model=", r"unknown model ''; choose from .*online"),
        ("--network=", r"unknown network ''; choose from cnn"),
        (
            "--with_tasks_of tiny.pt",
            r"is of tasks that an earlier learner knows; say which with --start_from, or leave",
        ),
        ("--cuda maybe", r"--cuda: 'maybe' is neither 'yes' nor 'no'"),
        ("--finetune True", r"--finetune: 'True' is neither 'yes' nor 'no'"),
        ("--shuffle_tasks 1", r"--shuffle_tasks: '1' is neither 'yes' nor 'no'"),
        ("--n_hiddens 0", r"--n_hiddens: 0 is too small: it must be 1 or more"),
        ("--n_hiddens -3", r"--n_hiddens: -3 is too small"),
        ("--n_hiddens 2.5", r"--n_hiddens: '2.5' is not a whole number"),
        ("--n_hiddens ten", r"--n_hiddens: 'ten' is not a whole number"),
        ("--n_hiddens inf", r"--n_hiddens: 'inf' is not a whole number"),
        ("--n_layers -1", r"--n_layers: -1 is too small: it must be 0 or more"),
        ("--n_epochs 0", r"--n_epochs: 0 is too small"),
        ("--batch_size 0", r"--batch_size: 0 is too small"),
        ("--log_every 0", r"--log_every: 0 is too small"),
        ("--memories 0", r"--memories: 0 is too small"),
        ("--n_memories -1", r"--n_memories: -1 is too small"),
        ("--replay_batch_size -1", r"--replay_batch_size: -1 is too small"),
        ("--batches_per_example 0", r"--batches_per_example: 0 is too small"),
        ("--threads -1", r"--threads: -1 is too small"),
        ("--seed -1", r"--seed: -1 is too small"),
        ("--seed 4294967296", r"--seed: 4294967296 is too large: it must be 4294967295 or less"),
        ("--lr nan", r"--lr: 'nan' is not a finite number"),
        ("--lr inf", r"--lr: 'inf' is not a finite number"),
        ("--lr -0.1", r"--lr: -0.1 is too small"),
        ("--lr fast", r"--lr: 'fast' is not a number"),
        ("--gamma inf", r"--gamma: 'inf' is not a finite number"),
        ("--beta nan", r"--beta: 'nan' is not a finite number"),
        ("--s inf", r"--s: 'inf' is not a finite number"),
        ("--memory_strength -1", r"--memory_strength: -1.0 is too small"),
        *(
            (f"--checkpoint_every {word}", "is none of N .minibatches., Ns .seconds., never; N is 1")
            for word in NO_INTERVALS
        ),
        ("--engine turbo", r"--engine: invalid choice: 'turbo' \(choose from '?auto'?, '?native'?, '?reference'?\)"),
        ("--n_hidden 5", r"unrecognized arguments: --n_hidden 5"),
        ("--lr", r"--lr: expected one argument"),
        ("--model gem", r"--n_memories 0: gem keeps .*; give --n_memories 1 or more"),
        ("--model independent --n_hiddens 2", r"3 tasks share 2 hidden units .*use --n_hiddens 3 or more"),
        ("--data_file sub/tiny.pt", r"names a folder: say --data_path sub --data_file tiny.pt"),
        ("--data_file a;b/c&d.pt", r"say --data_path 'a;b' --data_file 'c&d.pt'"),
        ("--data_file nowhere.pt", r"nowhere\.pt.*mnist_rotations\.pt, mnist_permutations\.pt,.*mnist_many"),
    ],
)
def test_bad_flags(words, text, task_file, run_main):
    found = run_main(*QUICK, *data(task_file()), *words.split())
    assert found.code == 2 and no_traceback(found) and not found.out
    assert re.search(text, " ".join(found.err.split())), found.err
    assert "error: " in found.err and not found.files


def test_a_data_seed_that_nothing_reads_is_refused(task_file, run_main, tmp_path):
    folder, name = task_file()
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    for file in ("own.pt", "mnist_rotations.npz"):
        (shadow / file).write_bytes((Path(folder) / name).read_bytes())
    for place in ((shadow, "own.pt"), (shadow, "mnist_rotations.pt"), (folder, "mnist_split.pt")):
        found = run_main(*QUICK, *data(place), "--data_seed", 7)
        assert found.code == 2 and re.search("error: --data_seed 7 matters to .*; leave --data_seed out", found.err)
        assert not found.files
    assert run_main(*QUICK, *data((shadow, "own.pt")), "--data_seed", 0).code == 0
    words = ("--data_seed", 7, "--samples_per_task", 1, "--log_every", 50)
    assert run_main(*QUICK, *data((folder, "mnist_rotations.pt")), *words).code == 0


ODD_NUMBERS = (
    "²",
    "5²",
    "²s",
    "½",
    "①",
    "Ⅷ",
    "٣",
    "٣s",
    "一",
    "9" * 5000,
    "9" * 5000 + "s",
    "0" * 5000,
    "1_0",
    "",
    "s",
    "\0",
)


@pytest.mark.parametrize("flag", [*RUN_FLAGS, *PAPER], ids=lambda flag: flag.name)
def test_odd_numbers_are_read_or_refused_with_the_rule(flag):
    for word in ODD_NUMBERS:
        try:
            flag.parse(word)
        except argparse.ArgumentTypeError as error:
            assert str(error)


def test_exit_code_of_the_process():
    words = [sys.executable, ROOT / "main.py", "--model", "meralg2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(r"error: unknown model 'meralg2' \(did you mean meralg\d\?\); choose from .*\n", done.stderr)


def test_cuda_without_cuda(task_file, run_main, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = run_main(*QUICK, *data(task_file()), "--cuda", "yes")
    assert found.code == 2 and no_traceback(found)
    assert re.search(r"error: --cuda yes: PyTorch finds no CUDA device here; .*--cuda no", found.err)


@pytest.fixture
def images(task_file):
    """Two tasks of two classes each, under the name that means images."""

    def change(content):
        for split in content:
            for t, task in enumerate(split):
                task[2] += 2 * t

    return task_file("cifar100.pt", n_tasks=2, n_train=2, n_test=2, n_inputs=3072, n_classes=2, change=change)


def test_images_run_on_the_reference_engine_which_is_said(images, run_main, load_result):
    found = run_main("--model", "online", *data(images), "--threads", 1)
    assert found.code == 0, found.err
    assert re.search(r"engine: reference, since the native one cannot run this: .*images", found.err)
    _, result_a, weights, _, _, _ = load_result(found.files[".pt"])
    assert weights["net.linear.weight"].shape == (4, 160)
    assert result_a.shape == (3, 2)


def test_native_engine_where_it_cannot(images, run_main):
    found = run_main("--model", "online", *data(images), "--engine", "native")
    assert found.code == 2 and no_traceback(found)
    assert re.search(r"error: --engine native cannot run this: .*images.*; say --engine reference", found.err)


@pytest.mark.parametrize("where", ["{}/file/results", "{}/file"])
def test_save_path_that_cannot_be_written_is_found_before_training(where, task_file, run_main, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(Stream, "minibatches", lambda *_: pytest.fail("training began"))
    found = run_main(*QUICK, *data(task_file()), save_path=where.format(tmp_path))
    assert found.code == 2 and no_traceback(found) and not found.out
    assert re.search(r"error: --save_path \S+/file\S* cannot be written: .*; choose a folder that can", found.err)


def ragged(content):
    content[0][1][1] = content[0][1][1][:, :9].clone()


def all_narrow(content):
    for split in content:
        split[1][1] = split[1][1][:, :9].clone()


def label(value):
    def change(content):
        content[0][1][2][3] = value

    return change


def nan_pixel(content):
    content[1][2][1][4, 5] = float("nan")


def no_examples(content):
    content[0][1][1:] = [torch.zeros(0, 12), torch.zeros(0, dtype=torch.long)]


@pytest.mark.parametrize(
    "change,text",
    [
        (all_narrow, r"widths \(9, 12 inputs\)"),
        (ragged, r"widths \(9, 12 inputs\)"),
        (label(-1), r"labels outside range: -1"),
        (label(10**9), r"labels outside range: 1000000000"),
        (nan_pixel, r"NaN or infinite"),
        (no_examples, r"training examples of task 1 are none"),
        (lambda content: content[1].pop(), r"3 .*2 "),
        (lambda content: (content[0].clear(), content[1].clear()), r"task"),
        (lambda content: content.append([]), r"tiny\.pt"),
        (lambda content: content[0][0].pop(), r"tiny\.pt"),
        (lambda content: content[0].__setitem__(0, 5), r"tiny\.pt"),
    ],
)
def test_bad_tasks(change, text, task_file, run_main):
    found = run_main(*QUICK, *data(task_file(change=change)))
    assert found.code == 2 and no_traceback(found) and not found.files
    assert re.search("error: .*" + text, found.err), found.err


def test_truncated_file(task_file, run_main):
    folder, name = task_file()
    whole = (folder / name).read_bytes()
    for n in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (folder / name).write_bytes(whole[:n])
        found = run_main(*QUICK, *data((folder, name)))
        assert found.code == 2 and no_traceback(found), (n, found.err)
        assert re.search(r"error: \S*tiny\.pt is damaged, or no data file .*save it again", found.err), (n, found.err)


@pytest.mark.parametrize("content", [{"a": 1}, torch.zeros(3), [1, 2], "text", [[], []], None])
def test_foreign_file(content, run_main, tmp_path):
    torch.save(content, tmp_path / "tiny.pt")
    found = run_main(*QUICK, *data((tmp_path, "tiny.pt")))
    assert found.code == 2 and no_traceback(found)
    assert re.search(r"error: \S*tiny\.pt (is no task file|holds (no|0) task|is damaged, or no data file)", found.err)


class Code:
    """Runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["zip", "old", 2, pickle.DEFAULT_PROTOCOL])
def test_file_that_carries_code(kind, run_main, tmp_path):
    code = Code(tmp_path / "was_run")
    content = [[["a", torch.rand(4, 3), torch.tensor([0, 1, 0, 1]), code]], [["a", torch.rand(4, 3), code]]]
    path = tmp_path / "tiny.pt"
    if isinstance(kind, int):
        path.write_bytes(pickle.dumps(content, protocol=kind))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    found = run_main(*QUICK, *data((tmp_path, "tiny.pt")))
    assert found.code == 2 and no_traceback(found)
    named = ": it is a pickle of protocol 4; only 2 is read: save it so"
    text = named if kind == pickle.DEFAULT_PROTOCOL else " carries code .*which is never run; save it again"
    assert re.search(rf"error: \S*tiny\.pt{text}", found.err), found.err
    assert not (tmp_path / "was_run").exists()


# a run that diverges


def scale_training_inputs(factor):
    def change(content):
        for task in content[0]:
            task[1] *= factor

    return change


@pytest.mark.parametrize("kind", engine.ENGINES)
def test_diverging_run_says_where_and_saves_what_it_has(kind, task_file, run_main, load_result):
    place = task_file()
    found = run_main(*QUICK, *data(place), "--engine", kind, "--lr", "1e30", "--log_every", 1)

    tasks = torch.load(place[0] / place[1], weights_only=True)[0]
    seed_everything(0)
    stream = Stream([12, 12, 12])
    layers = literal.mlp([12, 6, 3])
    optimizer = torch.optim.SGD(literal.flat(layers), lr=1e30)
    n, loss = 0, torch.tensor(0.0)
    for batch in stream.minibatches():
        _, x, y = tasks[batch.t]
        n, loss = n + 1, F.cross_entropy(literal.outputs(layers, x[batch.indices]), y[batch.indices])
        if not torch.isfinite(loss):
            break
        literal.sgd(optimizer, loss)

    assert 1 < n < 12
    assert found.code == 1 and no_traceback(found)
    assert re.search(rf"error: online diverged: .* example {n} \(task 0, minibatch {n - 1}\)", found.err)
    assert {".pt", ".txt", ".json"} <= set(found.files) and found.out.count("\n") == 1
    about = json.loads(found.files[".json"].read_text())
    assert about["status"] == "diverged" and f"example {n} " in about["failure"]
    assert about["examples_seen"] == list(range(n)) and len(load_result(found.files[".pt"])[1]) == n


@pytest.mark.parametrize("kind", engine.ENGINES)
@pytest.mark.parametrize("name", ["gem", "ewc", "eralg5", "meralg1", "meralg6", "meralg7", "independent", "taskinput"])
def test_every_learner_notices_that_it_diverges(name, kind, task_file, run_main):
    place = task_file(change=scale_training_inputs(1e30))
    words = ["--model", name, *QUICK[2:], *data(place), "--engine", kind, "--n_memories", 2, "--n_layers", 0]
    found = run_main(*words, "--lr", "1e20")
    assert found.code == 1 and f"error: {name} diverged: " in found.err and no_traceback(found)
    assert json.loads(found.files[".json"].read_text())["status"] == "diverged"


@pytest.mark.parametrize("kind", engine.ENGINES)
def test_weights_that_diverge_at_the_last_example(kind, task_file, run_main):
    """The loss of the only example is finite; the weights after it are not."""
    place = task_file(n_tasks=1, n_train=1, change=scale_training_inputs(1e4))
    found = run_main(*QUICK, *data(place), "--engine", kind, "--lr", "3e38", "--n_layers", 0)
    assert found.code == 1 and no_traceback(found)
    assert re.search(r"error: online diverged: .*example 1\b", found.err)


@pytest.mark.parametrize("kind", engine.ENGINES)
@pytest.mark.parametrize("flag", ["lr", "gamma", "beta", "memory_strength", "s"])
def test_numbers_beyond_float32(flag, kind, task_file, run_main):
    """Refused, or noticed as a divergence: never a traceback, never a result that looks complete."""
    name = {"memory_strength": "ewc", "s": "meralg7"}.get(flag, "meralg1")
    words = ["--model", name, *QUICK[2:], *data(task_file()), "--engine", kind, "--n_memories", 2]
    found = run_main(*words, f"--{flag}", "1e300")
    assert found.code in (1, 2) and "error: " in found.err and no_traceback(found)


def test_a_finished_run_says_that_it_is_complete(task_file, run_main):
    found = run_main(*QUICK, *data(task_file()))
    assert json.loads(found.files[".json"].read_text())["status"] == "complete"
