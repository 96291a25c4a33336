"""Checkpoints: a run that was stopped, or killed, goes on exactly where it was.

`<save_path>/<name>.checkpoint` holds the flags, what the data are, and the state of the Experience; a finished run
leaves none. A run claims its latest checkpoint (disk.locks) for as long as it lives, so that no other goes on from it.
"""

import glob
import re
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from disk import safe
from disk.atomic import remove_leftovers, writing
from disk.locks import claim, claim_open
from errors import UserError
from model.foreign import NoState
from run import provenance, saving

FORMAT = "mer-checkpoint/3"
ENDING = ".checkpoint"
KINDS = {"flags": dict, "data": str, "made_by": list, "name": str, "started": str, "seconds": dict, "experience": dict}


def load(path):
    """The content of a checkpoint. Raises UserError where the file is none; executes nothing that it may carry."""
    try:
        content = safe.load(path, {"format": str} | KINDS)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r:.40}, not {FORMAT!r}")
        if not re.fullmatch(rf"[^/\0]{{1,{saving.LONGEST_STEM}}}_\d{{4}}(_\d\d){{5}}_[0-9a-f]{{32}}", content["name"]):
            raise ValueError("its name is no run's")
        if not all(isinstance(value, float) and 0 <= value < 1e12 for value in content["seconds"].values()):
            raise ValueError("its seconds are no numbers")
        flags = content["flags"]
        if not safe.are_plain(flags) or not isinstance(flags.get("threads"), int):
            raise ValueError("its flags are none")
        parts = content["made_by"]
        if not parts or not all(isinstance(part, dict) and safe.are_plain(part) for part in parts):
            raise ValueError("it does not say what made it")
        if not all(part.keys() >= provenance.KEYS for part in parts):
            raise ValueError("it does not say what made it")
    except FileNotFoundError as error:
        raise UserError(f"--resume {path}: no such file; give a {ENDING} file of a run that was stopped") from error
    except OSError as error:
        raise UserError(f"--resume {path} cannot be read ({error.strerror}); give a file that can") from error
    except ValueError as error:
        raise UserError(f"--resume {path}: not a checkpoint of this program ({error}); start the run anew") from error
    return content


def find(settings, data, code):
    """(path, content) of the newest checkpoint in settings.save_path of this very run, or None.

    settings   resolved
    data       identity of its tasks;  code: of the program
    """
    pattern = f"{glob.escape(saving.name_stem(settings))}*{ENDING}"
    newest = {}
    for path in Path(settings.save_path).glob(pattern):
        with suppress(OSError):  # another process may be done with it
            newest[path] = path.stat().st_mtime_ns
    for path in sorted(newest, key=newest.get, reverse=True):
        with suppress(UserError):
            content = load(path)
            mine = content["data"] == data and content["made_by"][-1].get("code") == code
            if mine and not _changes(content["flags"], settings.changed(threads=content["flags"]["threads"])):
                return path, content
    return None


def refuse_differences(path, content, settings, data):
    """Raises UserError that shows what differs between a checkpoint and the run that would continue it."""
    changes = _changes(content["flags"], settings)
    if content["data"] != data:
        changes.append(f"the data were {content['data'][:12]}…, now {data[:12]}…")
    if changes:
        raise UserError(f"--resume {path}: this is another run ({'; '.join(changes)}); drop the changes or start anew")


def _changes(flags, settings):
    """What of the science differs between the flags of a checkpoint and settings, in words."""
    before, after = settings.changed(**flags).science(), settings.science()
    if before["engine"] == after["engine"] == "reference":  # whose sums run in an order that depends on it
        before["threads"], after["threads"] = flags["threads"], settings.threads
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [f"--{name} was {before.get(name)}, now {after.get(name)}" for name in names]


class Stopped(Exception):
    """A signal came: its number, and where the checkpoint is (None where there is none)."""

    def __init__(self, number, checkpoint):
        super().__init__(signal.Signals(number).name)
        self.signal, self.checkpoint = number, checkpoint


class Journal:
    """Who a run is, what computes it and how long it has taken, over all its parts: what a checkpoint says besides
    the experience.

    settings       resolved
    data_seconds   time that loading the data took
    home           the working folder in which the run began
    made_by        run.provenance.made_by of each part of the run so far, as it was when the part began
    checkpoints    paths of the checkpoints that there may be of this run, the latest last
    """

    def __init__(self, settings, data_identity, data_seconds):
        self.settings, self.data = settings, data_identity
        self.name, self.started = saving.new_name(settings), provenance.now()
        self.made_by = [provenance.made_by(settings)]
        self.spent = {"data": data_seconds, "training": 0.0, "evaluation": 0.0, "total": 0.0}
        self.checkpoints = []
        self.home = Path.cwd()  # what paths start from, wherever a learner goes
        self._claim = None  # of the latest
        self._begin = time.perf_counter()

    def seconds(self, experience):
        """Seconds spent, by kind: evaluation runs on other threads too, so the parts need not add up to the total."""
        total = time.perf_counter() - self._begin
        now = {"training": total - experience.waited, "evaluation": experience.evaluator.seconds, "total": total}
        return {kind: value + now.get(kind, 0.0) for kind, value in self.spent.items()}

    def times(self, experience):
        """When the run began and ended, and how long it took."""
        return {"started": self.started, "finished": provenance.now(), "seconds": self.seconds(experience)}

    def save_checkpoint(self, experience, folder=None):
        """Writes a checkpoint to the folder (None: save_path). Raises OSError where that fails: the last one stands."""
        content = {
            "format": FORMAT,
            "flags": self.settings.as_dict(),
            "data": self.data,
            "made_by": self.made_by,
            "name": self.name,
            "started": self.started,
            "seconds": self.seconds(experience),
            "experience": experience.state(),
        }
        written = safe.dump(content)
        path = self._path(ENDING, folder)
        with writing(self.home / path) as file:
            mine = claim_open(file)
            file.write(written)
        self.release()
        self._claim = mine
        self.checkpoints = [other for other in self.checkpoints if other != path] + [path]

    def _path(self, ending, folder=None):
        return Path(folder or self.settings.save_path) / f"{self.name}{ending}"

    def discard_checkpoints(self):
        """Deletes this run's checkpoints, and what parts of it that were killed have left beside the results."""
        for ending in (ENDING, *saving.ENDINGS):
            remove_leftovers(self.home / self._path(ending))
        for path in self.checkpoints:  # last: as long as there is one, a run that is killed here can be told to go on
            with suppress(OSError):
                (self.home / path).unlink()

    def release(self):
        """Lets other processes go on from this run's checkpoints."""
        if self._claim:
            self._claim.close()
        self._claim = None

    def _take(self, path):
        """Claims a checkpoint that was read. Raises UserError where another process has it, or has finished the run."""
        try:
            self._claim = claim(self.home / path)
        except FileNotFoundError as error:
            raise UserError(f"--resume {path}: it is gone: another process has finished this run") from error
        except OSError as error:
            raise UserError(f"--resume {path} cannot be locked ({error.strerror}); copy it to another disk") from error
        if self._claim is None:
            raise UserError(f"--resume {path}: another process is at this run; wait for its end, or stop it first")

    def go_on_from(self, checkpoint, experience):
        """Takes over a checkpoint (path, content). Returns what else has changed since: code, versions, cpu.

        Raises UserError where it is another run's, another process is at it, or its state does not fit.
        """
        path, content = checkpoint
        refuse_differences(path, content, self.settings, self.data)
        self._take(path)
        try:
            experience.load_state(content["experience"])
        except safe.DAMAGED as error:
            raise UserError(f"--resume {path}: its state is damaged ({safe.one_line(error)}); start anew") from error
        self.name, self.started = content["name"], content["started"]
        before, after = content["made_by"][-1], self.made_by[-1]
        self.made_by = content["made_by"] + self.made_by
        self.checkpoints = [self._path(ENDING), Path(path)]
        self.spent = {kind: content["seconds"].get(kind, 0.0) for kind in self.spent}
        return [part for part in provenance.DECISIVE if before.get(part) != after.get(part)]


class Checkpointer:
    """Called after each minibatch: writes a checkpoint when one is due, or when SIGTERM or SIGINT has come.

    every   (number, "minibatches" or "seconds"), or None for never
    warn    called with a line of text where a checkpoint cannot be written: the run goes on without
    Raises Stopped after a signal. A second signal does what it would do without us. A signal that is ignored stays so,
    and so do all where this is not the main thread, which alone may hear them.
    """

    def __init__(self, every, journal, experience, warn, clock=time.monotonic):
        self.journal, self.experience, self.warn, self.clock = journal, experience, warn, clock
        self.why_not = experience.learner.why_no_state()
        self.every = every if self.why_not is None else None
        self.last, self.received, self.warned = clock(), None, False

    def __enter__(self):
        signals = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        heard = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, *_):
        self.journal.release()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received is not None:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        self.received = number

    def __call__(self, batch):
        if self.received is not None:
            raise Stopped(self.received, self._last_checkpoint())
        if self._due(batch.number + 1):
            try:
                self.journal.save_checkpoint(self.experience)
            except (OSError, NoState) as error:
                if not self.warned:
                    self.warn(f"warning: no checkpoint can be written ({error}); the run goes on without")
                self.warned = True

    def _last_checkpoint(self):
        """Path of one written now, in the results' folder or the temporary one; else of an earlier one; else None."""
        if self.why_not is not None:
            self.warn(f"no checkpoint: {self.why_not}")
            return None
        try:
            self.journal.save_checkpoint(self.experience)
        except NoState as error:
            self.warn(f"no checkpoint of now: {error}")
        except OSError as error:
            self.warn(f"error: no checkpoint can be written there ({error})")
            with suppress(OSError):
                self.journal.save_checkpoint(self.experience, tempfile.mkdtemp(prefix="mer_rescued_"))
        return next((path for path in reversed(self.journal.checkpoints) if (self.journal.home / path).exists()), None)

    def _due(self, n_learned):
        if self.every is None:
            return False
        number, unit = self.every
        if unit == "minibatches":
            return n_learned % number == 0
        if self.clock() - self.last < number:
            return False
        self.last = self.clock()
        return True
