"""The networks against hand-written formulas and forward passes; learners on images whose classes belong to tasks."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import model
from errors import UserError
from model import networks
from model.learner import Learner

N_PIXELS = 3 * 32 * 32
RANGES = [(0, 2), (2, 4), (4, 6)]
SIZES = (N_PIXELS, 6, 3)

LEARNERS = [name for name, learner in model.load_all().items() if issubclass(learner, Learner)]


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def by_hand(nf, n_classes):
    """Parameters of the ResNet-18 whose first block has nf filters; a batch norm has two for each filter."""
    count = 3 * 9 * nf + 2 * nf
    width = nf
    for out in (nf, 2 * nf, 4 * nf, 8 * nf):
        count += width * 9 * out + 2 * out + out * 9 * out + 2 * out  # first block
        count += width * out + 2 * out if width != out else 0  # its shortcut
        count += 2 * (out * 9 * out + 2 * out)  # second block
        width = out
    return count + 8 * nf * n_classes + n_classes


@pytest.mark.parametrize("nf,n_classes", [(20, 100), (1, 5), (6, 10)])
def test_resnet_has_the_right_size(nf, n_classes):
    net = networks.ResNet18(n_classes, nf)
    assert n_parameters(net) == by_hand(nf, n_classes)
    assert net(torch.rand(2, N_PIXELS)).shape == (2, n_classes)


def test_resnet_of_gem_has_a_million_parameters():
    assert by_hand(20, 100) == 1_109_240


def literal_resnet(w, x, nf):
    """Conv, batch norm over the batch, ReLU; four stages of two basic blocks; mean over 4x4; linear."""

    def norm(x, name):
        return F.batch_norm(x, None, None, w[f"{name}.weight"], w[f"{name}.bias"], training=True)

    def block(x, name, stride):
        out = F.relu(norm(F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
        out = norm(F.conv2d(out, w[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if stride != 1:
            x = norm(F.conv2d(x, w[f"{name}.shortcut.0.weight"], stride=stride), f"{name}.shortcut.1")
        return F.relu(out + x)

    x = F.relu(norm(F.conv2d(x.reshape(-1, 3, 32, 32), w["conv1.weight"], padding=1), "bn1"))
    for stage, stride in enumerate((1, 2, 2, 2), 1):
        x = block(block(x, f"layer{stage}.0", stride), f"layer{stage}.1", 1)
    assert x.shape[1:] == (8 * nf, 4, 4)
    return x.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]


def test_resnet_computes_what_it_should():
    torch.manual_seed(0)
    net = networks.ResNet18(7, 3)
    for p in net.parameters():
        nn.init.normal_(p, 0.3, 0.3)
    x = torch.rand(5, N_PIXELS)
    torch.testing.assert_close(net(x), literal_resnet(dict(net.named_parameters()), x, 3))


@pytest.mark.parametrize("sizes", [[12, 3], [12, 5, 3], [7, 9, 8, 6, 2]])
def test_mlp(sizes):
    torch.manual_seed(3)
    net = networks.MLP(sizes)
    after = torch.rand(1)
    torch.manual_seed(3)
    wanted = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]  # PyTorch's own draws, all first
    for layer in wanted:
        bound = 3**0.5 * (2.0 / sum(layer.weight.shape)) ** 0.5
        layer.weight.data.uniform_(-bound, bound)
    assert torch.equal(torch.rand(1), after), "no other number was drawn"
    x = h = torch.rand(4, sizes[0])
    for i, layer in enumerate(wanted):
        assert torch.equal(net.net[2 * i].weight, layer.weight) and not net.net[2 * i].bias.any()
        h = (h if i == 0 else h.clamp(min=0)) @ layer.weight.T
    torch.testing.assert_close(net(x), h)
    assert n_parameters(net) == sum(a * b + b for a, b in zip(sizes, sizes[1:], strict=False))


def test_taskinput_builds_in_the_original_order():
    """Input layers of all tasks, then the hidden ones, then the output; the second shared layer keeps its biases."""
    torch.manual_seed(3)
    net = networks.TaskInputMLP(12, 5, 4, 3, 2)
    torch.manual_seed(3)
    wanted = [nn.Linear(a, b) for a, b in [(12, 5), (12, 5), (5, 5), (5, 5), (5, 5), (5, 3)]]
    found = [*net.i_layer, *net.h_layer[0], *net.o_layer]
    assert len(found) == len(wanted)
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(a.weight, b.weight)
        assert torch.equal(a.bias, b.bias) if i in (3, 4) else not a.bias.any()
    x = torch.rand(6, 12)
    for t in range(2):
        h = wanted[t].weight
        h = (x @ h.T).relu()
        h = (h @ wanted[2].weight.T).relu()
        h = (h @ wanted[3].weight.T + wanted[3].bias).relu()
        h = (h @ wanted[4].weight.T + wanted[4].bias).relu()
        torch.testing.assert_close(net(x, t), (h @ wanted[5].weight.T).log_softmax(1))


# images


def image_data(n, start, stop, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % (stop - start) + start
    x = torch.rand(n, N_PIXELS, generator=generator)
    x[:, :1024] *= (y[:, None] % 2) * 2  # an odd class is red
    return x, y


@pytest.fixture
def make_image_learner(make_learner):
    def make(name, sizes=SIZES, ranges=RANGES, **flags):
        declared = {flag.name for flag in model.load(name).flags}
        flags = {"n_memories": 3, "memory_strength": 0.5, "memories": 4, "replay_batch_size": 2, "lr": 0.05, **flags}
        flags = {flag: value for flag, value in flags.items() if flag in declared | {"batch_size"}}
        return make_learner(name, flags, sizes, image_shape=(3, 32, 32), class_ranges=ranges)

    return make


@pytest.mark.parametrize("name", [name for name in LEARNERS if name != "taskinput"])
def test_learners_on_images(name, make_image_learner, tmp_path):
    """A few examples of each task: weights move, predictions stay among the task's classes, the state goes on."""
    learner = make_image_learner(name, batch_size=2)
    before = learner.state_dict()
    stream = [(t, *(part[i : i + 2] for part in image_data(4, *RANGES[t], t))) for t in range(3) for i in (0, 2)]
    for i, (t, x, y) in enumerate(stream):
        if i == 4:
            torch.save(learner.state(), tmp_path / "state.pt")
        learner.observe(x, t, y)
    after = learner.state_dict()
    assert learner.engine.name == "reference"
    assert any(not torch.equal(after[key], before[key]) for key in before)
    assert all(torch.isfinite(value).all() for value in after.values())
    x = image_data(3, 0, 6, 9)[0]
    for t, (start, stop) in enumerate(RANGES):
        outputs = learner.forward(x, t)
        outside = [c for c in range(6) if not start <= c < stop]
        assert outputs.shape == (3, 6) and (outputs[:, outside] == -10e10).all()
        assert torch.isfinite(outputs).all() and (outputs[:, start:stop].abs() < 1e6).all()

    other = make_image_learner(name, batch_size=2)
    other.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for t, x, y in stream[4:]:
        other.observe(x, t, y)
    again = other.state_dict()
    assert all(torch.equal(again[key], after[key]) for key in after)


def test_taskinput_refuses_images(make_learner):
    with pytest.raises(UserError, match=r"taskinput takes plain vectors, not images.*choose another --model"):
        make_learner("taskinput", {}, SIZES, image_shape=(3, 32, 32), class_ranges=RANGES)


def test_online_learns_the_slice_of_the_task(make_image_learner):
    """GEM's training step: cross-entropy of the task's outputs, labels from its first class on. Bit for bit."""
    learner = make_image_learner("online", batch_size=3)
    torch.manual_seed(1)
    net = networks.ResNet18(6, 20)
    assert all(torch.equal(value, learner.state_dict()[f"net.{name}"]) for name, value in net.state_dict().items())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for t in (0, 2, 1):
        start, stop = RANGES[t]
        x, y = image_data(3, start, stop, t)
        learner.forward(x, t)  # an evaluation between steps changes nothing (batch norm has two modes)
        learner.observe(x, t, y)
        optimizer.zero_grad()
        F.cross_entropy(net(x)[:, start:stop], y - start).backward()
        optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.equal(learner.state_dict()[f"net.{name}"], value), name
    x = image_data(2, 0, 6, 9)[0]
    net.eval()
    torch.testing.assert_close(learner.forward(x, 1)[:, 2:4], net(x)[:, 2:4])


def test_independent_has_a_small_net_for_each_tasks_classes(make_image_learner):
    learner = make_image_learner("independent", batch_size=3, finetune=True)
    torch.manual_seed(1)
    nets = [networks.ResNet18(2, 20 // 3) for _ in range(3)]
    assert list(learner.state_dict()) == [f"nets.{t}.{name}" for t in range(3) for name in nets[t].state_dict()]
    x, y = image_data(3, 2, 4, 0)
    learner.observe(x, 1, y)
    nets[1].load_state_dict(nets[0].state_dict())
    optimizer = torch.optim.SGD(nets[1].parameters(), lr=0.05)
    F.cross_entropy(nets[1](x), y - 2).backward()
    optimizer.step()
    for t, net in enumerate(nets):
        for name, value in net.state_dict().items():
            assert torch.equal(learner.state_dict()[f"nets.{t}.{name}"], value), (t, name)


@pytest.mark.parametrize("name,grouped", [("eralg4", False), ("eralg5", True)])
def test_replayed_examples_are_judged_by_their_own_task(name, grouped, make_image_learner):
    """One step on a current example of task 1 and a draw of task 0: each among the classes of its own task."""
    flags = {"memories": 1, "replay_batch_size": 1, "lr": 0.05}
    learner = make_image_learner(name, **flags)
    x0, y0 = image_data(1, 0, 2, 1)
    x1, y1 = image_data(1, 2, 4, 2)
    learner.observe(x0, 0, y0)
    random.seed(0)
    learner.observe(x1, 1, y1)

    torch.manual_seed(1)
    net = networks.ResNet18(6, 20)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)

    def step(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step(F.cross_entropy(net(x0)[:, :2], y0))
    if grouped:
        step(F.cross_entropy(net(x1)[:, 2:4], y1 - 2) + F.cross_entropy(net(x0)[:, :2], y0))
    else:
        outputs = net(torch.cat([x0, x1]))
        step((F.cross_entropy(outputs[:1, :2], y0) + F.cross_entropy(outputs[1:, 2:4], y1 - 2)) / 2)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(learner.state_dict()[f"net.{key}"], value, rtol=1e-4, atol=1e-5, msg=key)


def test_too_many_tasks_for_the_filters(make_learner):
    ranges = [(t, t + 1) for t in range(21)]
    with pytest.raises(UserError, match="21 tasks share 20 filters.*use at most 20 tasks"):
        make_learner("independent", {}, (N_PIXELS, 21, 21), image_shape=(3, 32, 32), class_ranges=ranges)


def test_a_vector_with_class_ranges_keeps_to_its_classes(make_learner):
    """Class ranges work on plain vectors too: MLP, masks and slices."""
    for name in ("online", "independent"):
        learner = make_learner(name, {"n_hiddens": 9, "lr": 0.1}, (12, 6, 3), class_ranges=RANGES)
        x = torch.rand(5, 12)
        for t, (start, stop) in enumerate(RANGES):
            for _ in range(60):
                learner.observe(x[:1], t, torch.tensor([start + 1]))
            outputs = learner.forward(x, t)
            assert (outputs[:, :start] == -10e10).all() and (outputs[:, stop:] == -10e10).all()
            assert int(outputs[0].argmax()) == start + 1
