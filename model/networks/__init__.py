"""The networks: every file of this folder with a function `make` is one, under the file's name.

    make(n_inputs, n_outputs, image_shape, args)   a torch.nn.Module; args: the flags; image_shape: (channels, height,
                                                   width), or None for plain vectors
    flags   the model.flags.Flags that it declares, if any
    width   that one of them which says how wide it is, if any: independent gives each task a part of it

The module gets x as (B, *image_shape), or (B, n_inputs), and gives (B, n_outputs); a `Network` (base.py) gets
(B, n_inputs) and the task. Only the network that is asked for is imported; of the others the text is read.
"""

import argparse
from pathlib import Path

from torch import nn

import model
from errors import UserError
from model.networks.base import MASKED, Adapted, Network, NetworkFailed, masked, padded, place_of, place_outputs
from model.networks.mlp import MLP, TaskInputMLP, xavier_
from model.networks.resnet18 import IMAGE_SHAPE, ResNet18

__all__ = [
    "MASKED",
    "MLP",
    "Network",
    "NetworkFailed",
    "ResNet18",
    "TaskInputMLP",
    "masked",
    "padded",
    "place_of",
    "place_outputs",
    "xavier_",
]

AUTO = "auto"  # the one that the data ask for
BY_DATA = ("mlp", "resnet18")  # which of these it may be


def names():
    """Names of the files here that define a function `make`, unimported."""
    from model.declared import defining  # which needs model.learner, which needs this

    return defining(Path(__path__[0]), "def make")


def read_all():
    """{"networks/<name>": model.declared.Declared} of all networks: what their files say of themselves, unimported."""
    from model.declared import Declared

    return {f"networks/{name}": Declared(f"networks/{name}", "flags") for name in names()}


def load(name):
    """The module model.networks.<name>, the only file of a network that is run for it.

    Raises UserError for a name that is no network, and for a file that cannot be imported or whose make is none.
    """
    from model import foreign

    known = names()
    if name not in known:
        raise UserError(
            f"unknown network {name!r}{model.meant(name, known)}; choose from {', '.join(known)}, or add "
            f"model/networks/{name}.py with a function make(n_inputs, n_outputs, image_shape, args)"
        )
    return foreign.import_network(name)


def flags_of(name):
    """The flags that a network's file declares; of AUTO, those that may be read."""
    if name == AUTO:
        return tuple(flag for each in BY_DATA for flag in flags_of(each))
    return tuple(getattr(load(name), "flags", ()))


def chosen(args):
    """The name of the network that `args` (network, image_shape) ask for."""
    name = getattr(args, "network", AUTO)
    if name != AUTO:
        return name
    return "resnet18" if args.image_shape == IMAGE_SHAPE else "mlp"


def for_data(args, n_inputs, n_outputs, share=1):
    """A network as the flags and the data ask for: a Network, in training.

    `share` > 1 gives one of that many networks which together are as wide as one, where its file says what is wide.
    Raises UserError where a share would have no unit left, and where the file makes nothing that can be trained.
    """
    from model import foreign

    name = chosen(args)
    file = load(name)
    flags = {flag.name: flag.default for flag in getattr(file, "flags", ())} | vars(args)
    width = getattr(file, "width", None)
    if share > 1 and width is not None:
        flags[width.name] = _part(flags[width.name], width, share)
    with foreign.made_by(f"model/networks/{name}.py", file):
        module = file.make(n_inputs, n_outputs, args.image_shape, argparse.Namespace(**flags))
    if isinstance(module, Network):
        return module
    if not isinstance(module, nn.Module):
        raise UserError(
            f"model/networks/{name}.py: its make returned a {type(module).__name__}, and must return a torch.nn.Module"
        )
    module = Adapted(module, f"model/networks/{name}.py", tuple(args.image_shape or (n_inputs,)))
    module.check(n_outputs)
    for weight in module.parameters():
        if weight.requires_grad and hasattr(weight, "given_out"):
            raise UserError(
                f"model/networks/{name}.py: its make returned weights that it has returned before; let it make "
                "new ones each time, as a learner may have several networks"
            )
        weight.given_out = True
    return module


def _part(units, width, share):
    if units < share:
        raise UserError(
            f"{share} tasks share {units} {width.help} (--{width.name}), which leaves none for each: use "
            f"--{width.name} {share} or more, or use at most {units} tasks"
        )
    return units // share


def describe(name, asked, n_inputs, image_shape):
    """Why it is this network, a phrase for the user; where the data may be made for another, how to ask for that."""
    shape = "x".join(map(str, image_shape)) if image_shape else f"{n_inputs} inputs"
    what = f"images of {shape}" if image_shape else f"vectors of {shape}"
    why = f"asked for, on {what}" if asked else f"the default for {what}"
    if name != "mlp" or asked:
        return why
    if image_shape:
        return f"{why}; --network cnn is made for images"
    side = round((n_inputs / 3) ** 0.5)
    if side >= 16 and 3 * side * side == n_inputs:
        others = "resnet18 or cnn" if side == 32 else "cnn"
        return f"{why}; if they are images of 3x{side}x{side}, say --network {others}"
    return why
