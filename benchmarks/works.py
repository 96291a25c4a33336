"""What the kernels do for a living, as pieces of work whose time can be taken: here, in an earlier commit, in PyTorch.

Each function of WORKS takes a tree (below) and returns a function that does the work once and returns the seconds of a
unit of it. Each of PEERS does the same in plain PyTorch. The images are MNIST's, the nets those of the paper: 784
inputs, two layers of 100 units, 10 outputs; one thread.

    works.py FOLDER DATA    measures in the checkout FOLDER: reads [what] or [what, argument] a line, answers seconds
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

PERMUTATIONS, MANY = "mnist_permutations.pt", "mnist_manypermutations.pt"
FORMERLY = "bench"  # the file of earlier commits that has what experiences.py has
GEM = "--model gem --lr 0.01 --memory_strength 0.5 --samples_per_task 10"


def open_tree(folder, data):
    """The checkout's kernels, which must be built, and what makes its learners: the functions of experiences.py."""
    benchmarks = Path(folder) / "benchmarks"
    sys.path[:0] = [str(folder), str(benchmarks)]
    made_by = importlib.import_module("experiences" if (benchmarks / "experiences.py").exists() else FORMERLY)
    return SimpleNamespace(
        experiences=made_by, kernels=made_by._compiled, tasks=lambda name: made_by.load_tasks(str(data), name)
    )


def seconds(function, n):
    """Of one of n units of what the function does, on this thread."""
    begin = time.thread_time()
    function()
    return (time.thread_time() - begin) / n


# the same nets and examples for all of them


def weights(hidden=100):
    """[(W (H, D), b (H,)), ...] of a fresh net."""
    rng, sizes = np.random.default_rng(0), [784, hidden, hidden, 10]
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    return [
        ((rng.uniform(-1, 1, shape) * (6 / sum(shape)) ** 0.5).astype(np.float32), np.zeros(shape[0], np.float32))
        for shape in shapes
    ]


def examples(tree, n, task=0):
    """(x (n, 784) float32, y (n,)) of a task."""
    train = tree.tasks(PERMUTATIONS).tasks[task].train
    index = np.arange(n) % len(train)
    return np.ascontiguousarray(train.inputs(index).numpy()), train.labels[index]


def net_and_examples(tree, n, hidden=100, lr=0.003):
    layers = weights(hidden)
    net, held = tree.kernels.MLP(layers[:1], layers[1:], lr), tree.kernels.Examples(n, 784)
    x, y = examples(tree, n)
    held.put_many(0, x, 0, y.tolist())
    return net, held


def groups(n, size):
    """Lists of so many slots, all of n in an order that has nothing to do with memory."""
    order = np.random.default_rng(1).permutation(n)
    return [order[i : i + size].tolist() for i in range(0, n - size + 1, size)]


# works


def test_images(tree, trained=4000):
    net, held = net_and_examples(tree, max(trained, 1))
    net.sgd_each(held, list(range(trained)))
    test = tree.tasks(PERMUTATIONS).tasks[3].test
    images, n = tree.kernels.TestImages(test.images), len(test)
    snapshot = net.snapshot()
    return lambda: seconds(lambda: images.correct(snapshot, 0, test.pixel_map, test.labels, 0, n), n)


def steps_one_by_one(tree):
    net, held = net_and_examples(tree, 4000)
    slots = sum(groups(4000, 1), [])
    return lambda: seconds(lambda: net.sgd_each(held, slots), 4000)


def batch_gradient(tree, size=26):
    net, held = net_and_examples(tree, 5000)
    parts = groups(5000, size)

    def gradients():  # none is kept: memory that is always new costs more than what is written there
        for part in parts:
            net.gradient(held, part)

    return lambda: seconds(gradients, len(parts) * size)


def batch_step(tree, hidden, size):
    n = 10 * size
    net, held = net_and_examples(tree, n, hidden)
    parts = groups(n, size)
    return lambda: seconds(lambda: [net.sgd_batch(held, part, [1 / size] * size) for part in parts], len(parts))


def gradients_of_tasks(tree, memories=256, past=10):
    net, held = net_and_examples(tree, memories * past)
    parts = [list(range(i, i + memories)) for i in range(0, memories * past, memories)]
    return lambda: seconds(lambda: net.task_gradients(held, parts), memories * past)


def gem_step(tree, data, memories, past):
    made_by = tree.experiences
    experience = made_by.make_experience(tree.tasks(data), f"{GEM} --n_memories {memories}", "native")
    learner = experience.learner
    for t in range(past):
        for x, _, y in made_by.examples(experience, t, memories):
            learner.memory.remember(learner.examples.put(0, x, t, y), t)
    source = made_by.examples(experience, past, 10**9)

    n = max(5, 2000 // (memories * past))

    def measure():
        steps = [next(source) for _ in range(n)]
        return seconds(lambda: [learner.observe(*step) for step in steps], n)

    return measure


WORKS = {
    "test image": test_images,
    "test image, fresh net": lambda tree: test_images(tree, 0),
    "SGD step, one by one": steps_one_by_one,
    "gradient of a batch of 26: example": batch_gradient,
    "gradients of 10 tasks, 256 memories: example": gradients_of_tasks,
    "gem, 5 memories, 99 past tasks: example": lambda tree: gem_step(tree, MANY, 5, 99),
    "gem, 10 memories, 19 past tasks: example": lambda tree: gem_step(tree, PERMUTATIONS, 10, 19),
    "gem, 25 memories, 19 past tasks: example": lambda tree: gem_step(tree, PERMUTATIONS, 25, 19),
    "gem, 256 memories, 10 past tasks: example": lambda tree: gem_step(tree, PERMUTATIONS, 256, 10),
} | {
    f"{hidden} units: step on a batch of {size}": lambda tree, hidden=hidden, size=size: batch_step(tree, hidden, size)
    for hidden in (100, 256, 400)
    for size in (11, 101)
}


# the paper's suite


def run_of(tree, flags):
    """(learning, evaluation) of the run of these flags in core-seconds, estimated from one of each in its middle."""
    made_by = tree.experiences
    words = dict(zip(flags.split()[::2], flags.split()[1::2], strict=True))
    tasks = tree.tasks(words.pop("--data_file"))
    experience = made_by.make_experience(tasks, " ".join(" ".join(pair) for pair in words.items()), "native")
    learner, stream, t = experience.learner, experience.stream, len(tasks.tasks) // 2
    if words["--model"] == "gem":
        for past in range(t):
            for x, _, y in made_by.examples(experience, past, int(words["--n_memories"])):
                learner.memory.remember(learner.examples.put(0, x, past, y), past)
    elif words["--model"] == "ewc":
        for past in range(t + 1):
            for x, task, y in made_by.examples(experience, past, 10):
                learner.observe(x, task, y)
    else:
        made_by.fill(experience)
    example = made_by.seconds_per_example(experience, t, budget=0.2, stretches=3)
    n_evaluations = stream.n_evaluations(experience.log_every)
    evaluation = min(seconds(lambda: experience.evaluator.evaluate(learner).accuracies(), 1) for _ in range(2))
    return stream.n_examples * example, n_evaluations * evaluation


# the same in PyTorch, as its users write it


def torch_net(tree, hidden=100):
    import torch

    torch.set_num_threads(1)
    layers = []
    for W, b in weights(hidden):
        layer = torch.nn.Linear(W.shape[1], W.shape[0])
        layer.weight.data, layer.bias.data = torch.from_numpy(W), torch.from_numpy(b)
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def torch_examples(tree, n):
    import torch

    x, y = examples(tree, n)
    return torch.from_numpy(x), torch.from_numpy(y)


def torch_steps(tree, size, n, hidden=100):
    import torch

    net, (x, y) = torch_net(tree, hidden), torch_examples(tree, n)
    optimizer, parts = torch.optim.SGD(net.parameters(), 0.003), groups(n, size)

    def steps():
        for part in parts:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()

    return lambda: seconds(steps, len(parts))


def torch_test_images(tree):
    import torch

    net, test = torch_net(tree), tree.tasks(PERMUTATIONS).tasks[3].test
    x, y = test.inputs(), torch.from_numpy(test.labels)

    def hits():
        with torch.no_grad():
            return int((net(x).argmax(1) == y).sum())

    return lambda: seconds(hits, len(test))


def torch_gradients(tree, size, n, per_part=True):
    """Gradients of n examples in parts: one after another by autograd, or all at once by torch.func."""
    import torch
    from torch.func import functional_call, grad, vmap

    net, (x, y) = torch_net(tree), torch_examples(tree, n)
    parameters, parts = dict(net.named_parameters()), groups(n, size)
    index = torch.tensor(parts)

    def loss(values, x, y):
        return torch.nn.functional.cross_entropy(functional_call(net, values, x), y)

    def one_by_one():
        for part in parts:
            torch.autograd.grad(torch.nn.functional.cross_entropy(net(x[part]), y[part]), list(parameters.values()))

    def at_once():
        vmap(grad(loss), (None, 0, 0))(parameters, x[index], y[index])

    return lambda: seconds(one_by_one if per_part else at_once, len(parts) * size)


PEERS = {
    "test image": {"PyTorch": torch_test_images},
    "SGD step, one by one": {"PyTorch": lambda tree: torch_steps(tree, 1, 500)},
    "gradient of a batch of 26: example": {"PyTorch": lambda tree: torch_gradients(tree, 26, 1300)},
    "gradients of 10 tasks, 256 memories: example": {
        "PyTorch": lambda tree: torch_gradients(tree, 256, 2560),
        "torch.func": lambda tree: torch_gradients(tree, 256, 2560, per_part=False),
    },
} | {
    f"{hidden} units: step on a batch of {size}": {
        "PyTorch": lambda tree, hidden=hidden, size=size: torch_steps(tree, size, 10 * size, hidden)
    }
    for hidden in (100, 256, 400)
    for size in (11, 101)
}


# in a process of its own for each checkout, so that each has its own modules


class CannotMeasure(Exception):
    """A checkout that is none, or whose kernels are not built."""


class Worker:
    """A checkout's process: ask it for the seconds of a piece of work. CannotMeasure where it ends by itself."""

    def __init__(self, folder, data):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(folder), str(data)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, *question):
        with contextlib.suppress(BrokenPipeError):  # it has ended, and does not answer
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            code = self.process.wait()
            raise CannotMeasure(f"{self.folder} cannot be measured (asked for {question[0]}, it ended with {code})")
        return json.loads(answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def main():
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a checkout prints
    try:
        tree = open_tree(*sys.argv[1:])
    except ImportError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
    made = {}
    for line in sys.stdin:
        what, *argument = json.loads(line)
        if what == "run":
            answer = run_of(tree, *argument)
        else:
            key = what, *argument
            if key not in made:
                made = {key: (PEERS[what][argument[0]] if argument else WORKS[what])(tree)}
                made[key]()  # once for the caches
            answer = made[key]()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
