"""One run: its tasks loaded, settings resolved for them, learner and stream made, learned, saved."""

import os
import time
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from model import foreign, networks
from run import checkpoints, continuation, provenance, saving, settings
from run.alignment import Alignment
from run.evaluation import Diverged, Evaluator
from run.experience import Experience, seed_everything
from run.stream import Stream
from run.watchers import ProgressBar, TensorBoard, Watchers
from tasks.files import check_data_seed, load_tasks


@dataclass(frozen=True)
class Life:
    """A run that is ready to learn.

    settings    resolved
    tasks       the tasks.taskset.TaskSet that it learns
    experience  its learner, on its stream
    journal     who it is and what computes it
    before      None, or the run.continuation.Before that its learner comes from
    remarks     lines that the user should read: why not the native engine, what has changed since a checkpoint, which
                flags are given in vain, …
    """

    settings: settings.Settings
    tasks: object
    experience: Experience
    journal: checkpoints.Journal
    before: object
    remarks: tuple

    @property
    def history(self):
        """The runs that the learner has behind it, the first one first, as plain values; not this one."""
        return self.before.history if self.before else []

    def earlier(self):
        """None, or what was seen of the tasks known from before, as plain values."""
        numbers, rows = self.experience.earlier_tasks, self.experience.earlier_a()
        if not numbers:
            return None
        means = [sum(row) / len(row) for row in rows]
        return {"tasks": numbers, "result_a": rows, "RA_before": means[0], "RA_after": means[-1]}

    def learn(self, watchers=(), after_each=lambda batch: None, warn=print):
        """Learns to the end; returns what the results should say of a failure: {} or its status and failure.

        watchers     called after each minibatch, closed at the end; one that cannot write is dismissed with a warning
        after_each   called after each minibatch too; what it raises ends the run
        """
        failed = {}
        with closing(self.experience.evaluator), closing(Watchers(watchers, warn)) as watch:
            try:
                for batch in self.experience.learn():
                    watch(batch)
                    after_each(batch)
            except Diverged as error:
                failed = {"status": "diverged", "failure": str(error)}
            except (foreign.LearnerFailed, networks.NetworkFailed) as error:
                failed = {"status": "failed", "failure": f"{error}; after {self.experience.seen} examples"}
            self.experience.result_a()  # waits for the evaluations under way
        return failed

    def save(self, failed):
        """Writes the results (saving.save, which says what it returns); its checkpoints are then needed no more."""
        path, line, trouble = saving.save(self, failed)
        if not trouble:
            self.journal.discard_checkpoints()
        return path, line, trouble


def parse(words=None):
    """(settings, checkpoint) of a command line: the Settings; None, or (path, content) of the checkpoint to go on from,
    whose flags are those that are not given. Raises UserError.
    """
    given = settings.parse(words)
    if given.resume in (None, "auto"):
        return given, None
    checkpoint = given.resume, checkpoints.load(given.resume)
    return settings.parse(words, before=checkpoint[1]["flags"]), checkpoint


@contextmanager
def lived(given, checkpoint=None, announce=lambda life: None, warn=print, stoppable=True):
    """A run, all of it: gives the Life that has been lived, and what the results should say of a failure (Life.learn).

    given, checkpoint   as `parse` gives them
    announce    called with the Life when it is ready to learn;  warn: with a line of text when something goes wrong
    stoppable   it writes checkpoints, and a signal stops it with a last one; until the block ends, signals wait.
                Otherwise it writes nothing, and signals do what they do.

    Raises UserError, and checkpoints.Stopped after a signal.
    """
    begin, home = time.perf_counter(), os.getcwd()
    tasks = load_tasks(given.data_path, given.data_file, given.data_seed, given.mnist)
    check_data_seed(tasks, given.data_seed)
    try:
        this = prepare(given, tasks, time.perf_counter() - begin, checkpoint)
        announce(this)
        watchers = [ProgressBar(this.settings.progress, this.experience)]
        if this.settings.tensorboard is not None:
            watchers.append(TensorBoard(this.journal.home, this.settings.tensorboard, this.experience))
        after_each = nullcontext(lambda batch: None)
        if stoppable:
            after_each = checkpoints.Checkpointer(this.settings.checkpoint_every, this.journal, this.experience, warn)
        with after_each as after_each:
            yield this, this.learn(watchers, after_each, warn)
    finally:
        os.chdir(home)  # wherever a learner has gone


def prepare(given, tasks, loading_seconds=0.0, checkpoint=None):
    """The Life of parsed settings on a TaskSet, which took so many seconds to load: resolve, build, go on.

    checkpoint   None, or (path, content) of the one to go on from; with --resume auto the newest of this very run

    Raises UserError where that cannot be done.
    """
    chosen, reason = settings.resolve(given, tasks)
    if given.resume == "auto":
        code = provenance.code_identity(chosen.model, chosen.engine, chosen.network)
        checkpoint = checkpoints.find(chosen, tasks.identity, code)
        if checkpoint and chosen.engine == "reference":  # whose sums depend on it
            chosen = chosen.changed(threads=checkpoint[1]["flags"]["threads"])
    chosen = chosen.changed(resume=None)  # a run that was interrupted leaves what another does
    torch.set_num_threads(chosen.threads)
    journal = checkpoints.Journal(chosen, tasks.identity, loading_seconds)
    before = continuation.load(chosen, tasks) if chosen.start_from is not None else None
    earlier, unseen = continuation.earlier_tasks(before, chosen) if before else ({}, [])
    experience = make_experience(chosen, tasks, before, earlier)
    remarks = [
        reason,
        _about_network(given, checkpoint, chosen, tasks, experience.learner),
        *unseen,
        *experience.learner.remarks(),
    ]
    if given.resume == "auto" and not checkpoint:
        remarks.append(f"begins: no checkpoint of this very run is in {chosen.save_path}")
    if checkpoint:
        changed = journal.go_on_from(checkpoint, experience)
        remarks.append(f"goes on after {experience.seen:,} examples, from {checkpoint[0]}")
        if changed:
            remarks.append(
                f"note: not what it was: {', '.join(changed)}; the numbers may not be those of an undisturbed run"
            )
    remarks += [f"note: {chosen.model} does not read --{name}" for name in chosen.read_in_vain()]
    return Life(chosen, tasks, experience, journal, before, tuple(filter(None, remarks)))


def _about_network(given, checkpoint, chosen, tasks, learner):
    """Which network it is, its size and why; None of a learner that makes networks of its own."""
    if chosen.network == settings.AUTO:
        return None
    n_weights = sum(net.n_weights() for net in learner.named_networks().values())
    what = f"network: {chosen.network} ({n_weights:,} weights)"
    if checkpoint:
        return f"{what}, as before"
    why = networks.describe(chosen.network, given.network != settings.AUTO, tasks.n_inputs, tasks.image_shape)
    return f"{what}, {why}"


def make_experience(chosen, tasks, before=None, earlier=()):
    """The Experience of a new learner; moves the random streams in the original's order: stream, then weights.

    before    None, or what an earlier run's learner knows: the tasks are numbered after those that it learned
    earlier   {number: Task} of those, to be evaluated as well
    """
    seed_everything(chosen.seed)
    sizes = [len(task.train) for task in tasks.tasks]
    mixed = getattr(chosen.learner, "mixes_tasks", False)
    stream = Stream(sizes, chosen.samples_per_task, chosen.n_epochs, chosen.batch_size, chosen.shuffle_tasks, mixed)
    data, first_task, n_outputs, slots = tasks, 0, tasks.n_outputs, stream.batch_size
    if before:
        data, first_task, n_outputs = before.with_classes_of(tasks), before.n_tasks, before.n_outputs
        slots = max(slots, before.minibatch_slots)
    args = settings.learner_args(chosen, data, minibatch_slots=slots)
    learner = foreign.build(chosen.learner, tasks.n_inputs, n_outputs, first_task + len(tasks.tasks), args)
    if before:
        before.hand_over(learner)
    own = {first_task + t: task for t, task in enumerate(tasks.tasks)}
    evaluator = Evaluator(dict(earlier) | own, chosen.threads, tells_task=chosen.scenario == "task")
    alignment = Alignment(learner, evaluator.tasks, chosen.alignment) if chosen.alignment else None
    return Experience(learner, tasks.tasks, stream, evaluator, chosen.log_every, first_task, alignment)
