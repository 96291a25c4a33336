"""Finds the learners: every file of this folder with a class `Net` is one, under the file's name."""

import importlib
import pkgutil
import re
import warnings
from pathlib import Path

from errors import UserError

_HERE = Path(__file__).parent


def candidates():
    """Names of the files here that define a class `Net`, unimported."""
    names = sorted(m.name for m in pkgutil.iter_modules([str(_HERE)]) if not m.ispkg)
    return [name for name in names if re.search(r"^class Net\b", _source(name), re.MULTILINE)]


def _source(name):
    path = _HERE / f"{name}.py"
    return path.read_text(errors="replace") if path.exists() else ""


def load(name):
    """The class `Net` of model/<name>.py.

    Raises UserError for a name that is no learner, and for a file that cannot be imported.
    """
    if name not in candidates():
        raise UserError(
            f"unknown model {name!r}; choose from {', '.join(candidates())}, or add model/{name}.py with a class Net"
        )
    return _import(name)


def _import(name):
    try:
        return importlib.import_module(f"model.{name}").Net
    except (ImportError, SyntaxError, AttributeError, NameError) as error:
        raise UserError(
            f"model/{name}.py cannot be imported: {error}; mend that file or choose another --model"
        ) from error


def load_all():
    """All learners that can be imported, by name; a broken file is warned of and left out."""
    learners = {}
    for name in candidates():
        try:
            learners[name] = _import(name)
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
    return learners
