"""What a run leaves: `<name>.txt` and `<name>.pt`, as the original writes them, `<name>.json` and `<name>.state`."""

import datetime
import hashlib
import io
import json
import math
import os
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path

import torch

import metrics
from disk.atomic import writing
from errors import UserError
from model.foreign import NoState
from run import FORMAT, continuation, provenance

LONGEST_STEM = 255 - len("_2000_01_01_00_00_00_") - 32 - len(".checkpoint")  # bytes that leave room for the rest
ENDINGS = (continuation.ENDING, ".txt", ".pt", ".json")  # of a run's files, in the order in which they appear


def new_name(settings):
    """<model>_<data_file>_<time>_<uuid4>, as the original names its files."""
    stamp = datetime.datetime.now().strftime("%Y_%m_%d_%H_%M_%S")
    return f"{name_stem(settings)}{stamp}_{uuid.uuid4().hex}"


def name_stem(settings):
    """<model>_<data_file>_; of what is too long for the name of a file, the beginning and a digest of the whole."""
    stem = f"{settings.model}_{settings.data_file}"
    coded = os.fsencode(stem)
    if len(coded) > LONGEST_STEM:
        digest = hashlib.sha256(coded).hexdigest()[:16]
        stem = f"{coded[: LONGEST_STEM - len(digest) - 1].decode(errors='ignore')}_{digest}"
    return f"{stem}_"


def check_writable(settings):
    """Makes the folder and a file like a result's there; raises UserError now rather than lose a run later."""
    name = name_stem(settings).ljust(len(new_name(settings)), "0")
    path = (
        Path(settings.save_path) / f"{name}.writable"
    )  # as long as the longest; if we die here the next run deletes it
    try:
        os.makedirs(settings.save_path, exist_ok=True)
        path.write_bytes(b"x")
        path.unlink(missing_ok=True)  # two runs may begin at once
    except OSError as error:
        raise UserError(
            f"--save_path {settings.save_path} cannot be written: {error.strerror}; choose a folder that can"
        ) from error


def one_liner(settings, summary):
    """The original's line, less the file's name and the time: the flags and RA, BTI, FWT."""
    return f"{settings.as_dict()} # {' '.join(f'{value:.3f}' for value in summary.stats)}"


def save(life, about):
    """Writes the files of a run, each whole or not at all; returns (path without ending, one_liner, trouble).

    life      the run.life.Life that has been lived
    about     further entries of the .json (status and failure of a run that diverged or whose learner failed)
    trouble   None, or why the files are in a temporary folder instead, a line of text
    The .json comes last: where it is, the others are. Raises OSError where no folder takes them.
    """
    settings, experience = life.settings, life.experience
    result_t, result_a = experience.result_t, experience.result_a()
    summary = metrics.summarise(result_t, result_a)
    line = one_liner(settings, summary)
    weights = experience.learner.state_dict()
    args, original = settings.as_namespace(), io.BytesIO()
    torch.save((torch.tensor(result_t).float(), torch.tensor(result_a), weights, summary.stats, line, args), original)
    state = {}
    if settings.keep_state:
        try:
            state = {continuation.ENDING: continuation.dump(life)}
        except NoState as error:
            about = about | {"no_state": str(error)}
    described = describe(life, summary) | about
    files = state | {
        ".txt": summary.as_text().encode(),
        ".pt": original.getvalue(),
        ".json": json.dumps(described, indent=1, allow_nan=False).encode(),
    }
    folder, name = settings.save_path, life.journal.name
    try:
        _write(life.journal.home / folder / name, files)
        return Path(folder) / name, line, None
    except OSError as error:
        try:
            path = _write(Path(tempfile.mkdtemp(prefix="mer_rescued_")) / name, files)
        except OSError as again:
            raise OSError(
                f"no result can be written, neither to {folder} ({error}) nor elsewhere ({again}): {line}"
            ) from again
        return path, line, f"cannot write to {folder} ({error}); the results are saved as {path}.*"


def _write(path, files):
    with ExitStack() as opened:  # they appear together, in the order of ENDINGS
        for ending in reversed(ENDINGS):
            if ending in files:
                opened.enter_context(writing(f"{path}{ending}")).write(files[ending])
    return path


def describe(life, summary):
    """The .json of a run, as plain values."""

    def numbers(tensor):
        return [round(value, 6) for value in tensor.tolist()]

    settings, tasks, experience, journal = life.settings, life.tasks, life.experience, life.journal
    learner = experience.learner
    first, *later = journal.made_by
    return {
        "format": FORMAT,
        "name": journal.name,
        "status": "complete",
        "model": settings.model,
        "args": settings.as_dict(),
        "science": settings.science(),
        "seed": settings.seed,
        "engine": settings.engine,
        "draws": settings.draws,
        "threads": settings.threads,
        "data": {
            "file": tasks.name,
            "origin": tasks.origin,
            "identity": tasks.identity,
            "n_tasks": len(tasks.tasks),
            "n_inputs": tasks.n_inputs,
            "n_outputs": tasks.n_outputs,
            "task_order": experience.stream.order,
        },
        "history": life.history,
        "stats": {key: float(getattr(summary, key)) for key in ("RA", "LA", "BTI", "FWT")},
        "result_t": experience.result_t,
        "result_a": experience.result_a(),
        "examples_seen": experience.seen_at,
        "earlier": life.earlier(),
        "alignment": experience.alignment.state() if experience.alignment else None,
        "baseline": numbers(summary.baseline),
        "accuracy_matrix": [numbers(row) for row in summary.matrix],
        "notes": _plain(learner.notes()),
        "peak_memory_bytes": provenance.peak_memory(),
        "versions": {name: first[name] for name in ("python", "torch", "numpy", "quadprog") if name in first},
        "code": first["code"],
        "kernels": first["kernels"],
        "commit": first["commit"],
        "dirty": first["dirty"],
        "host": {"name": first["host"], "cpu": first["cpu"], "cores": first["cores"]},
        "resumed": later,
        **journal.times(experience),
    }


def _plain(notes):
    """What a learner says, as JSON knows it: a note that is no plain value becomes a text, and costs no result."""
    return {
        str(name): value
        if isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value))
        else str(value)
        for name, value in notes.items()
    }
