"""Multi-layer perceptrons and their initial weights, as the original builds them: the paper's network.

    B examples, D inputs, H hidden units, C outputs

Weights come from torch's random stream in the order of construction.
"""

import math

from torch import nn
from torch.nn import functional as F

from model.flags import N_HIDDENS, N_LAYERS
from model.networks.base import Network, check_size

flags = (N_HIDDENS, N_LAYERS)
width = N_HIDDENS


def make(n_inputs, n_outputs, image_shape, args):
    return MLP([n_inputs] + [args.n_hiddens] * args.n_layers + [n_outputs])


def xavier_(module):
    """A linear layer's weights ~ U(-a, a), a = sqrt(3) sqrt(2 / (fan_in + fan_out)), biases 0. (Glorot 2010)"""
    if isinstance(module, nn.Linear):
        fan_out, fan_in = module.weight.shape
        bound = math.sqrt(3.0) * math.sqrt(2.0 / (fan_in + fan_out))
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)


class MLP(Network):
    """Linear layers with ReLU between them: sizes = [D, H, ..., H, C].

    All layers are built with PyTorch's own initialisation, then drawn again (both move the random stream).
    """

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


class TaskInputMLP(Network):
    """One input layer per task, shared further layers; log-probabilities. With n_layers <= 1: a linear layer per task.

    PyTorch's default weights; biases zeroed of the input layers, the first shared hidden layer and the output.
    """

    loss = staticmethod(F.nll_loss)
    reads_task = True
    log_probabilities = True

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
    check_size(sum((fan_in + 1) * fan_out for fan_in, fan_out in shapes), "smaller --n_hiddens")
