"""Finds the learners: every file of this folder with a class `Net` is one, under the file's name.

Only the learner that is asked for is imported; of the others the text is read. (model.declared)
"""

import difflib
import importlib
from pathlib import Path

from errors import UserError

_HERE = Path(__file__).parent
ELSEWHERE = {"single": "online", "multimodal": "taskinput"}  # GEM's names of learners, and ours


def candidates():
    """Names of the files here that define a class `Net`, unimported."""
    from model.declared import defining  # which needs model.learner, which needs model

    return defining(_HERE, "class Net")


def read_all():
    """{name: model.declared.Declared} of all candidates: what their files say of themselves, unimported."""
    from model.declared import Declared

    return {name: Declared(name) for name in candidates()}


def load(name):
    """The class `Net` of model/<name>.py, the only file of a learner that is run for it.

    Raises UserError for a name that is no learner, and for a file that cannot be imported or whose Net is none.
    """
    from model import foreign

    known = candidates()
    if name not in known:
        raise UserError(
            f"unknown model {name!r}{_meant(name, known)}; choose from {', '.join(known)}, or add model/{name}.py "
            "with a class Net"
        )
    return foreign.import_net(name)


def create(name, n_inputs, n_outputs, n_tasks, **flags):
    """The learner of a name, for a loop of one's own.

        learner = model.create("meralg1", n_inputs=784, n_outputs=10, n_tasks=20, lr=0.03, memories=200)
        learner.observe(x, t, y)            # x (B, 784) floats, t the task, y (B,) labels
        learner.forward(x, t).argmax(1)     # at any moment
        learner.load_state(learner.state())

    flags   by their names, with the defaults and checks of the command line: those that the learner reads; seed;
            batch_size, the most examples that `observe` gets at once; engine, draws, threads, cuda; learner_flag
            {name: value}; image_shape (C, H, W) and class_ranges [(first, last + 1), ...] of the data

    Global random streams are as before; torch computes with as many threads as it is told. Raises UserError.
    """
    create = importlib.import_module("run.from_python").create  # knows the flags; all else here needs no run
    return create(name, n_inputs, n_outputs, n_tasks, **flags)


def _meant(name, known):
    if ELSEWHERE.get(name) in known:
        return f", which is {ELSEWHERE[name]} here"
    return meant(name, known)


def meant(word, known):
    """A question in brackets where a word looks like a known one, else nothing."""
    found = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def load_all():
    """All learners that can be imported, by name. For tests and tools: a run imports its own alone."""
    learners = {}
    for name in candidates():
        try:
            learners[name] = load(name)
        except UserError:
            continue
    return learners
