"""The compiled kernels, in the variant that suits this CPU.

The same source is compiled several times, for several generations of CPU, since a cluster's nodes may share a checkout.
`variant` names the one in use; the environment variable MER_KERNELS (baseline, avx2 or avx512) forces one.
`identity` is the hash of sources and compiler flags that it was built of.
Importing this raises ImportError where nothing is built, or only of other sources, or where the forced variant isn't
built or can't run here.
"""

import os

from model.engine import _build

__all__ = ["MLP", "Examples", "TestImages", "identity", "load", "runnable", "variant"]


def load(name):
    """The kernels' module compiled for `name`; ImportError if it isn't built, or of other sources."""
    return _build.load(f"_mlp_{name}")


def runnable():
    """Names of the variants that are built and that this CPU can run, fastest first. Each is loaded in its turn."""
    for name in _build.load("_draws").kernels_of_cpu():
        try:
            load(name)
        except _build.Stale:
            raise
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
        raise ImportError("none of them is built")
    return name


variant = _choose()
_kernels = load(variant)
identity = _kernels.identity
Examples, MLP, TestImages = _kernels.Examples, _kernels.MLP, _kernels.TestImages
