"""Command lines of main.py: reading, choosing, multiplying by seeds and by grids."""

import itertools
import shlex
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import model
from disk.names import said
from errors import UserError
from model.flags import memory_size, same_size
from run import settings
from run.flags import PLACES, words_of
from tasks.files import load_tasks

LIST = Path(__file__).resolve().parent.parent / "mer_examples.sh"


@dataclass(frozen=True, eq=False)
class Command:
    """`python main.py` and these flags.

    flags   {name: text}, as typed; of --learner_flag a=1 it is {"learner_flag a": "1"}
    args    what they and the defaults mean, checked
    note    what tells it from others, for people
    """

    flags: dict
    args: settings.Settings
    note: str = ""

    @classmethod
    def of(cls, words, note=""):
        """Raises UserError on words that main.py would refuse."""
        try:
            args = settings.parse(words)
        except SystemExit as error:  # it asks for help
            raise UserError(f"main.py does not take {shlex.join(words)!r}; correct it") from error
        flags = _typed(words, args)
        for name in PLACES:
            if name in flags:
                raise UserError(f"--{name} {flags[name]}: the sweep decides that; leave it out of the commands")
        return cls(flags, args, note)

    def plus(self, flags):
        """The command with these flags, {name: text}, in place of its own."""
        return Command.of(words(self.flags | flags), note_of(flags))

    def with_seed(self, seed):
        return Command(self.flags | {"seed": str(seed)}, self.args.changed(seed=seed), self.note)

    @property
    def has_seed(self):
        return "seed" in self.flags

    @property
    def data(self):
        """The data file's name as one says it: rotations for mnist_rotations.pt."""
        return said(self.args.data_file)

    @property
    def n_memories(self):
        """The tables' memory size; None for learners without one."""
        flags = {flag: getattr(self.args, flag) for flag in ("memories", "n_memories") if self.reads(flag)}
        return memory_size(self.args.model, flags, facts(self.args).n_tasks)

    def reads(self, flag):
        """Whether the value of a flag can matter to the run: a learner of ours must read a hyperparameter."""
        return flag not in self.args.unread()

    def __str__(self):
        return as_text(self.flags)


LEARNER_FLAG = "learner_flag "


def _typed(words, args):
    """{name: text} of the words of a command line that mean these args."""
    flags = {}
    for name, text in settings.texts(words, args).items():
        flags |= {LEARNER_FLAG + inner: value for inner, value in text} if name == "learner_flag" else {name: text}
    return flags


def name_of(flag):
    """The name under which a learner has a flag of `Command.flags`."""
    return flag.removeprefix(LEARNER_FLAG)


def words(flags):
    """What one types for {name: text}."""
    return [word for name, text in flags.items() for word in _words(name, text)]


def _words(name, text):
    if name.startswith(LEARNER_FLAG):
        return "--learner_flag", f"{name_of(name)}={text}"
    return words_of(name, text)


def note_of(flags):
    """{name: text} for people."""
    return " ".join(f"{name} {text}" for name, text in flags.items())


def as_text(flags):
    """The command line of {name: text}, to be pasted into a shell."""
    return shlex.join(("python", "main.py", *words(flags)))


def read(lines, source, several=False):
    """[Command] of lines like `python main.py --model online`; empty ones and # comments count for nothing, and one
    that ends in a backslash goes on in the next.

    several   a value V,V,… stands for several: a line is the commands of all combinations
    Raises UserError that gives the line.
    """
    found = []
    for number, line in _whole(lines):
        try:
            parts = shlex.split(line, comments=True)
            if not parts:
                continue
            if len(parts) < 2 or Path(parts[1]).name != "main.py":
                raise UserError(f"{line.strip()[:80]!r} is no command of main.py; write: python main.py --model …")
            values = [word.split(",") if several else [word] for word in parts[2:]]
            found += [Command.of(words) for words in itertools.product(*values)]
        except (UserError, ValueError) as error:
            raise UserError(f"{source}, line {number}: {error}") from error
    return found


def _whole(lines):
    """Yields (number, line), joined with those in which it goes on, as a shell does."""
    first, begun = None, ""
    for number, line in enumerate(lines, 1):
        first, begun = first or number, begun + line.rstrip("\n")
        if begun.endswith("\\") and _can_be_split(begun[:-1]) and not _can_be_split(begun):
            begun = begun[:-1]
        else:
            yield first, begun
            first, begun = None, ""
    yield first, begun


def _can_be_split(line):
    try:
        return shlex.split(line, comments=True) is not None
    except ValueError:
        return False


def experiments():
    """The paper's experiments, listed in mer_examples.sh: dictionaries of the flags that they give, without seed."""
    parser = settings.make_parser(model.read_all())
    text = subprocess.run(["bash", str(LIST), "--experiments"], capture_output=True, text=True, check=True).stdout
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [vars(parser.parse_args(parts[2:])) for parts in lines if parts]


def select(commands, learners, data, sizes):
    """The commands of these learners, data sets and memory sizes; an empty list selects all.

    Raises UserError for a name or size that none of the commands has.
    """
    for flag, wanted, value in (
        ("learner", learners, lambda command: command.args.model),
        ("data", data, lambda command: command.data),
    ):
        known = list(dict.fromkeys(map(value, commands)))
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise UserError(f"--{flag} {unknown[0]}: no command has it; choose from {', '.join(known)}")
        commands = [command for command in commands if not wanted or value(command) in wanted]
    if sizes:
        known = {command: command.n_memories for command in commands}
        commands = [c for c in commands if any(known[c] and same_size(known[c], size) for size in sizes)]
    if not commands:
        raise UserError("no command is left to run; loosen --learner, --data or --memories")
    return commands


def grid_points(texts):
    """[{flag: value}] of all combinations of "lr=0.1,0.3", "gamma=1,0.3"; values as text. Raises UserError."""
    axes = {}
    for text in texts:
        name, equals, values = text.removeprefix("--").partition("=")
        if not equals or not all(values.split(",")):
            raise UserError(f"--grid {text}: write --grid FLAG=VALUE,VALUE,…")
        if name in (*PLACES, "seed", "model"):
            raise UserError(f"--grid {text}: {name} is nothing to tune; choose a flag that a learner reads")
        if name in axes:
            raise UserError(f"--grid {text}: {name} has a grid already; write all of its values in one")
        axes[name] = values.split(",")
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def facts(args):
    """What a run's data are: identity, n_tasks, image_shape, class_ranges. Raises UserError where there are none."""
    return _facts(args.data_path, args.data_file, args.data_seed, args.mnist)


@cache
def _facts(*source):
    tasks = load_tasks(*source)
    return SimpleNamespace(
        identity=tasks.identity,
        n_tasks=len(tasks.tasks),
        image_shape=tasks.image_shape,
        class_ranges=tasks.class_ranges,
    )
