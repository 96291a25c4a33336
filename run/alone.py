"""A learner alone, for a loop of one's own. (model.create)"""

import numbers
from types import SimpleNamespace

import numpy as np
import torch

from disk import safe
from errors import UserError
from model import foreign
from run import settings
from run.experience import seed_everything
from run.flags import RUN_FLAGS
from run.watchers import say
from tasks.pack import array_of, checked_ranges, checked_shape, kind_of

READ = {"network", "seed", "batch_size", "cuda", "engine", "draws", "threads"}  # of a run's flags
A_RUNS = {flag.name for flag in RUN_FLAGS} - READ


def create(name, n_inputs, n_outputs, n_tasks, image_shape=None, class_ranges=None, learner_flag=(), **flags):
    """The `Alone` of a learner; see model.create. Its weights come from the global random streams, seeded anew."""
    for size, value in (("n_inputs", n_inputs), ("n_outputs", n_outputs), ("n_tasks", n_tasks)):
        if not isinstance(value, numbers.Integral) or value < 1:
            raise UserError(f"{size}={value!r}: it must be a whole number, 1 or more")
    for flag in sorted(A_RUNS & flags.keys()):
        raise UserError(f"{flag}={flags[flag]!r} belongs to a run, and a learner alone has none; leave it out")
    data = SimpleNamespace(image_shape=image_shape, class_ranges=class_ranges)
    _check_data(data, n_inputs, n_outputs, n_tasks)
    chosen, reason = settings.resolve(settings.parse(settings.typed({"model": name, **flags}, learner_flag)), data)
    seed_everything(chosen.seed)
    args = settings.learner_args(chosen, data, minibatch_slots=chosen.batch_size)
    learner = foreign.build(chosen.learner, int(n_inputs), int(n_outputs), int(n_tasks), args)
    in_vain = [f"note: {name} does not read --{flag}" for flag in chosen.read_in_vain() if flag in flags]
    for remark in filter(None, [reason, *learner.remarks(), *in_vain]):
        say(remark)
    return Alone(learner)


def _check_data(data, n_inputs, n_outputs, n_tasks):
    if data.image_shape is not None:
        data.image_shape = checked_shape(data.image_shape)
        if torch.Size(data.image_shape).numel() != n_inputs:
            raise UserError(f"image_shape={data.image_shape} has not the {n_inputs} inputs of n_inputs; correct one")
    if data.class_ranges is not None:
        data.class_ranges = checked_ranges(data.class_ranges, n_tasks) or None
        if not all(0 <= start < stop <= n_outputs for start, stop in data.class_ranges or ()):
            raise UserError(
                f"class_ranges={data.class_ranges}: give (first, last + 1) of each of the {n_tasks} tasks' classes, "
                f"within 0..{n_outputs}"
            )


class Alone:
    """A learner of model/ whose user calls it himself, and what it is given checked.

    learner   itself, which has what is not here: notes(), is_finite(), take_loss(), network_of(t), …

    x are (B, n_inputs), or (B, *image_shape), floats; y (B,) whole numbers, the labels; t a task's number. Tensors,
    arrays, lists, which stay the caller's. UserError says what does not fit.
    """

    def __init__(self, learner):
        self.learner = learner

    def __getattr__(self, name):
        if name == "learner":  # while it is unpickled or copied
            raise AttributeError(name)
        return getattr(self.learner, name)

    def observe(self, x, t, y):
        """Learns from a minibatch of task t."""
        learner, x = self.learner, self._inputs(x, t)
        y = _tensor("y", y)
        if y.shape != (len(x),) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise UserError(f"y: {kind_of(y)}; give {len(x)} whole numbers, the labels of x")
        if not 1 <= len(x) <= learner.first_free_slot:
            most = learner.first_free_slot
            raise UserError(f"{len(x)} examples at once; give 1 to {most}, or create it with batch_size={len(x) or 1}")
        first, end = learner.args.class_ranges[t] if learner.args.class_ranges else (0, learner.n_outputs)
        labels = y.tolist()
        if not first <= min(labels) <= max(labels) < end:
            raise UserError(f"labels {min(labels)} to {max(labels)}; those of task {t} are {first} to {end - 1}")
        with torch.inference_mode(False), torch.enable_grad():
            learner.observe(x, int(t), y.long())

    def forward(self, x, t):
        """(B, n_outputs) outputs for x of task t, without gradients."""
        x = self._inputs(x, t)
        with torch.no_grad():
            return self.learner.forward(x, int(t))

    __call__ = forward

    def _inputs(self, x, t):
        learner, x = self.learner, _tensor("x", x)
        shapes = [(learner.n_inputs,), learner.args.image_shape]
        if x.ndim < 2 or tuple(x.shape[1:]) not in shapes or not x.is_floating_point():
            wanted = " or ".join(str(("B", *shape)).replace("'", "") for shape in shapes if shape)
            raise UserError(f"x: {kind_of(x)}; give floats of {wanted} (pixels: divided by 255)")
        x = x.reshape(len(x), learner.n_inputs).float()
        if not torch.isfinite(x).all():
            raise UserError("x has numbers that are not finite; give finite ones")
        if not isinstance(t, numbers.Integral) or not 0 <= t < learner.n_tasks:
            raise UserError(f"task {t!r}; give a number from 0 to {learner.n_tasks - 1}")
        return x

    def state(self):
        """All that `load_state` needs to go on exactly: plain values and tensors, which torch.save takes."""
        return self.learner.state()

    def load_state(self, state):
        """Goes on where `state` was taken of such a learner; UserError where it is of another."""
        try:
            self.learner.load_state(state)
        except safe.DAMAGED as error:
            raise UserError(f"this is no state of such a learner: {safe.one_line(error)}") from error


def _tensor(letter, value):
    """A tensor of its own, of whatever holds numbers."""
    array = array_of("these examples", letter, value)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{letter}: {kind_of(array)}; give an array of numbers")
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 8  # PyTorch has no such floats
    return torch.from_numpy(np.array(array, np.float64 if wide else array.dtype.newbyteorder("="), order="C"))
