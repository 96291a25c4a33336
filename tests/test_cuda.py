"""Every learner on the GPU against itself on the CPU: the same seed, the same numbers but for rounding."""

import json

import numpy as np
import pytest
import torch
from conftest import toy_examples

import main
import model
from model.learner import Learner
from run import settings

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch finds no CUDA device, or other files are tested beside this one"
)

FLAGS = {"n_hiddens": 9, "lr": 0.1, "n_memories": 3, "memories": 8, "replay_batch_size": 3, "memory_strength": 0.5}
OURS = [name for name, learner in model.load_all().items() if issubclass(learner, Learner)]


@pytest.fixture
def pair(make_learner):
    """pair(name, ...): the learner on the CPU and on the GPU."""

    def make(name, sizes=(12, 3, 3), rate=None, **data):
        own = FLAGS if rate is None else {**FLAGS, "lr": rate, "alpha_init": rate, "opt_lr": rate}
        flags = {flag.name: own[flag.name] for flag in model.load(name).flags if flag.name in own}
        flags |= {"batch_size": 2, "engine": "reference", "draws": "shuffle"}
        return [make_learner(name, {**flags, "cuda": cuda}, sizes, **data) for cuda in (False, True)]

    return make


def toy_stream(n_inputs, n_classes):
    """30 examples of 3 tasks with n_classes each of their own, two at a time."""
    generator = np.random.default_rng(1)
    for t in range(3):
        x, y = toy_examples(10, n_inputs, n_classes, generator)
        for i in range(0, 10, 2):
            yield t, x[i : i + 2], y[i : i + 2]


def assert_same_weights(one, other, tolerance):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    for name in one:
        assert other[name].device.type == "cpu"
        torch.testing.assert_close(other[name], one[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", OURS)
def test_learner_on_the_gpu(name, pair, tmp_path):
    on_cpu, on_gpu = pair(name)
    assert_same_weights(on_cpu, on_gpu, 0)
    for t, x, y in toy_stream(12, 3):
        on_cpu.observe(x, t, y)
        on_gpu.observe(x, t, y)
    assert_same_weights(on_cpu, on_gpu, 1e-3)
    for t in range(3):
        torch.testing.assert_close(on_gpu.forward(x, t).cpu(), on_cpu.forward(x, t), rtol=1e-3, atol=1e-3)

    torch.save(on_gpu.state(), tmp_path / "state.pt")  # a state goes from one device to the other
    for learner in pair(name):
        learner.load_state(torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu"))
        assert_same_weights(learner, on_gpu, 0)
        assert learner.notes() == on_gpu.notes()


def flat(learner):
    """All its weights as one vector, without batch norm's statistics."""
    weights = {name: value for name, value in learner.state_dict().items() if value.is_floating_point()}
    return torch.cat([value.flatten() for name, value in weights.items() if "running_" not in name])


@pytest.mark.parametrize("name", [name for name in OURS if name != "taskinput"])
def test_learner_on_images_on_the_gpu(name, pair, monkeypatch):
    """Rounding grows in a deep net with batch norm, the more the larger its steps: they are small, and compared."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    ranges = [(0, 2), (2, 4), (4, 6)]
    on_cpu, on_gpu = pair(name, (3072, 6, 3), rate=0.0003, image_shape=(3, 32, 32), class_ranges=ranges)
    begin = flat(on_cpu)
    for i, (t, x, y) in enumerate(toy_stream(3072, 2)):
        if i % 5 == 0:
            on_cpu.observe(x, t, y + 2 * t)
            on_gpu.observe(x, t, y + 2 * t)
    moved = (flat(on_cpu) - begin).norm()
    assert moved > 0 and (flat(on_gpu) - flat(on_cpu)).norm() < 0.3 * moved


@pytest.mark.parametrize("name", ["online", "gem", "meralg1"])
def test_run_on_the_gpu(name, task_file, run_main):
    folder, file = task_file()
    words = ["--model", name, "--data_path", folder, "--data_file", file, "--n_memories", 3, "--lr", 0.1, "--seed", 2]
    results = []
    for extra in (["--engine", "reference"], ["--cuda", "yes"]):
        found = run_main(*words, *extra)
        assert found.code == 0, found.err
        results.append(json.loads(found.files[".json"].read_text()))
    assert "engine: reference, since the native one cannot run this: it computes on the CPU" in found.err
    np.testing.assert_allclose(results[1]["result_a"], results[0]["result_a"], atol=0.11)  # one test example in ten


class Foreign(torch.nn.Module):
    """A torch module of its own, as in GEM's code: its inputs come to the device where it is."""

    def __init__(self, n_inputs, n_outputs, n_tasks, args):
        super().__init__()
        self.net = torch.nn.Linear(n_inputs, n_outputs)
        self.opt = torch.optim.SGD(self.parameters(), lr=args.lr)

    def forward(self, x, t):
        return self.net(x)

    def observe(self, x, t, y):
        assert x.is_cuda and y.is_cuda
        self.opt.zero_grad()
        torch.nn.functional.cross_entropy(self.net(x), y).backward()
        self.opt.step()


def test_foreign_learner_on_the_gpu(task_file, tmp_path):
    folder, file = task_file()
    words = ["--data_path", str(folder), "--data_file", file, "--save_path", str(tmp_path / "results"), "--cuda", "yes"]
    assert main.run(settings.Settings(settings.parse(words).as_dict(), Foreign)) == 0
