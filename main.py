"""Trains one continual learner on a stream of tasks, and tells how much it remembers. See `python main.py --help`."""

import os
import shlex
import sys
import time
from contextlib import closing, suppress

import torch

from errors import UserError
from run import checkpoints, continuation, saving, settings
from run.evaluation import Evaluator
from run.experience import Diverged, Experience, seed_everything
from run.stream import Stream
from run.watchers import ProgressBar, TensorBoard, Watchers
from tasks.files import load_tasks


def run(args, learner_class, checkpoint=None):
    """One run: loads, learns, saves. Returns the exit code.

    checkpoint   None, or (path, content) of the checkpoint to go on from
    """
    saving.check_writable(args)
    begin = time.perf_counter()
    tasks = load_tasks(args.data_path, args.data_file, args.data_seed)
    journal = checkpoints.Journal(args, tasks.identity, time.perf_counter() - begin)
    reason = settings.resolve_engine(args, learner_class, tasks)
    if args.resume == "auto":
        checkpoint = journal.find_checkpoint()
        if checkpoint and args.engine == "reference":  # whose sums depend on it
            args.threads = checkpoint[1]["flags"]["threads"]
    args.resume = None  # a run that was interrupted leaves what another does
    torch.set_num_threads(args.threads)
    before = continuation.load(args.start_from, args, tasks) if args.start_from is not None else None
    experience = set_out(args, learner_class, tasks, before)
    announce(args, tasks, experience, reason)
    if checkpoint:
        changed = journal.go_on_from(checkpoint, experience)
        say(f"goes on after {experience.seen:,} examples, from {checkpoint[0]}")
        if changed:
            say(f"note: not what it was: {', '.join(changed)}; the numbers may not be those of an undisturbed run")

    with checkpoints.Checkpointer(args.checkpoint_every, journal, experience, say) as checkpointer:
        try:
            about = learn(args, experience, checkpointer) | journal.times(experience)
        except checkpoints.Stopped as stop:
            say(f"stopped by {stop}")
            if stop.checkpoint:
                say(f"go on with: python main.py --resume {shlex.quote(str(stop.checkpoint))}")
            return 128 + stop.signal
        return finish(args, tasks, experience, journal, about)


def learn(args, experience, checkpointer):
    """Lives the experience to its end, watched and checkpointed; returns what the results should say of a failure."""
    failed = {}
    watchers = [ProgressBar(args.progress, experience)]
    if args.tensorboard:
        watchers.append(TensorBoard(args.tensorboard, experience))
    with closing(experience.evaluator), closing(Watchers(watchers, say)) as watch:
        try:
            for batch in experience.live():
                watch(batch)
                checkpointer(batch)
        except Diverged as error:
            failed = {"status": "diverged", "failure": str(error)}
        experience.result_a()  # waits for the evaluations under way
    return failed


def finish(args, tasks, experience, journal, about):
    """Saves the results and says where; returns the exit code."""
    path, line, trouble = saving.save(args.save_path, journal.name, experience, args, tasks, about)
    if not trouble:
        journal.discard_checkpoints()
    try:
        print(f"{path}: {line} # {about['seconds']['total']:.3f}", flush=True)
    except (OSError, UnicodeError) as error:  # a full disk, a reader that is gone, a name that it cannot show
        trouble = trouble or f"cannot write to stdout ({error}); the results are saved as {path}.*"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still holds for it
    if trouble:
        say(f"error: {trouble}")
    if "failure" in about:
        say(f"error: {args.model} diverged: {about['failure']}; what came before is saved; try a smaller --lr")
    return 1 if trouble or "failure" in about else 0


def set_out(args, learner_class, tasks, before=None):
    """The Experience of a new learner; moves the random streams in the original's order: stream, then weights.

    before   None, or the state that an earlier run's learner left: the tasks are numbered after those that it knows
    """
    seed_everything(args.seed)
    sizes = [len(task.train) for task in tasks.tasks]
    stream = Stream(sizes, args.samples_per_task, args.n_epochs, args.batch_size, args.shuffle_tasks)
    own, first_task, n_outputs = settings.learner_args(args, tasks), 0, tasks.n_outputs
    own.batch_size = stream.batch_size
    if before:
        own.class_ranges = before["class_ranges"] and before["class_ranges"] + tasks.class_ranges
        first_task, n_outputs = before["sizes"]["n_tasks"], before["sizes"]["n_outputs"]
        own.batch_size = max(own.batch_size, before["sizes"]["first_free_slot"])
    learner = learner_class(tasks.n_inputs, n_outputs, first_task + len(tasks.tasks), own)
    if before:
        continuation.hand_over(args.start_from, before, learner)
    if isinstance(learner, torch.nn.Module) and args.cuda:
        learner.cuda()
    return Experience(learner, tasks.tasks, stream, Evaluator(tasks.tasks, args.threads), args.log_every, first_task)


def announce(args, tasks, experience, reason):
    """Says on stderr what is about to happen."""
    stream = experience.stream
    n_test = sum(len(task.test) for task in tasks.tasks)
    say(f"{args.model} on {tasks.name}: {tasks.origin}")
    say(
        f"{len(tasks.tasks)} tasks; {stream.n_examples:,} examples to learn in {stream.n_minibatches:,} minibatches; "
        f"{stream.n_evaluations(args.log_every):,} evaluations on {n_test:,} test examples"
    )
    say(f"engine: {args.engine} (draws: {args.draws}; threads: {args.threads}); seed: {args.seed}")
    if reason:
        say(reason)
    for name in settings.unread(args, type(experience.learner)):
        say(f"note: {args.model} does not read --{name}")


def say(text):
    """Prints a line on stderr; a run goes on where nobody can hear it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def main(arguments=None):
    """Runs the command line; returns the exit code: 0, 1 (a failed run), 2 (bad input), 128 + a signal's number."""
    try:
        args, learner_class, checkpoint = settings.parse(arguments)
        return run(args, learner_class, checkpoint)
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
