"""The boundary around learners that are not ours: files written for GEM or for the original, dropped into this folder.

Such a learner is any torch.nn.Module with `forward(x, t)` and `observe(x, t, y)`; nothing else is taken for granted. It
may fail at any moment, in its own words; what it offers beyond that may be of any kind and costs no result.
"""

import importlib
import inspect
import os
import random
import re
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from errors import UserError, one_line, text_of
from model import networks
from model.attributes import Walk, article, restore
from model.declared import pip_name
from model.flags import Flag
from model.learner import Learner

METHODS = ("observe", "forward")
MOST_NAMED = 3  # attributes in a message
NO_FLAG = r"'Namespace' object has no attribute '(\w+)'"


class LearnerFailed(Exception):
    """A learner's own code failed. The message names its file, what it raised, where, and what may help."""


def failure(learner, method, error):
    """The LearnerFailed that says what a method of a model.learner.Learner raised."""
    if isinstance(error, LearnerFailed | networks.NetworkFailed):
        return error
    file = sys.modules[type(learner).__module__]
    name = file.__name__.replace(".", "/") + ".py"
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = _place(error, file, name) or f" ({os.path.basename(last.filename)}, line {last.lineno}: {last.line})"
    return LearnerFailed(f"{name}: its {method} raised {type(error).__name__}: {one_line(error)}{place}")


def import_net(name):
    """The class `Net` of model/<name>.py. Raises UserError where that cannot be had."""
    net = _imported(f"model.{name}", "Net", "class Net", "--model").Net
    _check(name, net)
    return net


def import_network(name):
    """The module model.networks.<name>, with its function `make`. Raises UserError where that cannot be had."""
    file = _imported(f"model.networks.{name}", "make", "function make", "--network")
    place = f"model/networks/{name}.py"
    if not callable(file.make):
        raise UserError(f"{place}: its make is {article(file.make)}; make it a function, or choose another --network")
    _check_flags(place, "its flags", getattr(file, "flags", ()))
    width = getattr(file, "width", None)
    if width is not None and width not in getattr(file, "flags", ()):
        raise UserError(f"{place}: its width is {width!r:.60}, and must be one of its flags; mend that file")
    return file


def _imported(module, attribute, what, flag):
    """A module of ours that must have an attribute. Raises UserError."""
    name, home = module.replace(".", "/") + ".py", os.getcwd()
    try:
        file = importlib.import_module(module)
        getattr(file, attribute)
        return file
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"{name} cannot be imported: {_missing(error)}, or choose another {flag}") from error
    except BaseException as error:  # a file may do anything: SystemExit is what its own parse_args() raises
        why = f"{type(error).__name__}: {one_line(error)}"
        if isinstance(error, ImportError | SyntaxError):
            why = one_line(error)
        elif isinstance(error, SystemExit):
            why = "it ends the program (does it parse the command line, or run a script, when it is imported?)"
        elif isinstance(error, AttributeError) and getattr(error, "obj", None) is sys.modules.get(module):
            why = f"it has no {what} when it has run"
        where = _place(error, sys.modules.get(module), name)
        raise UserError(f"{name} cannot be imported: {why}{where}; mend that file or choose another {flag}") from error
    finally:
        os.chdir(home)  # what the user's paths start from


@contextmanager
def made_by(name, file):
    """Within it, what a network's `make` raises becomes a UserError that names its file."""
    try:
        yield
    except (KeyboardInterrupt, UserError):
        raise
    except BaseException as error:
        cure = ""
        if flag := re.search(NO_FLAG, text_of(error)):
            cure = f"; declare {flag[1]} in the file's `flags`"
        elif isinstance(error, TypeError) and "positional argument" in text_of(error):
            cure = "; it is called as make(n_inputs, n_outputs, image_shape, args)"
        elif "NoneType" in text_of(error):
            cure = "; its image_shape is None where the data have none: pack them with --image_shape C H W"
        raise UserError(
            f"{name}: its make raised {type(error).__name__}: {one_line(error)}{_place(error, file, name)}{cure}"
        ) from error


def _check(name, net):
    """Raises UserError where a class Net is no learner."""
    if not isinstance(net, type) or not issubclass(net, Learner | torch.nn.Module):
        raise UserError(
            f"model/{name}.py: its Net is neither a model.learner.Learner nor a torch.nn.Module; make it one, or "
            "choose another --model"
        )
    if not issubclass(net, Learner):
        for method in METHODS:
            if getattr(net, method, None) in (None, getattr(torch.nn.Module, method, None)):
                order = "(x, t, y)" if method == "observe" else "(x, t)"
                raise UserError(f"model/{name}.py: its Net has no {method}{order}; write it, or choose another --model")
    _check_flags(f"model/{name}.py", "the flags of its Net", getattr(net, "flags", ()))


def _check_flags(name, what, flags):
    if not isinstance(flags, tuple | list) or not all(isinstance(flag, Flag) for flag in flags):
        raise UserError(
            f"{name}: {what} are {flags!r:.60}, and must be model.flags.Flag objects, as in "
            "flags = (Flag('temperature', number(above=0), 2.0, 'softness of the targets'),)"
        )


def build(net, n_inputs, n_outputs, n_tasks, args):
    """A learner of a class that `load` gives: one of ours as it is, any other behind the boundary.

    Raises UserError where it cannot be built.
    """
    if issubclass(net, Learner):
        return net(n_inputs, n_outputs, n_tasks, args)
    return Foreign(net, n_inputs, n_outputs, n_tasks, args)


class Foreign:
    """A torch module behind a Learner's interface: what it raises becomes LearnerFailed, what it keeps a state.

    module    the learner as its file made it
    device    where its weights are, and its inputs come to
    """

    def __init__(self, net, n_inputs, n_outputs, n_tasks, args):
        self.net_class, self.args = net, args
        self.n_inputs, self.n_outputs, self.n_tasks = n_inputs, n_outputs, n_tasks
        self.first_free_slot = args.minibatch_slots
        self.file = sys.modules[net.__module__]
        self.name = f"model/{net.__module__.rpartition('.')[2]}.py"
        self.left_out = []  # of its state_dict, in the results
        try:
            self.module = self._new(n_tasks)
        except LearnerFailed as error:
            raise UserError(str(error)) from error
        self.device = next((weight.device for weight in self._weights()), torch.device("cpu"))
        self._born = self._walk()

    def _new(self, n_tasks):
        with self._guarded("__init__"):
            module = self.net_class(self.n_inputs, self.n_outputs, n_tasks, self.args)
            if self.args.cuda:  # its own `cuda` may be a flag
                _method(module, "to")(module, "cuda")
        return module

    def _weights(self):
        return torch.nn.Module.parameters(self.module)

    # the interface of a learner

    def observe(self, x, t, y):
        with self._guarded("observe"):
            self.module.observe(x.to(self.device), t, y.to(self.device))

    def forward(self, x, t):
        """(B, C) outputs, of the module in evaluation mode; MASKED for classes that are not the task's."""
        with self._guarded("forward"):
            _method(self.module, "train")(self.module, False)
            outputs = self.module(x.to(self.device), t)
            _method(self.module, "train")(self.module, True)
        if not isinstance(outputs, torch.Tensor):
            raise LearnerFailed(
                f"{self.name}: its forward returned {article(outputs)}, and must return the (B, C) outputs alone"
            )
        if outputs.ndim != 2 or len(outputs) != len(x) or not outputs.numel() or not outputs.is_floating_point():
            raise LearnerFailed(
                f"{self.name}: its forward returned a {outputs.dtype} tensor of {tuple(outputs.shape)} for {len(x)} "
                f"examples, and must return floats of ({len(x)}, {self.n_outputs})"
            )
        ranges = self.args.class_ranges
        if ranges is None or outputs.shape[1] != self.n_outputs:
            return outputs
        return networks.masked(outputs, [t] * len(outputs), ranges)

    def __call__(self, x, t):
        return self.forward(x, t)

    def take_loss(self):
        """0: what it computes of its losses is its own affair."""
        return 0.0

    def is_finite(self):
        """Whether the weights that it learns are; a mask of -inf in a buffer is none of them."""
        return all(bool(torch.isfinite(weight).all()) for weight in self._weights() if weight.requires_grad)

    def state_dict(self):
        """Its state_dict as far as that is plain values and tensors, on the CPU; what is left out is in the notes."""
        self.left_out = []
        try:
            found = self._plain(_method(self.module, "state_dict")(self.module), "state_dict")
            return found if isinstance(found, dict) else {"state_dict": found}
        except Exception as error:
            self.left_out = [f"state_dict: {type(error).__name__}: {one_line(error)}"]
            return {}

    def _plain(self, value, path):
        if isinstance(value, torch.Tensor):
            return value.detach().cpu()
        if isinstance(value, dict):
            pairs = ((key, self._plain(item, f"{path}[{key!r:.40}]")) for key, item in value.items())
            return {key: item for key, item in pairs if type(key) in (str, int)}
        if isinstance(value, list | tuple):
            return [self._plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if type(value) in (bool, int, float, str, type(None)):
            return value
        self.left_out.append(f"{path}: {article(value)}")
        return None

    def notes(self):
        return {"left out of the weights": "; ".join(self.left_out)} if self.left_out else {}

    # what it keeps

    def _walk(self):
        born = getattr(self, "_born", None)
        if isinstance(born, _NoWalk):
            return born
        try:
            return Walk(self.module, self.file, self.args, born, self.device)
        except Exception as error:  # an attribute may be of any kind
            return _NoWalk({"": f"cannot be looked at ({type(error).__name__}: {one_line(error)})"})

    def why_no_state(self):
        """None, or what of it can be in no checkpoint, a phrase."""
        return self._why_not(self._walk())

    def _why_not(self, walk):
        if not walk.problems:
            return None
        named = [f"attribute '{name}' {what}" if name else what for name, what in walk.problems.items()]
        more = f", and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        return f"{self.name} cannot be resumed exactly: {', '.join(named[:MOST_NAMED])}{more}"

    def state(self):
        """All that `load_state` needs to go on exactly. Raises NoState where something cannot be kept."""
        walk = self._walk()
        if walk.problems:
            raise NoState(self._why_not(walk))
        return walk.content()

    def load_state(self, state):
        """Goes on where `state` was taken. Raises one of many errors where it is no state of such a learner."""
        restore(state, self.module, self.file, self.args, self.device)

    def go_on_with_more_tasks(self, state, n_known):
        """Takes over the state of a learner that was built for its first n_known tasks.

        Raises ValueError with the reason where what it keeps depends on the number of tasks in a way not understood.
        """
        with _streams_untouched():
            earlier = self._new(n_known)
        born = Walk(earlier, self.file, self.args, device=self.device)
        restore(state, self.module, self.file, self.args, self.device, born)

    def remarks(self):
        """Lines that the user should read before it learns."""
        remarks = []
        order = self._order()
        if order:
            remarks.append(f"note: {self.name}: {order}")
        if self.args.class_ranges:
            remarks.append(
                f"note: {self.name} decides which classes compete in training (args.class_ranges: each task's)"
            )
        why = self.why_no_state()
        if why:
            remarks.append(f"note: {why}; there will be no checkpoint of it, and no .state to start from")
        return remarks

    # what it raises

    @contextmanager
    def _guarded(self, method):
        try:
            yield
        except KeyboardInterrupt:
            raise
        except UserError as error:  # of our networks, which it may use
            raise LearnerFailed(f"{self.name}: {error}") from error
        except BaseException as error:
            what = f"{type(error).__name__}: {one_line(error)}"
            cure = self._cure(method, error)
            place = _place(error, self.file, self.name)
            raise LearnerFailed(f"{self.name}: its {method} raised {what}{place}{cure and '; '}{cure}") from error

    def _cure(self, method, error):
        """What may help, or nothing."""
        text = text_of(error)
        flag = re.search(NO_FLAG, text)
        if flag:
            return f"give that flag with --learner_flag {flag[1]}=VALUE, or declare it in the file's `flags`"
        if isinstance(error, ModuleNotFoundError):
            return _missing(error)
        if method == "observe" and self._order():
            return self._order()
        if "positive definite" in text or "constraints are inconsistent" in text:
            return "its quadratic program has no solution: add a small multiple of the identity to its matrix"
        if method == "__init__" and isinstance(error, TypeError) and "argument" in text:
            return "Net is called as Net(n_inputs, n_outputs, n_tasks, args)"
        if isinstance(error, TypeError) and "positional argument" in text:
            return "it is called as observe(x, t, y)" if method == "observe" else "it is called as forward(x, t)"
        if "same device" in text:
            return f"its inputs are on {self.device}, where its weights are"
        return ""

    def _order(self):
        """A hint where its observe takes the label before the task, as La-MAML's does; or nothing."""
        try:
            names = list(inspect.signature(self.net_class.observe).parameters)
        except (TypeError, ValueError):
            return ""
        if names[2:4] != ["y", "t"]:
            return ""
        return "its observe takes (x, y, t), La-MAML's order, and is called as observe(x, t, y): swap its y and t"


class NoState(ValueError):
    """A learner's state cannot be kept. The message says why."""


@dataclass
class _NoWalk:
    problems: dict


def _method(module, name):
    """A method of a module's class: an attribute of that name may hide it."""
    method = getattr(type(module), name, None)
    return method if callable(method) else getattr(torch.nn.Module, name)


@contextmanager
def _streams_untouched():
    """Within it, draws from the global random streams leave no trace."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _missing(error):
    """What to do about a module that is not there."""
    if (error.name or "").startswith("model."):
        return f"it needs {error.name.replace('.', '/')}.py, which is not there: put it there"
    return f"{one_line(error)}: install that package (pip install {pip_name(error.name or '')})"


def _place(error, file, name):
    """Where in a file an exception came from, or nothing."""
    path = getattr(file, "__file__", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if path and frame.filename == path]
    frames = frames or [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.basename(frame.filename) == os.path.basename(f"{name}.py".replace(".py.py", ".py"))
    ]
    return f" (line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
