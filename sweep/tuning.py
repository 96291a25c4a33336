"""Choosing flags on seeds that are never reported, with a record of all that was tried."""

import hashlib
import json
import statistics
from pathlib import Path

from disk.atomic import writing
from errors import UserError
from run import provenance
from sweep.commands import facts
from sweep.job import prepare

FORMAT = "mer-tuning/1"
RULE = "the largest mean RA over the tuning seeds, among points none of whose runs diverged"


def folder(save_path):
    """Of the records; the tuning runs are in its subfolder runs/, apart from those that are reported."""
    return Path(save_path) / "tuning"


def refuse_overlap(save_path, seeds, tuning_seeds):
    """Raises UserError where a seed to be reported is one of these tuning seeds, or of those in a record."""
    used = {seed: "--tuning_seeds" for seed in tuning_seeds}
    for path in sorted(folder(save_path).glob("*.json")):
        try:
            used |= dict.fromkeys(json.loads(path.read_text())["tuning_seeds"], f"the record {path}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no record of a tuning ({error!r}); move it away") from error
    for seed in seeds:
        if seed in used:
            raise UserError(
                f"seed {seed} serves for tuning ({used[seed]}), so it cannot be reported; choose other seeds, "
                "or another --save_path"
            )


class Tuning:
    """A grid over some commands.

    commands   [commands.Command] without seeds
    points     [{flag: text}]
    seeds      the tuning seeds

    Raises UserError where a learner does not read a flag of the grid.
    """

    def __init__(self, commands, points, seeds):
        self.points, self.seeds = points, seeds
        for command in commands:
            for flag in points[0]:
                if not command.reads(flag):
                    raise UserError(
                        f"--grid {flag}: {command.args.model} does not read --{flag}; choose learners with --learner"
                    )
        self.grid = {command: [command.plus(point) for point in points] for command in commands}

    def commands(self):
        """The command of every run: all points of all grids, for each tuning seed."""
        return [trial.with_seed(seed) for trials in self.grid.values() for trial in trials for seed in self.seeds]

    def judge(self, command, outcomes):
        """A record's entry for one command, as plain values: each point with its RA by seed, and the choice.

        outcomes   {key: Outcome} of the jobs of all `commands`
        A point where a run diverged is not chosen. choice and chosen_command are None where that leaves none, and where
        a run failed otherwise: it might have been the best.
        """
        points, complete = [], True
        for flags, trial in zip(self.points, self.grid[command], strict=True):
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
            "code": prepare(self.grid[command][0].with_seed(self.seeds[0])).code,
            "points": points,
            "choice": best and best["flags"],
            "chosen_command": best and best["command"],
        }

    def chosen(self, command, entry):
        """The Command with the flags that its entry chose."""
        return self.grid[command][self.points.index(entry["choice"])]

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
