"""From the command line to checked settings."""

import argparse
import os

import torch

import model
from errors import UserError
from model import engine
from model.flags import Flag, integer, yes_no
from run import checkpoints

MOST_SEED = 2**32 - 1  # what numpy.random.seed takes
MOST_THREADS = 1024


def _text(text):
    return text


_text.domain = "text"


def interval(text):
    """Parser of how often: 500 (minibatches), 60s (seconds), never."""
    if text == "never":
        return None
    number, unit = (text[:-1], "seconds") if text.endswith("s") else (text, "minibatches")
    if not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is none of N (minibatches), Ns (seconds), never; N is 1 or more")
    return int(number), unit


interval.domain = "N|Ns|never"

MODEL = Flag("model", _text, "meralg1", "the learner: a file of model/")
GROUPS = {
    "stream": (
        Flag("data_path", _text, "data/", "folder of the data files"),
        Flag(
            "data_file",
            _text,
            "mnist_permutations.pt",
            "the tasks; the three MNIST variants are built in memory where they are no file",
        ),
        Flag("data_seed", integer(0), 0, "seed of tasks that are built in memory"),
        Flag("samples_per_task", integer(), -1, "training examples per task, all if <= 0"),
        Flag("shuffle_tasks", yes_no, False, "present the tasks in random order"),
        Flag("n_epochs", integer(1), 1, "epochs per task"),
        Flag("batch_size", integer(1), 1, "examples handed to the learner at once"),
    ),
    "run": (
        Flag("seed", integer(0, MOST_SEED), 0, "seed of weights, stream and draws"),
        Flag("log_every", integer(1), 100, "evaluate on all tasks every so many minibatches"),
        Flag("save_path", _text, "results/", "folder of the results"),
        Flag("checkpoint_every", interval, (60, "seconds"), "write a checkpoint every N minibatches or Ns seconds"),
        Flag("keep_state", yes_no, True, "save the memory and counters of the learner too, for --start_from"),
        Flag("start_from", _text, None, "go on from the learner of this finished run (its .pt) with further tasks"),
        Flag("tensorboard", _text, None, "write the accuracies as they come to this folder, for TensorBoard"),
        Flag(
            "resume",
            _text,
            None,
            "go on from this checkpoint (its flags are the run's); auto: from this very run's in --save_path, if any",
        ),
    ),
    "machine": (
        Flag("cuda", yes_no, False, "run on the GPU"),
        Flag("engine", _text, "auto", "what computes the steps; auto: native where it can", ("auto", *engine.ENGINES)),
        Flag(
            "draws",
            _text,
            "auto",
            "random source of the memories: uniform (our own generator) or shuffle (the original's stream, slower); "
            "auto: shuffle on the reference engine",
            ("auto", *engine.DRAWS),
        ),
        Flag(
            "threads",
            integer(0, MOST_THREADS),
            0,
            "threads to use; 0: what the process may use, one where more do not pay",
        ),
        Flag("progress", _text, "auto", "progress bar on stderr; auto: on a terminal", ("auto", "yes", "no")),
    ),
}


def hyperparameters(learners):
    """{name: (Flag, [learners that read it])} of all learners' flags. The same name must mean the same everywhere."""
    found = {}
    for name, learner in learners.items():
        for flag in getattr(learner, "flags", ()):
            known, readers = found.setdefault(flag.name, (flag, []))
            if (known.default, known.parse.domain) != (flag.default, flag.parse.domain):
                raise UserError(
                    f"--{flag.name} is declared twice: by {readers[0]} (default {known.default}) and by {name} "
                    f"(default {flag.default}); rename one of them"
                )
            readers.append(name)
    return found


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=32, width=112)


def make_parser(learners):
    """The parser of main.py's command line, with the flags of these learners.

    A flag that is not given is absent from the parsed Namespace: `defaults` has its value.
    """
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Train one continual learner on a stream of tasks and tell how much it remembers. "
        "(Riemer et al., ICLR 2019)",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    group = parser.add_argument_group("learner (each flag with the learners that read it)")
    _add(group, MODEL, ", ".join(learners))
    for flag, readers in hyperparameters(learners).values():
        _add(group, flag, "read by " + ("all" if len(readers) == len(learners) else ", ".join(readers)))
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            _add(group, flag)
    return parser


def _add(group, flag, *remarks):
    text = "; ".join((flag.help, *remarks, f"default {_shown(flag.default)}")).replace("%", "%%")
    metavar = None if flag.choices else flag.parse.domain
    group.add_argument(f"--{flag.name}", type=flag.parse, choices=flag.choices, metavar=metavar, help=text)


def _shown(value):
    """A default as one would type it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and len(value) == 2:
        return f"{value[0]}s" if value[1] == "seconds" else value[0]
    return "none" if value is None else value


def defaults(learners):
    """{name: value} of all flags."""
    flags = [MODEL, *(flag for flag, _ in hyperparameters(learners).values()), *(f for g in GROUPS.values() for f in g)]
    return {flag.name: flag.default for flag in flags}


def parse(arguments=None):
    """(args, learner class, checkpoint) of a command line.

    args         Namespace of all flags, checked; yes/no as bools
    checkpoint   None, or (path, content) of the checkpoint that --resume names: flags not given are the checkpoint's

    Exits with code 2 and a message on a flag that breaks its rule (argparse); raises UserError on what shows later.
    """
    learners = model.load_all()
    parser = make_parser(learners)
    given = vars(parser.parse_args(arguments))
    known, checkpoint = defaults(learners), None
    if given.get("resume") not in (None, "auto"):
        checkpoint = (given["resume"], checkpoints.load(given["resume"]))
        words = [
            _as_word(name, value) for name, value in checkpoint[1]["flags"].items() if value != known.get(name, value)
        ]
        known |= vars(parser.parse_args(words))  # checked like any
    args = argparse.Namespace(**(known | given))
    learner = model.load(args.model)
    if args.cuda and not torch.cuda.is_available():
        raise UserError("--cuda yes: PyTorch finds no CUDA device here; install a CUDA build of torch or say --cuda no")
    if os.path.basename(args.data_file) != args.data_file:
        name, folder = os.path.basename(args.data_file), os.path.dirname(args.data_file)
        raise UserError(f"--data_file {args.data_file} names a folder: say --data_path {folder} --data_file {name}")
    return args, learner, checkpoint


def _as_word(name, value):
    """The word of a command line that gives a flag this value."""
    return f"--{name}={'never' if value is None else _shown(value)}"


def resolve_engine(args, learner, tasks):
    """Makes args.engine, args.draws and args.threads concrete; returns a line that says why not native, or None.

    Raises UserError where the engine asked for cannot run it.
    """
    args_of_learner = learner_args(args, tasks)
    reason = engine.why_not_native(args_of_learner, learner)
    line = None
    if args.engine == "native" and reason:
        raise UserError(f"--engine native cannot run this: {reason}; say --engine reference")
    if args.engine == "auto":
        args.engine = "reference" if reason else "native"
        line = reason and f"engine: reference, since the native one cannot run this: {reason}"
    if args.draws == "auto":
        args.draws = "shuffle" if args.engine == "reference" else "uniform"
    if args.threads == 0:
        # batch-1 steps of a small MLP only lose by a second PyTorch thread
        args.threads = 1 if args.engine == "reference" and not tasks.image_shape else n_usable_cores()
    return line


def unread(args, learner):
    """Names of the hyperparameters that were given and that this learner does not read (none for a foreign one)."""
    read = {flag.name for flag in getattr(learner, "flags", ())}
    others = [flag for flag, _ in hyperparameters(model.load_all()).values() if read and flag.name not in read]
    return [flag.name for flag in others if getattr(args, flag.name) != flag.default]


def n_usable_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def learner_args(args, tasks):
    """What a learner's constructor gets: the flags, and what the data say of themselves."""
    return argparse.Namespace(**vars(args), image_shape=tasks.image_shape, class_ranges=tasks.class_ranges)
