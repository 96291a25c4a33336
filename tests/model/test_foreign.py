"""Learners dropped into model/ as one file: in GEM's style, with own flags, the README's example, a broken one.

They are put into a copy of the program, which runs in a process of its own.
"""

import json
import re

import pytest
import torch
from conftest import ROOT
from strangers import copy_with, run

import tasks

GEM_STYLE = """
import torch
from torch.autograd import Variable
from .common import MLP, ResNet18


class Net(torch.nn.Module):

    def __init__(self,
                 n_inputs,
                 n_outputs,
                 n_tasks,
                 args):
        super(Net, self).__init__()
        nl, nh = args.n_layers, args.n_hiddens
        self.is_cifar = (args.data_file == 'cifar100.pt')
        if self.is_cifar:
            self.net = ResNet18(n_outputs)
            self.nc_per_task = n_outputs / n_tasks
        else:
            self.net = MLP([n_inputs] + [nh] * nl + [n_outputs])
        self.n_outputs = n_outputs
        self.opt = torch.optim.SGD(self.parameters(), lr=args.lr)
        self.bce = torch.nn.CrossEntropyLoss()
        self.gpu = args.cuda

    def offsets(self, t):
        return int(t * self.nc_per_task), int((t + 1) * self.nc_per_task)

    def forward(self, x, t):
        output = self.net(x)
        if self.is_cifar:
            first, last = self.offsets(t)
            if first > 0:
                output[:, :first].data.fill_(-10e10)
            if last < self.n_outputs:
                output[:, last:self.n_outputs].data.fill_(-10e10)
        return output

    def observe(self, x, t, y):
        self.train()
        self.zero_grad()
        x, y = Variable(x), Variable(y)
        if self.is_cifar:
            first, last = self.offsets(t)
            self.bce(self.net(x)[:, first:last], y - first).backward()
        else:
            self.bce(self(x, t), y).backward()
        self.opt.step()
"""

# from the package, not relative; and a flag of its own on a module of its own
ABSOLUTE = """
from model.common import MLP
from model.flags import Flag, integer
import torch


class Net(torch.nn.Module):
    flags = (Flag("n_looks", integer(1), 2, "steps on each minibatch"),)

    def __init__(self, n_inputs, n_outputs, n_tasks, args):
        super().__init__()
        self.net, self.args = MLP([n_inputs, n_outputs]), args

    def forward(self, x, t):
        return self.net(x)

    def observe(self, x, t, y):
        for _ in range(self.args.n_looks):
            self.zero_grad()
            torch.nn.functional.cross_entropy(self.net(x), y).backward()
            with torch.no_grad():
                for p in self.parameters():
                    p -= self.args.lr * p.grad
"""

OWN_FLAGS = '''
"""Online SGD of which half is taken back."""

from model.flags import Flag, number
from model.learner import Learner


class Net(Learner):
    """Every step is followed by a return of part of the way."""

    flags = (*Learner.flags, Flag("haste", number(0), 0.5, "how much of a step is kept"))

    def learn(self, batch, t):
        with self.net.reptile(self.args.haste):
            self.net.sgd(batch)
'''

FAILING = OWN_FLAGS.replace("haste", "speed").replace(
    "        with", "        if t:\n            raise RuntimeError('it is one')\n        with"
)

# whatever it sees, it says class 3, and class 1 rather than 0
STUBBORN = """
import torch


class Net(torch.nn.Module):
    def __init__(self, n_inputs, n_outputs, n_tasks, args):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        assert args.class_ranges in (None, [(0, 2), (2, 4)])

    def forward(self, x, t):
        return self.scores.expand(len(x), 4)

    def observe(self, x, t, y):
        pass
"""

BROKEN = "import no_such_package\n\n\nclass Net:\n    pass\n"

TINY = ["--n_hiddens", "6", "--lr", "0.1", "--log_every", "5", "--threads", "1", "--samples_per_task", "8"]


def readme_learner():
    """(name, source) of the README's complete example of a new learner."""
    readme = ROOT / "README.md"
    text = readme.read_text() if readme.exists() else ""
    found = re.search(r"^```python\n(# model/(\w+)\.py\b.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return (found[2], found[1]) if found else (None, None)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{name: what main.py did} of all command lines, in one process of a copy of the program with more learners."""
    folder = tmp_path_factory.mktemp("copy")
    learners = {"gemstyle": GEM_STYLE, "absolute": ABSOLUTE, "ownflags": OWN_FLAGS, "broken": BROKEN}
    learners |= {"failing": FAILING, "stubborn": STUBBORN}
    example, source = readme_learner()
    if example:
        learners[example] = source
    program = copy_with(folder, learners)

    generator = torch.Generator().manual_seed(0)
    for name, n_inputs, n in (("vectors.pt", 12, 8), ("cifar100.pt", 3072, 2)):
        splits = [
            [[f"task {t}", torch.rand(n, n_inputs, generator=generator), torch.arange(n) % 2 + 2 * t] for t in range(2)]
            for _ in ("train", "test")
        ]
        torch.save(splits, folder / "data" / name)
    pairs = [(torch.rand(9, 12, generator=generator), torch.arange(9) % 2 + 2 * t) for t in range(2)]
    tasks.save(folder / "data" / "split.npz", pairs, pairs)
    vectors, images = (["--data_file", name, *TINY] for name in ("vectors.pt", "cifar100.pt"))
    lines = {
        "help": ["--help"],
        "gemstyle": [*vectors, "--model", "gemstyle"],
        "online": [*vectors, "--model", "online", "--engine", "reference"],
        "gemstyle native": [*vectors, "--model", "gemstyle", "--engine", "native"],
        "gemstyle images": [*images, "--model", "gemstyle"],
        "online images": [*images, "--model", "online"],
        "absolute": [*vectors, "--model", "absolute", "--n_looks", "3"],
        "absolute 1": [*vectors, "--model", "absolute", "--n_looks", "1", "--lr", "0.1"],
        "ownflags": [*vectors, "--model", "ownflags", "--haste", "0"],
        "ownflags 1": [*vectors, "--model", "ownflags", "--haste", "1", "--engine", "reference"],
        "ownflags nan": [*vectors, "--model", "ownflags", "--haste", "nan"],
        "broken": [*vectors, "--model", "broken"],
        "failing": [*vectors, "--model", "failing"],
        "stubborn": ["--data_file", "split.npz", *TINY, "--model", "stubborn"],
        "stubborn class": ["--data_file", "split.npz", *TINY, "--model", "stubborn", "--scenario", "class"],
    }
    if example:
        for kind in ("auto", "reference"):
            lines[f"readme {kind}"] = [*vectors, "--model", example, "--engine", kind]
    return run(program, {name: (line, None) for name, line in lines.items()})


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("data", ["", " images"])
def test_a_learner_of_gems_style_runs_unchanged(data, results, load_result):
    """And is online SGD, bit for bit: same streams, same initial weights, same evaluations."""
    found, wanted = results["gemstyle" + data], results["online" + data]
    assert found.code == wanted.code == 0, found.err
    _, found_a, found_weights, *_ = load_result(found.files[".pt"])
    _, wanted_a, wanted_weights, *_ = load_result(wanted.files[".pt"])
    assert same_weights(found_weights, wanted_weights)
    assert torch.equal(found_a, wanted_a)


def test_why_it_is_not_native_is_said(results):
    assert (
        "engine: reference, since the native one cannot run this: model.gemstyle is a torch module"
        in results["gemstyle"].err
    )
    assert results["gemstyle native"].code == 2
    assert re.search("error: --engine native cannot run this: .*say --engine reference", results["gemstyle native"].err)


def test_new_flags_are_in_the_help(results):
    text = " ".join(results["help"].out.split())
    assert results["help"].code == 0
    assert re.search(r"--haste number how much of a step is kept; read by ownflags; default 0\.5", text)
    assert re.search(r"--n_looks integer >= 1 steps on each minibatch; read by absolute; default 2", text)
    assert re.search(r"--model .*ownflags", text) and re.search(r"--model .*gemstyle", text)


def test_new_flags_are_read(results, load_result):
    runs = {name: results[name] for name in ("ownflags", "ownflags 1", "absolute", "absolute 1")}
    assert all(run.code == 0 for run in runs.values()), runs
    weights = {name: load_result(run.files[".pt"])[2] for name, run in runs.items()}
    assert json.loads(runs["ownflags"].files[".json"].read_text())["args"]["haste"] == 0.0
    assert json.loads(runs["ownflags"].files[".json"].read_text())["engine"] == "native"
    assert not any(value.any() for name, value in weights["ownflags"].items() if "bias" in name), "no step is kept"
    assert any(value.any() for name, value in weights["ownflags 1"].items() if "bias" in name)
    assert not same_weights(weights["absolute"], weights["absolute 1"])
    assert results["ownflags nan"].code == 2
    assert "--haste: 'nan' is not a finite number" in results["ownflags nan"].err


def test_a_learner_of_ours_that_fails_leaves_what_came_before(results):
    found = results["failing"]
    about = json.loads(found.files[".json"].read_text())
    assert found.code == 1 and "Traceback" not in found.err
    assert about["status"] == "failed" and about["failure"] in found.err
    assert re.fullmatch(
        r"model/failing\.py: its observe raised RuntimeError: it is one \(line \d+: .*\); after 8 examples",
        about["failure"],
    )
    assert len(about["result_a"]) == 3


def test_classes_of_a_task_compete_alone_at_test_whoever_learns(results, load_result):
    """It always says the last class of all, or of the task, of which are 4 of its 9 examples (8 are scored)."""
    for name, wanted in (("stubborn", [4 / 9, 4 / 9]), ("stubborn class", [0, 4 / 9])):
        assert results[name].code == 0, results[name].err
        assert load_result(results[name].files[".pt"])[1][-1].tolist() == pytest.approx(wanted)
    assert "model/stubborn.py decides which classes compete in training" in results["stubborn"].err
    assert "decides" not in results["stubborn class"].err


def test_a_broken_learner_harms_nobody_else(results):
    assert "model/broken.py is left out: it needs a package that is not installed: pip install no_such_package" in (
        results["help"].err
    )
    assert results["broken"].code == 2 and "Traceback" not in results["broken"].err
    assert re.search("error: model/broken.py cannot be imported: .*choose another --model", results["broken"].err)


def test_the_example_of_the_readme_runs(results):
    name, _ = readme_learner()
    assert name, "README.md has no ```python block that begins with `# model/<name>.py`"
    for kind in ("auto", "reference"):
        found = results[f"readme {kind}"]
        assert found.code == 0, found.err
        assert json.loads(found.files[".json"].read_text())["model"] == name
