"""From the command line to settings: parsed, then resolved for the data and the machine. Nothing changes them."""

import argparse
import functools
import math
import os
import re
import shlex
import sys
from contextlib import suppress
from types import MappingProxyType

import torch

import model
from disk import names
from disk.resources import n_usable_cores
from disk.safe import are_plain
from errors import UserError
from model import engine, networks
from model.flags import DATA, FREE, N_HIDDENS, N_LAYERS, PAPER, PLACE, SHAPE, yes_no
from model.learner import Learner
from run.flags import AUTO, GROUPS, MODEL, NETWORK, RUN_FLAGS


class Settings:
    """The flags of a run as attributes, which cannot be set: `changed` gives others.

    learner         the class that --model names, whose `flags` it reads
    network_flags   those of the network that --network names; while that is auto, of all that it may be
    """

    def __init__(self, flags, learner, network_flags=()):
        # equal texts are one object, so that what is pickled of them is the same wherever they came from
        flags = {name: sys.intern(value) if type(value) is str else value for name, value in flags.items()}
        self.__dict__.update(_flags=MappingProxyType(flags), learner=learner, network_flags=tuple(network_flags))

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
        return Settings(self._flags | flags, self.learner, self.network_flags)

    def with_network(self, name):
        """The same settings with this network, and its flags. Raises UserError where it cannot be had."""
        flags, known = networks.flags_of(name), dict(self._flags)
        for flag in self.network_flags:
            another = flag not in (*flags, N_HIDDENS, N_LAYERS)  # of one that it might have been
            if another and known.get(flag.name) == flag.default:
                del known[flag.name]
        return Settings({flag.name: flag.default for flag in flags} | known | {"network": name}, self.learner, flags)

    def as_dict(self):
        """{name: value} of all flags."""
        return dict(self._flags)

    def as_namespace(self, **more):
        """A Namespace of its own of all flags, and more; whoever gets it may change it."""
        return argparse.Namespace(**(self._flags | more))

    def with_role(self, *roles):
        """{name: value} of the flags that have one of these roles and that this run reads."""
        mine = {flag.name: flag.role for flag in self._read()}
        return {name: value for name, value in self._flags.items() if mine.get(name) in roles}

    def _read(self):
        """The flags that this run reads: its own, its learner's, its network's; only an MLP has hidden layers."""
        mine = (*RUN_FLAGS, *read_by(self.learner), *self.network_flags)
        if self._flags.get("network", AUTO) == AUTO:
            return mine
        of_mlp = {N_HIDDENS.name, N_LAYERS.name} - {flag.name for flag in self.network_flags}
        return [flag for flag in mine if flag.name not in of_mlp]

    def science(self):
        """{name: value} of the flags that the numbers of this run depend on, besides the data."""
        left_out = self.with_role(DATA, FREE, PLACE).keys() | set(self.unread())
        return {name: value for name, value in self._flags.items() if name not in left_out}

    def shape(self):
        """{name: value} of the flags that the layout of the learner's state depends on."""
        return self.with_role(SHAPE)

    def unread(self):
        """Names of the hyperparameters that this learner does not read; none of one that may read what it likes."""
        if not issubclass(self.learner, Learner):
            return []
        return sorted(self._flags.keys() - {flag.name for flag in self._read()})

    def read_in_vain(self):
        """Names of the hyperparameters that were given another value than their default, and that nobody reads."""
        defaults = {flag.name: flag.default for flag in PAPER}
        return [name for name in self.unread() if self._flags[name] != defaults.get(name)]


def flags_of(learner):
    """The flags that a learner declares: its class, or what model.read_all tells of its file."""
    return getattr(learner, "flags", ())


def read_by(learner):
    """The flags that a learner's class may read: those that it declares; if it is not ours, the paper's too."""
    return flags_of(learner) if issubclass(learner, Learner) else (*PAPER, *flags_of(learner))


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=32, width=112)


def hyperparameters(learners, *chosen):
    """{name: (Flag, [learners that read it])} of the paper's flags and all learners' own; so of the networks'.

    chosen   those that come first: another whose flags do not go with those before it is left out

    Raises UserError where those of a chosen one do not go with the program's.
    """
    found = {flag.name: (flag, []) for flag in PAPER}
    for name in sorted(learners, key=lambda name: name not in chosen):
        clash = _clash(flags_of(learners[name]), found)
        if clash and name in chosen:
            raise UserError(f"model/{name}.py: {clash}; rename it there")
        if not clash:
            for flag in flags_of(learners[name]):
                found.setdefault(flag.name, (flag, []))[1].append(name)
    return found


def _clash(flags, known):
    """None, or why a learner cannot have these flags beside those {name: (Flag, readers)}."""
    if len({flag.name for flag in flags}) < len(flags):
        return "it declares a flag twice"
    for flag in flags:
        if flag.name in OWN or not flag.name.isidentifier():
            return f"its flag --{flag.name} is the program's own" if flag.name in OWN else f"{flag.name!r} is no name"
        other, readers = known.get(flag.name, (flag, ()))
        if (other.default, _domain(other)) != (flag.default, _domain(flag)):
            what = f"{_domain(flag)}, default {as_text(flag.default)}"
            owner = "model/flags.py" if other in PAPER else f"model/{readers[0]}.py"
            return (
                f"its flag --{flag.name} ({what}) is already declared by {owner} "
                f"({_domain(other)}, default {as_text(other.default)})"
            )
    return None


OWN = {flag.name for flag in RUN_FLAGS} | {"learner_flag", "help", "image_shape", "class_ranges", "minibatch_slots"}


def _domain(flag):
    """What a flag's values are, for the help."""
    return getattr(flag.parse, "domain", None) or getattr(flag.parse, "__name__", "value")


def left_out(learners):
    """{name: why} of the learners that cannot be used, as far as shows in classes and in what model.read_all tells."""
    known, found = hyperparameters(learners), {}
    for name, learner in learners.items():
        unusable = not isinstance(learner, type) and (learner.problem or learner.missing())
        why = unusable or _clash(flags_of(learner), known)
        if why:
            found[name] = why
    return found


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError, and says what a misspelt flag may have meant, and a remedy besides."""

    remedy = ""

    def error(self, message):
        raise UserError(message)

    def parse_args(self, args=None, namespace=None):
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [name for name in self._option_string_actions if name.startswith("--")]
            words = [word.partition("=")[0] for word in unknown]
            hints = "".join(model.meant(word, known) for word in words if word.startswith("--"))
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hints}{self.remedy}")
        return found


def named_value(word):
    """Parser of NAME=VALUE."""
    name, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise argparse.ArgumentTypeError(f"{word!r} is not NAME=VALUE, such as n_sampled_memories=300")
    return name, value


def make_parser(learners, *chosen):
    """The parser of main.py's command line, with the flags of these learners, and of the networks.

    chosen   the learner and the network that come first (`hyperparameters`)

    A flag that is not given is absent from the parsed Namespace.
    """
    parser = _Parser(
        prog="main.py",
        description="Train one continual learner on a stream of tasks and tell how much it remembers. "
        "(Riemer et al., ICLR 2019)",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    group = parser.add_argument_group("learner (each flag with the learners that read it)")
    _add(group, MODEL, ", ".join(learners))
    _add(group, NETWORK, ", ".join(networks.names()))
    for flag, readers in hyperparameters(learners | networks.read_all(), *chosen).values():
        _add(group, flag, "read by " + ("all" if learners.keys() <= set(readers) else ", ".join(readers) or "none"))
    group.add_argument(
        "--learner_flag",
        type=named_value,
        action="append",
        metavar="NAME=VALUE",
        help="a flag that the file of a learner reads without declaring it (args.NAME); may be repeated",
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            _add(group, flag)
    return parser


def _add(group, flag, *remarks):
    text = "; ".join((flag.help, *remarks, f"default {as_text(flag.default)}")).replace("%", "%%")
    metavar = None if flag.choices else _domain(flag)
    bare = {} if flag.bare is None else {"nargs": "?", "const": flag.bare}
    group.add_argument(f"--{flag.name}", type=_parser(flag), choices=flag.choices, metavar=metavar, help=text, **bare)


def _parser(flag):
    """The flag's parser, whose bad input argparse understands whatever it raises."""

    @functools.wraps(flag.parse)
    def parse(text):
        try:
            return flag.parse(text)
        except (argparse.ArgumentTypeError, TypeError, ValueError):
            raise
        except Exception as error:
            raise argparse.ArgumentTypeError(f"{text!r}: its parser raised {type(error).__name__}") from error

    return parse


def as_text(value):
    """A flag's value as one would type it."""
    if getattr(value, "shape", None) == ():  # a number of NumPy or torch
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and len(value) == 2:
        return f"{value[0]}s" if value[1] == "seconds" else str(value[0])
    return "none" if value is None else str(value)


def parse(words=None, before=None):
    """The Settings of a command line, checked; engine, draws and threads may still be auto.

    before   {name: value} of an earlier run, of which this is a part: the flags that are not given are its

    Raises UserError on a flag that breaks its rule.
    """
    words, before, learners = sys.argv[1:] if words is None else list(words), before or {}, model.read_all()
    name, network = (_named_in(words, flag, before) for flag in (MODEL, NETWORK))
    if {"-h", "--help"} & set(words):
        with suppress(UserError):  # then left_out says why
            learners |= {name: model.load(name)}
        useless = left_out(learners | networks.read_all())
        for name, why in useless.items():
            print(f"note: model/{name}.py is left out: {why}", file=sys.stderr)
        make_parser({name: learner for name, learner in learners.items() if name not in useless}).parse_args(["--help"])
    learner = model.load(name)
    about, learners = learners[name], learners | {name: learner}
    network_flags = _network_flags(network, name, learner)
    parser = make_parser(learners, name, f"networks/{network}")
    if not issubclass(learner, Learner):
        parser.remedy = f"; what model/{name}.py reads without declaring it: --learner_flag NAME=VALUE"
    given = vars(parser.parse_args(words))
    if before:
        known = hyperparameters(learners | networks.read_all(), name, f"networks/{network}").keys() | OWN
        extra = {name: value for name, value in before.items() if name not in known and value is not None}
        theirs = {name: value for name, value in before.items() if name in known}
        earlier = vars(parser.parse_args(typed(theirs, extra)))  # checked like any
        extra = earlier.pop("learner_flag", []) + given.pop("learner_flag", [])
        given = earlier | given | ({"learner_flag": extra} if extra else {})
    given |= _extra_flags(given.pop("learner_flag", []), parser, learner, about)
    flags = {flag.name: flag.default for flag in (*RUN_FLAGS, *PAPER, *flags_of(learner), *network_flags)}
    settings = Settings(flags | given, learner, network_flags)
    for place, declared in ((f"{name}.py", flags_of(learner)), (f"networks/{network}.py", network_flags)):
        _check_values(f"model/{place}", declared, settings)
    if settings.cuda and not torch.cuda.is_available():
        raise UserError("--cuda yes: PyTorch finds no CUDA device here; install a CUDA build of torch or say --cuda no")
    if settings.with_tasks_of is not None and settings.start_from is None:
        raise UserError(
            f"--with_tasks_of {settings.with_tasks_of} is of tasks that an earlier learner knows; say which with "
            "--start_from, or leave it out"
        )
    if os.path.basename(settings.data_file) != settings.data_file:
        folder, name = os.path.split(settings.data_file)
        say = f"--data_path {shlex.quote(folder)} --data_file {shlex.quote(name)}"
        raise UserError(f"--data_file {settings.data_file} names a folder: say {say}")
    for flag, name in ("model", settings.model), ("data_file", settings.data_file):
        if not names.is_name(name):
            raise UserError(f"--{flag} {name!r:.80}: {names.RULE}, or no report could show it; rename the file")
    return settings


def texts(words, settings):
    """{name: text} of a command line that `parse` made these settings of: the text as it was typed, or what a flag
    without a word stands for; of --learner_flag [(name, text)].
    """
    learners = model.read_all() | {settings.model: settings.learner}
    parser = make_parser(learners, settings.model, f"networks/{settings.network}")
    for action in parser._option_string_actions.values():
        if action.dest not in ("learner_flag", "help"):
            action.type, action.choices, action.const = None, None, as_text(action.const)
    return vars(parser.parse_args(words))


def _named_in(words, flag, before):
    """The learner, or the network, that a command line names, or `before`; all else of it is looked at later."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument(f"--{flag.name}", nargs="?")
    named = getattr(peek.parse_known_args(words)[0], flag.name)
    return str(before.get(flag.name, flag.default)) if named is None else named


def _network_flags(network, name, learner):
    """The flags of a network for a learner. Raises UserError where it cannot be had, or the learner takes none."""
    if takes_networks(learner):
        return networks.flags_of(network)
    if network != AUTO:
        raise UserError(f"--network {network}: {name} makes a network of its own; leave --network out")
    return ()


def takes_networks(learner):
    """Whether a learner's class learns with any network."""
    return issubclass(learner, Learner) and learner.takes_networks


def _check_values(place, declared, settings):
    """Raises UserError where a flag that a file declares has a value that no result or checkpoint could hold."""
    for flag in declared:
        value = getattr(settings, flag.name)
        try:
            keeps = value is None or (are_plain({flag.name: value}) and flag.parse(as_text(value)) == value)
        except Exception:  # its parser's
            keeps = False
        if not keeps:
            raise UserError(
                f"{place}: the value of its flag --{flag.name} is {value!r:.60}, and must be a finite number or a text "
                f"that its parser reads from {as_text(value)!r:.60}; mend that file"
            )


def _extra_flags(pairs, parser, learner, about):
    """{name: value} of --learner_flag, given as (name, text), for a learner of whose file `about` tells."""
    found = {}
    for name, text in pairs:
        if name in OWN:
            raise UserError(f"--learner_flag {name}={text}: {name} is a flag of every run; say --{name} {text}")
        if f"--{name}" in parser._option_string_actions:
            found |= vars(parser.parse_args([f"--{name}={text}"]))
        elif issubclass(learner, Learner):
            names = [flag.name for flag in flags_of(learner)]
            raise UserError(
                f"--learner_flag {name}={text}: {about.name} reads no such flag{model.meant(name, names)}; it reads "
                f"{', '.join(names)}"
            )
        else:
            found[name] = value_of(name, text, about.type_of(name))
    return found


def value_of(name, text, kind=None):
    """The value of --learner_flag name=text: of a kind where one is known, else what it looks like."""
    try:
        if kind is not None:
            value = yes_no({"True": "yes", "False": "no"}.get(text, text)) if kind is bool else kind(text)
        else:
            value = _looks_like(text)
    except (ValueError, argparse.ArgumentTypeError):
        words = {int: "a whole number", float: "a number", bool: "yes or no"}[kind]
        raise UserError(f"--learner_flag {name}={text}: {name} is {words} in the learner's file; give one") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--learner_flag {name}={text}: it must be finite; give a number that is")
    return value


def _looks_like(text):
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"yes": True, "no": False}.get(text, text)


NEVER = ("checkpoint_every",)  # its None is a word: never


def typed(flags, learner_flags=()):
    """The words of a command line with flags {name: value}, and {name: value} of those that a learner does not declare.

    None means not given, where it is not a word itself. UserError where those are no dictionary, or help is asked for.
    """
    try:
        learner_flags = dict(learner_flags)
    except (TypeError, ValueError):
        raise UserError(f"learner_flag={learner_flags!r:.60}: give a dictionary {{name: value}}") from None
    if asked := {"help", "h"} & flags.keys():
        raise UserError(f"{min(asked)} is no flag of a run; python main.py --help lists them")
    words = [
        f"--{name}={'never' if value is None else as_text(value)}"
        for name, value in flags.items()
        if value is not None or name in NEVER
    ]
    return words + [f"--learner_flag={name}={as_text(value)}" for name, value in learner_flags.items()]


def resolve(settings, data):
    """(Settings, reason): network, engine, draws and threads made concrete for these data on this machine.

    data     has image_shape and class_ranges, as a tasks.taskset.TaskSet has
    reason   None, or a line that says why the native engine was not taken

    Raises UserError where the engine asked for cannot run the learner, or the network cannot be had.
    """
    if takes_networks(settings.learner):
        settings = settings.with_network(networks.chosen(learner_args(settings, data)))
    if settings.scenario == "class" and getattr(settings.learner, "needs_task", False):
        raise UserError(
            f"--scenario class tells no task at test, and {settings.model} has weights of its own for each task; "
            "choose another --model, or --scenario task"
        )
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
        small = settings.network == "mlp" or (settings.network == AUTO and not data.image_shape)
        threads = 1 if chosen == "reference" and small else n_usable_cores()
    return settings.changed(engine=chosen, draws=draws, threads=threads), reason


def learner_args(settings, data, **more):
    """What a learner's constructor gets: the flags, what the data say of themselves, and more."""
    return settings.as_namespace(image_shape=data.image_shape, class_ranges=class_ranges(settings, data), **more)


def class_ranges(settings, data):
    """(start, stop) of the classes that compete in each task; None: all do, in every task."""
    return data.class_ranges if settings.scenario == "task" else None
