"""Checkpoints: a run that was stopped, or killed, goes on exactly where it was.

`<save_path>/<name>.checkpoint` holds the flags, what the data are, and the state of the Experience; a finished run
leaves none.
"""

import pickle
import signal
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from atomic import writing
from errors import UserError

FORMAT = "mer-checkpoint/1"
ENDING = ".checkpoint"
# flags that may differ between the parts of a run: they change no number of it
FREE_FLAGS = ("save_path", "threads", "progress", "checkpoint_every", "resume", "tensorboard")


def science(flags):
    """The flags that a run's numbers depend on."""
    return {name: value for name, value in flags.items() if name not in FREE_FLAGS}


def path_of(folder, name):
    return Path(folder) / f"{name}{ENDING}"


def save(path, content):
    """Writes a checkpoint, whole or not at all. Raises OSError where the folder fails."""
    with writing(path) as file:
        torch.save({"format": FORMAT, **content}, file)


def load(path):
    """The content of a checkpoint. Raises UserError where the file is none; executes nothing that it may carry."""
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("it has another format")
        for key, kind in (("flags", dict), ("data", str), ("code", str), ("name", str), ("experience", dict)):
            if not isinstance(content.get(key), kind):
                raise ValueError(f"it lacks {key}")
    except FileNotFoundError as error:
        raise UserError(f"--resume {path}: no such file; give a {ENDING} file of a run that was stopped") from error
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"--resume {path}: not a checkpoint of this program ({reason}); start the run anew") from error
    return content


def find(folder, flags, data, code):
    """(path, content) of the newest checkpoint in the folder of this very run, or (None, None)."""
    for path in sorted(Path(folder).glob(f"*{ENDING}"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(UserError):
            content = load(path)
            if (science(content["flags"]), content["data"], content["code"]) == (science(flags), data, code):
                return path, content
    return None, None


def refuse_differences(path, content, flags, data):
    """Raises UserError that shows what differs between a checkpoint and the run that would continue it."""
    before, after = science(content["flags"]), science(flags)
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    changes = [f"--{name} was {before.get(name)}, now {after.get(name)}" for name in names]
    if content["data"] != data:
        changes.append(f"the data were {content['data'][:12]}…, now {data[:12]}…")
    if changes:
        raise UserError(f"--resume {path}: this is another run ({'; '.join(changes)}); drop the changes or start anew")


class Stopped(Exception):
    """SIGTERM or SIGINT came; `signal` is its number."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Checkpointer:
    """Says when a checkpoint is due, and turns SIGTERM and SIGINT into `Stopped` between two minibatches.

    every   (number, "minibatches" or "seconds"), or None for never
    """

    def __init__(self, every, clock=time.monotonic):
        self.every, self.clock, self.last, self.received = every, clock, clock(), None

    def __enter__(self):
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received is not None:  # a second one does not wait
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        self.received = number

    def due(self, n_learned):
        """Whether to write one now, n_learned minibatches into the stream. Raises Stopped when a signal has come."""
        if self.received is not None:
            raise Stopped(self.received)
        if self.every is None:
            return False
        number, unit = self.every
        if unit == "minibatches":
            return n_learned % number == 0
        if self.clock() - self.last < number:
            return False
        self.last = self.clock()
        return True
