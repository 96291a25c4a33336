"""The networks and their initial weights, as the original builds them.

    B examples, D inputs, H hidden units, C outputs

Every network is called as network(x, t): x (B, D), t the task of all B examples. Weights come from torch's random
stream in the order of construction. What an engine should know of a class of networks:

    loss(outputs, labels)   the mean loss that belongs to its outputs
    reads_task              whether t matters
    log_probabilities       whether the outputs are log-probabilities
    most_rows               how many examples to predict at once, None: any number
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from errors import UserError

MOST_WEIGHTS = 1 << 28  # of one network: 1 GiB
MASKED = -10e10  # the output of a class that is out of the game


def xavier_(module):
    """A linear layer's weights ~ U(-a, a), a = sqrt(3) sqrt(2 / (fan_in + fan_out)), biases 0. (Glorot 2010)"""
    if isinstance(module, nn.Linear):
        fan_out, fan_in = module.weight.shape
        bound = math.sqrt(3.0) * math.sqrt(2.0 / (fan_in + fan_out))
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)


class MLP(nn.Module):
    """Linear layers with ReLU between them: sizes = [D, H, ..., H, C].

    All layers are built with PyTorch's own initialisation, then drawn again (both move the random stream).
    """

    loss = staticmethod(F.cross_entropy)
    reads_task = False
    log_probabilities = False
    most_rows = None

    def __init__(self, sizes):
        super().__init__()
        _check_size(zip(sizes, sizes[1:], strict=False))
        layers = []
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])  # none after the last
        self.net.apply(xavier_)

    def heads_and_layers(self):
        """The layers that read the inputs (one), and the further ones."""
        linear = [layer for layer in self.net if isinstance(layer, nn.Linear)]
        return linear[:1], linear[1:]

    def forward(self, x, t=None):
        return self.net(x)  # (B, D) -> (B, C)


class TaskInputMLP(nn.Module):
    """One input layer per task, shared further layers; log-probabilities. With n_layers <= 1: a linear layer per task.

    PyTorch's default weights; biases zeroed of the input layers, the first shared hidden layer and the output.
    """

    loss = staticmethod(F.nll_loss)
    reads_task = True
    log_probabilities = True
    most_rows = None

    def __init__(self, n_inputs, n_hiddens, n_layers, n_outputs, n_tasks):
        super().__init__()
        width = n_hiddens if n_layers > 1 else n_outputs
        _check_size([(n_inputs, width)] * n_tasks + [(width, width)] * (n_layers - 1) + [(width, n_outputs)])
        self.i_layer = nn.ModuleList(nn.Linear(n_inputs, width) for _ in range(n_tasks))
        self.h_layer = nn.ModuleList()
        self.o_layer = nn.ModuleList()
        if n_layers > 1:
            self.h_layer.append(nn.ModuleList(nn.Linear(width, width) for _ in range(n_layers - 1)))
            self.o_layer.append(nn.Linear(width, n_outputs))
        heads, layers = self.heads_and_layers()
        for layer in [*heads, *layers[:1], *layers[-1:]]:
            nn.init.zeros_(layer.bias)

    def heads_and_layers(self):
        """The layers that read the inputs, one per task, and the further ones, shared, the output last."""
        return list(self.i_layer), [*(layer for group in self.h_layer for layer in group), *self.o_layer]

    def forward(self, x, t):
        heads, layers = self.heads_and_layers()
        h = heads[t](x)  # (B, D) -> (B, H)
        for layer in layers:
            h = layer(F.relu(h))
        return F.log_softmax(h, dim=1)  # (B, C)


def _check_size(shapes):
    """Raises UserError where linear layers of these (inputs, outputs) have too many weights."""
    n_weights = sum((fan_in + 1) * fan_out for fan_in, fan_out in shapes)
    if n_weights > MOST_WEIGHTS:
        raise UserError(f"a network of {n_weights:,} weights; {MOST_WEIGHTS:,} are the most: use smaller --n_hiddens")


def conv3x3(n_in, n_out, stride):
    return nn.Conv2d(n_in, n_out, kernel_size=3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al. 2016)."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(n_in, n_out, stride), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = conv3x3(n_out, n_out, 1), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 of reduced width for 3x32x32 images (GEM, section 5): stages of nf * (1, 2, 4, 8) filters."""

    loss = staticmethod(F.cross_entropy)
    reads_task = False
    most_rows = 256  # predicted at once: activations are 80 kB an image and layer

    def __init__(self, n_classes, nf=20):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, nf, 1), nn.BatchNorm2d(nf)
        width, stages = nf, []
        for stage, stride in enumerate((1, 2, 2, 2)):
            n_out = nf * 2**stage
            stages.append(nn.Sequential(BasicBlock(width, n_out, stride), BasicBlock(n_out, n_out, 1)))
            width = n_out
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(width, n_classes)

    def forward(self, x, t=None):
        out = F.relu(self.bn1(self.conv1(x.view(-1, 3, 32, 32))))  # (B, nf, 32, 32)
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))  # (B, 8 nf, 4, 4)
        return self.linear(F.avg_pool2d(out, 4).flatten(1))  # (B, C)


def for_data(args, n_inputs, n_outputs, share=1):
    """The network that the data asks for: an MLP for vectors, the reduced ResNet-18 for 3x32x32 images.

    `share` > 1 gives one of that many networks which together are as wide as one.
    Raises UserError where a share would have no unit left.
    """
    width, unit = (20, "filters") if args.image_shape else (args.n_hiddens, "hidden units (--n_hiddens)")
    if width // share < 1:
        remedy = "use at most 20 tasks" if args.image_shape else f"use --n_hiddens {share} or more, or fewer tasks"
        raise UserError(f"{share} tasks share {width} {unit}, which leaves none for each: {remedy}")
    if args.image_shape:
        return ResNet18(n_outputs, width // share)
    return MLP([n_inputs] + [width // share] * args.n_layers + [n_outputs])


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
