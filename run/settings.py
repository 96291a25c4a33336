"""From the command line to settings: parsed, then resolved for the data and the machine. Nothing changes them."""

import argparse
import os
import sys
from types import MappingProxyType

import torch

import model
from errors import UserError
from model import engine
from model.flags import DATA, FREE, PAPER, PLACE, SHAPE
from run.flags import AUTO, GROUPS, MODEL, RUN_FLAGS


class Settings:
    """The flags of a run as attributes, which cannot be set: `changed` gives others.

    learner   the class that --model names, whose `flags` it reads
    """

    def __init__(self, flags, learner):
        # equal texts are one object, so that what is pickled of them is the same wherever they came from
        flags = {name: sys.intern(value) if type(value) is str else value for name, value in flags.items()}
        self.__dict__.update(_flags=MappingProxyType(flags), learner=learner)

    def __getattr__(self, name):
        try:
            return self.__dict__["_flags"][name]
        except KeyError:
            raise AttributeError(f"there is no flag --{name}") from None

    def __setattr__(self, name, value):
        raise AttributeError(f"settings do not change; make others with changed({name}=…)")

    def __repr__(self):
        return f"Settings({dict(self._flags)})"

    def changed(self, **flags):
        """The same settings with other values of these flags."""
        return Settings(self._flags | flags, self.learner)

    def as_dict(self):
        """{name: value} of all flags."""
        return dict(self._flags)

    def as_namespace(self, **more):
        """A Namespace of its own of all flags, and more; whoever gets it may change it."""
        return argparse.Namespace(**(self._flags | more))

    def with_role(self, *roles):
        """{name: value} of the flags that have one of these roles and that this run reads."""
        mine = {flag.name: flag.role for flag in (*RUN_FLAGS, *flags_of(self.learner))}
        return {name: value for name, value in self._flags.items() if mine.get(name) in roles}

    def science(self):
        """{name: value} of the flags that the numbers of this run depend on, besides the data."""
        left_out = self.with_role(DATA, FREE, PLACE).keys() | set(self.unread())
        return {name: value for name, value in self._flags.items() if name not in left_out}

    def shape(self):
        """{name: value} of the flags that the layout of the learner's state depends on."""
        return self.with_role(SHAPE)

    def unread(self):
        """Names of the hyperparameters that this learner does not read; none where it does not say what it reads."""
        read = {flag.name for flag in flags_of(self.learner)}
        return sorted(self._flags.keys() - read - {flag.name for flag in RUN_FLAGS}) if read else []

    def read_in_vain(self):
        """Names of the hyperparameters that were given another value than their default, and that nobody reads."""
        defaults = {flag.name: flag.default for flag in PAPER}
        return [name for name in self.unread() if self._flags[name] != defaults.get(name)]


def flags_of(learner):
    """The flags that a learner's class declares."""
    return getattr(learner, "flags", ())


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=32, width=112)


def hyperparameters(learners):
    """{name: (Flag, [learners that read it])} of the paper's flags and all learners' own.

    The same name must mean the same everywhere.
    """
    found = {flag.name: (flag, []) for flag in PAPER}
    for name, learner in learners.items():
        for flag in flags_of(learner):
            known, readers = found.setdefault(flag.name, (flag, []))
            if (known.default, known.parse.domain) != (flag.default, flag.parse.domain):
                raise UserError(
                    f"--{flag.name} is declared twice: by {readers[0]} (default {known.default}) and by {name} "
                    f"(default {flag.default}); rename one of them"
                )
            readers.append(name)
    return found


def make_parser(learners):
    """The parser of main.py's command line, with the flags of these learners.

    A flag that is not given is absent from the parsed Namespace.
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
        _add(group, flag, "read by " + ("all" if len(readers) == len(learners) else ", ".join(readers) or "none"))
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            _add(group, flag)
    return parser


def _add(group, flag, *remarks):
    text = "; ".join((flag.help, *remarks, f"default {as_text(flag.default)}")).replace("%", "%%")
    metavar = None if flag.choices else flag.parse.domain
    bare = {} if flag.bare is None else {"nargs": "?", "const": flag.bare}
    group.add_argument(f"--{flag.name}", type=flag.parse, choices=flag.choices, metavar=metavar, help=text, **bare)


def as_text(value):
    """A flag's value as one would type it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and len(value) == 2:
        return f"{value[0]}s" if value[1] == "seconds" else str(value[0])
    return "none" if value is None else str(value)


def parse(words=None, before=None):
    """The Settings of a command line, checked; engine, draws and threads may still be auto.

    before   {name: value} of an earlier run, of which this is a part: the flags that are not given are its

    Exits with code 2 and a message on a flag that breaks its rule (argparse); raises UserError on what shows later.
    """
    learners = model.load_all()
    parser = make_parser(learners)
    given = vars(parser.parse_args(words))
    if before:
        typed = [f"--{name}={_typed(value)}" for name, value in before.items() if value is not None or name in NEVER]
        given = vars(parser.parse_args(typed)) | given  # checked like any
    name = given.get("model", MODEL.default)
    learner = model.load(name)
    flags = {flag.name: flag.default for flag in (*RUN_FLAGS, *PAPER, *flags_of(learner))}
    settings = Settings(flags | given, learner)
    if settings.cuda and not torch.cuda.is_available():
        raise UserError("--cuda yes: PyTorch finds no CUDA device here; install a CUDA build of torch or say --cuda no")
    if os.path.basename(settings.data_file) != settings.data_file:
        folder, name = os.path.split(settings.data_file)
        raise UserError(f"--data_file {settings.data_file} names a folder: say --data_path {folder} --data_file {name}")
    return settings


NEVER = ("checkpoint_every",)  # its None is a word: never


def _typed(value):
    return "never" if value is None else as_text(value)


def resolve(settings, data):
    """(Settings, reason): engine, draws and threads made concrete for these data on this machine.

    data     has image_shape and class_ranges, as a tasks.taskset.TaskSet has
    reason   None, or a line that says why the native engine was not taken

    Raises UserError where the engine asked for cannot run the learner.
    """
    chosen, draws, threads = settings.engine, settings.draws, settings.threads
    why_not = engine.why_not_native(learner_args(settings, data), settings.learner)
    reason = None
    if chosen == "native" and why_not:
        raise UserError(f"--engine native cannot run this: {why_not}; say --engine reference")
    if chosen == AUTO:
        chosen = "reference" if why_not else "native"
        reason = why_not and f"engine: reference, since the native one cannot run this: {why_not}"
    if draws == AUTO:
        draws = "shuffle" if chosen == "reference" else "uniform"
    if threads == 0:
        # batch-1 steps of a small MLP only lose by a second PyTorch thread
        threads = 1 if chosen == "reference" and not data.image_shape else n_usable_cores()
    return settings.changed(engine=chosen, draws=draws, threads=threads), reason


def n_usable_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def learner_args(settings, data, **more):
    """What a learner's constructor gets: the flags, what the data say of themselves, and more."""
    return settings.as_namespace(image_shape=data.image_shape, class_ranges=data.class_ranges, **more)
