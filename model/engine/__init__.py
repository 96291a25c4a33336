"""The engines: what computes the learners' steps. `model.engine.base` says what a learner may ask of one.

reference   PyTorch autograd on CPU or CUDA; bit for bit the original
native      compiled kernels for MLPs on the CPU; the same algorithms, many times faster
"""

import random

import torch

from model import networks
from model.engine import _build
from model.engine.reference import ReferenceEngine
from model.flags import DRAWS, ENGINES
from model.memory import ShuffleDraws, UniformDraws

__all__ = ["DRAWS", "ENGINES", "create", "make_draws", "why_not_native"]


def make_draws(args):
    """The random source of the memories: `uniform`, a generator of our own; `shuffle`, the original's stream."""
    if args.draws == "uniform":
        return UniformDraws(args.seed)
    try:
        compiled = _build.load("_draws")
    except ImportError:  # no compiler: the same numbers, later
        return ShuffleDraws(random.getstate())
    return compiled.ShuffleDraws(random.getstate())


def create(args):
    """The engine that args.engine names, drawing as args.draws says. (run.settings.resolve makes both concrete)"""
    if args.engine == "native":
        from model.engine.native import NativeEngine

        return NativeEngine(make_draws(args), args.threads)
    return ReferenceEngine(make_draws(args), "cuda" if args.cuda else "cpu")


def why_not_native(args, learner_class):
    """None where the native engine can run the learner on this data, else the reason, a phrase."""
    if args.cuda:
        return "it computes on the CPU, and --cuda yes was given"
    if issubclass(learner_class, torch.nn.Module):
        return f"{learner_class.__module__} is a torch module of its own"
    if networks.chosen(args) != "mlp":
        return f"it runs MLPs, and the network{' for these images' * bool(args.image_shape)} is {networks.chosen(args)}"
    try:
        from model.engine import native  # noqa: F401
    except ImportError as error:
        return f"its compiled kernels cannot be used: {error}; build them with: {_build.BUILD}"
    return None
