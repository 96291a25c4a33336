"""A job: a run to be made. Which are finished is told by flags, data and program, never by the names of files."""

import hashlib
import json
import os
import re
import shutil
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from disk.locks import claim
from report import read
from run import FORMAT, checkpoints, provenance, settings
from sweep.commands import as_text, facts

MOST_LABEL = 56  # characters in a log's name, each of up to four bytes


@dataclass(frozen=True, eq=False)
class Job:
    """A run to be made, in plain values that can be sent to another machine.

    flags     {name: text} of main.py's command line
    label     how a person recognises it
    key       who it is: see key_of
    code      identity of the program that makes it
    threads   how many it uses
    gpu       whether it needs one
    """

    flags: dict
    label: str
    key: str
    code: str
    threads: int
    gpu: bool

    def __str__(self):
        return as_text(self.flags)

    @property
    def log_name(self):
        label = re.sub(r"[^\w.-]+", "_", self.label)[:MOST_LABEL]
        return f"{label}_{self.key[:12]}.log"


def prepare(command):
    """The Job of a commands.Command under this version of the program. Raises UserError where it cannot run."""
    data = facts(command.args)
    args, _ = settings.resolve(command.args.changed(threads=command.args.threads or 1), data)
    size = next((str(getattr(args, flag)) for flag in ("memories", "n_memories") if command.reads(flag)), "")
    label = " ".join(filter(None, (args.model, size, command.data, command.note, f"seed {args.seed}")))
    flags = command.flags | {"threads": str(args.threads)}
    code = provenance.code_identity(args.model, args.engine, args.network)
    return Job(flags, label, key_of(args.science(), data.identity, code), code, args.threads, args.cuda)


def key_of(science, data, code):
    """Text of what a run's numbers depend on: flags (engine and draws concrete) and data, a hyphen, the program.

    Each half is a part of the sha256, in hex.
    """
    halves = [hashlib.sha256(json.dumps(half, sort_keys=True).encode()).hexdigest() for half in ([science, data], code)]
    return "-".join(half[:32] for half in halves)


@dataclass(frozen=True)
class Result:
    """A finished run, as its .json or a pack tells. failure: None, or why it is no complete one."""

    key: str
    path: str
    RA: float
    seconds: float
    failure: str | None


def finished(folder):
    """{key: Result} of the finished runs in a folder, not its subfolders: each in its own file, or in a pack.

    Whatever else lies there is passed over.
    """
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".json", read.PACK)):
                with suppress(OSError):  # gone meanwhile
                    stat = entry.stat()
                    found |= {it.key: it for it in _read(entry.path, stat.st_mtime_ns, stat.st_size)}
    return found


@cache
def _read(path, modified, size):
    """The Results in a file; `modified` and `size` tell the versions of a file apart."""
    found = []
    with suppress(read.Unreadable):
        for saved in read.told_by(path):
            if saved.get("format") != FORMAT:
                continue
            # it has no code, or odd values
            with suppress(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
                failure = None if saved["status"] == "complete" else f"{saved['status']}: {saved['failure']}"
                key = key_of(saved["science"], saved["data"]["identity"], saved["code"])
                RA, seconds = read.as_float(saved["stats"]["RA"]), read.as_float(saved["seconds"]["total"])
                if None not in (RA, seconds):
                    found.append(Result(key, path, RA, seconds, failure))
    return found


def private_folder(folder, key):
    """Where a job's run works, alone, until it has finished: what a killed one leaves can spoil nothing."""
    return Path(folder) / ".sweep" / key


def lock_path(folder, key):
    """The file that is locked while anyone is at a job."""
    return Path(folder) / ".sweep" / f"{key}.lock"


def publish(folder, key):
    """Moves a finished run's files from its private folder to the results, the .json last, and tidies up."""
    private = private_folder(folder, key)
    for described in private.glob("*.json"):
        files = [path for path in private.iterdir() if path.name.startswith(f"{described.stem}.")]
        for path in sorted(files, key=described.__eq__):
            if path.suffix != checkpoints.ENDING:
                os.replace(path, Path(folder) / path.name)
        shutil.rmtree(private, ignore_errors=True)


def tidy(folder, key):
    """Removes what other versions of the program began of a finished run, unless they are at it."""
    for path in private_folder(folder, "").glob(f"{key.partition('-')[0]}-*.lock"):
        with suppress(OSError):
            if path != lock_path(folder, key) and (mine := claim(path)):
                with closing(mine):
                    shutil.rmtree(private_folder(folder, path.stem), ignore_errors=True)
                    path.unlink()
