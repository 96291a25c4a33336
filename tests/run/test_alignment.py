"""--alignment against gradients in float64, one example at a time; and that no number of a run depends on it."""

import json

import numpy as np
import pytest
import torch
from runs import WAYS, a_signal, after, go_fixture, place, result_in, words_of  # noqa: F401
from torch.nn import functional as F

from errors import UserError
from model import engine
from run.alignment import Alignment
from tasks.taskset import Split, Task

D, C, T = 12, 3, 3


def tasks_of(n=12):
    generator = np.random.default_rng(2)
    splits = [Split(generator.random((n, D), dtype=np.float32), generator.integers(C, size=n)) for _ in range(T)]
    return {t: Task("", split, split) for t, split in enumerate(splits)}


def gradients(learner, task, examples):
    """(n, P) float64, of these test examples of a task."""
    weights = list(learner.network_of(0).state_dict().values())
    theta = [value.double().requires_grad_() for value in weights]
    rows = []
    for i in examples:
        h = torch.from_numpy(task.test.images[i]).double()
        for W, b in zip(theta[::2], theta[1::2], strict=True):
            h = W @ (h if W is theta[0] else h.relu()) + b
        loss = F.cross_entropy(h, torch.tensor(int(task.test.labels[i])))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, theta)]).numpy())
    return np.array(rows)


def literal(found, a, b, cosine):
    """The mean over all pairs of different examples of tasks a and b, as a list of all of them."""
    values = []
    for i, g in enumerate(found[a]):
        for j, h in enumerate(found[b]):
            if a != b or i != j:
                values.append(g @ h / (np.linalg.norm(g) * np.linalg.norm(h) if cosine else 1))
    return values


@pytest.mark.parametrize("n", [1, 4, 50])
@pytest.mark.parametrize("kind", engine.ENGINES)
def test_means_of_inner_products_and_cosines(kind, n, make_learner):
    learner, tasks = make_learner("eralg4", {"n_hiddens": 9, "engine": kind}, (D, C, T)), tasks_of()
    alignment = Alignment(learner, tasks, n)
    alignment.measure([2])
    assert alignment.measured[0]["inner"][0] is None and (alignment.measured[0]["inner"][1] is None) == (n == 1)
    alignment.measure([2, 0, 1])
    # no example twice, as long as there are other ones
    of_task = {1: [[0], [1], [2]], 4: [range(4), range(4, 8), range(8, 12)], 50: [range(12)] * T}[n]
    found = {t: gradients(learner, tasks[t], of_task[t]) for t in tasks}
    for key, cosine in (("inner", False), ("cosine", True)):
        matrix = [[literal(found, a, b, cosine) for b in (2, 0, 1)] for a in (2, 0, 1)]
        between = [value for a in range(T) for b in range(T) if a != b for value in matrix[a][b]]
        within = [value for a in range(T) for value in matrix[a][a]]
        assert alignment.measured[1][key][0] == pytest.approx(np.mean(between), rel=1e-4, abs=1e-6)
        if n > 1:
            assert alignment.measured[1][key][1] == pytest.approx(np.mean(within), rel=1e-4, abs=1e-6)
        for a in range(T):
            for b in range(T):
                if matrix[a][b]:
                    wanted = pytest.approx(np.mean(matrix[a][b]), rel=1e-4, abs=1e-6)
                    assert alignment.latest[key][a][b] == wanted
                else:
                    assert alignment.latest[key][a][b] is None
    assert alignment.latest["tasks"] == [2, 0, 1]
    assert learner.take_loss() == 0
    json.dumps(alignment.state(), allow_nan=False)


@pytest.mark.parametrize("name", ["independent", "taskinput"])
@pytest.mark.parametrize("kind", engine.ENGINES)
def test_networks_that_tasks_do_not_share_are_refused(name, kind, make_learner):
    with pytest.raises(UserError, match="one network for all tasks"):
        Alignment(make_learner(name, {"engine": kind}, (D, C, T)), tasks_of(), 3)


@pytest.mark.parametrize("way", WAYS[:3], ids="-".join)
@pytest.mark.parametrize("name", ["gem", "meralg6", "lamaml", "clser"])
def test_no_number_of_a_run_depends_on_it(name, way, go, tmp_path):
    """The same weights and accuracies; and a run that was stopped measures what another does."""
    results = []
    for i, more in enumerate([(), ("--alignment", 3), ("--alignment", 3)]):
        folder, words = place(tmp_path / str(i)), words_of(name, way, *more)
        if i == 2:
            with after(13, a_signal(15)):
                assert go(folder, *words, "--checkpoint_every", 5).code == 143
            words += ["--resume", "auto"]
        assert go(folder, *words, *(("--checkpoint_every", 5) if i == 2 else ())).code == 0
        results.append(result_in(folder).files)
    plain, measured, resumed = (files[".json"] for files in results)
    torch_of = [files[".state"] for files in results]
    assert torch_of[0] == torch_of[1] and plain["result_a"] == measured["result_a"]
    assert plain["alignment"] is None and len(measured["alignment"]["measured"]) == len(measured["result_t"])
    assert measured["alignment"]["measured"][-1]["cosine"][0] is not None
    assert measured["alignment"] == resumed["alignment"] and measured["result_a"] == resumed["result_a"]
