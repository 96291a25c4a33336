"""The accuracies of an evaluation against counting by hand; on other threads, in pieces, with maps of pixels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model import engine, foreign
from run import evaluation
from run.evaluation import Evaluator
from tasks.taskset import Split, Task

D, C = 30, 4


def tasks_of(sizes, seed=0):
    """Test sets of these sizes: maps of shared uint8 images, with a dead pixel; and one of float32 inputs."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (max(sizes), D), dtype=np.uint8) * (generator.random((max(sizes), D)) < 0.4)
    labels = generator.integers(0, C, max(sizes))
    made = []
    for n in sizes:
        pixel_map = generator.permutation(D).astype(np.int32)
        pixel_map[3] = -1
        made.append(Split(images[:n].astype(np.uint8), labels[:n], pixel_map))
    made.append(Split(generator.standard_normal((9, D)).astype(np.float32), labels[:9]))
    return [Task("", split, split) for split in made]


def literal_inputs(split):
    x = split.images.astype(np.float32) / (255 if split.images.dtype == np.uint8 else 1)
    if split.pixel_map is None:
        return x
    columns = [x[:, p] if p >= 0 else np.zeros(len(x), np.float32) for p in split.pixel_map]
    return np.stack(columns, axis=1)


def literal_accuracies(learner, tasks):
    """The original's: the first N - 1 examples are scored, the hits divided by N; the only one, where there is one."""
    found = []
    for t, task in enumerate(tasks):
        n = len(task.test)
        outputs = learner.forward(torch.from_numpy(literal_inputs(task.test)), t)
        hits = sum(int(outputs[i].argmax()) == task.test.labels[i] for i in range(max(n - 1, 1)))
        found.append(hits / n)
    return found


@pytest.fixture
def make(make_learner):
    def make(kind, name="online", n_tasks=5):
        return make_learner(name, {"engine": kind, "n_hiddens": 12, "lr": 0.5}, (D, C, n_tasks))

    return make


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", engine.ENGINES)
@pytest.mark.parametrize("name", ["online", "independent", "taskinput"])
def test_accuracies(name, kind, threads, make):
    tasks = tasks_of([200, 57, 2, 1])
    learner, evaluator = make(kind, name), Evaluator(dict(enumerate(tasks)), threads)
    assert evaluator.evaluate(learner).accuracies() == literal_accuracies(learner, tasks)
    evaluator.close()


@pytest.mark.parametrize("kind", engine.ENGINES)
def test_equal_outputs_mean_the_first_class(kind, make):
    tasks = tasks_of([50])
    learner = make(kind, n_tasks=2)
    learner.load_state_dict({name: torch.zeros_like(value) for name, value in learner.state_dict().items()})
    wanted = [np.mean([*(task.test.labels[:-1] == 0), 0]) for task in tasks]
    assert Evaluator(dict(enumerate(tasks))).evaluate(learner).accuracies() == pytest.approx(wanted)


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("kind", engine.ENGINES)
def test_learning_goes_on_and_the_numbers_are_of_then(kind, threads, make):
    """Ten evaluations are under way while the learner learns; each has what one made at once would have had."""
    tasks = tasks_of([300, 200, 100, 50])
    learner, evaluator = make(kind), Evaluator(dict(enumerate(tasks)), threads)
    pending, wanted = [], []
    for i in range(10):
        pending.append(evaluator.evaluate(learner))
        wanted.append(literal_accuracies(learner, tasks))
        split = tasks[i % 4].train
        learner.observe(split.inputs([i]), i % 4, torch.from_numpy(split.labels[i : i + 1]))
    assert [evaluation.accuracies() for evaluation in pending] == wanted
    assert all(evaluation.done() for evaluation in pending)
    assert len({tuple(row) for row in wanted}) > 1, "the learner learned nothing, so nothing was tested"
    evaluator.close()


class Foreign(torch.nn.Module):
    """Says in which mode it was asked, and how much at once."""

    def __init__(self, *_):
        super().__init__()
        self.weight, self.calls = torch.nn.Parameter(torch.randn(D, C)), []

    def forward(self, x, t):
        self.calls.append((self.training, torch.is_grad_enabled(), len(x)))
        return x @ self.weight


def test_a_foreign_learner_in_pieces(monkeypatch):
    monkeypatch.setattr(evaluation, "CHUNK_NUMBERS", 16 * D)
    tasks = tasks_of([50])
    learner = foreign.build(Foreign, D, C, 1, SimpleNamespace(minibatch_slots=1, cuda=False, class_ranges=None))
    learner.module.train()
    found = Evaluator(dict(enumerate(tasks)), 2).evaluate(learner)
    assert learner.module.calls == [(False, False, n) for n in (16, 16, 16, 1, 8)]
    assert learner.module.training and found.accuracies() == literal_accuracies(learner, tasks)
