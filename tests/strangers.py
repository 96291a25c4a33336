"""Learners of strangers: their sources, and runs of a copy of the program that has them in model/."""

import contextlib
import io
import json
import os
import signal
import sys
from textwrap import dedent, indent
from types import SimpleNamespace

import numpy as np
import torch
from conftest import copy_program, toy_examples
from runs import become, in_child

TEMPLATE = """
{top}
import torch


class Net(torch.nn.Module):
{body}
    def __init__(self, n_inputs, n_outputs, n_tasks, args):
        super().__init__()
        self.net = torch.nn.Linear(n_inputs, n_outputs)
        self.opt = torch.optim.SGD(self.net.parameters(), lr=args.lr)
        self.seen = 0
{init}

    def forward(self, x, t):
{forward}
        return self.net(x)

    def observe(self, x, t, y):
        self.seen += len(y)
{observe}
        self.opt.zero_grad()
        torch.nn.functional.cross_entropy(self.net(x), y).backward()
        self.opt.step()
"""
N_TASKS, N_TRAIN = 3, 8  # 24 examples


def a_learner(top="", body="", **methods):
    """The source of a learner by online SGD, with more lines at the top, in the class, or at the start of a method."""
    lines = {name: indent(dedent(methods.get(name, "pass")), " " * 8) for name in ("init", "forward", "observe")}
    return TEMPLATE.format(top=dedent(top), body=indent(dedent(body), " " * 4), **lines)


QUICK = ["--n_hiddens", "6", "--lr", "0.1", "--log_every", "4", "--threads", "1"]


def copy_with(folder, learners):
    """The folder of a copy of the program, in `folder`, with learners {name: source}; beside it data/ has tasks."""
    program = copy_program(folder, "build", "benchmarks", "*.c")
    for name, source in learners.items():
        (program / "model" / f"{name}.py").write_text(source)
    write_tasks(folder / "data")
    return program


def write_tasks(folder):
    folder.mkdir()
    for name, seed in (("tiny.pt", 5), ("more.pt", 6)):
        generator = np.random.default_rng(seed)
        torch.save(
            [[[f"task {t}", *toy_examples(n, 12, 3, generator)] for t in range(N_TASKS)] for n in (N_TRAIN, 5)],
            folder / name,
        )


def run(program, lines):
    """{name: code, out, err, files} of runs {name: (words, minibatch at which SIGTERM comes)}, in one process."""
    said = program.parent / "said"
    words = [
        [[*line, "--save_path", f"../results/{name.replace(' ', '_')}", "--data_path", "../data/"], stop]
        for name, (line, stop) in lines.items()
    ]
    import torch._dynamo  # noqa: F401  as torch.optim would, slowly, in each child

    done = in_child(lambda: _run_all(program, words, said), seconds=250)
    assert done.code == 0, done.text
    found = {}
    for name, text in zip(lines, said.read_text().splitlines(), strict=True):
        files = {path.suffix: path for path in (program.parent / "results" / name.replace(" ", "_")).glob("*")}
        found[name] = SimpleNamespace(**json.loads(text), files=files)
        assert "Traceback" not in found[name].out + found[name].err, found[name].err
    return found


def _run_all(program, all_words, said):
    become(program)
    import main
    from run.experience import Experience

    learn = Experience.learn
    with open(said, "w") as file:
        for words, stop in all_words:

            def stopped(self, stop=stop):
                for batch in learn(self):
                    if batch.number + 1 == stop:
                        os.kill(os.getpid(), signal.SIGTERM)
                    yield batch

            Experience.learn = stopped
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    sys.argv = ["main.py", *words]
                    code = main.main(words)
                except SystemExit as exit:
                    code = exit.code
            print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}), file=file)
    return 0


def of(name, *more):
    return ["--model", name, "--data_file", "tiny.pt", *QUICK, *map(str, more)]


def described(found):
    return json.loads(found.files[".json"].read_text())
