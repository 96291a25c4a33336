"""Hyperparameters: what a learner reads from the command line, declared once.

A learner lists the flags that it reads in its class attribute `flags`. Those that several learners share stand here;
a flag of one learner alone stands in that learner's file, and is on the command line because the file is there:

    class Net(ReplayLearner):
        flags = (*ReplayLearner.flags, Flag("temperature", number(above=0), 2.0, "softness of the targets"))
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST = 2**31 - 1  # of what is counted
MOST_NUMBER = 3e38  # float32 has no larger one
ENGINES = ("native", "reference")  # what computes: model.engine
DRAWS = ("uniform", "shuffle")  # random sources of the memories: model.memory


SCIENCE = "science"  # a run's numbers depend on it
SHAPE = "shape"  # so does the layout of the learner's state: a learner that goes on must have the same
CHANCE = "chance"  # so do they on this, but not their distribution: runs of one experiment may differ in it
DATA = "data"  # it says which tasks; the identity of the tasks stands for it
FREE = "free"  # no number depends on it: it may differ between the parts of a run that was stopped
PLACE = "place"  # nor on this, where a run's files and words go: a sweep decides it for its runs


@dataclass(frozen=True)
class Flag:
    """`--name VALUE`.

    parse     turns the text into the value, or raises argparse.ArgumentTypeError with the rule
    default   the value where the flag is not given
    role      what depends on it: SCIENCE, SHAPE, CHANCE, DATA, FREE or PLACE
    bare      the value of `--name` alone; None where it needs a VALUE

    Raises TypeError where one of them is of a wrong kind.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    choices: tuple | None = None
    role: str = SCIENCE
    bare: Any = None

    def __post_init__(self):
        texts = isinstance(self.name, str) and isinstance(self.help, str)
        if not texts or not callable(self.parse) or not isinstance(self.choices, tuple | list | None):
            raise TypeError(f"Flag({self.name!r:.40}, …) takes name, parser, default, help and choices, in this order")


def integer(least=None, most=MOST):
    """Parser of whole numbers (also written 20.0, as the original's scripts do) in least..most."""

    def parse(text):
        try:
            value = float(text)
            if value != int(value):
                raise ValueError
            value = int(text) if text.strip().lstrip("+-").isdigit() else int(value)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small: it must be {least} or more")
        if value > most:
            raise argparse.ArgumentTypeError(f"{value} is too large: it must be {most} or less")
        return value

    parse.domain = f"integer >= {least}" if least is not None else "integer"
    return parse


def number(least=None, above=None, most=MOST_NUMBER):
    """Parser of numbers that float32 can hold, from `least` or above `above` to `most`."""

    def parse(text):
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        if value > most or abs(value) > MOST_NUMBER:
            raise argparse.ArgumentTypeError(f"{value} is too large: it must be {most} or less")
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small: it must be {least} or more")
        if above is not None and value <= above:
            raise argparse.ArgumentTypeError(f"{value} is too small: it must be more than {above}")
        return value

    parse.domain = "number"
    return parse


def yes_no(text):
    """Parser of yes and no, to True and False."""
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'yes' nor 'no'")
    return text == "yes"


yes_no.domain = "yes|no"


def listed(parse):
    """Parser of one or more values in a word: "0 1 2" or "0,1,2"."""

    def several(text):
        words = text.replace(",", " ").split()
        if not words:
            raise argparse.ArgumentTypeError(f"{text!r} has no value; give one or more, with commas between them")
        return [parse(word) for word in words]

    return several


def nonempty(text):
    """Parser of any text but none, such as that of a variable of the shell that is not set."""
    if not text:
        raise argparse.ArgumentTypeError(f"{text!r} is empty; give a text, or leave it out")
    return text


nonempty.domain = "text"


# What the original's command line has, whichever the learner. A learner's `args` always hold these, and its own.
N_HIDDENS = Flag("n_hiddens", integer(1), 100, "hidden units a layer", role=SHAPE)
N_LAYERS = Flag("n_layers", integer(0, 1000), 2, "hidden layers", role=SHAPE)
LR = Flag("lr", number(0), 1e-3, "learning rate of plain SGD")
FINETUNE = Flag("finetune", yes_no, True, "start a task's network from the previous task's", bare=True)
N_MEMORIES = Flag("n_memories", integer(0), 0, "memories per task", role=SHAPE)
MEMORY_STRENGTH = Flag(
    "memory_strength", number(0), 0.0, "gem: margin of the quadratic program; ewc: weight of the penalty"
)
MEMORIES = Flag("memories", integer(1), 5120, "capacity of the reservoir, in examples", role=SHAPE)
REPLAY_BATCH_SIZE = Flag("replay_batch_size", integer(0), 20, "draws from memory for each batch, the paper's k-1")
GAMMA = Flag("gamma", number(0), 1.0, "Reptile step across batches")
BETA = Flag("beta", number(0), 1.0, "meralg1: Reptile step within a batch; derpp: weight of the loss of labelled draws")
BATCHES_PER_EXAMPLE = Flag("batches_per_example", integer(1), 1, "batches for each incoming example, the paper's s")
S = Flag("s", number(0), 1.0, "multiplies the loss of the current example")
PAPER = (
    *(N_HIDDENS, N_LAYERS, LR, FINETUNE, N_MEMORIES, MEMORY_STRENGTH, MEMORIES, REPLAY_BATCH_SIZE, GAMMA, BETA),
    *(BATCHES_PER_EXAMPLE, S),
)
SAME_SIZE = 0.02  # memories as close as this count as one size: 51 for each of 100 tasks are the paper's 5120


def same_size(memories, size):
    return abs(memories - size) <= SAME_SIZE * size


FOR_A_PENALTY = ("ewc",)  # learners whose n_memories only estimate one: they never learn from them again


def memory_size(model, flags, n_tasks):
    """How many examples a learner keeps to learn from again: its reservoir, or the memories of all tasks together.

    flags   {name: value} of those that the learner reads
    None where it keeps none, so that there is no size to compare it by.
    """
    size = flags.get("memories")
    if size is None and model not in FOR_A_PENALTY:
        size = n_tasks * flags.get("n_memories", 0)
    return size or None
