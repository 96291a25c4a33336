"""Choosing flags on seeds that are never reported, with a record of all that was tried."""

import hashlib
import json
import shlex
import statistics
from pathlib import Path

from disk.atomic import writing
from errors import UserError
from report.read import Unreadable, read_object
from run import provenance
from sweep.commands import Command, facts, note_of, words
from sweep.job import prepare

FORMAT = "mer-tuning/1"
RULE = "the largest mean RA over the tuning seeds, among points none of whose runs diverged"


def folder(save_path):
    """Of the records; the tuning runs are in its subfolder runs/, apart from those that are reported."""
    return Path(save_path) / "tuning"


def read(path):
    """The content of a record. Raises UserError where it is none."""
    try:
        record = read_object(path)
        for kind, value in (int, record["tuning_seeds"]), (dict, record["experiments"]):
            if not isinstance(value, list) or any(type(it) is not kind for it in value):
                raise Unreadable(f"{value!r:.60} is no list of {kind.__name__}")
        if not isinstance(record["date"], str):
            raise Unreadable(f"date is {record['date']!r:.60}")
    except (OSError, Unreadable, KeyError) as error:
        raise UserError(f"{path} is no record of a tuning ({error!r}); move it away, or name another") from error
    return record


def refuse_overlap(save_path, seeds, tuning_seeds):
    """Raises UserError where a seed to be reported is one of these tuning seeds, or of those in a record."""
    used = {seed: "--tuning_seeds" for seed in tuning_seeds}
    for path in sorted(folder(save_path).glob("*.json")):
        used |= dict.fromkeys(read(path)["tuning_seeds"], f"the record {path}")
    for seed in seeds:
        if seed in used:
            raise UserError(
                f"seed {seed} serves for tuning ({used[seed]}), so it cannot be reported; choose other seeds, "
                "or another --save_path"
            )


def chosen(paths):
    """[command line] that the records chose: of a learner, its data and memory size the choice of the newest record.

    Raises UserError for what is no record, and for an experiment of which nothing was chosen.
    """
    found = {}
    for path, record in sorted(((path, read(path)) for path in paths), key=lambda it: it[1]["date"]):
        try:
            for entry in record["experiments"]:
                line, of, trial = entry["chosen_command"], entry["command"], entry["points"][0]["command"]
                if not (isinstance(line, str | None) and isinstance(of, str) and isinstance(trial, str)):
                    raise TypeError(f"{line!r:.60}, {of!r:.60} and {trial!r:.60} are not all commands")
                found[_experiment(Command.of(shlex.split(trial)[2:]))] = line, of, path
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path} is no record of a tuning ({error!r}); name another") from error
    for line, command, path in found.values():
        if not line:
            raise UserError(f"{path} chose nothing for {command}: a run failed, or all diverged; tune it again")
    return [line for line, _, _ in found.values()]


def crossed(commands, points):
    """The grids of `Tuning`: each command with each of the points, [{flag: text}]. Raises UserError: see `_grid`."""
    return {command: _grid("--grid", points, [command.plus(point) for point in points]) for command in commands}


def grouped(commands):
    """The grids of `Tuning`: the commands of one learner, data and memory size are the points of one grid.

    Raises UserError: see `_grid`.
    """
    groups, grids = {}, {}
    for command in commands:
        groups.setdefault(_experiment(command), {})[tuple(sorted(command.flags.items()))] = command
    for alike in (list(group.values()) for group in groups.values()):
        first = alike[0].flags.items()
        shared = {flag: text for flag, text in first if all(it.flags.get(flag) == text for it in alike)}
        points = [{flag: text for flag, text in it.flags.items() if flag not in shared} for it in alike]
        trials = [Command(it.flags, it.args, note_of(point)) for it, point in zip(alike, points, strict=True)]
        grids[Command.of(words(shared))] = _grid("--tune", points, trials)
    return grids


def _grid(how, points, trials):
    """[(point, its Command)]. Raises UserError where a learner does not read a flag of its point."""
    for point, trial in zip(points, trials, strict=True):
        for flag in point:
            if not trial.reads(flag):
                raise UserError(
                    f"{how} {flag}: {trial.args.model} does not read --{flag}; choose learners with --learner"
                )
    return list(zip(points, trials, strict=True))


def _experiment(command):
    return command.args.model, facts(command.args).identity, command.n_memories


class Tuning:
    """A grid for each of some commands.

    grids   {commands.Command without seed: [({flag: text} of a point, the Command with them)]}
    seeds   the tuning seeds
    """

    def __init__(self, grids, seeds):
        self.grids, self.seeds = grids, seeds

    def commands(self):
        """The command of every run: all points of all grids, for each tuning seed."""
        return [trial.with_seed(seed) for grid in self.grids.values() for _, trial in grid for seed in self.seeds]

    def judge(self, command, outcomes):
        """A record's entry for one command, as plain values: each point with its RA by seed, and the choice.

        outcomes   {key: Outcome} of the jobs of all `commands`
        A point where a run diverged is not chosen. choice and chosen_command are None where that leaves none, and where
        a run failed otherwise: it might have been the best.
        """
        points, complete = [], True
        for flags, trial in self.grids[command]:
            of_seeds = {seed: outcomes[prepare(trial.with_seed(seed)).key] for seed in self.seeds}
            values = [outcome.RA for outcome in of_seeds.values()]
            eligible = None not in values
            complete &= all(outcome.status != "failed" for outcome in of_seeds.values())
            points.append(
                {
                    "flags": flags,
                    "command": str(trial),
                    "RA": {str(seed): outcome.RA for seed, outcome in of_seeds.items()},
                    "failures": {str(seed): outcome.failure for seed, outcome in of_seeds.items() if outcome.failure},
                    "mean": statistics.mean(values) if eligible else None,
                    "std": statistics.stdev(values) if eligible and len(values) > 1 else None,
                }
            )
        eligible = [point for point in points if complete and point["mean"] is not None]
        best = max(eligible, key=lambda point: point["mean"], default=None)
        return {
            "command": str(command),
            "data": {"file": command.args.data_file, "identity": facts(command.args).identity},
            "code": prepare(self.grids[command][0][1].with_seed(self.seeds[0])).code,
            "points": points,
            "choice": best and best["flags"],
            "chosen_command": best and best["command"],
        }

    def chosen(self, command, entry):
        """The Command with the flags that its entry chose."""
        return next(trial for flags, trial in self.grids[command] if flags == entry["choice"])

    def record(self, save_path, entries, reported_seeds):
        """Writes the record of these entries, unless there is one that says the same; returns its path."""
        found = {
            "tuning_seeds": self.seeds,
            "reported_seeds": reported_seeds,
            "experiments": entries,
        }
        name = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:32]
        path = folder(save_path) / f"tuning_{name}.json"
        if not path.exists():
            content = {"format": FORMAT, "date": provenance.now(), "rule": RULE, **provenance.commit(), **found}
            with writing(path, "w") as file:
                json.dump(content, file, indent=1, allow_nan=False)
        return path
