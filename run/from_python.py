"""Runs and learners from Python: the flags, defaults, checks and numbers of the command line."""

import json
import signal
import threading
from contextlib import ExitStack, contextmanager

import torch

import metrics
from run import alone, checkpoints, life, saving, settings
from run.experience import load_random_state, random_state
from run.results import Result
from run.watchers import say

_ALONE = threading.Lock()  # runs share the global random streams, so one waits for the other


def experiment(*, learner_flag=(), **flags):
    """One run, as `python main.py` with these flags; returns its run.results.Result.

        result = experiment(model="meralg1", data_file="mnist_rotations.pt", lr=0.03, memories=200, seed=1)

    flags          by their names on the command line: numbers, texts, True and False; None: not given
    learner_flag   {name: value} of flags that the file of a learner reads without declaring them

    Only with save_path (or resume) it leaves files: the results, and checkpoints on the way. Ctrl-C then writes a last
    checkpoint, says how to go on, and is a KeyboardInterrupt as ever. What a user should know is said on stderr. A
    learner that diverges or fails in mid-run gives the Result of what came before, with its `status`.

    Computes as a fresh process does and leaves no trace in this one: random streams, number of threads, default dtype
    and gradient mode of torch, signal handlers are what they were.

    Raises UserError on bad input, RuntimeError where a learner failed before it was ever evaluated.
    """
    with _ALONE, _global_state_kept():
        given, checkpoint = life.parse(settings.typed(flags, learner_flag))
        saves = not {flags.get("save_path"), flags.get("resume")} <= {None}
        if saves:
            saving.check_writable(given)
        try:
            with life.lived(given, checkpoint, _say_remarks, say, stoppable=saves) as (this, failed):
                return _finish(this, failed, saves)
        except checkpoints.Stopped as stop:
            stopped = stop
        say(f"stopped by {stopped}")
        if stopped.checkpoint:
            say(f"go on with: experiment(resume={str(stopped.checkpoint)!r})")
        signal.raise_signal(stopped.signal)  # which does what it does without us
        raise stopped  # where that is to go on


def create(*arguments, **flags):
    """run.alone.create, which leaves no trace in this process either."""
    with _ALONE, _global_state_kept():
        return alone.create(*arguments, **flags)


def _say_remarks(this):
    for remark in this.remarks:
        say(remark)


def _finish(this, failed, saves):
    """The Result of a Life that has been lived."""
    experience, name = this.experience, this.settings.model
    if failed:
        say(f"error: {name} {failed['status']}: {failed['failure']}")
    if not experience.evaluations:
        raise RuntimeError(f"{name} failed: {failed['failure']}; it was never evaluated, so there is no result")
    about = saving.describe(this, metrics.summarise(experience.result_t, experience.result_a())) | failed
    about = json.loads(json.dumps(about))  # as load_results has it
    path = None
    if saves:
        path, _, trouble = this.save(failed)
        if trouble:
            say(f"error: {trouble}")
    return Result(about, path, experience.learner)


@contextmanager
def _global_state_kept():
    """What is computed within is what a fresh process computes; what this process had set before, it has after."""
    random, threads, dtype = random_state(), torch.get_num_threads(), torch.get_default_dtype()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
            load_random_state(random)
            if cuda:
                torch.cuda.set_rng_state_all(cuda)
