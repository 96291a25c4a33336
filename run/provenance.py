"""Where a result comes from: which program, packages and machine computed it, and when."""

import ast
import datetime
import hashlib
import os
import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


# what computes a run's numbers, besides its learner and engine: these modules and all of ours that they import
ROOTS = ("run.experience", "run.stream", "run.evaluation", "tasks.taskset", "metrics")


@cache
def code_identity(learner, engine="reference", network=None):
    """A hex sha256 of the code that the numbers of a learner's run depend on, so that other versions are told apart.

    Of the modules of ROOTS, the learner, the engine and the network, with all of the project's that they import: what
    they do, not their comments and docstrings; and of the compiled kernels as they were loaded. As the files are at the
    first call: the program that runs is the one that was loaded.
    """
    found, left = {}, [*ROOTS, f"model.{learner}", f"model.engine.{engine}", f"model.networks.{network}"]
    while left:
        name = left.pop()
        if name not in found and (code := _code(name)):
            found[name], imported = code
            left += imported
    text = "".join(f"{name}\0{found[name]}\0" for name in sorted(found))
    if compiled := kernels(engine):
        text += compiled[0]
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code(name):
    """(what a module of ours does, as text; the names that it imports), or None where it is none of ours."""
    path = ROOT.joinpath(*name.split("."))
    path = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
    if path is None:
        return None
    tree = ast.parse(path.read_bytes())
    imported = list(_imported(tree, name, path))
    return ast.unparse(_without_docstrings(tree)), imported


def _imported(tree, name, path):
    """Names of the modules that a module's source imports, and of what it imports from them, which may be modules."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0].value = ast.Constant("")
    return tree


def kernels(engine):
    """(identity, variant) of the compiled kernels that an engine computes with, as they were loaded; or None.

    The identity is a hash of the sources and compiler flags that they were built of; numbers depend on that.
    """
    if engine != "native":
        return None
    from model.engine import _compiled

    return _compiled.identity, _compiled.variant


def made_by(settings):
    """What computes a part of a run, and since when, as plain values; DECISIVE of it may move the last bits."""
    return {
        "since": now(),
        "code": code_identity(settings.model, settings.engine, settings.network),
        "kernels": " ".join(kernels(settings.engine) or ()),
        **versions(),
        "cpu": cpu_name(),
        "host": platform.node(),
        "cores": os.cpu_count(),
        **commit(),
    }


KEYS = {"code", "kernels", "cpu", "host", "cores", "commit", "dirty"}  # of what made_by returns, whatever the machine
DECISIVE = ("code", "kernels", "python", "torch", "numpy", "quadprog", "cpu")


def peak_memory():
    """Largest resident size of this process so far, in bytes; None where the system does not say."""
    with suppress(OSError):  # Linux: the other figure begins with what the process that started this one held
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:  # not on every system
        return None
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
