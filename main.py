"""Trains one continual learner on a stream of tasks, and tells how much it remembers. See `python main.py --help`."""

import sys
import time

import torch
from continuum.files import load_tasks
from tqdm import tqdm

import checkpoints
import results
import settings
from continuum.evaluation import Evaluator
from continuum.experience import Diverged, Experience, seed_everything
from continuum.stream import Stream
from errors import UserError


def run(args, learner_class, checkpoint=None):
    """One run: loads, learns, saves. Returns the exit code.

    checkpoint   None, or (path, content) of the checkpoint to go on from
    """
    begin, started = time.perf_counter(), results.now()
    results.check_writable(args.save_path)
    tasks = load_tasks(args.data_path, args.data_file, args.data_seed)
    data_seconds = time.perf_counter() - begin

    reason = settings.resolve_engine(args, learner_class, tasks)
    torch.set_num_threads(args.threads)
    experience = set_out(args, learner_class, tasks)
    announce(args, tasks, experience, reason)
    name, spent = results.new_name(args), {"training": 0.0, "evaluation": 0.0, "total": 0.0}
    path, content = checkpoint or find_checkpoint(args, tasks)
    if content:
        checkpoints.refuse_differences(path, content, vars(args), tasks.identity)
        experience.load_state(content["experience"])
        name, spent, started = content["name"], content["seconds"], content["started"]
        say(f"goes on after {experience.seen:,} examples, from {path}")

    def seconds():
        """Time spent so far, in all parts of the run together."""
        total = time.perf_counter() - begin
        new = {"training": total - experience.held, "evaluation": experience.evaluator.seconds, "total": total}
        return {key: spent[key] + value for key, value in new.items()}

    def save_checkpoint():
        checkpoints.save(
            checkpoints.path_of(args.save_path, name),
            {
                "flags": vars(args),
                "data": tasks.identity,
                "code": results.code_identity(),
                "name": name,
                "started": started,
                "seconds": seconds(),
                "experience": experience.state(),
            },
        )

    about, begin = {}, time.perf_counter()
    can_stop = hasattr(experience.learner, "state")  # a torch module of its own has nothing to go on from
    with checkpoints.Checkpointer(args.checkpoint_every if can_stop else None) as checkpointer:
        progress = Progress(args.progress, experience)
        try:
            for batch in experience.live():
                progress(batch)
                if checkpointer.due(experience.next_minibatch):
                    save_checkpoint()
        except Diverged as error:
            about = {"status": "diverged", "failure": str(error)}
        except checkpoints.Stopped as stop:
            return stopped(stop, can_stop and save_checkpoint, checkpoints.path_of(args.save_path, name))
        finally:
            progress.close()
    experience.result_a()  # waits for the evaluations under way
    experience.evaluator.close()

    about |= {"started": started, "finished": results.now(), "seconds": {"data": data_seconds, **seconds()}}
    path, line = results.save(args.save_path, name, experience, args, tasks, about)
    checkpoints.path_of(args.save_path, name).unlink(missing_ok=True)
    print(f"{path}: {line} # {about['seconds']['total']:.3f}")
    if "failure" in about:
        say(f"error: {args.model} diverged: {about['failure']}; what came before is saved; try a smaller --lr")
        return 1
    return 0


def set_out(args, learner_class, tasks):
    """The Experience of a new learner; moves the random streams in the original's order: stream, then weights."""
    seed_everything(args.seed)
    sizes = [len(task.train) for task in tasks.tasks]
    stream = Stream(sizes, args.samples_per_task, args.n_epochs, args.batch_size, args.shuffle_tasks)
    own = settings.learner_args(args, tasks)
    learner = learner_class(tasks.n_inputs, tasks.n_outputs, len(tasks.tasks), own)
    if isinstance(learner, torch.nn.Module) and args.cuda:
        learner.cuda()
    return Experience(learner, tasks.tasks, stream, Evaluator(tasks.tasks, args.threads), args.log_every)


def find_checkpoint(args, tasks):
    """(path, content) of this run's checkpoint where --resume auto asks for it, else (None, None)."""
    if args.resume != "auto":
        return None, None
    return checkpoints.find(args.save_path, vars(args), tasks.identity, results.code_identity())


def stopped(stop, save_checkpoint, path):
    """Ends a run that a signal stopped; returns the exit code (128 + the signal's number)."""
    say(f"stopped by {stop}")
    if save_checkpoint:
        save_checkpoint()
        say(f"go on with: python main.py --resume {path}")
    return 128 + stop.signal


class Progress:
    """The bar on stderr: examples, time left, the task, the latest accuracy on it and on the first task."""

    def __init__(self, wanted, experience):
        self.experience = experience
        hidden = not (wanted == "yes" or (wanted == "auto" and sys.stderr.isatty()))
        self.bar = tqdm(
            total=experience.stream.n_examples, initial=experience.seen, unit="ex", disable=hidden, delay=0.2
        )
        self.shown = 0.0

    def __call__(self, batch):
        if self.bar.disable:
            return
        now = time.monotonic()
        if now - self.shown > 0.5:
            self.shown = now
            accuracies = self.experience.latest()
            if accuracies:
                first = self.experience.stream.order[0]
                text = f"task {batch.t}: {accuracies[batch.t]:.3f}, first task: {accuracies[first]:.3f}"
                self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(len(batch.indices))

    def close(self):
        self.bar.close()


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


def say(text):
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


if __name__ == "__main__":
    sys.exit(main())
