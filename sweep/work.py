"""Makes one job's run: under its lock, in its own folder, with a log, again where it died."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from disk.atomic import writing
from disk.locks import claim
from errors import UserError
from run import provenance
from sweep.commands import as_text, words
from sweep.job import Job, finished, lock_path, private_folder, publish, tidy

ROOT = Path(__file__).resolve().parent.parent
POLL = 0.1  # seconds
GRACE = 30.0  # seconds that a run has for its last checkpoint
TAIL = 4  # lines of the log of a failed run
WIDTH = 240  # of such a line

NEVER = threading.Event()


@dataclass(frozen=True)
class Site:
    """Where a sweep's runs happen.

    folder   of the results: absolute, and seen by every machine that takes part
    cwd      the folder that relative paths in the commands start from
    tries    how often a run that dies is started
    """

    folder: str
    cwd: str
    tries: int

    def make(self):
        """Raises UserError where the folder cannot be written."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            lock_path(self.folder, "").parent.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(b"x")
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written: {error.strerror}; choose another --save_path") from error

    @property
    def logs(self):
        return Path(self.folder) / "logs"

    def log(self, job):
        return self.logs / job.log_name


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    status    done, skipped (it was finished), diverged, failed (nothing is finished), stopped, busy (elsewhere)
    failure   why it is no complete run, where it diverged or failed
    """

    status: str
    RA: float | None = None
    seconds: float | None = None
    failure: str = ""
    log_tail: str = ""  # the last lines of the log


def perform(job: Job, site: Site, wait: bool, stop: threading.Event = NEVER, place=None) -> Outcome:
    """Sees to it that the job is finished: the only one to do so at any time, on all machines.

    wait    for whoever is at it; otherwise "busy" is the outcome
    stop    set by another thread to end soon, with a checkpoint
    place   a context manager: what the run needs of this machine, held while it goes on. Gives the environment
            variables that tell it so, or None where `stop` was set first
    """
    with locked(site.folder, job.key, wait, stop) as lock:
        if lock is None:
            return Outcome("stopped" if stop.is_set() else "busy")
        outcome = _outcome("skipped", job, site)
        if outcome is None:
            with place or nullcontext({}) as variables:
                outcome = Outcome("stopped") if variables is None else _tried(job, site, lock, stop, variables)
        if outcome.status not in ("failed", "stopped"):
            tidy(site.folder, job.key)
        return outcome


def _tried(job, site, lock, stop, variables):
    """The Outcome of running a job until it is finished, or fails."""
    outcome, tries = None, 0
    while outcome is None:
        tries += 1
        code = _run(job, site, tries, lock, stop, variables)
        outcome = _outcome("done", job, site)
        if outcome is None and stop.is_set():
            outcome = Outcome("stopped")
        elif outcome is None and not (_died(code) and tries < site.tries):
            outcome = Outcome("failed", failure=_why(code, tries), log_tail=_tail(site.log(job)))
    return outcome


def _died(code):
    """Whether a signal ended it, so that another try is worth it. (128 + number: one that main.py has caught)"""
    return code < 0 or code >= 128


def _why(code, tries):
    if code == 0:
        return "its result is not this job's: has the program changed meanwhile?"
    if not _died(code):
        return f"exit code {code}"
    number = -code if code < 0 else code - 128
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return f"died {tries} times, lastly by {name}"


def _outcome(status, job, site):
    """The Outcome that the results tell, once the private folder's are among them; None where there is none yet."""
    publish(site.folder, job.key)
    result = finished(site.folder).get(job.key)
    return result and outcome_of(result, status, job, site)


def outcome_of(result, status, job, site):
    """The Outcome of a finished run: `status`, or "diverged"."""
    if result.failure:
        return Outcome("diverged", failure=result.failure, log_tail=_tail(site.log(job)))
    return Outcome(status, result.RA, result.seconds)


@contextmanager
def locked(folder, key, wait, stop):
    """Holds a job's lock: gives its file descriptor, or None where another holds it (or stop was set).

    The kernel lets go of it when the last process that holds the descriptor dies; a run inherits it. So the lock lasts
    as long as anything works on the job, even where the sweep was killed and its run is still ending.
    """
    mine = None
    while not (stop.is_set() or mine):
        mine = claim(lock_path(folder, key), create=True)
        if not (mine or wait):
            break
        if not mine:
            stop.wait(POLL)
    try:
        yield mine and mine.descriptor
    finally:
        if mine:
            mine.close()


def _run(job, site, number, lock, stop, variables):
    """One try of main.py, in the job's own folder; returns its exit code: see _died."""
    private = private_folder(site.folder, job.key)
    for path in private.glob("*"):
        if path.suffix != ".checkpoint":  # half a result of one that was killed
            path.unlink()
    flags = job.flags | {"save_path": f"{private}/", "resume": "auto", "progress": "yes"}
    leash = [sys.executable, str(ROOT / "sweep" / "leash.py"), str(os.getpid())]
    log = site.log(job)
    with open(log, "a") as output:
        output.write(f"--- {provenance.now()}, try {number}: {as_text(flags)}\n")
        output.flush()
        process = subprocess.Popen(
            [*leash, str(ROOT / "main.py"), *words(flags)],
            cwd=site.cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C is for the sweep, which passes it on
            env=os.environ | {"OMP_NUM_THREADS": str(job.threads)} | variables,
        )
        try:
            while process.poll() is None and not stop.wait(POLL):
                pass
        finally:
            _end(process)
    with suppress(OSError):  # a log that vanished, a full disk: the run is what it is
        _tidy(log)
    return process.returncode


def _end(process):
    """Ends a run that is still going: SIGTERM, so that it writes a checkpoint, and SIGKILL if that takes too long."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tidy(log):
    """Leaves of each progress bar in a log its last state, in a line of its own."""
    text = re.sub(rb"[^\n]*\r", b"", log.read_bytes())
    with writing(log) as file:  # whole, or as it was
        file.write(text if text.endswith(b"\n") else text + b"\n")


def _tail(log):
    try:
        return "\n".join(line[:WIDTH] for line in log.read_text(errors="replace").splitlines()[-TAIL:])
    except OSError:
        return ""


def progress(log, since):
    """(fraction, text) of the run that writes this log, or None where none has written to it after `since`."""
    try:
        if log.stat().st_mtime < since:
            return None
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - 400))
            tail = file.read().decode(errors="replace")
    except OSError:
        return None
    latest = re.findall(r"(\d+)/(\d+) \[([^\]\r\n]*)\]", tail.rpartition("---")[2])
    if not latest:
        return 0.0, "starting"
    n, total, text = latest[-1]
    return int(n) / max(int(total), 1), text
