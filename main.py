"""Trains one continual learner on a stream of tasks, and tells how much it remembers. See `python main.py --help`."""

import os
import shlex
import sys
from contextlib import suppress

from errors import UserError
from run import checkpoints, life, saving
from run.watchers import say


def run(given, checkpoint=None):
    """One run: load the tasks, build the learner, learn, save. Returns the exit code.

    given, checkpoint   as life.parse gives them
    """
    saving.check_writable(given)
    try:
        with life.lived(given, checkpoint, announce, say) as (this, failed):
            return finish(this, failed)
    except checkpoints.Stopped as stop:
        say(f"stopped by {stop}")
        if stop.checkpoint:
            say(f"go on with: python main.py --resume {shlex.quote(str(stop.checkpoint))}")
        return 128 + stop.signal


def finish(this, failed):
    """Saves the results and says where; returns the exit code."""
    name = this.settings.model
    if failed and not this.experience.evaluations:
        say(f"error: {name} failed: {failed['failure']}; it was never evaluated, so there is nothing to save")
        return 1
    path, line, trouble = this.save(failed)
    earlier = this.earlier()
    if earlier:
        say(f"tasks known from before: RA {earlier['RA_before']:.3f}, now {earlier['RA_after']:.3f}")
    try:
        print(f"{path}: {line} # {this.journal.seconds(this.experience)['total']:.3f}", flush=True)
    except (OSError, ValueError) as error:  # a full disk, a reader that is gone, a name that it cannot show, closed
        trouble = trouble or f"cannot write to stdout ({error}); the results are saved as {path}.*"
        with suppress(ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still holds for it
    if trouble:
        say(f"error: {trouble}")
    if failed:
        cure = "; try a smaller --lr" if failed["status"] == "diverged" else ""
        say(f"error: {name} {failed['status']}: {failed['failure']}; what came before is saved{cure}")
    return 1 if trouble or failed else 0


def announce(this):
    """Says on stderr what is about to happen."""
    chosen, tasks, stream = this.settings, this.tasks, this.experience.stream
    n_test = sum(len(task.test) for task in this.experience.evaluator.tasks.values())
    say(f"{chosen.model} on {tasks.name}: {tasks.origin}")
    say(
        f"{len(tasks.tasks)} tasks; {stream.n_examples:,} examples to learn in {stream.n_minibatches:,} minibatches; "
        f"{stream.n_evaluations(chosen.log_every):,} evaluations on {n_test:,} test examples"
    )
    say(f"engine: {chosen.engine} (draws: {chosen.draws}; threads: {chosen.threads}); seed: {chosen.seed}")
    if tasks.class_ranges:
        which = "each task's classes compete alone" if chosen.scenario == "task" else "all classes compete"
        say(f"scenario: {chosen.scenario}; {which}")
    for remark in this.remarks:
        say(remark)


def main(arguments=None):
    """Runs the command line; returns the exit code: 0, 1 (a failed run), 2 (bad input), 128 + a signal's number."""
    try:
        return run(*life.parse(arguments))
    except UserError as error:
        say(f"error: {error}")
        return 2
    except OSError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
