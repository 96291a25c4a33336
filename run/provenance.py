"""Where a result comes from: which program, packages and machine computed it, and when."""

import datetime
import hashlib
import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import model

ROOT = Path(__file__).resolve().parent.parent


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@cache
def code_identity(learner):
    """A hash of the sources that the numbers of a learner's run depend on, so that another version's are told apart.

    Other learners' files do not count. As the files were at the first call: the program that runs is the one loaded.
    """
    root, digest = ROOT, hashlib.sha256()
    others = {root / "model" / f"{name}.py" for name in model.candidates() if name != learner}
    of_model = ("model/**/*.py", "model/**/*.pyx", "model/**/*.pxi")
    patterns = ("main.py", "run/*.py", "metrics/*.py", "tasks/*.py", *of_model)
    for pattern in patterns:
        for path in sorted(set(root.glob(pattern)) - others):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def maker(learner):
    """The program, the packages and the processor: what may move the last bits of the numbers of a learner's run."""
    return {"code": code_identity(learner), **versions(), "cpu": cpu_name()}


def peak_memory():
    """Largest resident size of this process so far, in bytes."""
    with suppress(OSError):  # Linux: the other figure begins with what the process that started this one held
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def versions():
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "quadprog"):
        with suppress(metadata.PackageNotFoundError):  # only gem needs quadprog
            found[package] = metadata.version(package)
    return found


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit():
    """The git commit of the program, and whether files differ from it; None outside a checkout."""

    def git(*words):
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
