"""What an engine should know of a network, and the boundary around networks that are not ours."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from errors import UserError, one_line, text_of

MOST_WEIGHTS = 1 << 28  # of one network: 1 GiB
MASKED = -10e10  # the output of a class that is out of the game


class Network(nn.Module):
    """A network that is called as network(x, t): x (B, D), t the task of all B examples.

    loss(outputs, labels)   the mean loss that belongs to its outputs
    reads_task              whether t matters
    log_probabilities       whether the outputs are log-probabilities
    most_rows               how many examples to predict at once, None: any number
    """

    loss = staticmethod(F.cross_entropy)
    reads_task = False
    log_probabilities = False
    most_rows = None


class NetworkFailed(Exception):
    """A network's own code failed while it learned. The message names its file, what it raised, and what may help."""


class Adapted(Network):
    """Any torch module as a Network: its inputs in the shape that the data have, its weights under its own names.

    own     the module;  file: where it comes from, for messages
    shape   of one example
    """

    most_rows = 256  # predicted at once: activations of images are large

    def __init__(self, own, file, shape):
        super().__init__()
        self.own, self.file, self.shape = own, file, shape

    def forward(self, x, t=None):
        try:
            return self.own(x.view(-1, *self.shape).clone())  # which it may change: x may be a memory
        except Exception as error:
            raise NetworkFailed(f"{self.file}: its forward raised {_said(error)}{_cure(error)}") from error

    def state_dict(self, *args, **kwargs):
        return self.own.state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        return self.own.load_state_dict(*args, **kwargs)

    def check(self, n_outputs):
        """Tries it on two examples. Raises UserError where it is nothing that can be trained."""
        self.eval()
        x = torch.zeros(2, math.prod(self.shape))
        with torch.no_grad():
            outputs = self._tried(x)  # here a lazy layer takes its shape, and its weights from the random stream
        if not isinstance(outputs, torch.Tensor) or outputs.shape != (2, n_outputs) or outputs.dtype != torch.float32:
            found = f"{outputs.dtype} {tuple(outputs.shape)}" if isinstance(outputs, torch.Tensor) else type(outputs)
            raise UserError(
                f"{self.file}: for 2 examples of {self.shape} its network gives {found}, and must give float32 "
                f"(2, {n_outputs}): one output for each class"
            )
        weights = [p for p in self.parameters() if p.requires_grad]
        if not weights:
            raise UserError(f"{self.file}: its network has no weight to learn; give it some that require gradients")
        check_size(sum(p.numel() for p in weights), "a smaller one")
        before = self.state_dict()
        odd = [name for name, value in before.items() if not isinstance(value, torch.Tensor)]
        if odd:
            raise UserError(f"{self.file}: {odd[0]} in its state_dict is no tensor; keep plain tensors there")
        before = {name: value.clone() for name, value in before.items()}
        with torch.random.fork_rng(devices=()):
            self.train()
            outputs = self._tried(x)
            try:
                torch.autograd.grad(outputs.sum(), weights, allow_unused=True)
            except RuntimeError as error:
                raise UserError(f"{self.file}: its network has no gradient: {_said(error)}{_cure(error)}") from error
        try:
            self.load_state_dict(before)  # running statistics have seen the zeros
        except Exception as error:
            remedy = "keep in its state_dict what its load_state_dict takes"
            raise UserError(f"{self.file}: its state_dict cannot be loaded: {_said(error)}; {remedy}") from error

    def _tried(self, x):
        try:
            return self(x)
        except NetworkFailed as error:
            raise UserError(f"{error}; its inputs are float32 (B, {', '.join(map(str, self.shape))})") from error


def _said(error):
    return f"{type(error).__name__}: {one_line(error)}"


def _cure(error):
    """What may help, or nothing."""
    if "more than 1 value per channel" in text_of(error):
        return (
            "; batch norm over a single example has nothing to norm by: give a --batch_size of 2 or more that leaves "
            "no single one at the end of a task, with a learner that takes a minibatch in one step (online, "
            "mer_minibatch), or use a norm within examples (GroupNorm)"
        )
    return ""


def check_size(n_weights, remedy):
    """Raises UserError where a network has too many weights."""
    if n_weights > MOST_WEIGHTS:
        raise UserError(f"a network of {n_weights:,} weights; {MOST_WEIGHTS:,} are the most: use {remedy}")


def as_images(n_inputs, image_shape, file):
    """(channels, height, width) of inputs: what the data say, or else of a square, grey or in three colours.

    Raises UserError where the inputs can be no such image.
    """
    if image_shape is not None:
        return image_shape
    for channels in (1, 3):
        side = math.isqrt(n_inputs // channels)
        if channels * side * side == n_inputs:
            return (channels, side, side)
    raise UserError(
        f"--network {file} takes images, and {n_inputs} inputs are no square of 1 or 3 channels: give the data an "
        "image_shape, or choose another --network"
    )


def place_outputs(module, start, n_outputs):
    """Makes a network of some classes answer for all n_outputs: its own from column `start` on, MASKED elsewhere."""

    module.register_forward_hook(lambda module, inputs, outputs: padded(outputs, start, n_outputs))
    module.place = start, n_outputs
    return module


def place_of(module):
    """None, or the (start, n_outputs) of `place_outputs`."""
    return getattr(module, "place", None)


def padded(outputs, start, n_outputs):
    """Outputs (B, some) as columns of (B, n_outputs), from `start` on; MASKED elsewhere."""
    return F.pad(outputs, (start, n_outputs - start - outputs.shape[1]), value=MASKED)


def masked(outputs, tasks, class_ranges):
    """Outputs (B, C) with those outside of each example's task MASKED. class_ranges: (start, stop) of each task."""
    classes = torch.arange(outputs.shape[1], device=outputs.device)
    ranges = torch.tensor([class_ranges[t] for t in tasks], device=outputs.device)
    outside = (classes < ranges[:, :1]) | (classes >= ranges[:, 1:])
    return outputs.masked_fill(outside, MASKED)
