"""What is learned: task files, the variants of MNIST, and `save`, which makes a task file of anybody's arrays."""

import importlib

__all__ = ["save"]


def __getattr__(name):  # imported when asked for: who wants tasks.mnist alone need not wait for torch
    if name == "save":
        return importlib.import_module("tasks.pack").save
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
