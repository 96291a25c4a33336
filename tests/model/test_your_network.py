"""Networks of one's own: dropped in, broken, with batch norm and dropout, against literal loops."""

import random
import re
from types import SimpleNamespace

import literal
import numpy as np
import pytest
import strangers
import torch
from conftest import toy_examples
from torch import nn

import model
from errors import UserError
from model import networks
from model.learner import Learner
from run import settings

MINE = """
from torch import nn
from model.flags import SHAPE, Flag, integer, number

width = Flag("mine_filters", integer(1), 6, "filters of mine", role=SHAPE)
flags = (width, Flag("mine_dropout", number(0), 0.3, "share of the units that a step leaves out"))


class Mine(nn.Module):
    def __init__(self, n_filters, n_outputs, dropout):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, n_filters, 3, padding=1), nn.BatchNorm2d(n_filters)
        self.dropout, self.out = nn.Dropout(dropout), nn.LazyLinear(n_outputs)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))

    def forward(self, x):
        h = self.norm(self.conv(x.view(-1, 1, 3, 4))).relu()
        return self.out(self.dropout(h.flatten(1)))


def make(n_inputs, n_outputs, image_shape, args):
    assert (n_inputs, image_shape) == (12, None)
    return Mine(args.mine_filters, n_outputs, args.mine_dropout)
"""
MAKE = "from torch import nn\ndef make(n_inputs, n_outputs, image_shape, args):\n    "
BROKEN = {
    "syntax": ("def make(:", r"model/networks/syntax\.py cannot be imported: invalid syntax"),
    "ends": ("import sys\nsys.exit(3)\ndef make(*of): pass", r"ends\.py cannot be imported: it ends the program"),
    "packages": ("import not_there\ndef make(*of): pass", r"packages\.py cannot be imported: .*not_there.*pip install"),
    "raises": (MAKE + "raise ValueError('not today')", r"raises\.py: its make raised ValueError: not today \(line 3"),
    "cannot_be_said": (
        "from torch import nn\nclass Odd(Exception):\n    def __str__(self):\n        raise RuntimeError\n"
        "class Net(nn.Module):\n    def forward(self, x):\n        raise Odd\ndef make(*of):\n    return Net()",
        r"cannot_be_said\.py: its forward raised Odd: no message",
    ),
    "asks": (MAKE + "return args.depth", r"asks\.py: its make raised .*'depth'.*; declare depth in the file's `flags`"),
    "nothing": (MAKE + "pass", r"nothing\.py: its make returned a NoneType, and must return a torch\.nn\.Module"),
    "outputs": (
        MAKE + "return nn.Linear(n_inputs, 5)",
        r"its network gives torch\.float32 \(2, 5\), and must .*\(2, 3\)",
    ),
    "inputs": (MAKE + "return nn.Linear(99, n_outputs)", r"inputs\.py: its forward raised RuntimeError.*\(B, 12\)"),
    "frozen": (MAKE + "return nn.Linear(n_inputs, n_outputs).requires_grad_(False)", "has no weight to learn"),
    "clash": (
        "flags = 3\n" + MAKE + "return nn.Linear(n_inputs, n_outputs)",
        "its flags are 3, and must be model.flags",
    ),
}
BROKEN["stateless"] = (
    "from torch import nn\nclass Own(nn.Linear):\n    def state_dict(self, *of, **more): return {}\n"
    "def make(n_inputs, n_outputs, image_shape, args): return Own(n_inputs, n_outputs)",
    r"stateless\.py: its state_dict cannot be loaded: RuntimeError.*Missing key.*; keep in its state_dict",
)
CENTRED = (
    "from torch import nn\nclass Own(nn.Linear):\n    def forward(self, x): return super().forward({})\n"
    "def make(n_inputs, n_outputs, image_shape, args): return Own(n_inputs, n_outputs)"
)
SHARED = (
    "from torch import nn\nnet = nn.Linear(12, 3)\n"
    "def make(n_inputs, n_outputs, image_shape, args): return nn.Sequential(net)"
)
ALONE = MAKE + "return nn.Sequential(nn.Linear(n_inputs, 4), nn.BatchNorm1d(4), nn.Linear(4, n_outputs))"
LEARNERS = [name for name, learner in model.load_all().items() if issubclass(learner, Learner)]
TAKING = [name for name in LEARNERS if settings.takes_networks(model.load(name))]
FLAGS = {"gem": ("--n_memories", 4), "ewc": ("--n_memories", 4), "independent": ("--mine_filters", 7)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a copy of the program that has these networks."""
    sources = {f"networks/{name}": text for name, (text, _) in BROKEN.items()}
    sources |= {"networks/mine": MINE, "networks/alone": ALONE, "networks/shared": SHARED}
    sources |= {"networks/copying": CENTRED.format("x - 0.5"), "networks/writing": CENTRED.format("x.sub_(0.5)")}
    program = strangers.copy_with(tmp_path_factory.mktemp("networks"), sources)
    lines = {
        name: (strangers.of(name, "--network", "mine", "--replay_batch_size", 3, *FLAGS.get(name, ())), None)
        for name in LEARNERS
    }
    whole = strangers.of("meralg6", "--network", "mine", "--gamma", 0.5, "--replay_batch_size", 3)
    lines |= {f"broken {name}": (strangers.of("online", "--network", name), None) for name in BROKEN}
    lines |= {
        "whole": (whole, None),
        "parts": (whole, 13),
        "another": ([*whole, "--resume", "auto", "--mine_dropout", "0"], None),
        "alone": (strangers.of("online", "--network", "alone"), None),
        "rest": (strangers.of("online", "--network", "alone", "--batch_size", 7), None),
        "one shared": (strangers.of("online", "--network", "shared"), None),
        "shared": (strangers.of("independent", "--network", "shared", "--finetune", "no"), None),
        "pairs": (strangers.of("online", "--network", "alone", "--batch_size", 2), None),
        "native": (strangers.of("online", "--network", "mine", "--engine", "native"), None),
        "unknown": (strangers.of("online", "--network", "mime"), None),
        "in vain": (strangers.of("online", "--network", "mlp", "--mine_filters", 3), None),
        "help": (["--help"], None),
    }
    lines |= {
        name: (strangers.of("meralg6", "--network", name, "--replay_batch_size", 3), None)
        for name in ("copying", "writing")
    }
    found = strangers.run(program, lines)
    again = {"parts": ([*whole, "--resume", "auto"], None)}
    return found | {"resumed": strangers.run(program, again)["parts"]}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_runs_a_network_that_is_dropped_in(name, runs):
    found = runs[name]
    if name not in TAKING:
        assert (
            found.code == 2 and f"--network mine: {name} makes a network of its own; leave --network out" in found.err
        )
        return
    assert found.code == 0, found.err
    about = strangers.described(found)
    assert (about["engine"], about["args"]["network"], about["science"]["network"]) == ("reference", "mine", "mine")
    assert about["science"]["mine_dropout"] == 0.3 and "n_layers" not in about["science"]
    assert "network: mine (" in found.err and "asked for, on vectors of 12 inputs" in found.err
    assert "note: " + name + " does not read --n_hiddens" in found.err
    assert "engine: reference, since" in found.err and "runs MLPs, and the network is mine" in found.err


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_network_says_what_to_mend(name, runs):
    found = runs[f"broken {name}"]
    assert found.code == 2 and found.err.startswith("error: ") and found.err.count("\n") == 1, found.err
    assert re.search(BROKEN[name][1], found.err), found.err


def test_networks_that_share_weights_are_not_taken_for_several(runs):
    assert runs["one shared"].code == 0, runs["one shared"].err
    found = runs["shared"]
    assert found.code == 2 and "networks/shared.py: its make returned weights that it has returned before" in found.err


def test_a_run_with_dropout_and_batch_norm_goes_on_exactly(runs):
    assert runs["parts"].code == 143 and runs["resumed"].code == 0, runs["resumed"].err
    assert "goes on after" in runs["resumed"].err
    whole, resumed = (strangers.described(runs[name]) for name in ("whole", "resumed"))
    assert resumed["result_a"] == whole["result_a"] and resumed["result_t"] == whole["result_t"]
    weights = [torch.load(runs[name].files[".pt"], weights_only=False)[2] for name in ("whole", "resumed")]
    assert list(weights[0])[:2] == ["net.mask", "net.conv.weight"], "under their own names"
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_network_that_writes_to_its_inputs_changes_no_memory(runs):
    one, other = (torch.load(runs[name].files[".pt"], weights_only=False)[2] for name in ("copying", "writing"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_network_is_part_of_the_science(runs):
    assert "goes on after" not in runs["another"].err
    assert strangers.described(runs["another"])["science"]["mine_dropout"] == 0


def test_what_is_said_of_networks(runs):
    assert runs["alone"].code == 1 and "batch norm over a single example" in runs["alone"].err
    assert "--batch_size of 2" in runs["alone"].err and runs["pairs"].code == 0, runs["pairs"].err
    assert runs["rest"].code == 1 and "no single one at the end of a task" in runs["rest"].err
    assert runs["native"].code == 2 and "--engine native cannot run this: it runs MLPs" in runs["native"].err
    assert "unknown network 'mime' (did you mean mine?); choose from alone," in runs["unknown"].err
    assert runs["in vain"].code == 0 and "note: online does not read --mine_filters" in runs["in vain"].err
    text = " ".join(runs["help"].out.split())
    assert "filters of mine; read by networks/mine; default 6" in text and "cnn, " in text


# against literal loops

D, C, T = 256, 3, 3
SHAPE = (1, 16, 16)
REPLAY = {"lr": 0.05, "memories": 6, "replay_batch_size": 2}
LOOPS = {
    "online": {"lr": 0.05},
    "ewc": {"lr": 0.05, "n_memories": 3, "memory_strength": 5.0},
    "eralg4": REPLAY,
    "eralg5": REPLAY,
    "meralg1": {**REPLAY, "beta": 0.4, "gamma": 0.7, "batches_per_example": 2},
    "meralg6": {**REPLAY, "gamma": 0.6, "batches_per_example": 1},
    "meralg7": {**REPLAY, "gamma": 0.6, "s": 3.0},
    "mer_minibatch": {**REPLAY, "gamma": 0.6, "reptile_every": 3},
}


def a_cnn():
    """Three filters; its convolutions as the file builds them."""
    args = SimpleNamespace(network="cnn", image_shape=SHAPE, cnn_filters=3)
    return networks.for_data(args, D, C).own


@pytest.mark.parametrize("name", LOOPS)
def test_batch_norm_in_a_literal_loop(name, make_learner, monkeypatch):
    """Bit for bit: training mode in steps, evaluation between them, running statistics interpolated by Reptile."""
    generator, stream = np.random.default_rng(2), []
    for t in range(T):
        x, y = toy_examples(4, D, C, generator)
        stream += [(t, x[i : i + 2], y[i : i + 2]) for i in (0, 2)]
    flags = {**LOOPS[name], "network": "cnn", "cnn_filters": 3, "batch_size": 2, "draws": "shuffle"}
    learner = make_learner(name, flags, (D, C, T), image_shape=SHAPE)
    for t, x, y in stream:
        learner.observe(x, t, y)
        learner.forward(x, t)

    torch.manual_seed(1)
    random.seed(1)
    module = a_cnn()
    moved = list(module.parameters())
    if name.startswith("mer"):
        moved = [value for value in module.state_dict().values() if value.is_floating_point()]
        assert len(moved) == 4 * 6 + 2
    optimizer = torch.optim.SGD(module.parameters(), lr=flags["lr"])
    monkeypatch.setattr(literal, "one_net", lambda sizes, h: (module, optimizer))
    monkeypatch.setattr(literal, "outputs", lambda module, x: module.train()(x.view(-1, *SHAPE)))
    monkeypatch.setattr(literal, "flat", lambda module: moved)
    monkeypatch.setattr(literal, "named", lambda module: module.state_dict())
    wanted = literal.LEARNERS[name](stream, (D, C, T), SimpleNamespace(**flags))
    found = learner.state_dict()
    assert list(found) == [f"net.{key}" for key in wanted]
    for key, value in wanted.items():
        assert torch.equal(found[f"net.{key}"], value), key


# which network it is


def test_the_data_choose_the_network():
    for image_shape, name in (((3, 32, 32), "resnet18"), ((1, 28, 28), "mlp"), (None, "mlp")):
        assert networks.chosen(SimpleNamespace(network="auto", image_shape=image_shape)) == name
        assert networks.chosen(SimpleNamespace(network="cnn", image_shape=image_shape)) == "cnn"


@pytest.mark.parametrize(
    "n_inputs,shape,said",
    [
        (3072, None, "if they are images of 3x32x32, say --network resnet18 or cnn"),
        (12288, None, "if they are images of 3x64x64, say --network cnn"),
        (784, (1, 28, 28), "--network cnn is made for images"),
        (784, None, None),
        (12, None, None),
    ],
)
def test_where_images_are_likely_it_says_how_to_ask(n_inputs, shape, said):
    text = networks.describe("mlp", False, n_inputs, shape)
    assert said in text if said else "--network" not in text
    assert "--network" not in networks.describe("mlp", True, n_inputs, shape)


@pytest.mark.parametrize("shape,n_inputs", [((1, 28, 28), 784), (None, 784), (None, 3072), ((3, 32, 32), 3072)])
def test_the_cnn_is_that_of_the_few_shot_literature(shape, n_inputs):
    """Four 3x3 layers of 64 with batch norm; 28 pixels become 1, so that 64 features are left."""
    torch.manual_seed(0)
    net = networks.for_data(SimpleNamespace(network="cnn", image_shape=shape), n_inputs, 5)
    convs = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert [tuple(conv.weight.shape[::2]) + (conv.weight.shape[3],) for conv in convs] == [(64, 3, 3)] * 4
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()) == 4
    (linear,) = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    assert linear.in_features == (64 if n_inputs == 784 else 256)
    x = h = torch.rand(3, n_inputs)
    h = h.view(3, -1, 28, 28) if n_inputs == 784 else h.view(3, 3, 32, 32)
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    for conv, norm in zip(convs, norms, strict=True):
        h = torch.conv2d(h, conv.weight, conv.bias, padding=1)
        h = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        h = torch.max_pool2d((h * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)).relu(), 2)
    torch.testing.assert_close(net(x), h.flatten(1) @ linear.weight.T + linear.bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name,n_inputs,shape", [("cnn", 12, None), ("cnn", 100, (1, 10, 10)), ("resnet18", 784, None)])
def test_images_that_a_network_cannot_take(name, n_inputs, shape):
    with pytest.raises(UserError, match=f"--network {name}.*(choose another|use) --network"):
        networks.for_data(
            SimpleNamespace(network=name, image_shape=shape, resnet_filters=2, cnn_filters=2), n_inputs, 3
        )
