"""Has jobs performed, shows how it goes, and says at the end what became of them."""

import signal
import sys
import time
from collections import Counter
from concurrent import futures
from itertools import zip_longest

from tqdm import tqdm

from sweep import work
from sweep.job import finished

STOPPED = work.Outcome("stopped")
REFRESH = 0.5  # seconds
QUIET = 60.0  # seconds between lines where there is no terminal


class Signals:
    """Remembers the first SIGINT or SIGTERM in `received`; a second one ends the program at once.

    ignored   the numbers of those that whoever started the program had it ignore (nohup, a job in the background)
    """

    def __init__(self, ignored=()):
        self.received = None
        self._heard = [number for number in (signal.SIGINT, signal.SIGTERM) if number not in ignored]
        for number in self._heard:
            signal.signal(number, self._receive)

    @staticmethod
    def ignored():
        return [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) == signal.SIG_IGN]

    def _receive(self, number, frame):
        self.received = number
        for each in self._heard:
            signal.signal(each, signal.SIG_DFL)


class Signalled(Exception):
    """A sweep was ended by a signal, whose number this is."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.signal = number


def conduct(jobs, site, pool, signals):
    """{key: Outcome} of all jobs; of those that a signal kept from ending, the status is "stopped".

    In two rounds: those that another sweep is at are left for the second, which waits for them. After a signal the pool
    is closed.
    """
    known = finished(site.folder)
    outcomes = {e.key: work.outcome_of(known[e.key], "skipped", e, site) for e in jobs if e.key in known}
    display = Display(len(jobs), len(outcomes), site, pool.width)
    for wait in (False, True):
        pending = {pool.submit(e, site, wait): e for e in jobs if e.key not in outcomes}
        while pending and not signals.received:
            display.show(pending.values())
            done, _ = futures.wait(pending, REFRESH, futures.FIRST_COMPLETED)
            for future in done:
                job = pending.pop(future)
                outcome = _outcome(future)
                if outcome.status != "busy":
                    outcomes[job.key] = outcome
                    display.tell(job, outcome)
        if signals.received:
            name = signal.Signals(signals.received).name
            display.say(f"{name}: the runs write their checkpoints and end (a second signal ends all at once)")
            pool.close()
            last = {pending[future].key: _outcome(future) for future in pending if future.done()}
            outcomes |= {key: outcome for key, outcome in last.items() if outcome.status in ("done", "diverged")}
            break
    display.close()
    return {e.key: outcomes.get(e.key, STOPPED) for e in jobs}


def _outcome(future):
    try:
        return future.result()
    except Exception as error:  # a full disk, a cluster that lost it: the others go on
        return work.Outcome("failed", failure=f"{type(error).__name__}: {error}")


def summary(jobs, outcomes, site, seconds):
    """The text that ends a sweep of these {key: Job}."""
    count, lines = Counter(), []
    for key, outcome in outcomes.items():
        count["failed" if outcome.failure else outcome.status] += 1
        if outcome.failure:
            job = jobs[key]
            lines += [f"failed: {job.label}: {outcome.failure}", f"  {job}"]
            lines += [f"  {site.log(job)} ends with:"] if outcome.log_tail else []
            lines += [f"    {line}" for line in outcome.log_tail.splitlines()]
    lines.append(
        f"{count['done']} done, {count['skipped']} skipped (finished before), {count['failed']} failed"
        + (f", {count['stopped']} left: start again to go on" if count["stopped"] else "")
        + f"; {tqdm.format_interval(seconds)}; results in {site.folder}"
    )
    return "\n".join(lines)


class Display:
    """On a terminal: a bar over all jobs with the time left, a line for each that runs. Else lines of text."""

    def __init__(self, total, n_before, site, n_lines):
        self.total, self.n_before, self.n_done, self.site = total, n_before, n_before, site
        self.begin = self.told = time.time()
        self.bars = None
        if sys.stderr.isatty():
            form = "{percentage:3.0f}%|{bar:30}| {n:.1f}/{total} runs, {elapsed}, {remaining} left"
            overall = tqdm(total=self.total, initial=self.n_before, smoothing=0, bar_format=form)
            lines = [tqdm(bar_format="{desc}", position=i + 1, leave=False) for i in range(n_lines)]
            self.bars = [overall, *lines]

    def tell(self, job, outcome):
        """Of one that has ended."""
        self.n_done += 1
        about = f"RA {outcome.RA:.3f} ({outcome.seconds:.0f} s)" if outcome.RA is not None else outcome.failure
        self.say(f"[{self.n_done}/{self.total}] {outcome.status}: {job.label}: {about}")

    def show(self, pending):
        """Of those that are running."""
        states = [(e.label, work.progress(self.site.log(e), self.begin)) for e in pending]
        running = [(label, *state) for label, state in states if state]
        n = self.n_done + sum(fraction for _, fraction, _ in running)
        lines = [f"  {label}: {fraction:4.0%} {text}" for label, fraction, text in running]
        if self.bars:
            self.bars[0].n = n
            for bar, line in zip_longest(self.bars[1:], lines[: len(self.bars) - 1], fillvalue=""):
                bar.set_description_str(line)
            self.bars[0].refresh()
        elif time.time() - self.told > QUIET:
            elapsed, new = time.time() - self.begin, n - self.n_before
            left = f", about {tqdm.format_interval(elapsed / new * (self.total - n))} left" if new else ""
            self.say("\n".join([f"{n:.1f} of {self.total} runs{left}", *lines]))

    def say(self, text):
        self.told = time.time()
        if self.bars:
            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self):
        self.show([])
        for bar in self.bars or ():
            bar.close()
