"""What a run leaves behind: `<name>.txt`, `<name>.pt` (both as the original writes them) and `<name>.json`."""

import datetime
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import uuid
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import torch

import metrics
from atomic import writing
from errors import UserError

FORMAT = "mer-result/1"


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def new_name(args):
    """<model>_<data_file>_<time>_<uuid4>, as the original names its files."""
    stamp = datetime.datetime.now().strftime("%Y_%m_%d_%H_%M_%S")
    return f"{args.model}_{args.data_file}_{stamp}_{uuid.uuid4().hex}"


def check_writable(folder):
    """Makes the folder and writes a file there; raises UserError now rather than lose a run later."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise UserError(
            f"--save_path {folder} cannot be written: {error.strerror}; choose a folder that can"
        ) from error


def one_liner(args, summary):
    """The original's line, less the file's name and the time: the flags and RA, BTI, FWT."""
    return f"{vars(args)} # {' '.join(f'{value:.3f}' for value in summary.stats)}"


def save(folder, name, experience, args, tasks, about):
    """Writes the three files of a run, each whole or not at all; returns (path without ending, one_liner).

    about   further entries of the .json (started, finished, seconds; status and failure of a run that diverged)
    The .json comes last: where it is, the others are. Where the folder fails, the files go to the temporary folder, and
    OSError is raised that says so.
    """
    try:
        return _save(Path(folder), name, experience, args, tasks, about)
    except OSError as error:
        rescue = Path(tempfile.mkdtemp(prefix="mer_rescued_"))
        path, _ = _save(rescue, name, experience, args, tasks, about)
        raise OSError(
            f"cannot write to {folder} ({error.strerror or error}); the results are saved as {path}.*"
        ) from error


def _save(folder, name, experience, args, tasks, about):
    result_t, result_a = experience.result_t, experience.result_a()
    summary = metrics.summarise(result_t, result_a)
    path, line = folder / name, one_liner(args, summary)
    weights = {key: value.cpu() for key, value in experience.learner.state_dict().items()}
    with ExitStack() as files:  # they appear together, the .json last
        described = files.enter_context(writing(f"{path}.json", "w"))
        saved = files.enter_context(writing(f"{path}.pt"))
        text = files.enter_context(writing(f"{path}.txt", "w"))
        text.write(summary.as_text())
        torch.save((torch.tensor(result_t).float(), torch.tensor(result_a), weights, summary.stats, line, args), saved)
        json.dump(_describe(name, experience, args, tasks, summary) | about, described, indent=1, allow_nan=False)
    return path, line


def _describe(name, experience, args, tasks, summary):
    def numbers(tensor):
        return [round(value, 6) for value in tensor.tolist()]

    learner = experience.learner
    return {
        "format": FORMAT,
        "name": name,
        "status": "complete",
        "model": args.model,
        "args": vars(args),
        "seed": args.seed,
        "engine": args.engine,
        "draws": args.draws,
        "threads": args.threads,
        "data": {
            "file": tasks.name,
            "origin": tasks.origin,
            "identity": tasks.identity,
            "n_tasks": len(tasks.tasks),
            "n_inputs": tasks.n_inputs,
            "n_outputs": tasks.n_outputs,
            "task_order": experience.stream.order,
        },
        "stats": {key: float(getattr(summary, key)) for key in ("RA", "LA", "BTI", "FWT")},
        "result_t": experience.result_t,
        "result_a": experience.result_a(),
        "examples_seen": experience.seen_at,
        "baseline": numbers(summary.baseline),
        "accuracy_matrix": [numbers(row) for row in summary.matrix],
        "notes": learner.notes() if hasattr(learner, "notes") else {},
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
        "code": code_identity(),
        **commit(),
        "host": {"name": platform.node(), "cpu": cpu_name(), "cores": os.cpu_count()},
    }


def code_identity():
    """A hash of the sources that a run's numbers depend on, so that results of another version are told apart."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for pattern in ("main.py", "settings.py", "metrics/*.py", "continuum/*.py", "model/**/*.py", "model/**/*.pyx"):
        for path in sorted(root.glob(pattern)):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def peak_memory():
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions():
    packages = {package: metadata.version(package) for package in ("torch", "numpy", "quadprog")}
    return {"python": platform.python_version(), **packages}


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit():
    """The git commit of the program, and whether files differ from it; None outside a checkout."""

    def git(*words):
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
