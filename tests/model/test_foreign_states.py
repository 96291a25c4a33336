"""Learners of strangers that are stopped and go on, in another process: exactly where what they keep can be kept.

Else it is said, and no checkpoint is written.
"""

import random
import re
import sys
import types
from textwrap import dedent
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import toy_examples
from strangers import N_TASKS, a_learner, copy_with, described, of, run

from model.attributes import Walk, restore, same
from model.foreign import Foreign

STOP = 11  # minibatches learned when SIGTERM comes; 24 in all

GEM = '''
"""Gradient episodic memory, in the style of its authors' code."""

import numpy as np
import quadprog
import torch
from torch import nn

from .common import MLP


def projected(gradient, memories, margin=0.5, eps=1e-3):
    G = memories.t().double().numpy()
    P = G @ G.T
    P = 0.5 * (P + P.T) + eps * np.eye(len(G))
    v = quadprog.solve_qp(P, -G @ gradient.double().numpy(), np.eye(len(G)), np.full(len(G), margin))[0]
    return torch.from_numpy(v @ G).float() + gradient


class Net(nn.Module):
    def __init__(self, n_inputs, n_outputs, n_tasks, args):
        super(Net, self).__init__()
        self.margin = args.memory_strength
        self.net = MLP([n_inputs] + [args.n_hiddens] * args.n_layers + [n_outputs])
        self.ce = nn.CrossEntropyLoss()
        self.n_outputs = n_outputs
        self.opt = torch.optim.SGD(self.parameters(), args.lr)
        self.n_memories = args.n_memories
        self.gpu = args.cuda
        self.memory_data = torch.FloatTensor(n_tasks, self.n_memories, n_inputs).fill_(0)
        self.memory_labs = torch.LongTensor(n_tasks, self.n_memories).fill_(0)
        self.grad_dims = [p.data.numel() for p in self.parameters()]
        self.grads = torch.zeros(sum(self.grad_dims), n_tasks)
        self.observed_tasks = []
        self.old_task = -1
        self.mem_cnt = 0

    def forward(self, x, t):
        return self.net(x)

    def store(self, t):
        self.grads[:, t] = torch.cat([p.grad.flatten() for p in self.parameters()])

    def observe(self, x, t, y):
        if t != self.old_task:
            self.observed_tasks.append(t)
            self.old_task = t
        end = min(self.mem_cnt + len(y), self.n_memories)
        n = end - self.mem_cnt
        self.memory_data[t, self.mem_cnt : end].copy_(x.data[:n])
        self.memory_labs[t, self.mem_cnt : end].copy_(y.data[:n])
        self.mem_cnt = 0 if end == self.n_memories else end
        for past in self.observed_tasks[:-1]:
            self.zero_grad()
            self.ce(self.forward(self.memory_data[past], past), self.memory_labs[past]).backward()
            self.store(past)
        self.zero_grad()
        self.ce(self.forward(x, t), y).backward()
        if len(self.observed_tasks) > 1:
            self.store(t)
            past = self.grads[:, torch.tensor(self.observed_tasks[:-1])]
            if (self.grads[:, t] @ past < 0).any():
                new, at = projected(self.grads[:, t], past, self.margin), 0
                for p in self.parameters():
                    p.grad.copy_(new[at : at + p.numel()].view_as(p))
                    at += p.numel()
        self.opt.step()
'''

ER = '''
"""Experience replay with a reservoir, in the style of the original's code."""

import random

import numpy as np
import torch
from torch import nn
from torch.autograd import Variable

from .common import MLP


class Net(nn.Module):
    def __init__(self, n_inputs, n_outputs, n_tasks, args):
        super(Net, self).__init__()
        self.args = args
        self.net = MLP([n_inputs] + [args.n_hiddens] * args.n_layers + [n_outputs])
        self.bce = torch.nn.CrossEntropyLoss()
        self.opt = torch.optim.SGD(self.parameters(), lr=args.lr)
        self.memories, self.batchSize = args.memories, int(args.replay_batch_size)
        self.current_task = 0
        self.M, self.age = [], 0

    def forward(self, x, t):
        return self.net(x)

    def observe(self, x, t, y):
        if t != self.current_task:
            self.current_task = t
        for i in range(len(y)):
            self.age += 1
            batch = random.sample(self.M, min(self.batchSize, len(self.M))) + [[x[i], y[i], t]]
            np.random.shuffle(batch)
            for xi, yi, _ in batch:
                self.zero_grad()
                self.bce(self.net(Variable(xi.view(1, -1))), yi.view(1)).backward()
                self.opt.step()
            if len(self.M) < self.memories:
                self.M.append([x[i], y[i], t])
            else:
                p = random.randint(0, self.age)
                if p < self.memories:
                    self.M[p] = [x[i], y[i], t]
'''


def with_noise(init, observe, top=""):
    """A learner that keeps something, in `init`, and whose steps depend on it, by `noise` in `observe`."""
    return a_learner(top=top, init=init, observe=observe + "\nx = x + 0.1 * float(noise)")


# what a module keeps, and uses
EXACT = {
    "gem": GEM,
    "er": ER,
    "momentum": a_learner(init="self.opt = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)"),
    "adam": a_learner(init="self.opt = torch.optim.Adam(self.net.parameters(), lr=0.05)"),
    "a_new_optimizer": a_learner(
        init="self.lr, self.task = args.lr, None",
        observe="if t != self.task:\n"
        "    self.task, self.opt = t, torch.optim.SGD([self.net.weight], lr=self.lr, momentum=0.5)",
    ),
    "scheduler": a_learner(
        init="self.later = torch.optim.lr_scheduler.StepLR(self.opt, 5, 0.5)",
        observe="self.opt.zero_grad(); self.opt.step(); self.later.step()",
    ),
    "gradients_add_up": a_learner(
        observe="torch.nn.functional.cross_entropy(self.net(x), y).backward()\n"
        "if self.seen % 4 == 0:\n    self.opt.step(); self.opt.zero_grad()\nreturn"
    ),
    "numbers": with_noise("self.noise, self.z = 0.5, 1j", "self.noise *= -0.9; noise = self.noise; self.z *= 1j"),
    "containers": with_noise(
        "from collections import deque, defaultdict, Counter, OrderedDict\n"
        "self.d, self.q, self.n = {'a': {'b': [1, (2, None)]}}, deque(maxlen=3), Counter()\n"
        "self.many, self.seen_ys, self.o = defaultdict(list), set(), OrderedDict(x=b'1', y=bytearray(b'23'))",
        "self.q.append(float(x.sum())); self.n[int(y)] += 1; self.many[t].append(self.seen); self.seen_ys.add(int(y))\n"
        "self.d['a']['b'][0] += 1; self.o.move_to_end('x')\n"
        "noise = sum(self.q) + len(self.many[t]) + self.d['a']['b'][0] + len(self.seen_ys) + self.n[0] + self.q.maxlen",
    ),
    "arrays": with_noise(
        "self.a, self.s = np.zeros((2, 3), order='F'), np.float32(0.5)",
        "self.a[t % 2, int(y)] += float(x.sum()); self.s *= np.float32(0.9); noise = self.a.sum() * self.s",
        top="import numpy as np",
    ),
    "aliases": with_noise(
        "self.a = []; self.b = self.a; self.big = torch.zeros(10); self.part = self.big[3:5]\n"
        "self.data = self.net.weight.data; self.list = [self.net.weight]",
        "self.a.append(1); self.part += 1; self.big *= 0.9; self.data *= 0.99\n"
        "noise = len(self.b) + self.big.sum() + self.part.sum()",
    ),
    "streams": with_noise(
        "import random; import numpy as np\n"
        "self.r, self.n, self.o = random.Random(1), np.random.default_rng(2), np.random.RandomState(3)\n"
        "self.g = torch.Generator().manual_seed(4)",
        "noise = self.r.random() + self.n.random() + self.o.rand() + self.n.normal() + self.r.gauss(0, 1)\n"
        "noise = noise + torch.rand(1, generator=self.g)",
    ),
    "global_streams": with_noise(
        "import random; import numpy; self.kinds = random, numpy.random",
        "noise = torch.rand(1) + self.kinds[0].random() + self.kinds[1].rand()",
    ),
    "classes_of_its_own": with_noise(
        "self.buffer, self.points, self.pairs = Buffer(3), [], []",
        "self.buffer.add(x); self.points.append(Point(self.seen)); self.pairs.append(Pair(t, int(y)))\n"
        "noise = self.buffer.sum() + self.points[-1].x * len(self.points) + self.pairs[0].b",
        top="""
        from collections import namedtuple
        from dataclasses import dataclass
        Pair = namedtuple("Pair", "a b")
        @dataclass
        class Point:
            x: int
        class Base:
            def sum(self):
                return sum(float(x.sum()) for x in self.kept)
        class Buffer(Base):
            def __init__(self, n):
                self.n, self.kept = n, []
            def add(self, x):
                self.kept = (self.kept + [x])[-self.n :]
        """,
    ),
    "modules_in_a_list": a_learner(
        init="self.nets = [torch.nn.Linear(n_inputs, n_outputs) for _ in range(n_tasks)]\n"
        "self.opts = [torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.5) for net in self.nets]",
        forward="return self.nets[t](x)",
        observe="self.opts[t].zero_grad(); torch.nn.functional.cross_entropy(self.nets[t](x), y).backward()\n"
        "self.opts[t].step()\nreturn",
    ),
    "parameters_in_a_list": a_learner(
        init="self.w = [torch.nn.Parameter(torch.zeros(n_inputs, n_outputs))]\n"
        "self.v = torch.zeros(3, requires_grad=True)\n"
        "self.opt = torch.optim.Adam(self.w + [self.v], lr=0.1)",
        forward="return x @ self.w[0] + self.v",
        observe="self.opt.zero_grad(); torch.nn.functional.cross_entropy(self(x, t), y).backward(); self.opt.step()\n"
        "return",
    ),
    "batch_norm": a_learner(
        init="self.norm = torch.nn.BatchNorm1d(n_inputs)\n"
        "self.register_buffer('kept', torch.zeros(n_inputs), persistent=False)",
        forward="x = self.norm(x) + self.kept",
        observe="self.kept += 0.1 * x[0]; x = self.norm(torch.cat([x, x * 0.5])) + self.kept; y = torch.cat([y, y])",
    ),
    "frozen": a_learner(
        observe="if self.seen == 9: self.net.bias.requires_grad_(False); self.net.bias.grad = None",
    ),
    "functions": with_noise(
        "self.f, self.g, self.kind, self.nn = torch.relu, self.forward, torch.float32, torch.nn",
        "noise = self.f(self.g(x, t)).sum().detach()",
    ),
    "changed_flags": with_noise(
        "self.args = args; self.args.temperature = 2.0", "self.args.temperature *= 0.9; noise = self.args.temperature"
    ),
    "a_flag_that_grows": with_noise(
        "self.args = args; self.args.past = [0.5]", "self.args.past.append(-0.5); noise = sum(self.args.past)"
    ),
    "of_torchs_own_modules": with_noise(
        "self.drop = torch.nn.Dropout(0.9); self.drop.steps = [0]; self.opt.steps = 0",
        "self.drop.p *= 0.8; self.drop.steps.append(1); self.opt.steps += 1; x = self.drop(x)\n"
        "noise = len(self.drop.steps) + self.opt.steps",
    ),
    "behind_code_and_unchanged": with_noise(
        "import functools; import numpy as np\n"
        "scale, loss, self.a = [0.5, torch.ones(2)], torch.nn.CrossEntropyLoss(), np.ones(4)\n"
        "self.f, self.g = lambda y: scale[0] * y * self.net.weight.sum(), functools.partial(max, [1, 2])\n"
        "self.h, self.part = lambda o, y: loss(o, y), self.a[1:]\n"
        "self.net.register_forward_hook(lambda m, i, o: o * 2)",
        "noise = self.f(0.1).detach() + self.g([3])[0] + self.h(self.net(x), y).detach() + self.part.sum()",
    ),
    "pruned": a_learner(
        top="import torch.nn.utils.prune",
        init="torch.nn.utils.prune.random_unstructured(self.net, 'weight', 0.3)\n"
        "self.opt = torch.optim.SGD(self.net.parameters(), lr=args.lr)",
    ),
    "tied_weights": a_learner(
        init="self.other = torch.nn.Linear(n_inputs, n_outputs); self.other.weight = self.net.weight"
    ),
}
# what a module has that cannot be kept, from the start; what is said of it
NEVER = {
    "a_file": ("import io; self.opt2 = io.StringIO()", "attribute 'opt2' is a StringIO"),
    "a_lock": ("import threading; self.a = {'b': [threading.Lock()]}", r"attribute 'a\['b'\]\[0\]' is a lock"),
    "a_loader": ("self.it = iter([1, 2])", "attribute 'it' is a list_iterator"),
    "objects": ("import numpy as np; self.o = np.array([object()])", "attribute 'o' is an array of object"),
    "too_deep": (
        "self.a = []\nfor _ in range(3000):\n    self.a = [self.a]",
        r"cannot be looked at \(RecursionError: .*\)",
    ),
    "own_optimizer": (
        "class Mine(torch.optim.SGD):\n    pass\nself.opt = Mine(self.net.parameters(), lr=args.lr)",
        "attribute 'opt' is a Mine",
    ),
}
# and what it gets on the way
LATER = {
    "a_copy": ("import copy; self.old = copy.deepcopy(self.net)", "attribute 'old' is a Linear that was not there"),
    "a_graph": ("self.loss = self.net(x).sum()", "attribute 'loss' is part of a graph of gradients"),
    "a_function": ("self.f = lambda: 3", "attribute 'f' is code that was not there at the start"),
    "an_optimizer": ("self.o = torch.optim.SGD(self.parameters(), lr=1)", "attribute 'o' is a SGD that was not there"),
}
CHANGED = "shares or refers to what has changed since the start"
# what it has from the start, how that changes on the way, the attribute that is named
BEHIND = {
    "closure": ("n = [0]; self.f = lambda: n.append(1)", "self.f()", "f"),
    "nonlocal": ("n = 0\ndef f():\n    nonlocal n; n += 1\nself.f = f", "self.f()", "f"),
    "closure_of_closure": ("n = []; g = lambda: n.append(1); self.f = lambda: g()", "self.f()", "f"),
    "default": ("def f(n=[0]):\n    n.append(1)\nself.f = f", "self.f()", "f"),
    "partial": ("import functools; self.f = functools.partial(lambda a: a.append(1), [0])", "self.f()", "f"),
    "method": ("import collections; self.f = collections.Counter().update", "self.f('a')", "f"),
    "builtin": ("self.a = []; self.f = self.a.append", "self.f(1)", "f"),
    "hook": (
        "n = []; self.net.register_forward_hook(lambda *o: n.append(1) if self.seen > 8 else None)",
        "pass",
        r"net\.hooks",
    ),
    "new_hook": ("pass", "self.net.register_forward_hook(lambda *o: None)", r"net\.hooks"),
    "step_hook": (
        "n = []; self.opt.register_step_post_hook(lambda *o: n.append(1) if self.seen > 8 else None)",
        "pass",
        r"opt\.hooks",
    ),
    "array": ("import numpy as np; self.a = np.zeros(4); self.b = self.a[1:]", "self.b += 1", "[ab]"),
    "array_of_tensor": ("self.a = torch.zeros(4); self.b = self.a.numpy()", "self.b += 1", "b"),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    learners = dict(EXACT)
    learners |= {f"never_{name}": a_learner(init=init) for name, (init, _) in NEVER.items()}
    learners |= {
        f"later_{name}": a_learner(observe=f"if self.seen == 9:\n{indented(line)}") for name, (line, _) in LATER.items()
    }
    learners |= {
        f"later_behind_{name}": a_learner(init=init, observe=f"if self.seen >= 9:\n{indented(line)}")
        for name, (init, line, _) in BEHIND.items()
    }
    learners["heads"] = a_learner(
        init="self.n = n_outputs; self.net = torch.nn.Linear(n_inputs, n_outputs * n_tasks)\n"
        "self.opt = torch.optim.SGD(self.net.parameters(), lr=args.lr)",
        forward="return self.net(x)[:, t * self.n : (t + 1) * self.n]",
    )
    return copy_with(tmp_path_factory.mktemp("states"), learners)


def indented(text):
    return "\n".join(f"    {line}" for line in dedent(text).splitlines())


MORE = ["--n_memories", 4, "--memories", 7, "--replay_batch_size", 3, "--memory_strength", 0.1]


@pytest.fixture(scope="module")
def results(program):
    """Runs of all: undisturbed, and stopped; then, in a process of its own, what was stopped goes on."""
    lines = {f"{name} whole": (of(name, *MORE), None) for name in EXACT}
    lines |= {f"{name} stopped": (of(name, *MORE), STOP) for name in EXACT}
    for kind, names in (("never", NEVER), ("later", [*LATER, *(f"behind_{name}" for name in BEHIND)])):
        for name in names:
            lines[f"{kind}_{name} stopped"] = of(f"{kind}_{name}"), STOP
            lines[f"{kind}_{name} whole"] = of(f"{kind}_{name}", "--checkpoint_every", 10), None
            lines[f"{kind}_{name} early"] = of(f"{kind}_{name}", "--checkpoint_every", 4), STOP
    lines["heads whole"] = of("heads", *MORE), None
    found = run(program, lines)
    resumed = {}
    for name in EXACT:
        path = found[f"{name} stopped"].files.get(".checkpoint")
        assert path, (name, found[f"{name} stopped"].err)
        resumed[f"{name} stopped"] = ["--resume", str(path)], None
    again = run(program, resumed)
    return found | {name.replace("stopped", "resumed"): done for name, done in again.items()}


@pytest.mark.parametrize("name", EXACT)
def test_goes_on_exactly(name, results, load_result):
    whole, stopped, resumed = (results[f"{name} {part}"] for part in ("whole", "stopped", "resumed"))
    assert whole.code == 0, whole.err
    assert stopped.code == 143 and re.search(r"go on with: python main.py --resume \S+\.checkpoint", stopped.err)
    assert resumed.code == 0, resumed.err
    assert f"goes on after {STOP} examples" in resumed.err and "not what it was" not in resumed.err
    one, other = described(whole), described(resumed)
    assert one["result_a"] == other["result_a"] and one["result_t"] == other["result_t"]
    assert len({str(row) for row in one["result_a"]}) > 1, "it learns something"
    weights = [load_result(found.files[".pt"])[2] for found in (whole, resumed)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
    states = [torch.load(unpacked(found.files[".state"]), weights_only=True)["learner"] for found in (whole, resumed)]
    assert len(states[0]["nodes"]) == len(states[1]["nodes"])
    assert all(same(left, right) for left, right in zip(states[0]["nodes"], states[1]["nodes"], strict=True))
    assert same(states[0]["storages"], states[1]["storages"])
    assert ".checkpoint" not in resumed.files


def unpacked(path):
    import gzip
    import io

    return io.BytesIO(gzip.decompress(path.read_bytes()))


@pytest.mark.parametrize("name", NEVER)
def test_what_can_never_be_kept_is_said_at_the_start(name, results):
    why = NEVER[name][1]
    whole, stopped = (results[f"never_{name} {part}"] for part in ("whole", "stopped"))
    assert re.search(f"note: model/never_{name}.py cannot be resumed exactly: {why}; there will be no", whole.err)
    assert whole.code == 0 and {".txt", ".pt", ".json"} == whole.files.keys()
    assert re.search(why, described(whole)["no_state"])
    assert stopped.code == 143 and not stopped.files
    assert re.search(f"no checkpoint: .*{why}", stopped.err) and "go on with" not in stopped.err


@pytest.mark.parametrize("name", [*LATER, *(f"behind_{name}" for name in BEHIND)])
def test_what_cannot_be_kept_later_is_said_then(name, results):
    why = LATER[name][1] if name in LATER else f"{BEHIND[name.removeprefix('behind_')][2]}' {CHANGED}"
    whole, stopped, early = (results[f"later_{name} {part}"] for part in ("whole", "stopped", "early"))
    assert whole.code == 0 and {".txt", ".pt", ".json"} == whole.files.keys()
    assert len(re.findall(f"no checkpoint can be written .*{why}", whole.err)) == 1, whole.err
    assert stopped.code == 143 and not stopped.files
    assert re.search(f"no checkpoint of now: .*{why}", stopped.err) and "go on with" not in stopped.err
    assert early.code == 143 and early.files.keys() == {".checkpoint"} and "go on with" in early.err, "the one before"


def with_more_tasks(name, results):
    words = of(name, *MORE, "--start_from", results[f"{name} whole"].files[".pt"])
    words[words.index("tiny.pt")] = "more.pt"
    return words, None


@pytest.fixture(scope="module")
def with_more(results, program):
    return run(program, {f"{name} more": with_more_tasks(name, results) for name in (*EXACT, "heads", "never_a_file")})


@pytest.mark.parametrize("name", EXACT)
def test_goes_on_with_more_tasks(name, results, with_more):
    found, whole = with_more[f"{name} more"], results[f"{name} whole"]
    assert found.code == 0, found.err
    about = described(found)
    assert about["earlier"]["result_a"][0] == described(whole)["result_a"][-1], "it begins with what it knew"


def test_why_it_cannot_go_on_with_more_tasks(with_more):
    found = with_more
    assert found["heads more"].code == found["never_a_file more"].code == 2
    assert re.search(
        r"--start_from .*: model/heads.py cannot go on from 3 to 6 tasks \(its weights net.weight are \(9, 12\), and "
        r"\(18, 12\) in a new learner\); choose another --model",
        found["heads more"].err,
    )
    assert "attribute 'opt2' is a StringIO" in found["never_a_file more"].err


# the boundary itself


def loaded(source, name):
    """The class Net of a source, in a module of its own, which hides none of ours."""
    module = types.ModuleType(f"model.a_strangers_{name}")
    module.__package__ = "model"
    sys.modules[module.__name__] = module
    exec(compile(source, f"{name}.py", "exec"), vars(module))
    return module.Net


def flags(**more):
    known = dict(lr=0.1, n_hiddens=6, n_layers=2, memories=7, replay_batch_size=3, n_memories=4, memory_strength=0.1)
    return SimpleNamespace(**known, cuda=False, minibatch_slots=1, **more)


def a_stream(seed, first, n_tasks):
    generator = np.random.default_rng(seed)
    for t in range(first, first + n_tasks):
        x, y = toy_examples(8, 12, 3, generator)
        for i in range(8):
            yield x[i : i + 1], t, y[i : i + 1]


@pytest.mark.parametrize("name", ["gem", "momentum", "containers", "classes_of_its_own", "changed_flags"])
def test_more_tasks_are_learned_as_if_they_had_been_known(name):
    """A learner of 3 tasks that goes on with 3 more is one that was built for 6, weight by weight."""
    net = loaded(EXACT[name], name)

    def build(n_tasks, seed):
        torch.manual_seed(seed)
        return Foreign(net, 12, 3, n_tasks, flags())

    short, long, later = build(N_TASKS, 1), build(2 * N_TASKS, 1), build(2 * N_TASKS, 2)
    for example in a_stream(1, 0, N_TASKS):
        short.observe(*example)
        long.observe(*example)
    drawn = torch.get_rng_state()
    later.go_on_with_more_tasks(short.state(), N_TASKS)
    assert torch.equal(drawn, torch.get_rng_state()), "no random stream has moved"
    for example in a_stream(2, N_TASKS, N_TASKS):
        later.observe(*example)
        long.observe(*example)
    one, other = later.state_dict(), long.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_state_that_is_damaged_is_refused():
    """Whatever is in it: a ValueError or the like, which the reader of checkpoints knows; nothing is called."""
    from disk.safe import DAMAGED

    net = loaded(EXACT["classes_of_its_own"], "damaged")
    learner = Foreign(net, 12, 3, 3, flags())
    for example in a_stream(1, 0, 3):
        learner.observe(*example)
    chance = random.Random(0)
    wrong = [
        None,
        -1,
        10**9,
        "x",
        ("#", 10**6),
        ("#", -1),
        ("code", "net"),
        [],
        ("module", ""),
        b"",
        1.5,
        ("a", "b", "c"),
    ]
    refused = 0
    for _ in range(300):
        state = Walk(learner.module, learner.file, learner.args).content()
        nodes = state["nodes"]
        i = chance.randrange(len(nodes))
        parts = list(nodes[i])
        parts[chance.randrange(len(parts))] = chance.choice(wrong)
        nodes[i] = tuple(parts)
        fresh = Foreign(net, 12, 3, 3, flags())
        try:
            restore(state, fresh.module, fresh.file, fresh.args)
        except DAMAGED:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize(
    "size, stride", [((1 << 40,), (0,)), ((1 << 20, 1 << 20), (1, 1)), ((5,), (-1,)), ((4000,), (1,))]
)
def test_a_tensor_that_claims_more_than_it_has_is_refused(size, stride):
    learner = Foreign(loaded(a_learner(), "claims"), 12, 3, 3, flags())
    state = learner.state()
    i = next(i for i, node in enumerate(state["nodes"]) if node[0] == "tensor")
    kind, place, dtype, start, _, _, *rest = state["nodes"][i]
    state["nodes"][i] = (kind, place, dtype, start, size, stride, False, *rest[1:])
    with pytest.raises(ValueError):
        learner.load_state(state)


@pytest.mark.parametrize("hides", [False, True])
def test_the_gpu_is_asked_for_whatever_the_module_calls_it(hides, monkeypatch):
    """With --cuda yes the weights are moved by Module.to, even where a flag has hidden it. (Mocked: no GPU here)"""
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: moved.append((module, device)))
    init = "self.cuda = self.to = args.cuda" if hides else "pass"
    args = flags()
    args.cuda = True
    learner = Foreign(loaded(a_learner(init=init), "gpu"), 12, 3, 3, args)
    assert moved == [(learner.module, "cuda")]
