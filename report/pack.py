"""Packs: many runs in one compact file, with every evaluation, their flags and provenance, and without weights.

gzip of JSON lines: the first says the format, then each is a run in the words of its .json, but for the flags that say
where its files went. `read.read_results` reads a pack like a folder, so that anyone can draw and compare the runs.
"""

import gzip
import json
import os
from contextlib import closing, contextmanager
from pathlib import Path

from disk import locks
from disk.atomic import writing
from errors import UserError
from report import read
from run.flags import PLACES


def pack(places, out):
    """Adds the runs in these folders and packs to the pack `out`; returns (how many it has, [Skipped]).

    Each run is in it once, and none that was in it is lost. Raises UserError where a place or the pack cannot be read,
    there are no runs, or the pack cannot be written.
    """
    out = Path(out)
    if not out.name.endswith(read.PACK):
        raise UserError(f"pack {out}: a pack's name ends in {read.PACK}; call it {out.name.split('.')[0]}{read.PACK}")
    read.check_places(places)
    found, lines, skipped = [], {}, []
    try:
        with _alone(out):
            for place in [out, *places] if out.exists() else places:
                for run, saved in read.records(place):
                    if saved:
                        found.append(run)
                        lines[id(run)] = json.dumps(_told(saved), separators=(",", ":")).encode()
                    elif place == out:
                        raise UserError(f"{out} has what cannot be kept ({run.path}: {run.reason}); take another name")
                    else:
                        skipped.append(run)
            runs, _ = read.each_once(found)
            read.check_found(runs, skipped, places)
            with writing(out) as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                for line in (json.dumps({"format": read.PACK_FORMAT}).encode(), *(lines[id(run)] for run in runs)):
                    packed.write(line + b"\n")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}; choose a place that can") from error
    return len(runs), skipped


def _told(saved):
    """What is told of a run to others."""
    args = saved.get("args")
    if not isinstance(args, dict):
        return saved
    return saved | {"args": {flag: value for flag, value in args.items() if flag not in PLACES}}


@contextmanager
def _alone(out):
    """Keeps other processes from adding to the same pack meanwhile."""
    path = out.with_name(f".{out.name}.lock")
    claim = locks.claim(path, create=True)
    if claim is None:
        raise UserError(f"{out} is being written by another process; wait for it")
    with closing(claim):
        try:
            yield
        finally:
            os.unlink(path)
