"""Runs many commands of main.py side by side, and survives what may happen to them. See `python -m sweep --help`.

Each run is a process of its own. One that dies is run again from its last checkpoint; a sweep that died is simply
started again: it skips what is finished, and goes on with the rest. Any number of sweeps may share a results folder.

`python -m sweep chosen RECORD…` prints the commands that tunings chose, from their records.
"""

import argparse
import os
import signal
import sys
import time
from contextlib import ExitStack, closing

from errors import UserError
from model.flags import integer, listed, nonempty
from run.flags import MOST_SEED
from sweep import tuning
from sweep.commands import grid_points, read, select
from sweep.conduct import Signalled, Signals, conduct, summary
from sweep.job import prepare
from sweep.pools import LocalPool, RayPool
from sweep.work import Site


def make_parser():
    seeds, names, sizes = listed(integer(0, MOST_SEED)), listed(str), listed(integer(1))
    parser = argparse.ArgumentParser(
        prog="python -m sweep",
        description="Run many commands of main.py side by side.",
        epilog="python -m sweep chosen RECORD… prints the commands that tunings chose, from their records.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "seeds", nargs="*", type=seeds, metavar="SEED", help="run every command with each of these seeds"
    )
    parser.add_argument("--commands", required=True, metavar="FILE", help="lines `python main.py …`; -: standard input")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    parser.add_argument(
        "--save_path", type=nonempty, default="results/", help="folder of the results, default results/"
    )

    which = parser.add_argument_group("which of the commands (each may be repeated, or a list with commas)")
    which.add_argument("--learner", action="extend", type=names, default=[], help="only these learners")
    which.add_argument("--data", action="extend", type=names, default=[], help="only these data: rotations, …")
    which.add_argument(
        "--memories",
        action="extend",
        type=sizes,
        default=[],
        help="only learners that remember so many examples in all",
    )

    where = parser.add_argument_group("how")
    where = where.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=integer(1), help="runs side by side; default: a core for each thread of each run")
    where.add_argument(
        "--ray", type=nonempty, metavar="auto|ADDRESS", help="run on a Ray cluster that sees this folder everywhere"
    )
    parser.add_argument("--tries", type=integer(1), default=3, help="how often a run that dies is started, default 3")

    grid = parser.add_argument_group("tuning: the best point of a grid, chosen on other seeds than those reported")
    either = grid.add_mutually_exclusive_group()
    either.add_argument(
        "--grid", action="append", default=[], metavar="FLAG=V,V,…", help="values to try; may be repeated"
    )
    either.add_argument(
        "--tune",
        action="store_true",
        help="the commands are the points: of those of one learner, data and memory size one is chosen; a value V,V,… "
        "in them stands for several",
    )
    grid.add_argument(
        "--tuning_seeds", nargs="+", type=seeds, default=[[100, 101, 102]], metavar="SEED", help="default 100 101 102"
    )
    return parser


def choose(args):
    """The [Command] that a command line is about."""
    source = "standard input" if args.commands == "-" else args.commands
    try:
        with ExitStack() as stack:
            lines = sys.stdin if args.commands == "-" else stack.enter_context(open(args.commands))
            commands = read(lines, source, several=args.tune)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--commands {source} cannot be read: {error}; give a text file") from error
    commands = select(commands, args.learner, args.data, args.memories)
    own_seeds = [command.has_seed for command in commands]
    tunes = args.grid or args.tune
    if (args.seeds or tunes) and any(own_seeds):
        raise UserError("a command has a --seed of its own; leave it out there, or the seeds here")
    if not (args.seeds or tunes or args.list or all(own_seeds)):
        raise UserError("which seeds? Give some (0 1 2 3 4), or each command a --seed")
    return commands


def with_seeds(commands, seeds):
    """Each command with each of the seeds, seed by seed; as they are where there are no seeds."""
    return [command.with_seed(seed) for seed in seeds for command in commands] if seeds else commands


class Campaign:
    """A pool at work for one command line."""

    def __init__(self, args):
        self.tries, ignored = args.tries, Signals.ignored()
        self.pool = RayPool(args.ray) if args.ray else LocalPool(args.jobs)
        self.signals = Signals(ignored)  # after Ray, which would put its own in their place

    def run(self, commands, folder):
        """{key: Outcome} of the commands' runs, whose results are then in the folder. Raises Signalled."""
        begin = time.monotonic()
        site = Site(os.path.abspath(folder), os.getcwd(), self.tries)
        site.make()
        once = {e.key: e for e in (prepare(command) for command in commands)}
        say(f"{len(once)} runs, {self.pool}; logs in {site.logs}")
        outcomes = conduct(list(once.values()), site, self.pool, self.signals)
        print(summary(once, outcomes, site, time.monotonic() - begin), flush=True)
        if self.signals.received:
            raise Signalled(self.signals.received)
        return outcomes

    def tune(self, trials, args):
        """The commands with the flags that the tuning chose, those where it chose; leaves the record."""
        outcomes = self.run(trials.commands(), tuning.folder(args.save_path) / "runs")
        entries = {command: trials.judge(command, outcomes) for command in trials.grids}
        for entry in entries.values():
            print(f"chosen: {entry['chosen_command'] or 'nothing for ' + entry['command']}")
        print(f"the whole grid: {trials.record(args.save_path, list(entries.values()), args.seeds)}", flush=True)
        return [trials.chosen(command, entry) for command, entry in entries.items() if entry["chosen_command"]]

    def close(self):
        self.pool.close()


def sweep(args):
    """Carries out a command line; returns the exit code: 1 where a run failed."""
    args.seeds, args.tuning_seeds = flat(args.seeds), flat(args.tuning_seeds)
    commands = choose(args)
    trials = None
    if args.grid or args.tune:
        grids = tuning.grouped(commands) if args.tune else tuning.crossed(commands, grid_points(args.grid))
        trials = tuning.Tuning(grids, args.tuning_seeds)
    if args.list:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--list | head`
        print("\n".join(map(str, trials.commands() if trials else with_seeds(commands, args.seeds))))
        return 0
    reported = args.seeds or [command.args.seed for command in commands if not trials]
    tuning.refuse_overlap(args.save_path, reported, args.tuning_seeds if trials else [])
    with closing(Campaign(args)) as campaign:
        n_wanted = len(trials.grids if trials else commands)
        if trials:
            commands = campaign.tune(trials, args)
        failed = len(commands) < n_wanted
        if commands and not (trials and not args.seeds):
            outcomes = campaign.run(with_seeds(commands, args.seeds), args.save_path)
            failed |= any(outcome.failure for outcome in outcomes.values())
    return int(failed)


def print_chosen(arguments):
    """Prints the commands that the records named in a command line chose; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sweep chosen",
        description="Print the commands that tunings chose: for a learner, data and memory size the newest record's.",
    )
    parser.add_argument("records", nargs="+", metavar="RECORD", help="a tuning_….json")
    print("\n".join(tuning.chosen(parser.parse_args(arguments).records)))
    return 0


def flat(lists):
    """All values, once each."""
    return list(dict.fromkeys(value for values in lists for value in values))


def say(text):
    print(text, file=sys.stderr, flush=True)


def main(arguments=None):
    """Runs the command line; returns the exit code: 0, 1 (a run failed), 2 (bad input), 128 + a signal's number."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["chosen"]:
            return print_chosen(arguments[1:])
        return sweep(make_parser().parse_intermixed_args(arguments))
    except (UserError, OSError) as error:
        say(f"error: {error}")
        return 2
    except Signalled as stop:
        return 128 + stop.signal
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
