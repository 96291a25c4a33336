"""One run of one learner. From Python: `experiment(...)` is a run, `load_results(folder)` what runs have left."""

import importlib

FORMAT = "mer-result/1"  # of the .json of a finished run
_HOMES = {"experiment": "run.from_python", "load_results": "run.results"}
__all__ = [*_HOMES, "FORMAT"]


def __getattr__(name):  # imported when asked for: who wants run.provenance alone need not wait for torch
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
