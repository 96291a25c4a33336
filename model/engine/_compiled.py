"""The compiled kernels, in the variant that suits this CPU.

The same source is compiled several times, for several generations of CPU, since a cluster's nodes may share a checkout.
`variant` names the one in use; the environment variable MER_KERNELS (baseline, avx2 or avx512) forces one.
Importing this raises ImportError where nothing is built, or where the forced variant isn't built or can't run here.
"""

import importlib
import os

from model.engine._draws import kernels_of_cpu

__all__ = ["MLP", "Examples", "TestImages", "load", "runnable", "variant"]


def load(name):
    """The kernels' module compiled for `name`; ImportError if it isn't built."""
    return importlib.import_module(f"model.engine._mlp_{name}")


def runnable():
    """Names of the variants that are built and that this CPU can run, fastest first. Each is loaded in its turn."""
    for name in kernels_of_cpu():
        try:
            load(name)
        except ImportError:
            continue
        yield name


def _choose():
    forced = os.environ.get("MER_KERNELS")
    if forced and forced not in runnable():
        raise ImportError(
            f"MER_KERNELS={forced} is not among the kernels that are built and run here: {', '.join(runnable())}"
        )
    name = forced or next(runnable(), None)
    if name is None:
        raise ImportError("no compiled kernels: build them with `python setup.py build_ext --inplace`")
    return name


variant = _choose()
_kernels = load(variant)
Examples, MLP, TestImages = _kernels.Examples, _kernels.MLP, _kernels.TestImages
