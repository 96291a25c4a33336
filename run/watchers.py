"""What stands around a run and looks on: called after each minibatch, closed at the end."""

import os
import sys
import time
from contextlib import suppress

from tqdm import tqdm

from errors import UserError


def say(text):
    """Prints a line on stderr; a run goes on where nobody can hear it."""
    with suppress(OSError, ValueError):  # ValueError: it is closed
        print(text, file=sys.stderr, flush=True)


class Watchers:
    """Several watchers as one. One that cannot write is dismissed, which `warn` is told: the run goes on."""

    def __init__(self, watchers, warn):
        self.watchers, self.warn = watchers, warn

    def __call__(self, batch):
        for watch in list(self.watchers):
            self._call(watch, watch, batch)

    def close(self):
        for watch in list(self.watchers):
            self._call(watch, watch.close)

    def _call(self, watch, function, *arguments):
        try:
            function(*arguments)
        except (OSError, ValueError) as error:  # ValueError: its file is closed
            self.watchers.remove(watch)
            self.warn(f"warning: {type(watch).__name__} cannot write ({error}); the run goes on without")


class ProgressBar:
    """On stderr: examples, time left, the task, the latest accuracy on it and on the first task.

    wanted   "yes", "no", or "auto": on a terminal, or in a notebook
    """

    def __init__(self, wanted, experience):
        self.experience, self.shown = experience, 0.0
        shown = wanted == "yes" or (wanted == "auto" and (sys.stderr.isatty() or "ipykernel" in sys.modules))
        total = experience.stream.n_examples
        self.bar = tqdm(total=total, initial=experience.seen, unit="ex", disable=not shown, mininterval=0.3, delay=1e-9)

    def __call__(self, batch):
        if self.bar.disable:
            return
        now = time.monotonic()
        if now - self.shown > 0.5:
            self.shown = now
            accuracies = self.experience.latest()
            if accuracies:
                first = self.experience.stream.order[0]
                text = f"task {batch.current}: {accuracies[batch.current]:.3f}, first task: {accuracies[first]:.3f}"
                self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(len(batch.indices))

    def close(self):
        self.bar.close()


class TensorBoard:
    """Accuracies as TensorBoard scalars, against the examples seen: of every task, and their mean over the tasks seen.

    folder   in the folder `home`, unless it is a whole path, or the address of a store
    Raises UserError where the package tensorboard is not installed.
    """

    def __init__(self, home, folder, experience):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("--tensorboard needs a package: pip install tensorboard") from error
        folder = folder if "://" in folder else os.path.join(home, folder)
        # all points again: of those that a part of this run wrote before, TensorBoard hides what has a step >= 0
        again = 0 if experience.evaluations else None
        self.experience, self.writer, self.written = experience, SummaryWriter(folder, purge_step=again), 0

    def __call__(self, batch):
        evaluations = self.experience.evaluations
        while self.written < len(evaluations) and evaluations[self.written].done():
            self._write(self.written)
            self.written += 1

    def _write(self, i):
        experience = self.experience
        accuracies, seen = experience.accuracies_at(i), experience.seen_at[i]
        order = experience.stream.order
        known = order[: order.index(experience.result_t[i]) + 1]
        self.writer.add_scalar("accuracy/tasks seen", sum(accuracies[t] for t in known) / len(known), seen)
        for t, accuracy in enumerate(accuracies):
            self.writer.add_scalar(f"accuracy/task {t:03d}", accuracy, seen)

    def close(self):
        self.experience.result_a()
        self(None)
        self.writer.close()
