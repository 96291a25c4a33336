"""The convolutional network of the few-shot literature. (Vinyals et al., "Matching Networks", NeurIPS 2016, 4.1)

Four blocks of a 3x3 convolution of 64 filters, batch norm, ReLU and 2x2 max pooling; then a linear layer. A 28x28 image
becomes 14, 7, 3 and 1 pixels wide, with 64 features.
"""

from torch import nn

from errors import UserError
from model.flags import SHAPE, Flag, integer
from model.networks.base import as_images

N_BLOCKS = 4
width = Flag("cnn_filters", integer(1), 64, "filters of each of the cnn's layers", role=SHAPE)
flags = (width,)


def make(n_inputs, n_outputs, image_shape, args):
    shape = as_images(n_inputs, image_shape, "cnn")
    if min(shape[1:]) < 2**N_BLOCKS:
        raise UserError(f"--network cnn halves images {N_BLOCKS} times: {shape} is too small; choose another --network")
    n_filters, layers = args.cnn_filters, [nn.Unflatten(1, shape)] if image_shape is None else []
    for n_in in (shape[0], *[n_filters] * (N_BLOCKS - 1)):
        layers += [nn.Conv2d(n_in, n_filters, 3, padding=1), nn.BatchNorm2d(n_filters), nn.ReLU(), nn.MaxPool2d(2)]
    n_features = n_filters * (shape[1] // 2**N_BLOCKS) * (shape[2] // 2**N_BLOCKS)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_features, n_outputs))
