"""Reptile and Reservoir in other people's loops: against the engine, literal loops and chance, and killed."""

import copy
import itertools
import random
import subprocess
import sys

import literal
import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT
from torch import nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from model import networks
from model.torch_loop import Reptile, Reservoir


def test_the_file_stands_alone(tmp_path):
    """Copied elsewhere, it imports nothing of this program."""
    (tmp_path / "torch_loop.py").write_bytes((ROOT / "model" / "torch_loop.py").read_bytes())
    code = "import sys, torch_loop; print([m for m in ('model', 'errors', 'tasks', 'run', 'disk') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.stdout == "[]\n", found.stderr


# the paper's algorithms with it, against the reference engine


class OriginalDraws:
    """The original's draws from Python's `random` in place of a generator: literal.draw, and 0..N with both ends."""

    def integers(self, n, size=None):
        return random.randint(0, n) if size is None else np.array(literal.draw(range(n), size), dtype=int)


def golden_stream(per_task=25):
    """125 images of five tasks, one at a time: (x (1, 784), t, y (1,))."""
    with np.load(GOLDEN / "golden_permutations.npz") as data:
        for t, x in enumerate(data["x_train"]):
            for i in range(per_task):
                image = torch.from_numpy(x[i : i + 1]).float() / 255
                yield image, t, torch.from_numpy(data["y_train"][i : i + 1]).long()


def one_net(lr):
    torch.manual_seed(1)
    random.seed(1)
    net = networks.MLP([784, 100, 100, 10])
    return net, torch.optim.SGD(net.parameters(), lr=lr)


def step_on(net, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()


def algorithm_6(lr, gamma, k, s, capacity):
    net, optimizer = one_net(lr)
    reptile, memory = Reptile(optimizer, step=gamma), Reservoir(capacity, OriginalDraws())
    for x, _, y in golden_stream():
        memory.draw(k)  # which the original throws away
        for _ in range(s):
            for example in [*memory.draw(k), (x, y)]:
                step_on(net, optimizer, *example)
            reptile.interpolate()
        memory.add((x, y))
    return net


def algorithm_1(lr, beta, gamma, k, s, capacity):
    net, optimizer = one_net(lr)
    within, across = Reptile(optimizer, step=beta), Reptile(optimizer, step=gamma)
    memory = Reservoir(capacity, OriginalDraws())
    for x, _, y in golden_stream():
        for _ in range(s):
            for example in [(x, y), *memory.draw(k)]:
                step_on(net, optimizer, *example)
            within.interpolate()
        across.interpolate()
        memory.add((x, y))
    return net


@pytest.mark.parametrize(
    "loop,name,flags",
    [
        (algorithm_6, "meralg6", {"gamma": 0.3, "s": 1, "capacity": 40}),
        (algorithm_6, "meralg6", {"gamma": 0.3, "s": 2, "capacity": 500}),
        (algorithm_1, "meralg1", {"beta": 0.4, "gamma": 0.7, "s": 2, "capacity": 40}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_one_example_a_step_is_the_paper_bit_for_bit(loop, name, flags, make_learner):
    """The weights of the reference engine, which are the original's (test_golden.py), with the original's draws."""
    flags = {"lr": 0.03, "k": 5, **flags}
    names = {"k": "replay_batch_size", "s": "batches_per_example", "capacity": "memories"}
    words = {names.get(flag, flag): value for flag, value in flags.items()}
    learner = make_learner(name, {**words, "engine": "reference", "draws": "shuffle"}, (784, 10, 5))
    for x, t, y in golden_stream():
        learner.observe(x, t, y)
    wanted = learner.state_dict()
    found = loop(**flags).state_dict()
    assert found.keys() == {key.removeprefix("net.") for key in wanted}
    for key, value in found.items():
        assert torch.equal(value, wanted[f"net.{key}"]), key


# Reptile against a literal loop


class Small(nn.Module):
    """Batch norm, dropout's random stream, a frozen parameter and a buffer of whole numbers (num_batches_tracked)."""

    def __init__(self, dropout=0.2):
        super().__init__()
        self.dropout = dropout
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.shift = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        return self.last(F.dropout(F.relu(self.norm(self.first(x))), self.dropout)) + self.shift


OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.02),
    "fused adam": lambda groups: torch.optim.Adam(groups, lr=0.02, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.02, weight_decay=0.1),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01),
}


def groups_of(net):
    return [
        {"params": [*net.first.parameters(), net.shift]},
        {"params": [*net.norm.parameters(), *net.last.parameters()], "lr": 0.01},
    ]


def batches(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x = torch.randn(5, 6, generator=generator)
        yield x, (x[:, 0] > 0).long() + (x[:, 1] > 1).long()


def literal_loop(make_optimizer, every, step, with_buffers, n, drop=0.5):
    """theta <- theta0 + step (theta - theta0) after every so many steps, written out."""
    torch.manual_seed(2)
    net = Small()
    optimizer = make_optimizer(groups_of(net))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, drop)
    names = [name for name, value in net.state_dict().items() if with_buffers or "running" not in name]
    before = copy.deepcopy(net.state_dict())
    for number, (x, y) in enumerate(batches(n), 1):
        step_on(net, optimizer, x, y)
        scheduler.step()
        if number % every == 0:
            after = net.state_dict()
            for name in names:
                if after[name].is_floating_point():
                    after[name].copy_(before[name] + (after[name] - before[name]) * step)
            before = copy.deepcopy(after)
    return net.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("with_buffers", [False, True])
@pytest.mark.parametrize("every,step", [(1, 0.5), (3, 0.3), (5, 1.0), (4, 0.0), (2, 1.5)])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_reptile_is_the_literal_loop(kind, every, step, with_buffers):
    """To the bit: parameter groups with their own rates, a scheduler, batch norm's buffers taken along or not."""
    wanted = literal_loop(OPTIMIZERS[kind], every, step, with_buffers, 13)
    torch.manual_seed(2)
    net = Small()
    optimizer = OPTIMIZERS[kind](groups_of(net))
    reptile = Reptile(optimizer, every, step, buffers=net.buffers() if with_buffers else ())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)
    for x, y in batches(13):
        step_on(net, optimizer, x, y)
        scheduler.step()
    assert same(net.state_dict(), wanted)
    assert net.norm.num_batches_tracked == 13 and reptile.count == 13 % every
    if step not in (1.0,):
        assert not same(literal_loop(OPTIMIZERS[kind], 100, step, with_buffers, 13), wanted), "the step does something"


def test_two_of_them_nest():
    """Algorithm 1's two blocks, 2 steps within 6: the inner one ends first, and begins where the outer one ended."""
    net, wanted = Small(dropout=0), Small(dropout=0)
    wanted.load_state_dict(net.state_dict())
    optimizer, other = (torch.optim.Adam(m.parameters(), lr=0.1) for m in (net, wanted))
    Reptile(optimizer, 2, 0.5, net.buffers()), Reptile(optimizer, 6, 0.25, net.buffers())
    theta = [value for value in wanted.state_dict().values() if value.is_floating_point()]
    stream = batches(14)
    for _ in range(2):
        outer = literal.clones([theta])
        for _ in range(3):
            inner = literal.clones([theta])
            for x, y in itertools.islice(stream, 2):
                step_on(net, optimizer, x, y)
                step_on(wanted, other, x, y)
            literal.reptile([theta], inner, 0.5)
        literal.reptile([theta], outer, 0.25)
        assert same(net.state_dict(), wanted.state_dict())


def test_a_group_that_joins_in_the_middle_of_a_block():
    """It is interpolated from where it was before its first step."""
    one, two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.full((2,), 5.0))
    optimizer = torch.optim.SGD([one], lr=1.0)
    reptile = Reptile(optimizer, 3, 0.5)
    for number in range(3):
        if number == 1:
            optimizer.add_param_group({"params": [two]})
        one.grad, two.grad = torch.ones(2), torch.ones(2)
        optimizer.step()
        if number == 1:  # a state of that moment knows both
            state = reptile.state_dict()
            assert [value.tolist() for value in state["parameters"]] == [[0, 0], [5, 5]]
    assert one.tolist() == [-1.5, -1.5] and two.tolist() == [4, 4]


def test_it_can_be_told_and_it_can_be_taken_off():
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    reptile = Reptile(optimizer, step=0.25)

    def steps(n):
        for _ in range(n):
            p.grad = torch.ones(1)
            optimizer.step()
        return p.item()

    reptile.interpolate()
    assert p.item() == 0 and steps(4) == -4
    reptile.interpolate()
    reptile.interpolate()
    assert p.item() == -1
    reptile.every, reptile.step = 2, 0.5
    assert steps(2) == -2
    with torch.no_grad():
        p.fill_(10.0)  # weights that were loaded between two blocks
    assert steps(2) == 9
    steps(1)
    reptile.remove()
    assert steps(3) == 5
    reptile.interpolate()
    assert p.item() == 5


def test_a_first_step_that_fails_marks_nothing():
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    Reptile(optimizer, 1, 0.5)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    with torch.no_grad():
        p.fill_(10.0)
    p.grad = torch.ones(1)
    optimizer.step()
    assert p.item() == 9.5


@pytest.mark.parametrize(
    "change,message",
    [
        ({"every": 0}, "every=0: it must be a whole number of steps, 1 or more"),
        ({"every": 2.5}, "every=2.5: it must be"),
        ({"step": float("nan")}, "step=nan: it must be a finite number"),
    ],
)
def test_reptile_refuses(change, message):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=message):
        Reptile(optimizer, **change)
    with pytest.raises(TypeError, match="Linear is not a torch.optim.Optimizer"):
        Reptile(nn.Linear(1, 1), 2)
    assert Reptile(optimizer, np.int64(2)).state_dict()["every"] == 2


def test_a_state_of_another_net_is_refused():
    def one(*shapes):
        parameters = [nn.Parameter(torch.ones(shape)) for shape in shapes]
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        reptile = Reptile(optimizer, 5, 0.5)
        parameters[0].grad = torch.ones(shapes[0])
        optimizer.step()
        return reptile

    with pytest.raises(ValueError, match=r"1 parameters of shapes \[\(2,\)\]; here are 1: \[\(3,\)\]"):
        one(3).load_state_dict(one(2).state_dict())
    with pytest.raises(ValueError, match="1 parameters .* here are 2"):
        one(2, 2).load_state_dict(one(2).state_dict())


# mixed precision


class Inf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize("kind", ["momentum", "adam", "fused adam"])
def test_a_step_that_the_scaler_skips_does_not_count(kind):
    """Steps 2 and 5 of 8 overflow: the weights are those of a loop over the other six."""

    def run(skipped, numbers):
        torch.manual_seed(2)
        net = nn.Linear(6, 3)
        optimizer = OPTIMIZERS[kind](net.parameters())
        reptile = Reptile(optimizer, 3, 0.3)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for number, (x, y) in enumerate(batches(8)):
            if number not in numbers:
                continue
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(net(x).float(), y)
            scaler.scale(Inf.apply(loss) if number in skipped else loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return net.state_dict(), reptile

    found, reptile = run((2, 5), range(8))
    wanted, _ = run((), (0, 1, 3, 4, 6, 7))
    assert reptile.count == 0 and same(found, wanted)
    assert not same(run((), (0, 1, 3, 4, 6))[0], wanted)


# exact resume of everything together


class Training:
    """A loop with all that people use: groups, scheduler, mixed precision with overflows, two Reptiles, a reservoir."""

    def __init__(self, kind, folder, seed, compiled=None, dropout=0.2):
        torch.manual_seed(seed)
        self.net = Small(dropout)
        optimizer = OPTIMIZERS[kind](groups_of(self.net))
        self.parts = {
            "net": self.net,
            "optimizer": optimizer,
            "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
            "scaler": torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3),
            "within": Reptile(optimizer, 2, 0.5),
            "across": Reptile(optimizer, 7, 0.3, buffers=self.net.buffers()),
            "memory": Reservoir(6, seed, folder),
        }
        self.forward = torch.compile(self.net, backend=compiled) if compiled else self.net

    def train(self, numbers):
        optimizer, scheduler, scaler, memory = (self.parts[n] for n in ("optimizer", "scheduler", "scaler", "memory"))
        for number, batch in enumerate(batches(max(numbers, default=0) + 1)):
            if number not in numbers:
                continue
            torch.manual_seed(number)  # dropout's; the loop's own, which torch's checkpoint would hold
            new = [{"x": x, "y": (y, number)} for x, y in zip(*batch, strict=True)]
            items = default_collate(new + memory.draw(4))
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(self.forward(items["x"]).float(), items["y"][0])
            scaler.scale(Inf.apply(loss) if number % 5 == 3 else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            memory.extend(new)
            self.parts["across"].step = 0.3 / (number + 1)
        return self

    def states(self):
        return {name: part.state_dict() for name, part in self.parts.items()}

    def close(self):
        self.parts["memory"].close()
        return self


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("kind", ["momentum", "adam", "fused adam"])
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")  # the scaler skipped the first step
def test_a_loop_goes_on_exactly(kind, on_disk, tmp_path):
    n = 20
    folder = tmp_path / "memory" if on_disk else None
    wanted = Training(kind, tmp_path / "undisturbed" if on_disk else None, 1).train(range(n))
    for stop in range(n):
        if on_disk and stop not in (0, 1, 9, 13):
            continue
        first = Training(kind, folder, 1).train(range(stop))
        torch.save(first.states(), tmp_path / "state.pt")
        first.train(range(stop, min(stop + 5, n)))  # what is lost when it is killed here
        first.close()
        other = Training(kind, folder, 2)
        for name, state in torch.load(tmp_path / "state.pt", weights_only=True).items():
            other.parts[name].load_state_dict(state)
        other.train(range(stop, n))
        assert same(other.net.state_dict(), wanted.net.state_dict()), stop
        memories = [training.parts["memory"] for training in (other, wanted)]
        ages = [[item["y"][1] for item in map(memory.__getitem__, range(len(memory)))] for memory in memories]
        assert ages[0] == ages[1] and memories[0].n_seen == memories[1].n_seen == 5 * n
        other.close()
        if on_disk:
            for file in folder.iterdir():
                file.unlink()


def compiler_works():
    try:
        return torch.compile(lambda x: x + 1)(torch.zeros(2)).tolist() == [1, 1]
    except Exception:
        return False


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_with_a_compiled_net(backend):
    """The compiled net computes with the interpolated weights, as the plain one does, and goes on exactly too."""
    if backend == "inductor" and not compiler_works():
        pytest.skip("torch.compile finds no compiler")
    wanted = Training("adam", None, 1, dropout=0).train(range(12))
    found = Training("adam", None, 1, backend, 0).train(range(12))
    for name, value in found.net.state_dict().items():
        torch.testing.assert_close(value, wanted.net.state_dict()[name], rtol=0, atol=0.02)  # bfloat16
    first = Training("adam", None, 1, backend, 0).train(range(5))
    other = Training("adam", None, 2, backend, 0)
    for name, state in first.states().items():
        other.parts[name].load_state_dict(state)
    assert same(other.train(range(5, 12)).net.state_dict(), found.net.state_dict())
